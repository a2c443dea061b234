import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { Socket, connect, createServer } from "node:net";
import { after, describe, it } from "node:test";
import type { TestContext } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import {
  Bitmap,
  GuestMemory,
  MissingPages,
  PageHashes,
  SegmentPool,
  allocateHashTable,
  joinDigests,
  whyNoMissingPages,
} from "@precopy/guest";
import type { HashTable } from "@precopy/guest";
import { NativeThread, freePages, isLinuxAvailable } from "@precopy/linux";
import {
  FAULT_AROUND_PAGES_MAX,
  FAULT_REQUEST_BYTES,
  HEADER_BYTES,
  MigrationError,
  PACKET_MAGIC,
  PAGE_BYTES,
  PacketDecoder,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
  SEGMENT_BYTES,
  decodeFaultRequest,
  encodeFaultRequest,
  encodeHeader,
} from "@precopy/protocol";
import type { ErrorCode, PacketHeader } from "@precopy/protocol";
import { ChannelThreads } from "./channel-threads.js";
import { FaultHandling, FaultServing } from "./fault-channel.js";
import { allocateServedPages } from "./fault-server.js";
import type { ServedPages } from "./fault-server.js";
import { connectFaultChannel } from "./page-channel.js";
import { PagePlacer } from "./page-placer.js";
import { AgentPort } from "./port.js";
import type { PumpKind } from "./pump.js";
import { allocate, fillRandom } from "./recorded-packets.js";

const PAGES = 2048;
const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, at) => from + at);
/** Some numbers below `end`, in an order without order. */
function shuffled(end: number, seed: number): number[] {
  const numbers = range(0, end);
  let x = seed | 1;
  for (let at = end - 1; at > 0; at--) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    const other = (x >>> 0) % (at + 1);
    [numbers[at], numbers[other]] = [numbers[other]!, numbers[at]!];
  }
  return numbers;
}
const isZero = (page: number): boolean => page % 5 === 4;
/** Four pages of data, one of zeros, and so on. */
function source(): GuestMemory {
  const memory = allocate(PAGES);
  for (let page = 0; page < PAGES; page += 5) fillRandom(memory, page, Math.min(4, PAGES - page), page);
  return memory;
}
async function until(what: string, isSo: () => boolean): Promise<void> {
  for (const started = performance.now(); !isSo(); await delay(1))
    assert.ok(performance.now() - started < 10_000, `${what} did not come true within 10 s`);
}
const whyNoPump: Record<PumpKind, string | false> = {
  direct: isLinuxAvailable ? false : "the direct pump needs system calls",
  portable: false,
};
function request(page: number, sequence: number): Buffer {
  const bytes = Buffer.alloc(FAULT_REQUEST_BYTES);
  encodeFaultRequest(bytes, page, sequence);
  return bytes;
}
/** One run of one page, or none. */
function packet(sequence: number, page: number | undefined, payload: Buffer | undefined, fields: Partial<PacketHeader> = {}): Buffer {
  const runs = page === undefined ? 0 : 1;
  const head = Buffer.alloc(HEADER_BYTES + runs * RUN_BYTES);
  if (page !== undefined) {
    head.writeUInt32LE(page, HEADER_BYTES);
    head.writeUInt32LE(1, HEADER_BYTES + 4);
  }
  encodeHeader(head, {
    kind: PacketKind.Pages,
    encoding: PageEncoding.Raw,
    round: 0,
    sequence,
    dataRuns: payload === undefined ? 0 : runs,
    zeroRuns: payload === undefined ? runs : 0,
    payloadBytes: payload?.byteLength ?? 0,
    lanes: 0,
    ...fields,
  });
  return payload === undefined ? head : Buffer.concat([head, payload]);
}

