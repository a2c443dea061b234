import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import type { Socket } from "node:net";
import { after, describe, it } from "node:test";
import type { TestContext } from "node:test";
import { setImmediate, setTimeout } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { BarrierDirtyLog, Bitmap, allocateBarrier, joinDigests, zeroDetector } from "@precopy/guest";
import type { GuestMemory } from "@precopy/guest";
import { isLinuxAvailable } from "@precopy/linux";
import type { NativeThread } from "@precopy/linux";
import { HEADER_BYTES, PAGE_BYTES, PROTOCOL_VERSION, PacketKind, PageEncoding, RUN_BYTES, encodeHeader } from "@precopy/protocol";
import type { ErrorCode, MigrationParameters, PacketHeader } from "@precopy/protocol";
import { hasCodec } from "@precopy/protocol/page-codec";
import { ChannelThreads, LaneTable, PageChannel, connectPageChannel, switching } from "@precopy/transport";
import type { ChannelSocket, PumpKind, Security } from "@precopy/transport";
import { allPages, assertEqualImages, fillMixed, fillRandom, randomNumbers } from "./guest-images.js";
import { PageTarget, hangUp, serve, wholeLane, withMemories, withWire } from "./page-wire.js";
import type { WireRound } from "./page-wire.js";
import type { WriterOrder } from "./writer-thread.js";

const IMAGE_BYTES = 16 * 2 ** 20;
const IMAGE_PAGES = IMAGE_BYTES / PAGE_BYTES;
/** A stripe for each of two channels, so that there are many rounds in little time. */
const WRITTEN_BYTES = 4 * 2 ** 20;
/** More than the buffers of both ends of a loopback connection hold. */
const CLOG_BYTES = 32 * 2 ** 20;
/** How long ending a channel may take, wherever it stands. */
const END_MS = 1000;

const isAllZero = (memory: GuestMemory, first = 0, pages = memory.pages): boolean =>
  Buffer.compare(memory.view(first, pages), Buffer.alloc(pages * PAGE_BYTES)) === 0;

/** Both ends have the same digest, and count the same packets on every channel. */
function assertEqualEnds({ sent, delivered, digest }: WireRound, when: string): void {
  for (const [channel, { packets }] of sent.entries()) assert.equal(delivered[channel]?.packets, packets, `channel ${channel} ${when}`);
  assert.equal(typeof digest, "bigint");
  assert.equal(joinDigests([digest ?? 0n]), joinDigests(sent.map((one) => one.digest ?? 0n)), when);
}

type Run = readonly [first: number, pages: number];
/** A packet as a peer of ours would send it, except for what `lie` says. The checksum fits. */
export function packet(data: readonly Run[], zero: readonly Run[] = [], lie: Partial<PacketHeader> = {}, payload?: Buffer): Buffer {
  const bytes = payload ?? Buffer.alloc(data.reduce((sum, [, pages]) => sum + pages, 0) * PAGE_BYTES, 0xee);
  const head = Buffer.alloc(HEADER_BYTES + (data.length + zero.length) * RUN_BYTES);
  [...data, ...zero].forEach(([first, pages], at) => {
    head.writeUInt32LE(first, HEADER_BYTES + at * RUN_BYTES);
    head.writeUInt32LE(pages, HEADER_BYTES + at * RUN_BYTES + 4);
  });
  const honest = {
    kind: PacketKind.Pages,
    encoding: PageEncoding.Raw,
    round: 1,
    sequence: 0,
    dataRuns: data.length,
    zeroRuns: zero.length,
    lanes: 0,
  };
  encodeHeader(head, { ...honest, payloadBytes: bytes.byteLength, ...lie });
  return Buffer.concat([head, bytes]);
}

function changed(bytes: Buffer, at: number, value: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[at] = value;
  return copy;
}

/** Garbage that is the same every time. */
function noise(bytes: number, seed: number): Buffer {
  const next = randomNumbers(seed);
  return Buffer.from(Array.from({ length: bytes }, () => next() & 0xff));
}

