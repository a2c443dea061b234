import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { Socket, createServer } from "node:net";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { NativeThread, isLinuxAvailable } from "@precopy/linux";
import type { Address } from "@precopy/protocol";
import { ChannelThreads } from "./channel-threads.js";
import { PageChannel, choosePump, connectPageChannel, switching } from "./page-channel.js";
import { LaneTable } from "./lane-table.js";
import { WHOLE, allocate, fillRandom } from "./recorded-packets.js";

const SWITCHING = switching([]);
const NAME = { session: randomUUID(), channel: 0, generation: 1 };
const never = (): AbortSignal => new AbortController().signal;

/** A server that does with each connection what the test says. */
async function serve(context: TestContext, onConnection: (socket: Socket) => void): Promise<Address> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {}); // the other end may cut it off
    onConnection(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  context.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const at = server.address();
  assert.ok(at !== null && typeof at === "object");
  return { host: "127.0.0.1", port: at.port };
}

describe("connectPageChannel", () => {
  it("asks for session, channel and generation by an Upgrade, and sends nothing more before the answer", async (context) => {
    let asked = "";
    const address = await serve(context, (socket) =>
      socket.on("data", (chunk: Buffer) => {
        asked += chunk.toString("latin1");
        if (asked.endsWith("\r\n\r\n")) socket.write(SWITCHING);
      }),
    );
    const { socket } = await connectPageChannel(address, { ...NAME, channel: 3, generation: 7 }, never());
    context.after(() => socket.destroy());
    const [request] = asked.split("\r\n");
    assert.equal(request, `GET /v1/pages?session=${NAME.session}&channel=3&generation=7 HTTP/1.1`);
    assert.match(asked, /\r\nUpgrade: precopy-pages\/1\r\n/);
  });

  it("takes an answer that comes one byte at a time, and leaves nothing of it behind", async (context) => {
    const address = await serve(context, (socket) => {
      socket.setNoDelay(true);
      let at = 0;
      const more = (): void => {
        if (at === SWITCHING.byteLength) return;
        socket.write(SWITCHING.subarray(at, ++at), () => setImmediate(more));
      };
      more();
    });
    const { socket } = await connectPageChannel(address, NAME, never());
    context.after(() => socket.destroy());
    assert.ok(socket instanceof Socket);
    assert.equal(socket.read(), null);
  });

  it("takes what the target says it has stored, to the last page of the largest guest, and nothing where it says nothing", async (context) => {
    const points = [
      { lane: 0, round: 0, page: 0 },
      { lane: 15, round: 2 ** 32 - 1, page: 2 ** 32 },
    ];
    const most = Array.from({ length: 16 }, (_, lane) => ({ lane, round: 9, page: lane * 512 }));
    for (const stored of [[], points, most]) {
      const address = await serve(context, (socket) => socket.write(switching(stored)));
      const connected = await connectPageChannel(address, NAME, never());
      context.after(() => connected.socket.destroy());
      assert.deepEqual(connected.stored, stored);
    }
    const address = await serve(context, (socket) =>
      socket.write("HTTP/1.1 101 Switching Protocols\r\nprecopy-stored:3:1:7\r\nVia: 1.1 somewhere\r\n\r\n"),
    );
    const connected = await connectPageChannel(address, NAME, never());
    context.after(() => connected.socket.destroy());
    assert.deepEqual(connected.stored, [{ lane: 3, round: 1, page: 7 }], "names of headers have no case");
  });

  it("refuses with ERR_NOT_AN_AGENT anything else in that place", async (context) => {
    const bad = [
      "",
      ",",
      "0",
      "0:1",
      "0:1:2:3",
      "0:1:2,",
      ",0:1:2",
      "16:1:2",
      "99:1:2",
      "-1:1:2",
      "0:-1:2",
      "0:1:-2",
      "0:1.5:2",
      "0:1e3:2",
      "0x0:1:2",
    ];
    const large = [
      "0:4294967296:0",
      "0:1:4294967297",
      "0:1:99999999999",
      "000:1:2",
      "0:1:2;1:1:2",
      "0: 1:2",
      "0:1:2,0:1:2",
      "a:b:c",
      "1:1:0.0",
    ];
    const many = Array.from({ length: 17 }, (_, at) => `${at}:1:2`).join(",");
    for (const value of [...bad, ...large, many, "0:1:2\r\nPrecopy-Stored: 1:1:2"]) {
      const address = await serve(context, (socket) => socket.write(`HTTP/1.1 101 Yes\r\nPrecopy-Stored: ${value}\r\n\r\n`));
      await assert.rejects(connectPageChannel(address, NAME, never()), { code: "ERR_NOT_AN_AGENT" }, JSON.stringify(value));
    }
  });

  const answers = [
    ["an answer of 409 with ERR_STALE_GENERATION", "HTTP/1.1 409 No Such Channel\r\n\r\n", "ERR_STALE_GENERATION"],
    ["any other answer with ERR_NOT_AN_AGENT", "HTTP/1.1 200 OK\r\n\r\nwelcome", "ERR_NOT_AN_AGENT"],
    ["an answer that does not end with ERR_NOT_AN_AGENT", "x".repeat(20_000), "ERR_NOT_AN_AGENT"],
  ] as const;
  for (const [what, answer, code] of answers)
    it(`meets ${what}`, async (context) => {
      const address = await serve(context, (socket) => socket.write(answer));
      await assert.rejects(connectPageChannel(address, NAME, never()), { code });
    });

  it("meets a peer that hangs up without an answer, and a port where nobody listens, with ERR_UNREACHABLE", async (context) => {
    const address = await serve(context, (socket) => socket.end());
    await assert.rejects(connectPageChannel(address, NAME, never()), { code: "ERR_UNREACHABLE" });
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const at = server.address();
    assert.ok(at !== null && typeof at === "object");
    server.close();
    await once(server, "close");
    await assert.rejects(connectPageChannel({ host: "127.0.0.1", port: at.port }, NAME, never()), { code: "ERR_UNREACHABLE" });
  });

  it("ends at once when it is aborted while the peer says nothing", async (context) => {
    const abort = new AbortController();
    const address = await serve(context, () => abort.abort());
    await assert.rejects(connectPageChannel(address, NAME, abort.signal), { code: "ERR_UNREACHABLE" });
  });
});

