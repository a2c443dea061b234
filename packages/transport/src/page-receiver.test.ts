import assert from "node:assert/strict";
import { once } from "node:events";
import { createConnection, createServer } from "node:net";
import type { Socket } from "node:net";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { Bitmap, PageHashes, allocateHashTable, joinDigests } from "@precopy/guest";
import type { GuestMemory } from "@precopy/guest";
import { NativeThread, isLinuxAvailable } from "@precopy/linux";
import { LaneTable } from "./lane-table.js";
import { ChannelThreads } from "./channel-threads.js";
import { PageReceiver } from "./page-receiver.js";
import type { ChannelLife, Delivered } from "./page-receiver.js";
import type { PumpKind } from "./pump.js";
import { allocate, fillRandom, recorder } from "./recorded-packets.js";

const PAGES = 2048; // four stripes
const whole = new Bitmap(PAGES);
whole.setRun(0, PAGES);

/** Both ends of a fresh loopback connection. */
async function connectedPair(context: TestContext): Promise<[Socket, Socket]> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const at = server.address();
  assert.ok(at !== null && typeof at === "object");
  const accepted: Promise<Socket[]> = once(server, "connection");
  const near = createConnection({ host: "127.0.0.1", port: at.port });
  await once(near, "connect");
  const [far] = await accepted;
  server.close();
  assert.ok(far !== undefined);
  near.on("error", () => {}); // it is cut off now and then
  context.after(() => [near, far].forEach((socket) => socket.destroy()));
  return [near, far];
}

const closing = (socket: Socket): Promise<void> => new Promise((resolve) => socket.once("close", () => resolve()));

/** A receiver, and what it told. */
class Rig {
  readonly memory = allocate(PAGES);
  readonly receiver: PageReceiver;
  readonly delivered: Delivered[] = [];
  readonly lost: (ChannelLife & { readonly code: string })[] = [];
  readonly #context: TestContext;
  #look: (() => void)[] = [];

  constructor(context: TestContext, lanes: number, pump: PumpKind = "portable", threads = new ChannelThreads()) {
    this.#context = context;
    this.receiver = new PageReceiver({
      lanes: LaneTable.allocate(lanes),
      threads,
      pump,
      memory: this.memory.share(),
      hashes: allocateHashTable(PAGES),
      populated: new Bitmap(PAGES).words,
    });
    this.receiver.onDelivered = (one) => this.#tell(this.delivered, one);
    this.receiver.onLost = (life, { code }) => this.#tell(this.lost, { ...life, code });
    context.after(async () => {
      await this.receiver.end();
      await threads.end();
    });
  }

  #tell<T>(list: T[], one: T): void {
    list.push(one);
    for (const look of this.#look.splice(0)) look();
  }