/** What a hostile peer may send, the code it has to end with, and the pages it may have written. */
const HOSTILE: readonly (readonly [what: string, bytes: Buffer, code: ErrorCode, named: readonly Run[]])[] = [
  ["garbage", noise(100_000, 1), "ERR_NOT_A_PACKET", []],
  ["an HTTP request", Buffer.from("GET / HTTP/1.1\r\nHost: target\r\n\r\n".repeat(4)), "ERR_NOT_A_PACKET", []],
  ["another version", changed(packet([[1, 1]]), 4, PROTOCOL_VERSION + 1), "ERR_PROTOCOL_VERSION", []],
  ["a reserved bit", changed(packet([[1, 1]]), 24, 1), "ERR_NOT_A_PACKET", []],
  ["a run past the end of memory", packet([[IMAGE_PAGES, 1]]), "ERR_RUN_OUT_OF_RANGE", []],
  [
    "a run that ends past the end of memory",
    packet([
      [1, 1],
      [IMAGE_PAGES - 1, 2],
    ]),
    "ERR_RUN_OUT_OF_RANGE",
    [],
  ],
  ["a zero run far outside", packet([[1, 1]], [[0xfffffff0, 0xffffffff]]), "ERR_RUN_OUT_OF_RANGE", []],
  ["a run of another channel's stripe", packet([[512, 1]]), "ERR_RUN_OUT_OF_RANGE", []],
  ["a run over the end of its stripe", packet([[511, 2]]), "ERR_RUN_OUT_OF_RANGE", []],
  ["an empty run", packet([[1, 0]]), "ERR_RUN_OUT_OF_RANGE", []],
  ["a wrong checksum", changed(packet([[1, 1]]), 28, 0), "ERR_PACKET_CHECKSUM", []],
  ["a run table changed on the way", changed(packet([[1, 1]]), HEADER_BYTES, 2), "ERR_PACKET_CHECKSUM", []],
  ["a sequence number that is not the next", packet([[1, 1]], [], { sequence: 1 }), "ERR_PACKET_SEQUENCE", []],
  ["a payload shorter than its pages", packet([[1, 2]], [], { payloadBytes: PAGE_BYTES }), "ERR_NOT_A_PACKET", []],
  ["a payload longer than its pages", packet([[1, 2]], [], { payloadBytes: 3 * PAGE_BYTES }), "ERR_NOT_A_PACKET", []],
  ["a payload of 4 GiB", packet([[1, 2]], [], { payloadBytes: 0xffffffff }), "ERR_PAYLOAD_TOO_LARGE", []],
  [
    "more pages than a packet may carry",
    packet(
      [
        [0, 512],
        [1024, 1],
      ],
      [],
      { payloadBytes: 513 * PAGE_BYTES },
    ),
    "ERR_PAYLOAD_TOO_LARGE",
    [],
  ],
  ["a FLUSH of a lane that another channel carries", packet([], [], { kind: PacketKind.Flush, lanes: 0b10 }), "ERR_RUN_OUT_OF_RANGE", []],
  ["a FLUSH of a lane that there is not", packet([], [], { kind: PacketKind.Flush, lanes: 0b101 }), "ERR_RUN_OUT_OF_RANGE", []],
  ["lanes in a packet of pages", packet([[1, 1]], [], { lanes: 1 }), "ERR_NOT_A_PACKET", []],
  ["a FLUSH with pages", packet([[1, 1]], [], { kind: PacketKind.Flush }), "ERR_NOT_A_PACKET", []],
  [
    "a block that is none",
    packet([[1, 2]], [], { encoding: PageEncoding.Lz4 }, Buffer.concat([Buffer.from([60, 0, 0, 0]), noise(60, 2)])),
    "ERR_BLOCK_CORRUPT",
    [[1, 2]],
  ],
  [
    "a block whose length lies",
    packet([[1, 2]], [], { encoding: PageEncoding.Lz4 }, Buffer.from("ffffff7f00000000", "hex")),
    "ERR_BLOCK_CORRUPT",
    [],
  ],
  [
    "a block and bytes behind it",
    packet([[1, 1]], [], { encoding: PageEncoding.Lz4 }, Buffer.concat([Buffer.from([0, 16, 0, 0]), Buffer.alloc(PAGE_BYTES + 9, 1)])),
    "ERR_BLOCK_CORRUPT",
    [[1, 1]],
  ],
  ["half a header", packet([[1, 1]]).subarray(0, 20), "ERR_LINK_LOST", []],
  [
    "half a run table",
    packet([
      [1, 1],
      [5, 1],
    ]).subarray(0, HEADER_BYTES + 10),
    "ERR_LINK_LOST",
    [],
  ],
  ["half a page", packet([[1, 4]]).subarray(0, HEADER_BYTES + RUN_BYTES + 6000), "ERR_LINK_LOST", [[1, 4]]],
  ["a good packet and then garbage", Buffer.concat([packet([[3, 1]]), noise(200, 3)]), "ERR_NOT_A_PACKET", [[3, 1]]],
];

