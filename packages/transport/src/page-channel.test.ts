import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import type { Socket } from "node:net";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { Worker } from "node:worker_threads";
import { isLinuxAvailable } from "@precopy/linux";
import type { Address } from "@precopy/protocol";
import { ChannelThreads, PageChannel, SWITCHING, choosePump, connectPageChannel } from "./page-channel.js";
import { allocate } from "./recorded-packets.js";

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
    const socket = await connectPageChannel(address, { ...NAME, channel: 3, generation: 7 }, never());
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
    const socket = await connectPageChannel(address, NAME, never());
    context.after(() => socket.destroy());
    assert.equal(socket.read(), null);
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
  const order = { type: "send", pump: "portable", channel: 0, channels: 1, hashes: undefined, compression: "none" } as const;

  it("whose thread dies fails with ERR_INTERNAL, rejects its round, and gives no dead thread to a later channel", async (context) => {
    class MortalThreads extends ChannelThreads {
      readonly given: Worker[] = [];
      override take(): Worker {
        return new Worker(`require("node:worker_threads").parentPort.once("message", () => { throw new Error("out of memory"); });`, {
          eval: true,
        });
      }
      override give(worker: Worker): void {
        this.given.push(worker);
      }
    }
    const threads = new MortalThreads();
    const address = await serve(context, (socket) => socket.write(SWITCHING));
    const memory = allocate(512);
    const channel = await PageChannel.open(await connectPageChannel(address, NAME, never()), threads, { ...order, memory: memory.share() });
    const failed = new Promise<{ readonly code: string }>((resolve) => {
      channel.onFailure = resolve;
    });
    await assert.rejects(channel.sendRound(1, new Uint32Array(16), 0), { code: "ERR_INTERNAL", message: "out of memory" });
    assert.equal((await failed).code, "ERR_INTERNAL");
    await channel.end();
    assert.deepEqual(threads.given, []);
    await assert.rejects(channel.sendRound(2, new Uint32Array(16), 0), { code: "ERR_INTERNAL" }, "and takes no further round");
  });

  it("cannot be opened on a connection that is closed already", async (context) => {
    const address = await serve(context, (socket) => socket.write(SWITCHING));
    const socket = await connectPageChannel(address, NAME, never());
    const closed = once(socket, "close");
    socket.destroy();
    await closed;
    const memory = allocate(512);
    await assert.rejects(PageChannel.open(socket, new ChannelThreads(), { ...order, memory: memory.share() }), { code: "ERR_LINK_LOST" });
  });
});