/** Both ends of a TCP connection. */
async function pair(context: TestContext): Promise<readonly [near: Socket, far: Socket]> {
  const server = createServer({ pauseOnConnect: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  const near = connect(address.port, "127.0.0.1");
  const [[far]] = (await Promise.all([once(server, "connection"), once(near, "connect")])) as [[Socket], unknown];
  server.close();
  for (const socket of [near, far]) socket.on("error", () => {}); // being cut off is what many of these are about
  context.after(() => [near, far].forEach((socket) => socket.destroy()));
  return [near, far];
}
/** Knows how many are lent. */
class CountedThreads extends ChannelThreads {
  lent = 0;

  override take(): NativeThread {
    this.lent++;
    return super.take();
  }

  override give(thread: NativeThread): void {
    this.lent--;
    super.give(thread);
  }
}
// Of every test: one takes longer to start than most of them last.
const threads = new CountedThreads();
after(() => threads.end());

interface Answer {
  readonly sequence: number;
  /** Undefined: a packet of nothing. */
  readonly page: number | undefined;
  /** The runs, data before zeros, each a page and how many. */
  readonly runs: readonly (readonly [first: number, pages: number])[];
  /** Undefined: zeros. */
  readonly bytes: Buffer | undefined;
}
/** A target of the test's own: sends what it likes, and takes the answers apart. */
class Asker {
  readonly socket: Socket;
  readonly answers: Answer[] = [];
  isClosed = false;
  readonly #decoder: PacketDecoder;

  constructor(socket: Socket) {
    this.socket = socket;
    let [page, sequence]: (number | undefined)[] = [];
    let bytes: Buffer[] = [];
    let runs: (readonly [first: number, pages: number])[] = [];
    this.#decoder = new PacketDecoder(
      { pages: PAGES, mayCarry: (_, pages) => pages <= FAULT_AROUND_PAGES_MAX },
      {
        begin: (header, head) => {
          assert.deepEqual([header.kind, header.encoding, header.round], [PacketKind.Pages, PageEncoding.Raw, 0]);
          sequence = header.sequence;
          runs = range(0, header.dataRuns + header.zeroRuns).map((run) => {
            const at = HEADER_BYTES + run * RUN_BYTES;
            return [head.readUInt32LE(at), head.readUInt32LE(at + 4)];
          });
          page = runs[0]?.[0];
          bytes = [];
        },
        payload: (more) => bytes.push(Buffer.from(more)),
        end: () =>
          this.answers.push({ sequence: sequence ?? -1, page, runs, bytes: bytes.length === 0 ? undefined : Buffer.concat(bytes) }),
      },
    );
    socket.on("close", () => {
      this.isClosed = true;
    });
  }

  /** Begins to read. */
  listen(): this {
    this.socket.on("data", (chunk: Buffer) => this.#decoder.push(chunk)).resume();
    return this;
  }

  async answered(count: number): Promise<readonly Answer[]> {
    await until(`${count} answers`, () => this.answers.length >= count);
    return this.answers;
  }
}

describe("FaultServing", { timeout: 300_000 }, () => {
  interface Served {
    readonly memory: GuestMemory;
    readonly served: ServedPages;
    readonly serving: FaultServing;
    readonly asker: Asker;
    /** Why it ended without being told to. */
    readonly failures: MigrationError[];
  }
  async function serve(context: TestContext, pump: PumpKind): Promise<Served> {
    const [near, far] = await pair(context);
    const memory = source();
    const served = allocateServedPages(PAGES);
    served.due.fill(0xffffffff);
    const serving = await FaultServing.open(near, threads, pump, memory.share(), served);
    context.after(() => serving.end());
    const failures: MigrationError[] = [];
    serving.onFailure = (error) => failures.push(error);
    return { memory, served, serving, asker: new Asker(far), failures };
  }

  for (const pump of ["direct", "portable"] as const)
    describe(`(${pump} pump)`, { skip: whyNoPump[pump] }, () => {
      it("says that it reads before it is asked for anything, by a packet of nothing", async (context) => {
        const { asker } = await serve(context, pump);
        assert.deepEqual(await asker.listen().answered(1), [{ sequence: 0, page: undefined, runs: [], bytes: undefined }]);
      });

      for (const [what, send] of [
        [
          "one at a time",
          async (asker: Asker, all: Buffer[]) =>
            all.reduce((before, one) => before.then(() => void asker.socket.write(one)), Promise.resolve()),
        ],
        ["glued together", async (asker: Asker, all: Buffer[]) => void asker.socket.write(Buffer.concat(all))],
        [
          "in pieces that end anywhere",
          async (asker: Asker, all: Buffer[]) => {
            const stream = Buffer.concat(all);
            asker.socket.setNoDelay(true);
            for (let at = 0; at < stream.byteLength; at += 7) {
              asker.socket.write(stream.subarray(at, at + 7));
              if (at % 11 === 0) await delay(1);
            }
          },
        ],
      ] as const)
        it(`answers each request with that page alone, bytes or zeros, in the order of the requests (${what})`, async (context) => {
          const { asker, memory, served, failures } = await serve(context, pump);
          const pages = [...shuffled(PAGES, 3).slice(0, 150), 0, PAGES - 1, 4, 4, 0];
          asker.listen();
          await send(
            asker,
            pages.map((page, sequence) => request(page, sequence)),
          );
          const [greeting, ...answers] = await asker.answered(pages.length + 1);
          assert.equal(greeting?.page, undefined);
          answers.forEach(({ sequence, page, bytes }, at) => {
            assert.deepEqual([sequence, page], [at + 1, pages[at]]);
            assert.equal(bytes === undefined, isZero(page ?? 0), `page ${page}`);
            if (bytes !== undefined) assert.ok(bytes.equals(memory.view(page ?? 0, 1)), `page ${page}`);
          });
          const due = new Bitmap(PAGES, served.due);
          assert.deepEqual(
            range(0, PAGES).filter((page) => !due.has(page)),
            [...new Set(pages)].sort((a, b) => a - b),
          );
          assert.deepEqual([served.requests[0], served.pages[0], served.last[0]], [pages.length, pages.length, pages.at(-1)! + 1]);
          assert.deepEqual(failures, []);
        });

      it("sends what is due of the block around a page that is asked for, behind that page and each page once", async (context) => {
        const { asker, memory, served } = await serve(context, pump);
        served.around[0] = 8.9;
        new Bitmap(PAGES, served.due).takeShared(0, 1 << 12); // somebody else sends it
        asker.listen();
        asker.socket.write(Buffer.concat([request(10, 0), request(11, 1), request(PAGES - 1, 2)]));
        const [, ...answers] = await asker.answered(6);
        const runs = [
          [[10, 1]],
          ...[[8, 11, 13, 15, 9, 14].map((page) => [page, 1])], // 9 and 14 are zero
          [[11, 1]],
          [[PAGES - 1, 1]],
          [
            [PAGES - 8, 4],
            [PAGES - 3, 2],
            [PAGES - 4, 1],
          ],
        ];
        assert.deepEqual(
          answers.map((one) => one.runs),
          runs,
        );
        assert.ok(answers[1]?.bytes?.equals(Buffer.concat([8, 11, 13, 15].map((page) => memory.view(page, 1)))));
        assert.deepEqual([served.requests[0], served.pages[0]], [3, 3 + 6 + 7]);
        assert.equal(new Bitmap(PAGES, served.due).count(), PAGES - 16);
      });

      const damaged = request(7, 0);
      damaged[4]! ^= 1;
      const hostile: readonly (readonly [what: string, bytes: Buffer, code: ErrorCode])[] = [
        ["speaks another protocol", Buffer.from("GET / HTTP/1.1\r\n\r\n"), "ERR_NOT_A_PACKET"],
        ["sends a page packet", packet(0, 3, undefined), "ERR_NOT_A_PACKET"],
        ["sends a damaged request", damaged, "ERR_PACKET_CHECKSUM"],
        ["begins with another sequence", request(7, 1), "ERR_PACKET_SEQUENCE"],
        ["repeats a request", Buffer.concat([request(7, 0), request(7, 0)]), "ERR_PACKET_SEQUENCE"],
        ["leaves one out", Buffer.concat([request(7, 0), request(8, 2)]), "ERR_PACKET_SEQUENCE"],
        ["asks for a page that there is not", request(PAGES, 0), "ERR_RUN_OUT_OF_RANGE"],
        ["asks for one far outside", request(2 ** 32 - 1, 0), "ERR_RUN_OUT_OF_RANGE"],
      ];
      for (const [what, bytes, code] of hostile)
        it(`ends with ${code}, and closes the connection, when its peer ${what}`, async (context) => {
          const { asker, failures, served, serving } = await serve(context, pump);
          await asker.listen().answered(1);
          asker.socket.write(bytes);
          await until("it fails", () => failures.length > 0);
          assert.deepEqual(
            failures.map((failure) => failure.code),
            [code],
          );
          await until("the connection is closed", () => asker.isClosed);
          assert.equal(served.requests[0], bytes.byteLength > FAULT_REQUEST_BYTES && code === "ERR_PACKET_SEQUENCE" ? 1 : 0);
          await serving.end();
          assert.equal(failures.length, 1, "it told of it twice");
          assert.equal(threads.lent, 0, "its thread was not given back");
        });

      for (const [what, leave] of [
        ["closes in good order", (socket: Socket) => socket.end()],
        ["closes in the middle of a request", (socket: Socket) => socket.end(request(7, 0).subarray(0, 9))],
        ["breaks it off", (socket: Socket) => socket.resetAndDestroy()],
      ] as const)
        it(`ends with ERR_LINK_LOST when its peer ${what}`, async (context) => {
          const { asker, failures } = await serve(context, pump);
          await asker.listen().answered(1);
          leave(asker.socket);
          await until("it fails", () => failures.length > 0);
          assert.deepEqual(
            failures.map(({ code }) => code),
            ["ERR_LINK_LOST"],
          );
        });

      it("told to end, it closes the connection, gives its thread back, and calls that no failure", async (context) => {
        const { asker, failures, serving } = await serve(context, pump);
        await asker.listen().answered(1);
        await serving.end();
        await until("the connection is closed", () => asker.isClosed);
        await serving.end();
        assert.equal(threads.lent, 0, "its thread was not given back");
        assert.deepEqual(failures, []);
      });

      it("can be told to end while its peer asks and asks and reads no answer", async (context) => {
        const { asker, serving, served, failures } = await serve(context, pump);
        asker.socket.write(Buffer.concat(range(0, 20_000).map((sequence) => request(sequence % 4, sequence))));
        await until("some are answered", () => served.requests[0]! > 100);
        const started = performance.now();
        await serving.end();
        assert.ok(performance.now() - started < 5000);
        assert.deepEqual(failures, []);
      });

      it("takes no more requests than its peer reads answers of, so that none of them waits in this process's memory", async (context) => {
        const REQUESTS = 24_000; // their answers are 99 MB; the system's buffers hold some 35 MB
        const { asker, served } = await serve(context, pump);
        asker.socket.write(Buffer.concat(range(0, REQUESTS).map((sequence) => request(sequence % 4, sequence))));
        let taken = -1;
        for (let time = 0; served.requests[0] !== taken && time < 40; time++) {
          taken = served.requests[0]!;
          await delay(500); // nothing tells that nothing happens
        }
        assert.ok(taken < REQUESTS / 2, `${taken} of ${REQUESTS} requests were taken, and nobody has read one answer`);
        const answers = await asker.listen().answered(taken + 1000); // it goes on when they are read
        for (const at of [1, taken, taken + 999]) assert.equal(answers[at]?.page, (at - 1) % 4);
      });

      it("over a connection that is gone already fails with ERR_LINK_LOST", async (context) => {
        const [near] = await pair(context);
        near.destroy();
        const opened = FaultServing.open(near, threads, pump, source().share(), allocateServedPages(PAGES));
        await assert.rejects(opened, { code: "ERR_LINK_LOST" });
      });
    });

  it("whose thread dies fails with ERR_INTERNAL, ends, and gives no dead thread back", {
    skip: isLinuxAvailable ? false : "it has no thread",
  }, async (context) => {
    const threads = new MortalThreads();
    const [near, far] = await pair(context);
    const serving = await FaultServing.open(near, threads, "direct", source().share(), allocateServedPages(PAGES));
    const asker = new Asker(far).listen();
    const failed = await new Promise<MigrationError>((resolve) => {
      serving.onFailure = resolve;
    });
    assert.deepEqual([failed.code, failed.message], ["ERR_INTERNAL", "out of memory"]);
    await serving.end();
    assert.deepEqual(threads.given, []);
    await until("the connection is closed", () => asker.isClosed);
  });
});

/** Whose threads die of the first thing they are told. */
class MortalThreads extends ChannelThreads {
  readonly given: NativeThread[] = [];
  override take(): NativeThread {
    const code = `const { parentPort } = require("node:worker_threads");
      parentPort.once("message", () => { throw new Error("out of memory"); });
      parentPort.postMessage("up");`;
    return new NativeThread(code, { eval: true });
  }
  override give(thread: NativeThread): void {
    this.given.push(thread);
  }
}

/** Reads pages one after another as a vCPU does, and compares them with the source's. */
const READER = `
  const { parentPort } = require("node:worker_threads");
  const { readlinkSync } = require("node:fs");
  parentPort.on("message", ({ there, wanted, pages, read }) => {
    const wrong = [];
    for (const page of pages) {
      const at = page * ${PAGE_BYTES};
      const segment = Math.floor(at / ${SEGMENT_BYTES});
      const [found, expected] = [there, wanted].map((segments) => Buffer.from(segments[segment].buffer, at % ${SEGMENT_BYTES}, ${PAGE_BYTES}));
      if (!found.equals(expected)) wrong.push(page);
      Atomics.add(read, 0, 1);
    }
    parentPort.postMessage(wrong);
  });
  parentPort.postMessage(Number(readlinkSync("/proc/thread-self").split("/").at(-1)));`;

/** A thread that stops at missing pages. */
class Reader {
  readonly thread = new NativeThread(READER, { eval: true });
  /** Word 0: pages it has read. */
  readonly read = new Int32Array(new SharedArrayBuffer(4));
  readonly #number = once(this.thread, "message") as Promise<[number]>;

  /** For the system. */
  async number(): Promise<number> {
    return (await this.#number)[0];
  }

  /** Resolves with the pages that were not the source's. */
  async compare(there: GuestMemory, wanted: GuestMemory, pages: readonly number[]): Promise<readonly number[]> {
    await this.number();
    this.thread.postMessage({ there: there.segments, wanted: wanted.segments, pages, read: this.read });
    return ((await once(this.thread, "message")) as [number[]])[0];
  }

  get count(): number {
    return Atomics.load(this.read, 0);
  }
}

const pool = new SegmentPool();
/** A target whose guest needs pages of a source's, behind a port of its own. Nobody here may touch its memory before `letGo`. */
class Target {
  readonly source: GuestMemory;
  readonly memory: GuestMemory;
  readonly missing: MissingPages;
  readonly table: HashTable;
  readonly populated: Bitmap;
  readonly session = randomUUID();
  readonly lost: { readonly generation: number; readonly code: ErrorCode }[] = [];
  readonly failures: MigrationError[] = [];
  readonly readers: Reader[] = [];
  readonly handling: FaultHandling;
  readonly port: AgentPort;

  private constructor(
    port: AgentPort,
    numbers: readonly number[],
    readers: Reader[],
    isMissing: (page: number) => boolean,
    from: GuestMemory,
  ) {
    this.source = from;
    this.memory = GuestMemory.allocate(from.bytes, pool);
    this.missing = new MissingPages(this.memory);
    this.table = allocateHashTable(from.pages);
    this.populated = new Bitmap(from.pages);
    this.port = port;
    this.readers = readers;
    for (let page = 0; page < from.pages; page++) if (isMissing(page)) this.missing.bitmap.setRun(page, 1);
    this.handling = new FaultHandling(threads, {
      descriptor: this.missing.listen(),
      memory: this.memory.share(),
      table: this.table,
      missing: this.missing.bitmap.words,
      populated: this.populated.words,
      threads: numbers,
    });
    this.handling.onLost = (generation, { code }) => this.lost.push({ generation, code });
    this.handling.onFailure = (error) => this.failures.push(error);
  }

  /** @param isMissing of the others it is known that they hold zeros: default, of no page */
  static async open(
    context: TestContext,
    readers = 1,
    isMissing: (page: number) => boolean = () => true,
    from = source(),
  ): Promise<Target> {
    const reading = Array.from({ length: readers }, () => new Reader());
    const numbers = await Promise.all(reading.map((reader) => reader.number()));
    const port = await AgentPort.listen(
      { host: "127.0.0.1", port: 0 },
      {
        onControl: () => {},
        onPageChannel: () => false,
        onFaultChannel: ({ session, generation }, socket) => {
          if (session !== target.session) return false;
          socket.on("error", () => {}); // it may break while it is taken over
          target.handling.connect(generation, socket).catch(() => socket.destroy());
          return true;
        },
      },
      "test",
    );
    const target = new Target(port, numbers, reading, isMissing, from);
    context.after(() => target.#close());
    return target;
  }

  async #close(): Promise<void> {
    await this.handling.end();
    await Promise.all(this.readers.map(({ thread }) => thread.terminate(() => this.missing.close())));
    this.missing.close();
    await this.port.close();
    for (const { address, bytes } of this.memory.ranges()) freePages(address, bytes);
    pool.give(this.memory.segments);
  }

  /** As a source of ours does. */
  async serve(
    context: TestContext,
    generation: number,
    pump: PumpKind = "direct",
  ): Promise<{ readonly serving: FaultServing; readonly served: ServedPages }> {
    const served = allocateServedPages(this.source.pages);
    served.due.fill(0xffffffff);
    const serving = await FaultServing.open(await this.dial(generation), threads, pump, this.source.share(), served);
    context.after(() => serving.end());
    return { serving, served };
  }

  async dial(generation: number): Promise<Socket> {
    const socket = await connectFaultChannel(this.port.address, { session: this.session, generation }, new AbortController().signal);
    assert.ok(socket instanceof Socket);
    socket.on("error", () => {}); // being cut off is what many of these are about
    return socket;
  }

  /** Ends the handling, lets go of the memory, and looks at it: pages that are not the source's. */
  async letGo(): Promise<number[]> {
    await this.handling.end();
    this.missing.close();
    return range(0, PAGES).filter((page) => Buffer.compare(this.memory.view(page, 1), this.source.view(page, 1)) !== 0);
  }
}

/** A source of the test's own: reads requests, and answers what it likes. */
class Answerer {
  readonly socket: Socket;
  readonly requests: number[] = [];
  isClosed = false;
  #left = Buffer.alloc(0);
  #sequence = 0;

  constructor(context: TestContext, socket: Socket) {
    this.socket = socket;
    context.after(() => socket.destroy());
    socket.on("data", (chunk: Buffer) => {
      this.#left = Buffer.concat([this.#left, chunk]);
      for (; this.#left.byteLength >= FAULT_REQUEST_BYTES; this.#left = this.#left.subarray(FAULT_REQUEST_BYTES))
        this.requests.push(decodeFaultRequest(this.#left, this.requests.length, PAGES)); // a wrong one ends the test's process
    });
    socket.on("close", () => {
      this.isClosed = true;
    });
  }

  greet(): this {
    this.socket.write(packet(this.#sequence++, undefined, undefined));
    return this;
  }

  next(page: number | undefined, payload: Buffer | undefined, fields: Partial<PacketHeader> = {}): Buffer {
    return packet(this.#sequence++, page, payload, fields);
  }

  async asked(count: number): Promise<readonly number[]> {
    await until(`${count} requests`, () => this.requests.length >= count);
    return this.requests;
  }
}

describe("FaultHandling", { skip: whyNoMissingPages() ?? false, timeout: 300_000 }, () => {
  for (const pump of ["direct", "portable"] as const)
    it(`gives every thread the source's bytes of every page, in whatever order they need them, asking once for each (${pump} pump)`, async (context) => {
      const target = await Target.open(context, 3);
      const { served } = await target.serve(context, 1, pump);
      const orders = [shuffled(PAGES, 1).slice(0, 400), shuffled(PAGES, 2).slice(0, 400), range(0, 300)];
      const wrong = await Promise.all(target.readers.map((reader, at) => reader.compare(target.memory, target.source, orders[at] ?? [])));
      assert.deepEqual(wrong, [[], [], []]);
      const needed = [...new Set(orders.flat())].sort((a, b) => a - b);
      const due = new Bitmap(PAGES, served.due);
      assert.deepEqual(
        range(0, PAGES).filter((page) => !due.has(page)),
        needed,
      );
      assert.equal(served.requests[0], needed.length);
      const faults = await target.handling.end();
      assert.ok(faults !== undefined);
      assert.deepEqual([faults.requests, faults.zeros], [needed.length, 0]);
      assert.ok(faults.medianUs > 0 && faults.medianUs <= faults.p99Us && faults.p99Us <= faults.maxUs);
      const waits = faults.distribution.reduce((sum, count) => sum + count, 0);
      assert.ok(waits >= needed.length && waits <= orders.flat().length, `${waits} waits for ${needed.length} pages`);
      assert.equal(faults.vcpuBlockedMs.length, 3);
      for (const ms of faults.vcpuBlockedMs) assert.ok(ms > 0 && ms * 1000 >= faults.medianUs, `${faults.vcpuBlockedMs.join()} ms`);
      assert.deepEqual([target.lost, target.failures], [[], []]);
      assert.equal(target.missing.bitmap.count(), PAGES - needed.length);
      assert.ok(needed.every((page) => !target.missing.bitmap.has(page) && target.populated.has(page)));
      target.missing.close();
      const hashing = new PageHashes(target.source, allocateHashTable(PAGES));
      for (const page of needed) if (!isZero(page)) hashing.renew(page, 1);
      const placed = new PageHashes(target.memory, target.table);
      assert.equal(joinDigests([placed.digestOfTable()]), joinDigests([hashing.digest()]));
      assert.ok(needed.every((page) => placed.matches(page)));
    });

  it("knows the pages of every segment of a large guest by their addresses, first to last", async (context) => {
    const large = allocate(SEGMENT_BYTES / PAGE_BYTES + 512);
    const ends = [0, SEGMENT_BYTES / PAGE_BYTES - 1, SEGMENT_BYTES / PAGE_BYTES, large.pages - 1];
    for (const [at, page] of ends.entries()) large.view(page, 1).fill(at + 1);
    const target = await Target.open(context, 1, (page) => page !== 7 && page !== large.pages - 7, large);
    const { served } = await target.serve(context, 1);
    assert.deepEqual(await target.readers[0]?.compare(target.memory, large, [...ends, 7, large.pages - 7]), []);
    const due = new Bitmap(large.pages, served.due);
    assert.deepEqual([large.pages - due.count(), ...ends.map((page) => due.has(page))], [4, false, false, false, false]);
  });

  it("gives pages that are known to be zero without a connection, and without asking over one", async (context) => {
    const target = await Target.open(context, 2, (page) => !isZero(page));
    const zeros = range(0, PAGES).filter(isZero);
    const [one, two] = target.readers;
    assert.deepEqual(await one?.compare(target.memory, target.source, zeros.slice(0, 200)), []);
    const { served } = await target.serve(context, 1);
    const mixed = range(200 * 5, 200 * 5 + 100);
    assert.deepEqual(await two?.compare(target.memory, target.source, mixed), []);
    assert.equal(served.requests[0], 80);
    const faults = await target.handling.end();
    assert.deepEqual([faults?.requests, faults?.zeros], [80, 220]);
    assert.equal(target.missing.bitmap.count(), zeros.length * 4 + (PAGES % 5) - 80);
    assert.ok(zeros.every((page) => !target.populated.has(page)));
  });

  it("asks for nothing before the source has said that it reads, and then for all that is waited for, once each", async (context) => {
    const target = await Target.open(context, 3);
    const comparing = target.readers.map((reader, at) => reader.compare(target.memory, target.source, [100 * at]));
    await delay(50); // the time is what is tested
    const answerer = new Answerer(context, await target.dial(1));
    await delay(50); // the same
    assert.deepEqual(answerer.requests, []);
    answerer.greet();
    assert.deepEqual(
      [...(await answerer.asked(3))].sort((a, b) => a - b),
      [0, 100, 200],
    );
    assert.deepEqual(
      target.readers.map(({ count }) => count),
      [0, 0, 0],
    );
    for (const page of [...answerer.requests]) answerer.socket.write(answerer.next(page, Buffer.from(target.source.view(page, 1))));
    assert.deepEqual(await Promise.all(comparing), [[], [], []]);
    await delay(20); // for requests that should not come
    assert.equal(answerer.requests.length, 3);
  });

  it("asks once for a page that several wait for, and lets all of them go on with it", async (context) => {
    const target = await Target.open(context, 3);
    const answerer = new Answerer(context, await target.dial(1)).greet();
    const comparing = target.readers.map((reader) => reader.compare(target.memory, target.source, [7]));
    await answerer.asked(1);
    await delay(50); // for the other two to stop there
    assert.deepEqual(answerer.requests, [7]);
    answerer.socket.write(answerer.next(7, Buffer.from(target.source.view(7, 1))));
    assert.deepEqual(await Promise.all(comparing), [[], [], []]);
    const faults = await target.handling.end();
    assert.equal(faults?.requests, 1);
    assert.ok(
      faults.vcpuBlockedMs.every((ms) => ms >= 20),
      `${faults.vcpuBlockedMs.join()} ms`,
    );
  });

  it("lets the guest wait when the connection is cut anywhere in an answer, and go on by the next one with whole pages only", async (context) => {
    const target = await Target.open(context);
    const [reader] = target.readers;
    const comparing = reader?.compare(target.memory, target.source, [10, 11, 14]);
    const whole = HEADER_BYTES + RUN_BYTES + PAGE_BYTES;
    const cuts = [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + RUN_BYTES, HEADER_BYTES + RUN_BYTES + 1, whole - 1];
    for (const [at, bytes] of cuts.entries())
      for (const how of ["end", "resetAndDestroy"] as const) {
        const generation = 2 * at + (how === "end" ? 1 : 2);
        const answerer = new Answerer(context, await target.dial(generation)).greet();
        assert.deepEqual(await answerer.asked(1), [10], `cut after ${bytes} B: it is asked for anew`);
        if (bytes > 0)
          await new Promise((resolve) =>
            answerer.socket.write(answerer.next(10, Buffer.alloc(PAGE_BYTES, 0xbb)).subarray(0, bytes), resolve),
          );
        answerer.socket[how]();
        await until("it is told of", () => target.lost.length === generation);
        assert.deepEqual(target.lost.at(-1)?.generation, generation);
        assert.equal(reader?.count, 0);
        assert.equal(target.missing.bitmap.count(), PAGES);
      }
    assert.ok(target.lost.every(({ code }) => code === "ERR_LINK_LOST" || code === "ERR_SYSTEM_CALL"));
    const { served } = await target.serve(context, 2 * cuts.length + 1);
    assert.deepEqual(await comparing, []);
    assert.equal(served.requests[0], 3);
    assert.deepEqual(target.failures, []);
  });

  for (const pump of ["direct", "portable"] as const)
    it(`loses and spoils no page while threads read on and the connection is cut over and over (${pump} pump)`, async (context) => {
      const target = await Target.open(context, 2);
      const orders = [shuffled(PAGES, 5), shuffled(PAGES, 6)];
      const comparing = target.readers.map((reader, at) => reader.compare(target.memory, target.source, orders[at] ?? []));
      let isDone = false;
      const done = Promise.all(comparing).then((wrong) => {
        isDone = true;
        return wrong;
      });
      let generation = 0;
      for (let goal = 150; !isDone && generation < 20; goal += 150) {
        const { serving } = await target.serve(context, ++generation, pump);
        await until(
          "some pages are read",
          () => isDone || (target.readers.every(({ count }) => count > 0) && target.readers.some(({ count }) => count > goal)),
        );
        if (!isDone) await serving.end();
      }
      assert.ok(generation > 3, `only ${generation} lives`);
      await target.serve(context, ++generation, pump);
      assert.deepEqual(await done, [[], []]);
      assert.equal(target.missing.bitmap.count(), 0);
      assert.deepEqual(target.failures, []);
      assert.deepEqual(await target.letGo(), []);
    });

  it("uses the newest connection: an older one that still lives is dropped as stale, and what it was asked for is asked anew", async (context) => {
    const target = await Target.open(context);
    const comparing = target.readers[0]?.compare(target.memory, target.source, [3]);
    const old = new Answerer(context, await target.dial(1)).greet();
    await old.asked(1);
    const young = new Answerer(context, await target.dial(2)).greet();
    assert.deepEqual(await young.asked(1), [3]);
    await until("the older one is closed", () => old.isClosed);
    assert.deepEqual(target.lost, [{ generation: 1, code: "ERR_STALE_GENERATION" }]);
    young.socket.write(young.next(3, Buffer.from(target.source.view(3, 1))));
    assert.deepEqual(await comparing, []);
  });

  const junk = Buffer.alloc(PAGE_BYTES, 0xcc);
  const badPayload = Buffer.from(Uint32Array.of(9, 1, 2).buffer);
  const hostile: readonly (readonly [what: string, bytes: (from: Answerer) => Buffer, code: ErrorCode])[] = [
    ["speaks another protocol", () => Buffer.from("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), "ERR_NOT_A_PACKET"],
    ["answers with a request", () => Buffer.concat([request(10, 0), request(10, 1)]), "ERR_NOT_A_PACKET"],
    ["leaves an answer out", lastOfTwo, "ERR_PACKET_SEQUENCE"],
    ["damages a run table", damagedTable, "ERR_PACKET_CHECKSUM"],
    ["answers with a page that there is not", (from) => from.next(PAGES, junk), "ERR_RUN_OUT_OF_RANGE"],
    ["answers with too many pages in a run", tooMany, "ERR_RUN_OUT_OF_RANGE"],
    ["ends a round", (from) => from.next(undefined, undefined, { kind: PacketKind.Flush, lanes: 1 }), "ERR_NOT_A_PACKET"],
    ["sends a delta", (from) => from.next(10, Buffer.of(0, 1, 9), { encoding: PageEncoding.Xbzrle }), "ERR_NOT_A_PACKET"],
    ["sends a block that does not decode", (from) => from.next(10, badPayload, { encoding: PageEncoding.Lz4 }), "ERR_BLOCK_CORRUPT"],
    ["announces more than a packet may hold", (from) => from.next(10, junk, { payloadBytes: 2 ** 31 }), "ERR_PAYLOAD_TOO_LARGE"],
    ["sends half a page and says that it is one", (from) => from.next(10, junk.subarray(0, 2048)), "ERR_NOT_A_PACKET"],
  ];
  function lastOfTwo(from: Answerer): Buffer {
    from.next(10, junk);
    return from.next(10, junk);
  }
  function damagedTable(from: Answerer): Buffer {
    const bytes = from.next(10, junk);
    bytes[HEADER_BYTES]! ^= 1;
    return bytes;
  }
  function tooMany(from: Answerer): Buffer {
    const bytes = from.next(10, undefined);
    bytes.writeUInt32LE(FAULT_AROUND_PAGES_MAX + 1, HEADER_BYTES + 4);
    const sequence = bytes.readUInt32LE(12);
    encodeHeader(bytes, {
      kind: PacketKind.Pages,
      encoding: PageEncoding.Raw,
      round: 0,
      sequence,
      dataRuns: 0,
      zeroRuns: 1,
      payloadBytes: 0,
      lanes: 0,
    });
    return bytes;
  }
  it("drops a source that lies, each time with the code that says how, takes nothing of it, and lets the guest go on by an honest one", async (context) => {
    const target = await Target.open(context);
    const comparing = target.readers[0]?.compare(target.memory, target.source, [10]);
    let generation = 0;
    for (const [what, bytesOf, code] of hostile) {
      const answerer = new Answerer(context, await target.dial(++generation)).greet();
      await answerer.asked(1);
      answerer.socket.write(bytesOf(answerer));
      await until(`it drops one that ${what}`, () => target.lost.length === generation);
      assert.deepEqual(target.lost.at(-1), { generation, code }, what);
      await until("the connection is closed", () => answerer.isClosed);
      assert.equal(target.missing.bitmap.has(10), true, what);
      assert.equal(target.readers[0]?.count, 0, what);
    }
    await target.serve(context, ++generation);
    assert.deepEqual(await comparing, []);
    assert.deepEqual(target.failures, []);
  });

  it("places pages that nobody asked for, and needs no greeting for it", async (context) => {
    const target = await Target.open(context);
    const answerer = new Answerer(context, await target.dial(1));
    const pages = [5, 9, 6]; // one of them zeros
    for (const page of pages)
      answerer.socket.write(answerer.next(page, isZero(page) ? undefined : Buffer.from(target.source.view(page, 1))));
    await until("they are placed", () => pages.every((page) => !target.missing.bitmap.has(page)));
    assert.deepEqual(await target.readers[0]?.compare(target.memory, target.source, pages), []);
    const faults = await target.handling.end();
    assert.deepEqual([faults?.requests, faults?.zeros], [0, 0]);
  });

  it("hears of a new fault, and that it is to end, while a source sends and sends", async (context) => {
    const [known, last] = [PAGES - 4, PAGES - 1];
    const target = await Target.open(context, 1, (page) => page !== known);
    const answerer = new Answerer(context, await target.dial(1));
    const PACKETS = 400_000; // some seconds' worth
    const flood = Buffer.allocUnsafe(PACKETS * (HEADER_BYTES + RUN_BYTES));
    for (let at = 0; at < PACKETS; at++)
      flood.set(answerer.next(Math.floor((at * PAGES) / PACKETS), undefined), at * (HEADER_BYTES + RUN_BYTES));
    let sent = 0;
    const more = (): void => {
      for (let isTaken = true; isTaken && sent < flood.byteLength; sent += 2 ** 20)
        isTaken = answerer.socket.write(flood.subarray(sent, sent + 2 ** 20));
    };
    answerer.socket.on("drain", more);
    more();
    await until("it has begun", () => target.populated.has(10));
    assert.deepEqual(await target.readers[0]?.compare(target.memory, target.source, [known]), []);
    assert.ok(!target.populated.has(known - 1), "it heard of the fault when it had read all");
    await target.handling.end();
    assert.ok(!target.populated.has(last), "it heard of its end when it had read all");
  });

  it("wakes nobody too early and nobody never while a page channel places the same pages at the same time", async (context) => {
    const target = await Target.open(context, 2);
    await target.serve(context, 1);
    const comparing = target.readers.map((reader, at) => reader.compare(target.memory, target.source, shuffled(PAGES, 8 + at)));
    const placer = new PagePlacer({
      memory: target.memory,
      table: target.table,
      missing: target.missing.bitmap,
      populated: target.populated,
      descriptor: target.missing.listen(),
      progress: undefined,
    });
    const decoder = new PacketDecoder({ pages: PAGES, mayCarry: () => true }, placer);
    for (const [sequence, page] of shuffled(PAGES, 7).entries()) {
      decoder.push(packet(sequence, page, isZero(page) ? undefined : Buffer.from(target.source.view(page, 1))));
      if (sequence % 64 === 0) await delay(1);
    }
    assert.deepEqual(await Promise.all(comparing), [[], []]);
    assert.equal(target.missing.bitmap.count(), 0);
    assert.deepEqual(target.failures, []);
    const hashing = new PageHashes(target.memory, target.table);
    assert.deepEqual(await target.letGo(), []);
    assert.deepEqual(
      range(0, PAGES).filter((page) => !hashing.matches(page)),
      [],
    );
  });

  /** A thread stops at a page, there is no connection, and somebody else places the page after 50 ms. */
  async function placedByAnother(context: TestContext): Promise<Target> {
    const target = await Target.open(context, 1, (page) => page !== 4);
    assert.deepEqual(await target.readers[0]?.compare(target.memory, target.source, [4]), []); // so somebody stands there
    const comparing = target.readers[0]?.compare(target.memory, target.source, [21]);
    await delay(50); // the time is what is tested
    const placer = new PagePlacer({
      memory: target.memory,
      table: target.table,
      missing: target.missing.bitmap,
      populated: target.populated,
      descriptor: target.missing.listen(),
      progress: undefined,
    });
    new PacketDecoder(placer.bounds, placer).push(packet(0, 21, Buffer.from(target.source.view(21, 1))));
    assert.deepEqual(await comparing, []);
    return target;
  }
  it("goes on with a page that came by another way while there was no connection", async (context) => {
    await placedByAnother(context);
  });

  it("counts such a wait, too, and only for as long as it was", async (context) => {
    const target = await placedByAnother(context);
    await delay(500); // it waits no more
    const faults = await target.handling.end();
    const [ms] = faults?.vcpuBlockedMs ?? [];
    assert.ok(ms !== undefined && ms >= 25 && ms < 500, `${ms} ms`);
  });

  it("asks for nothing that has come meanwhile by another way", async (context) => {
    const target = await placedByAnother(context);
    const answerer = new Answerer(context, await target.dial(1)).greet();
    answerer.socket.write(answerer.next(5, Buffer.from(target.source.view(5, 1))));
    await until("the greeting has been read", () => !target.missing.bitmap.has(5));
    await delay(100); // for a request that should not come
    assert.deepEqual(answerer.requests, []);
  });

  it("ends without a connection and with one, tells what it did, gives its thread back, and leaves no descriptor open", async (context) => {
    const memory = GuestMemory.allocate(2 ** 20, pool);
    const missing = new MissingPages(memory);
    const descriptor = missing.listen();
    context.after(() => missing.close());
    const order = {
      descriptor,
      memory: memory.share(),
      table: undefined,
      missing: missing.bitmap.words,
      populated: new Bitmap(memory.pages).words,
      threads: [1],
    };
    const life = async (isConnected: boolean): Promise<void> => {
      const handling = new FaultHandling(threads, order);
      handling.onLost = handling.onFailure = () => assert.fail("it was told to end");
      if (isConnected) {
        const [near, far] = await pair(context);
        await handling.connect(1, far);
        await once(near, "data"); // the answer to the Upgrade
      }
      assert.deepEqual(await handling.end(), {
        requests: 0,
        zeros: 0,
        medianUs: 0,
        p99Us: 0,
        maxUs: 0,
        distribution: Array<number>(32).fill(0),
        vcpuBlockedMs: [0],
      });
      assert.equal((await handling.end())?.requests, 0, "asked again it says so again");
      const [near, far] = await pair(context);
      await handling.connect(2, far); // too late: closed at once
      near.resume();
      await once(near, "close");
    };
    await life(true);
    const before = readdirSync("/proc/self/fd").length;
    for (const isConnected of [false, true]) await life(isConnected);
    await until("sockets of this test are closed", () => readdirSync("/proc/self/fd").length <= before);
    assert.equal(threads.lent, 0, "its thread was not given back");
  });

  it("that cannot read faults any more says so, with what it did until then", async (context) => {
    const target = await Target.open(context);
    await target.serve(context, 1);
    assert.deepEqual(await target.readers[0]?.compare(target.memory, target.source, [1, 2, 3]), []);
    target.missing.close();
    await until("it fails", () => target.failures.length > 0);
    assert.equal(target.failures[0]?.code, "ERR_SYSTEM_CALL");
    assert.equal((await target.handling.end())?.requests, 3);
  });

  it("whose thread dies fails with ERR_INTERNAL, has no statistics, closes its connection, and gives no dead thread back", async (context) => {
    const threads = new MortalThreads();
    const memory = allocate(512);
    const words = new Bitmap(512).words;
    const handling = new FaultHandling(threads, {
      descriptor: 0,
      memory: memory.share(),
      table: undefined,
      missing: words,
      populated: words,
      threads: [],
    });
    const [near, far] = await pair(context);
    const failed = new Promise<MigrationError>((resolve) => {
      handling.onFailure = resolve;
    });
    await handling.connect(1, far);
    near.resume();
    assert.equal((await failed).code, "ERR_INTERNAL");
    assert.equal(await handling.end(), undefined);
    assert.deepEqual(threads.given, []);
    if (!near.closed) await once(near, "close");
  });
});

it("a request is none of the packets, and a packet none of the requests", () =>
  assert.notEqual(request(0, 0).readUInt32LE(0), PACKET_MAGIC));