describe("choosePump", () => {
  it("takes the direct pump where system calls can be made, and the portable one where not or where it is wanted", () => {
    assert.equal(choosePump("auto"), isLinuxAvailable ? "direct" : "portable");
    assert.equal(choosePump("portable"), "portable");
    if (isLinuxAvailable) assert.equal(choosePump("direct"), "direct");
    else assert.throws(() => choosePump("direct"), { code: "ERR_CAPABILITY" });
  });
});

describe("PageChannel", { skip: isLinuxAvailable ? false : "without system calls channels stay on the main thread" }, () => {
  const lanes = LaneTable.allocate(1).share();
  const order = { type: "send", pump: "portable", channel: 0, generation: 1, lanes, hashes: undefined, compression: "none" } as const;

  it("whose thread dies fails with ERR_INTERNAL, rejects its round, and gives no dead thread to a later channel", async (context) => {
    class MortalThreads extends ChannelThreads {
      readonly given: NativeThread[] = [];
      override take(): NativeThread {
        return new NativeThread(`require("node:worker_threads").parentPort.once("message", () => { throw new Error("out of memory"); });`, {
          eval: true,
        });
      }
      override give(worker: NativeThread): void {
        this.given.push(worker);
      }
    }
    const threads = new MortalThreads();
    const address = await serve(context, (socket) => socket.write(SWITCHING));
    const memory = allocate(512);
    const channel = await PageChannel.open((await connectPageChannel(address, NAME, never())).socket, threads, {
      ...order,
      memory: memory.share(),
    });
    const failed = new Promise<{ readonly code: string }>((resolve) => {
      channel.onFailure = resolve;
    });
    await assert.rejects(channel.sendRound(1, new Uint32Array(16), 0, WHOLE), { code: "ERR_INTERNAL", message: "out of memory" });
    assert.equal((await failed).code, "ERR_INTERNAL");
    await channel.end();
    assert.deepEqual([channel.digest, channel.position], [undefined, undefined], "both are gone with the thread");
    assert.deepEqual(threads.given, []);
    await assert.rejects(channel.sendRound(2, new Uint32Array(16), 0, WHOLE), { code: "ERR_INTERNAL" }, "and takes no further round");
  });

  it("leaves a thread behind whose failure while it waits ends no process, and which is not lent again", async (context) => {
    const threads = new ChannelThreads();
    await threads.prepare(1);
    const address = await serve(context, (socket) => socket.write(SWITCHING));
    const memory = allocate(512).share();
    const channel = await PageChannel.open((await connectPageChannel(address, NAME, never())).socket, threads, { ...order, memory });
    await channel.end();
    const used = threads.take();
    threads.give(used);
    used.emit("error", new Error("failed while it waited")); // without a listener this throws, as it would from the thread
    await used.terminate();
    const next = threads.take();
    assert.notEqual(next, used);
    await next.terminate();
  });

  it("gives its thread back to an end when the agent's threads have ended before it", async (context) => {
    const threads = new ChannelThreads();
    await threads.prepare(1);
    const thread = threads.take();
    threads.give(thread);
    const exited = once(thread, "exit");
    const address = await serve(context, (socket) => socket.write(SWITCHING));
    const memory = allocate(512).share();
    const channel = await PageChannel.open((await connectPageChannel(address, NAME, never())).socket, threads, { ...order, memory });
    await threads.end();
    await channel.end();
    await exited;
  });

  for (const pump of ["direct", "portable"] as const) {
    it(`takes rounds while one is under way, and answers them in the order they came (${pump})`, async (context) => {
      const address = await serve(context, (socket) => socket.resume().write(SWITCHING));
      const memory = allocate(4096);
      fillRandom(memory, 0, 4096, 1);
      const threads = new ChannelThreads();
      const { socket } = await connectPageChannel(address, NAME, never());
      const channel = await PageChannel.open(socket, threads, {
        ...order,
        pump,
        lanes: LaneTable.allocate(4).share(),
        memory: memory.share(),
      });
      const all = new Uint32Array(new SharedArrayBuffer(512)).fill(0xffffffff);
      const answered: number[] = [];
      const sent = await Promise.all(
        [0, 2, 1].map(async (lane, at) => {
          const one = await channel.sendRound(5, all, 0, [{ lane, page: lane === 2 ? 1500 : 0 }]);
          answered.push(at);
          return one;
        }),
      );
      assert.deepEqual(answered, [0, 1, 2]);
      assert.deepEqual(
        sent.map(({ normalPages }) => normalPages),
        [1024, 548, 1024],
      );
      assert.deepEqual(
        sent.map(({ packets }) => packets),
        [3, 6, 9],
      );
      await channel.end();
      assert.deepEqual([channel.position?.round, channel.position?.page], [5, 4096]);
      await threads.end();
    });

    it(`rejects every round that waits, in one go, when its peer cuts it off (${pump})`, async (context) => {
      const address = await serve(context, (socket) =>
        socket.once("data", () => socket.write(SWITCHING, () => socket.once("data", () => socket.resetAndDestroy()))),
      );
      const memory = allocate(16384);
      fillRandom(memory, 0, 16384, 1);
      const threads = new ChannelThreads();
      const { socket } = await connectPageChannel(address, NAME, never());
      const channel = await PageChannel.open(socket, threads, { ...order, pump, memory: memory.share() });
      let failures = 0;
      channel.onFailure = () => failures++;
      const all = new Uint32Array(new SharedArrayBuffer(2048)).fill(0xffffffff);
      const rounds = [1, 2, 3].map((round) => assert.rejects(channel.sendRound(round, all, 0, WHOLE), { code: "ERR_LINK_LOST" }));
      await Promise.all(rounds);
      await channel.end();
      assert.equal(failures, 1);
      assert.equal(channel.position?.round, 1);
      assert.ok(channel.position.page % 512 === 0 && channel.position.page < 16384, `page ${channel.position.page}`);
      await threads.end();
    });

    it(`that is told to end after it failed leaves the next channel of its thread alone (${pump})`, async (context) => {
      const address = await serve(context, (socket) => socket.resume().write(SWITCHING));
      const dead = await serve(context, (socket) => socket.once("data", () => socket.write(SWITCHING, () => socket.resetAndDestroy())));
      const memory = allocate(16384);
      fillRandom(memory, 0, 16384, 1);
      const all = new Uint32Array(new SharedArrayBuffer(2048)).fill(0xffffffff);
      const threads = new ChannelThreads();
      const open = async (to: Address): Promise<PageChannel> =>
        PageChannel.open((await connectPageChannel(to, NAME, never())).socket, threads, { ...order, pump, memory: memory.share() });
      const first = await open(dead);
      await assert.rejects(first.sendRound(1, all, 0, WHOLE), { code: "ERR_LINK_LOST" });
      const second = await open(address); // on the thread that the first one gave back
      second.onFailure = (error) => assert.fail(error);
      await first.end();
      for (const round of [1, 2]) assert.equal((await second.sendRound(round, all, 0, WHOLE)).normalPages, 16384);
      await second.end();
      await threads.end();
    });
  }

  it("notices between two rounds that its peer has hung up, or was cut off (portable)", async (context) => {
    for (const hangUp of [(peer: Socket) => peer.end(), (peer: Socket) => peer.resetAndDestroy()]) {
      const address = await serve(context, (peer) =>
        peer.once("data", () => peer.write(SWITCHING, () => peer.once("data", () => hangUp(peer)))),
      );
      const threads = new ChannelThreads();
      const memory = allocate(512);
      const { socket } = await connectPageChannel(address, NAME, never());
      const channel = await PageChannel.open(socket, threads, { ...order, memory: memory.share() });
      const failed = new Promise<{ readonly code: string }>((resolve) => {
        channel.onFailure = resolve;
      });
      await channel.sendRound(1, new Uint32Array(16), 0, WHOLE);
      assert.equal((await failed).code, "ERR_LINK_LOST");
      await channel.end();
      assert.deepEqual([channel.position?.round, channel.position?.page], [1, 512]);
      await threads.end();
    }
  });

  it("cannot be opened on a connection that is closed already", async (context) => {
    const address = await serve(context, (socket) => socket.write(SWITCHING));
    const { socket } = await connectPageChannel(address, NAME, never());
    assert.ok(socket instanceof Socket);
    const closed = once(socket, "close");
    socket.destroy();
    await closed;
    const memory = allocate(512);
    await assert.rejects(PageChannel.open(socket, new ChannelThreads(), { ...order, memory: memory.share() }), { code: "ERR_LINK_LOST" });
  });
});