/** Accepts a page channel, answers 101, and never reads. */
async function deafServer(context: TestContext): Promise<() => Promise<ChannelSocket>> {
  const at = await serve(context, (socket) => socket.pause().write(switching([])));
  const name = { session: randomUUID(), channel: 0, generation: 1 };
  return async () => (await connectPageChannel(at, name, new AbortController().signal)).socket;
}

const openDescriptors = (): number => readdirSync("/proc/self/fd").length;

/** Descriptors open once their number has stood still for a while: sockets close a few turns after they were told to. */
async function settledDescriptors(): Promise<number> {
  let open = openDescriptors();
  for (let still = 0; still < 100; still++) {
    await setImmediate();
    if (openDescriptors() === open) continue;
    open = openDescriptors();
    still = 0;
  }
  return open;
}

interface Encoding {
  readonly name: string;
  readonly compression: MigrationParameters["multifdCompression"];
  readonly xbzrleCacheBytes?: number;
  /** Why it cannot be tried here. */
  readonly skip?: string | false;
}
/** A cache of fewer pages than are dirtied: pages are found there, are not, and push each other out. */
const ENCODINGS: readonly Encoding[] = [
  { name: "none", compression: "none" },
  { name: "lz4", compression: "lz4" },
  { name: "auto", compression: "auto" },
  { name: "zstd", compression: "zstd", skip: hasCodec("zstd") ? false : `Node ${process.versions.node} has no zstd` },
  { name: "xbzrle", compression: "none", xbzrleCacheBytes: 512 * PAGE_BYTES },
  { name: "lz4 and then xbzrle", compression: "lz4", xbzrleCacheBytes: 64 * PAGE_BYTES },
];