  async until(isDone: () => boolean): Promise<void> {
    while (!isDone()) await new Promise<void>((resolve) => this.#look.push(resolve));
  }

  /** Asks for a channel as a source would; resolves with what the target says it has stored, or undefined when it hung up without an answer. */
  async connect(channel: number, generation: number): Promise<{ socket: Socket; stored: string | undefined }> {
    const [near, far] = await connectedPair(this.#context);
    assert.ok(this.receiver.accept({ channel, generation }, far));
    const [answer]: unknown[] = await Promise.race([once(near, "data"), closing(near).then(() => [])]);
    const stored = Buffer.isBuffer(answer) ? (/Precopy-Stored: (.*)\r\n/.exec(answer.toString("latin1"))?.[1] ?? "") : undefined;
    return { socket: near, stored };
  }
}

/** One sending end for each channel, whose packets a test writes where it likes. */
function packerOf(
  memory: GuestMemory,
  lanes: number,
): (round: number, ...from: readonly (readonly [lane: number, page: number])[]) => Promise<Buffer[]> {
  const { packer, pump } = recorder(memory, { lanes });
  return async (round, ...from) => {
    pump.packets.length = 0;
    await packer.sendRound(
      round,
      whole,
      from.map(([lane, page]) => ({ lane, page })),
    );
    return [...pump.packets];
  };
}
function fullMemory(): GuestMemory {
  const memory = allocate(PAGES);
  fillRandom(memory, 0, PAGES, 5);
  return memory;
}
const equal = (one: GuestMemory, other: GuestMemory): boolean => Buffer.compare(one.view(0, PAGES), other.view(0, PAGES)) === 0;
function digestOf(memory: GuestMemory): string {
  const hashes = new PageHashes(memory, allocateHashTable(PAGES));
  for (let page = 0; page < PAGES; page++) if (!hashes.isZeroPage(page)) hashes.renew(page, 1);
  return joinDigests([hashes.digest()]);
}
const digest = ({ receiver }: Rig): string => joinDigests([receiver.digest ?? -1n]);

for (const pump of ["direct", "portable"] as const)
  describe(`PageReceiver, ${pump} pump`, { skip: pump === "portable" || isLinuxAvailable ? false : "no system calls here" }, () => {
    it("answers a later generation with what the earlier ones have stored, to the page, and ends with the image's digest", async (context) => {
      const memory = fullMemory();
      const rig = new Rig(context, 1, pump);
      assert.ok(rig.receiver.hasDelivered(0), "there is nothing before the first round to wait for");
      const first = await rig.connect(0, 1);
      assert.equal(first.stored, "0:0:0");
      const packets = await packerOf(memory, 1)(1, [0, 0]);
      first.socket.end(Buffer.concat([packets[0]!, packets[1]!.subarray(0, 10_000)]));
      await rig.until(() => rig.lost.length > 0);
      assert.deepEqual(rig.lost, [{ channel: 0, generation: 1, code: "ERR_LINK_LOST" }]);
      const second = await rig.connect(0, 2);
      assert.equal(second.stored, "0:1:512");
      const rest = await packerOf(memory, 1)(1, [0, 512]);
      assert.equal(rig.receiver.hasDelivered(1), false);
      second.socket.write(Buffer.concat(rest));
      await rig.until(() => rig.receiver.hasDelivered(1));
      assert.deepEqual(rig.delivered, [{ channel: 0, generation: 2, round: 1, packets: 4 }], "packets of this generation");
      assert.ok(equal(memory, rig.memory));
      assert.equal(digest(rig), digestOf(memory));
      const third = await rig.connect(0, 3);
      assert.equal(third.stored, `0:1:${PAGES}`);
      assert.deepEqual(rig.receiver.delivered, [], "of the latest generation nothing yet");
      assert.equal(rig.receiver.hasDelivered(0), false, "a round before it is not the last one");
      assert.ok(rig.receiver.hasDelivered(1), "but the round is here");
    });

    it("replaces a generation that it took for alive: a source may know earlier that a connection is dead", async (context) => {
      const memory = fullMemory();
      const rig = new Rig(context, 1, pump);
      const first = await rig.connect(0, 1);
      const [packet = Buffer.alloc(0), next = Buffer.alloc(0)] = await packerOf(memory, 1)(1, [0, 0]);
      first.socket.write(Buffer.concat([packet, next.subarray(0, 100)])); // and it stays open
      const closed = closing(first.socket);
      while (rig.memory.view(511, 1).every((byte) => byte === 0)) await new Promise((resolve) => setTimeout(resolve, 5));
      const second = await rig.connect(0, 2);
      assert.ok(second.stored === "0:1:512" || second.stored === "0:0:0", second.stored); // it may have been ended on the way
      await closed;
      assert.deepEqual(rig.lost, [], "it was not lost, it was replaced");
      second.socket.write(Buffer.concat(await packerOf(memory, 1)(1, [0, Number(second.stored.split(":")[2])])));
      await rig.until(() => rig.receiver.hasDelivered(1));
      assert.ok(equal(memory, rig.memory));
      assert.equal(digest(rig), digestOf(memory));
    });

    it("clears a page that was cut off in the middle, when it comes as zero on the next generation", async (context) => {
      const memory = fullMemory();
      const rig = new Rig(context, 1, pump);
      const [packet = Buffer.alloc(0)] = await packerOf(memory, 1)(1, [0, 0]);
      const first = await rig.connect(0, 1);
      first.socket.end(packet.subarray(0, 7 * 4096 + 1000));
      await rig.until(() => rig.lost.length > 0);
      assert.ok(
        rig.memory.view(5, 1).some((byte) => byte !== 0),
        "part of it has landed",
      );
      memory.view(0, PAGES).fill(0);
      const second = await rig.connect(0, 2);
      assert.equal(second.stored, "0:0:0");
      second.socket.write(Buffer.concat(await packerOf(memory, 1)(1, [0, 0])));
      await rig.until(() => rig.receiver.hasDelivered(1));
      assert.ok(equal(memory, rig.memory));
      assert.equal(digest(rig), joinDigests([0n]));
    });

    it("moves a lane to another channel from where it stands, and counts no FLUSH for it that was sent before", async (context) => {
      const memory = fullMemory();
      const rig = new Rig(context, 2, pump);
      const own = packerOf(memory, 2);
      const [zero, one] = [await rig.connect(0, 1), await rig.connect(1, 1)];
      const [first = Buffer.alloc(0)] = await packerOf(memory, 2)(1, [1, 0]);
      one.socket.end(first);
      await rig.until(() => rig.lost.length > 0);
      assert.deepEqual(await rig.receiver.carry(1, 0), { round: 1, page: 1024 });
      assert.deepEqual(await rig.receiver.carry(1, 0), { round: 1, page: 1024 }, "asked again, it answers again");
      zero.socket.write(Buffer.concat(await own(1, [0, 0])));
      await rig.until(() => rig.delivered.length === 1);
      assert.equal(rig.receiver.hasDelivered(1), false, "lane 1 is not here yet");
      zero.socket.write(Buffer.concat(await own(1, [1, 1024])));
      await rig.until(() => rig.delivered.length === 2);
      assert.ok(rig.receiver.hasDelivered(1));
      assert.ok(equal(memory, rig.memory));
      assert.equal(digest(rig), digestOf(memory));
      zero.socket.end();
      await rig.until(() => rig.lost.length === 2);
      const again = await rig.connect(0, 2);
      assert.equal(again.stored, `0:1:${PAGES},1:1:${PAGES}`);
    });
  });

describe("PageReceiver", () => {
  const accepts = async (context: TestContext, { receiver }: Rig, channel: number, generation: number): Promise<boolean> =>
    receiver.accept({ channel, generation }, (await connectedPair(context))[1]);

  it("refuses a channel that there is not, a generation as late as one it saw, a channel without lanes, and everything once it has ended", async (context) => {
    const rig = new Rig(context, 2);
    assert.equal(await accepts(context, rig, 2, 1), false);
    await rig.connect(0, 5);
    for (const generation of [1, 4, 5]) assert.equal(await accepts(context, rig, 0, generation), false, `generation ${generation}`);
    await rig.connect(0, 6);
    await rig.receiver.carry(1, 0);
    assert.equal(await accepts(context, rig, 1, 1), false, "nothing is left to carry there");
    await rig.receiver.end();
    assert.equal(await accepts(context, rig, 0, 7), false);
  });

  it("ends a carrier that still stands when its lane is moved, and where the lane stands is final then", async (context) => {
    const memory = fullMemory();
    const rig = new Rig(context, 2);
    await rig.connect(0, 1);
    const { socket } = await rig.connect(1, 1);
    const [packet = Buffer.alloc(0), next = Buffer.alloc(0)] = await packerOf(memory, 2)(1, [1, 0]);
    const closed = closing(socket);
    socket.write(Buffer.concat([packet, next.subarray(0, 50)]));
    while (rig.memory.view(1023, 1).every((byte) => byte === 0)) await new Promise((resolve) => setTimeout(resolve, 5));
    const { round, page } = await rig.receiver.carry(1, 0);
    assert.ok((round === 1 && page === 1024) || (round === 0 && page === 0), `${round}:${page}`);
    await closed;
    assert.deepEqual(rig.lost, []);
  });

  it("refuses to move a lane that there is not, or to a channel that there is not, with ERR_BAD_MESSAGE", async (context) => {
    const { receiver } = new Rig(context, 2);
    await assert.rejects(receiver.carry(2, 0), { code: "ERR_BAD_MESSAGE" });
    await assert.rejects(receiver.carry(0, 2), { code: "ERR_BAD_MESSAGE" });
  });

  it("serves two who move the same lane at the same time, one after the other", async (context) => {
    const { receiver } = new Rig(context, 3);
    await Promise.all([receiver.carry(0, 1), receiver.carry(0, 2), receiver.carry(0, 1)]);
    assert.deepEqual(await receiver.carry(0, 2), { round: 0, page: 0 });
  });

  it("opens only the latest of many that ask at once, and hangs up on the others", async (context) => {
    const rig = new Rig(context, 1);
    const pairs = await Promise.all(Array.from({ length: 10 }, () => connectedPair(context)));
    const ends = pairs.map(([near]) => Promise.race([once(near, "data").then(() => "open"), closing(near).then(() => "closed")]));
    pairs.forEach(([, far], at) => assert.ok(rig.receiver.accept({ channel: 0, generation: at + 1 }, far)));
    assert.deepEqual(await Promise.all(ends), [...Array<string>(9).fill("closed"), "open"]);
    assert.deepEqual(rig.lost, []);
  });

  it("reports a connection that broke before its channel began as lost", async (context) => {
    const rig = new Rig(context, 1);
    const [, far] = await connectedPair(context);
    const closed = once(far, "close");
    far.destroy();
    await closed;
    assert.ok(rig.receiver.accept({ channel: 0, generation: 1 }, far));
    await rig.until(() => rig.lost.length > 0);
    assert.deepEqual(rig.lost, [{ channel: 0, generation: 1, code: "ERR_LINK_LOST" }]);
  });

  it("has no digest any more when a thread crashed: its share is gone with it", {
    skip: isLinuxAvailable ? false : "no threads here",
  }, async (context) => {
    class MortalThreads extends ChannelThreads {
      override take(): NativeThread {
        return new NativeThread(`require("node:worker_threads").parentPort.once("message", () => { throw new Error("out of memory"); });`, {
          eval: true,
        });
      }
    }
    const rig = new Rig(context, 1, "portable", new MortalThreads());
    assert.equal(rig.receiver.digest, 0n);
    const [, far] = await connectedPair(context);
    rig.receiver.accept({ channel: 0, generation: 1 }, far);
    await rig.until(() => rig.lost.length > 0);
    assert.deepEqual(rig.lost, [{ channel: 0, generation: 1, code: "ERR_INTERNAL" }]);
    assert.equal(rig.receiver.digest, undefined);
  });
});