/** What every pump must do, at both ends of real connections. @param skip why it cannot be tried here, or false. */
export function pumpSuite(pump: PumpKind, skip: string | false = false, security?: Security): void {
  describe(`${pump} pump${security === undefined ? "" : " with TLS"}`, () => {
    const threads = new ChannelThreads();
    after(() => threads.end());

    for (const compression of ["none", "lz4"] as const)
      for (const channels of [1, 2, 3])
        it(
          `carries 16 MiB of random, text-like, zero and never-touched pages byte for byte over ${channels} channels (${compression})`,
          { skip },
          () =>
            withMemories([IMAGE_BYTES, IMAGE_BYTES], async (from, to) => {
              assert.ok(from !== undefined && to !== undefined);
              fillMixed(from);
              await withWire(from, to, { pump, security, threads, channels, compression }, async (wire) => {
                const round = await wire.round(1, allPages(from));
                assertEqualImages(from, to, "after the round");
                assertEqualEnds(round, "after the round");
                const count = (of: "normalPages" | "zeroPages" | "bytes"): number => round.sent.reduce((sum, one) => sum + one[of], 0);
                let holding = 0;
                zeroDetector(from)(0, from.pages, (_, pages, isZero) => {
                  if (!isZero) holding += pages;
                });
                assert.equal(count("normalPages"), holding);
                assert.equal(count("normalPages") + count("zeroPages"), IMAGE_PAGES);
                const rawBytes = count("normalPages") * PAGE_BYTES;
                if (compression === "none") assert.ok(count("bytes") > rawBytes && count("bytes") < rawBytes * 1.01, `${count("bytes")} B`);
                else assert.ok(count("bytes") < rawBytes * 0.6, `${count("bytes")} B: half of it is text`);
              });
            }),
        );

    for (const { name, skip: whyNot = false, ...encoding } of ENCODINGS)
      it(
        `keeps images and digest shares equal through rounds of rewritten pages, pages that became zero, and empty rounds (${name})`,
        { skip: skip || whyNot },
        () =>
          withMemories([IMAGE_BYTES, IMAGE_BYTES], async (from, to) => {
            assert.ok(from !== undefined && to !== undefined);
            fillMixed(from);
            await withWire(from, to, { pump, security, threads, channels: 2, ...encoding }, async (wire) => {
              const dirty = allPages(from);
              for (let round = 1; round <= 6; round++) {
                const ends = await wire.round(round, dirty);
                assertEqualImages(from, to, `after round ${round}`);
                assertEqualEnds(ends, `after round ${round}`);
                dirty.clear();
                if (round === 4) continue; // nothing was written: the fifth round is empty
                for (let page = round; page < IMAGE_PAGES; page += 37) {
                  if ((page + round) % 3 === 0) from.view(page, 1).fill(0);
                  else if ((page + round) % 3 === 1) from.view(page, 1).fill(round, 100, 164);
                  else fillRandom(from, page, 1, page * round);
                  dirty.setRun(page, 1);
                }
              }
            });
          }),
      );

    for (const { name, skip: whyNot = false, ...encoding } of ENCODINGS)
      it(
        `ends with equal images and digests although a thread writes all the while, and never sends an undecodable block (${name})`,
        { skip: skip || whyNot },
        () =>
          withMemories([WRITTEN_BYTES, WRITTEN_BYTES], async (from, to) => {
            assert.ok(from !== undefined && to !== undefined);
            // Text everywhere: a page that changes under a compressor is a block that nobody can decode.
            for (let page = 0; page < from.pages; page++) from.view(page, 1).set(Buffer.alloc(PAGE_BYTES, `line ${page} `));
            const barrier = allocateBarrier(from.pages);
            const log = new BarrierDirtyLog(barrier);
            const dirty = new Bitmap(from.pages);
            log.start(dirty);
            dirty.setRun(0, from.pages);
            const control = new Int32Array(new SharedArrayBuffer(8));
            const order: WriterOrder = { task: "random", memory: from.share(), barrier, seed: 1, writer: 0, writers: 1, control };
            const writer = new Worker(new URL("./writer-thread.js", import.meta.url), { workerData: order });
            const ended = once(writer, "exit");
            try {
              await withWire(from, to, { pump, security, threads, channels: 2, ...encoding }, async (wire) => {
                let round = 1;
                const sendCollected = async (): Promise<WireRound> => {
                  const ends = await wire.round(round++, dirty);
                  dirty.clear();
                  log.collect(dirty);
                  return ends;
                };
                for (let written = 0; round <= 12 || written === 0; written = Atomics.load(control, 1)) await sendCollected();
                Atomics.store(control, 0, 1);
                await ended;
                log.collect(dirty);
                assert.ok(dirty.count() > 0, "nothing was written during the rounds");
                assertEqualEnds(await sendCollected(), "after the last round");
                assertEqualImages(from, to, "after the last round");
                assert.equal(dirty.count(), 0);
              });
            } finally {
              Atomics.store(control, 0, 1);
              await ended;
            }
          }),
      );

    it("paces: 8 MiB at 40 MB/s take what they must, and a later round without a limit does not wait", { skip }, () =>
      withMemories([8 * 2 ** 20, 8 * 2 ** 20], async (from, to) => {
        assert.ok(from !== undefined && to !== undefined);
        fillRandom(from, 0, from.pages, 1);
        await withWire(from, to, { pump, security, threads, channels: 1 }, async (wire) => {
          await wire.round(1, allPages(from)); // warms up both ends
          const expectedMs = (from.bytes / 40e6) * 1000;
          let round = 2;
          // None may be faster than its limit; a busy machine makes some of them slower, but not all.
          const shortestMs = async (bytesPerSecond: number, enoughMs: number): Promise<number> => {
            let shortest = Infinity;
            for (let tries = 0; tries < 3 || (tries < 12 && shortest >= enoughMs); tries++)
              shortest = Math.min(shortest, (await wire.round(round++, allPages(from), bytesPerSecond)).ms);
            return shortest;
          };
          const pacedMs = await shortestMs(40e6, 1.5 * expectedMs);
          assert.ok(
            pacedMs > 0.75 * expectedMs && pacedMs < 1.5 * expectedMs,
            `${pacedMs.toFixed(0)} ms instead of ${expectedMs.toFixed(0)}`,
          );
          const freeMs = await shortestMs(0, 0.5 * expectedMs);
          assert.ok(freeMs < 0.5 * expectedMs, `${freeMs.toFixed(0)} ms without a limit`);
          assertEqualImages(from, to, "after paced rounds");
        });
      }),
    );

    it("goes on at once when a limit is lifted in the middle of a round that it would have made last a minute", { skip }, () =>
      withMemories([8 * 2 ** 20, 8 * 2 ** 20], async (from, to) => {
        assert.ok(from !== undefined && to !== undefined);
        fillRandom(from, 0, from.pages, 1);
        await withWire(from, to, { pump, security, threads, channels: 1 }, async (wire) => {
          const round = wire.round(1, allPages(from), from.bytes / 60);
          await setTimeout(100);
          for (const sender of wire.senders) sender.setPacing(0);
          await round;
          assertEqualImages(from, to, "after the round");
        });
      }),
    );

    it(
      `ends within ${END_MS} ms in the middle of a round, while its peer takes nothing any more, and the round is rejected`,
      { skip },
      (context) =>
        withMemories([CLOG_BYTES], async (from) => {
          assert.ok(from !== undefined);
          fillRandom(from, 0, from.pages, 1);
          const connect = await deafServer(context);
          for (const waitMs of [0, 30, 300]) {
            const sender = await PageChannel.open(await connect(), threads, {
              type: "send",
              pump,
              channel: 0,
              generation: 1,
              lanes: LaneTable.allocate(1).share(),
              memory: from.share(),
              hashes: undefined,
              compression: "none",
            });
            sender.onFailure = (error) => assert.fail(error);
            const rejected = assert.rejects(sender.sendRound(1, allPages(from).words, 0, wholeLane(0)), {
              name: "MigrationError",
              code: "ERR_LINK_LOST",
            });
            await setTimeout(waitMs); // somewhere on the way; with the last one the buffers are full
            const started = performance.now();
            await sender.end();
            assert.ok(performance.now() - started < END_MS, `${(performance.now() - started).toFixed(0)} ms, told after ${waitMs} ms`);
            await rejected;
          }
        }),
    );

    it(`ends within ${END_MS} ms in the middle of a round that is paced to take a minute`, { skip }, () =>
      withMemories([CLOG_BYTES, CLOG_BYTES], async (from, to) => {
        assert.ok(from !== undefined && to !== undefined);
        fillRandom(from, 0, from.pages, 1);
        await withWire(from, to, { pump, security, threads, channels: 1, hasDigest: false }, async ({ senders: [sender] }) => {
          assert.ok(sender !== undefined);
          const rejected = assert.rejects(sender.sendRound(1, allPages(from).words, from.bytes / 60, wholeLane(0)), {
            code: "ERR_LINK_LOST",
          });
          await setTimeout(50);
          const started = performance.now();
          await sender.end();
          assert.ok(performance.now() - started < END_MS, `${(performance.now() - started).toFixed(0)} ms`);
          await rejected;
        });
      }),
    );

    it(`ends a receiving channel within ${END_MS} ms while its peer sends nothing, and one that is ended twice ends once`, { skip }, () =>
      withMemories([IMAGE_BYTES], async (to) => {
        assert.ok(to !== undefined);
        const target = await PageTarget.listen(to, { pump, security, threads, channels: 1 });
        const peer = await target.connect(0);
        peer.write(packet([[1, 4]]).subarray(0, 5000)); // in the middle of a page
        const started = performance.now();
        await Promise.all([target.receiver.end(), target.receiver.end()]);
        assert.ok(performance.now() - started < END_MS, `${(performance.now() - started).toFixed(0)} ms`);
        assert.deepEqual(target.failures, [], "it was told to end, so nothing failed");
        await hangUp(peer);
        await target.close();
      }),
    );

    it(
      "leaks no descriptor in 40 connections that are cut in the middle of a round, at either end",
      { skip: skip || (process.platform === "linux" ? false : "no /proc here") },
      () =>
        withMemories([IMAGE_BYTES, IMAGE_BYTES], async (from, to) => {
          assert.ok(from !== undefined && to !== undefined);
          fillRandom(from, 0, from.pages, 1);
          const options = { pump, security, threads, channels: 1, hasDigest: false };
          const target = await PageTarget.listen(to, options);
          const cycle = async (turn: number): Promise<void> => {
            const send = {
              type: "send",
              pump,
              channel: 0,
              generation: 1,
              lanes: LaneTable.allocate(1).share(),
              memory: from.share(),
              hashes: undefined,
              compression: "none",
            } as const;
            const sender = await PageChannel.open(await target.open(0), threads, send);
            const sent = sender.sendRound(1, allPages(from).words, 0, wholeLane(0)).catch(() => {}); // cut or not, it is over soon
            if (turn % 3 === 0) await sent;
            if (turn % 2 === 0) await sender.end();
            await target.endChannels();
            await sender.end();
            await sent;
          };
          for (let turn = 0; turn < 4; turn++) await cycle(turn); // threads start, and what is opened once is open
          const before = await settledDescriptors();
          for (let turn = 0; turn < 40; turn++) await cycle(turn);
          const after = await settledDescriptors();
          assert.ok(after <= before, `${before} descriptors before, ${after} after`);
          await target.close();
        }),
    );

    for (const [what, bytes, code, named] of HOSTILE)
      it(`ends at ${what} with ${code}, and writes nothing but the pages a packet named`, { skip }, () =>
        withMemories([IMAGE_BYTES, IMAGE_BYTES], async (to, neighbour) => {
          assert.ok(to !== undefined && neighbour !== undefined);
          const target = await PageTarget.listen(to, { pump, security, threads, channels: 2 });
          try {
            const peer = await target.connect(0);
            peer.on("error", () => {}); // it is cut off, as it deserves
            peer.end(bytes);
            assert.equal((await target.failure()).code, code);
            let next = 0;
            for (const [first, pages] of [...named, [IMAGE_PAGES, 0] as const]) {
              if (first > next) assert.ok(isAllZero(to, next, first - next), `something between page ${next} and page ${first}`);
              next = first + pages;
            }
            assert.ok(isAllZero(neighbour), "something in the memory next to it");
            await hangUp(peer);
          } finally {
            await target.close();
          }
        }),
      );

    const skipThreads = skip || (isLinuxAvailable ? false : "without system calls channels stay on the main thread");
    it("uses a thread again for a later channel, the other way round and after one that failed, too", { skip: skipThreads }, () =>
      withMemories([IMAGE_BYTES, IMAGE_BYTES], async (from, to) => {
        assert.ok(from !== undefined && to !== undefined);
        fillMixed(from);
        const taken: number[] = [];
        class WatchedThreads extends ChannelThreads {
          override take(): NativeThread {
            const thread = super.take();
            taken.push(thread.threadId);
            return thread;
          }
        }
        const watched = new WatchedThreads();
        await watched.prepare(1);
        const target = await PageTarget.listen(to, { pump, security, threads, channels: 1 });
        const lanes = LaneTable.allocate(1).share();
        const life = { channel: 0, generation: 1, lanes } as const;
        const send = { type: "send", pump, ...life, memory: from.share(), hashes: undefined, compression: "none" } as const;
        for (let turn = 0; turn < 3; turn++) {
          const sender = await PageChannel.open(await target.open(0, watched), watched, send);
          const stored = new Promise<void>((resolve, reject) => {
            target.onDelivered = () => resolve();
            target.onFailure = reject;
          });
          await sender.sendRound(1, allPages(from).words, 0, wholeLane(0));
          await stored;
          assertEqualImages(from, to, `after channel ${turn}`);
          await sender.end();
          await target.endChannels();
          to.view(0, to.pages).fill(0);
        }
        // A receiving channel that fails gives its thread back as well.
        const populated = new Bitmap(to.pages).words;
        const [near, far] = await connectedPair();
        const receiver = await PageChannel.open(far, watched, {
          type: "receive",
          pump,
          ...life,
          memory: to.share(),
          hashes: undefined,
          populated,
          answer: switching([]),
        });
        const failure = new Promise((resolve) => {
          receiver.onFailure = resolve;
        });
        near.on("error", () => {}).end(noise(100, 1));
        await failure;
        await hangUp(near);
        const last = await PageChannel.open(await target.open(0, watched), watched, send);
        await last.sendRound(1, allPages(from).words, 0, wholeLane(0));
        await last.end();
        assert.deepEqual(new Set(taken).size, 1, `threads ${taken.join(", ")}`);
        assert.equal(taken.length, 5);
        await Promise.all([target.close(), watched.end()]);
      }),
    );
  });
}

/** Both ends of a fresh loopback connection. */
async function connectedPair(): Promise<[Socket, Socket]> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const at = server.address();
  assert.ok(at !== null && typeof at === "object");
  const accepted: Promise<Socket[]> = once(server, "connection");
  const near = createConnection({ host: "127.0.0.1", port: at.port });
  await once(near, "connect");
  const [far] = await accepted;
  assert.ok(far !== undefined);
  server.close();
  return [near, far];
}
