import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import type { AddressInfo, Server, Socket } from "node:net";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Boundaries } from "./boundaries.js";
import { FaultProxy, reset } from "./proxy.js";
import type { Effect, WireFault } from "./proxy.js";

const CONTROL_HEAD = "GET /v1/control HTTP/1.1\r\nHost: x\r\n\r\n";
const PAGES_HEAD = "GET /v1/pages?session=1 HTTP/1.1\r\nHost: x\r\n\r\n";

/** A binary WebSocket message of `bytes`, all `fill`. */
function frame(bytes: number, fill: number, { isMasked = true, isLast = true } = {}): Buffer {
  const length =
    bytes < 126
      ? [bytes]
      : bytes < 65_536
        ? [126, bytes >> 8, bytes & 255]
        : [127, 0, 0, 0, 0, 0, bytes >> 16, (bytes >> 8) & 255, bytes & 255];
  const [first = 0, ...rest] = length;
  const head = [isLast ? 0x82 : 0x02, first | (isMasked ? 0x80 : 0), ...rest, ...(isMasked ? [1, 2, 3, 4] : [])];
  return Buffer.concat([Buffer.from(head), Buffer.alloc(bytes, fill)]);
}

/** A page packet with `runs` in its table and a payload. */
function packet(runs: number, payload: number): Buffer {
  const bytes = Buffer.alloc(32 + runs * 8 + payload, 7);
  bytes.writeUInt32LE(0x474d564c, 0);
  bytes.writeUInt16LE(runs, 16);
  bytes.writeUInt16LE(0, 18);
  bytes.writeUInt32LE(payload, 20);
  return bytes;
}

describe("message boundaries are found however the bytes are cut", () => {
  const streams = [
    {
      framing: "websocket",
      parts: [Buffer.from(CONTROL_HEAD), frame(0, 0), frame(125, 1), frame(126, 2), frame(70_000, 3), frame(5, 13, { isMasked: false })],
    },
    { framing: "packets", parts: [Buffer.from(PAGES_HEAD), packet(0, 0), packet(3, 12_288), packet(5000, 0), packet(1, 4096)] },
  ] as const;
  for (const { framing, parts } of streams)
    for (const size of [1, 2, 7, 31, 33, 1000, 10 ** 6])
      it(`${framing} in chunks of ${size}`, () => {
        let end = 0;
        const expected = parts.map((part) => (end += part.byteLength));
        const all = Buffer.concat(parts);
        const boundaries = new Boundaries(framing);
        const found: number[] = [];
        for (let at = 0; at < all.byteLength; at += size)
          found.push(...boundaries.feed(all.subarray(at, at + size)).map((offset) => at + offset));
        assert.deepEqual(found, expected);
      });

  it("a message in three frames ends with the third", () => {
    const parts = [frame(10, 1, { isLast: false }), frame(10, 1, { isLast: false }), frame(10, 1)];
    const boundaries = new Boundaries("websocket");
    const ends = boundaries.feed(Buffer.concat([Buffer.from(CONTROL_HEAD), ...parts]));
    assert.deepEqual(ends, [CONTROL_HEAD.length, CONTROL_HEAD.length + Buffer.concat(parts).byteLength]);
  });

  it("what is no packet has no boundaries, and is no endless loop", () => {
    assert.deepEqual(new Boundaries("packets").feed(Buffer.from(`${PAGES_HEAD}${"x".repeat(1000)}`)), [PAGES_HEAD.length]);
  });
});

/** Stands for an agent: keeps what arrives, and how connections ended. */
class Sink {
  readonly server: Server;
  readonly sockets: Socket[] = [];
  readonly ends: string[] = [];
  received: Buffer = Buffer.alloc(0);

  constructor() {
    this.server = createServer((socket) => {
      const at = this.sockets.push(socket) - 1;
      socket.on("data", (chunk: Buffer) => {
        this.received = Buffer.concat([this.received, chunk]);
      });
      socket.on("end", () => (this.ends[at] ??= "fin"));
      socket.on("error", () => (this.ends[at] = "rst"));
    });
  }

  async until(isThere: () => boolean): Promise<void> {
    for (let left = 5000; left > 0 && !isThere(); left--) await new Promise((resolve) => setTimeout(resolve, 4));
    assert.ok(isThere(), `${this.received.byteLength} bytes here, ends ${this.ends.join()}`);
  }
}

let sink: Sink;
let proxy: FaultProxy;
const opened: Socket[] = [];
beforeEach(async () => {
  sink = new Sink();
  sink.server.listen(0, "127.0.0.1");
  await once(sink.server, "listening");
  proxy = await FaultProxy.to(`127.0.0.1:${(sink.server.address() as AddressInfo).port}`);
});
afterEach(() => {
  for (const socket of opened.splice(0)) socket.destroy();
  for (const socket of sink.sockets) socket.destroy();
  proxy.close();
  sink.server.close();
});

async function dial(): Promise<Socket> {
  const socket = connect({ port: Number(proxy.address.split(":")[1]), host: "127.0.0.1", noDelay: true });
  socket.on("error", () => {});
  opened.push(socket);
  await once(socket, "connect");
  return socket;
}

const wire = (unit: WireFault["unit"], at: number, effect: Effect, channel: WireFault["channel"] = "control"): WireFault => ({
  channel,
  direction: "up",
  unit,
  at,
  effect,
});

it("without a fault it relays 128 MiB unchanged, past a reader that is slow at first", async () => {
  const sent = createHash("md5");
  const got = createHash("md5");
  const bytes = 2 ** 27;
  let left = bytes;
  const receiver = createServer((socket) => {
    socket.pause();
    setTimeout(() => socket.resume(), 200);
    socket.on("data", (chunk: Buffer) => got.update(chunk));
    socket.on("end", () => socket.end("done"));
  });
  receiver.listen(0, "127.0.0.1");
  await once(receiver, "listening");
  const relay = await FaultProxy.to(`127.0.0.1:${(receiver.address() as AddressInfo).port}`);
  const socket = connect({ port: Number(relay.address.split(":")[1]), host: "127.0.0.1" });
  const block = randomBytes(2 ** 20);
  const head = Buffer.from(PAGES_HEAD);
  sent.update(head);
  socket.write(head);
  for (; left > 0; left -= block.byteLength) {
    sent.update(block);
    if (!socket.write(block)) await once(socket, "drain");
  }
  socket.end();
  const [answer] = (await once(socket, "data")) as [Buffer];
  assert.equal(answer.toString(), "done");
  assert.equal(got.digest("hex"), sent.digest("hex"));
  relay.close();
  receiver.close();
});

describe("a fault strikes at its place, once", () => {
  for (const how of ["fin", "rst"] as const)
    it(`cut by ${how} behind message 2: the head and two messages arrive, nothing of the third`, async () => {
      proxy.arm(wire("message", 2, { type: "cut", how, isLink: false }));
      const socket = await dial();
      const messages = [frame(10, 1), frame(200, 2), frame(30, 3)];
      socket.write(Buffer.concat([Buffer.from(CONTROL_HEAD), ...messages]));
      await sink.until(() => sink.ends[0] !== undefined);
      if (how === "fin") assert.equal(sink.ends[0], how); // a reset right behind data is an end to libuv, see uv__stream_io
      assert.equal(sink.received.byteLength, CONTROL_HEAD.length + messages[0]!.byteLength + messages[1]!.byteLength);
      const next = await dial();
      next.write(CONTROL_HEAD);
      await sink.until(() => sink.received.byteLength > CONTROL_HEAD.length * 2);
    });

  it("counts bytes over connections of its channel only, even if they come one at a time", async () => {
    proxy.arm(wire("byte", PAGES_HEAD.length * 2 + 3, { type: "cut", how: "fin", isLink: false }, "pages"));
    const control = await dial();
    control.write(`${CONTROL_HEAD}${"x".repeat(500)}`);
    const first = await dial();
    first.write(PAGES_HEAD);
    const second = await dial();
    for (const byte of `${PAGES_HEAD}abcdef`) {
      second.write(byte);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await sink.until(() => sink.ends.some((end) => end === "fin"));
    assert.match(sink.received.toString(), /\r\n\r\nabc$/);
    assert.equal(sink.ends.filter((end) => end !== undefined).length, 1, "the other two are open");
  });

  it("flips one bit and no other", async () => {
    proxy.arm(wire("byte", CONTROL_HEAD.length + 20, { type: "flip", bit: 3 }));
    const socket = await dial();
    const whole = Buffer.concat([Buffer.from(CONTROL_HEAD), frame(100, 0x55)]);
    socket.write(whole);
    await sink.until(() => sink.received.byteLength === whole.byteLength);
    whole[CONTROL_HEAD.length + 20]! ^= 8;
    assert.deepEqual(sink.received, whole);
  });

  it("a stall holds back what comes behind its place, without an end, and lets it go later", async () => {
    proxy.arm(wire("message", 1, { type: "stall", ms: 150, directions: "both", isLink: false }));
    const socket = await dial();
    const started = performance.now();
    socket.write(Buffer.concat([Buffer.from(CONTROL_HEAD), frame(10, 1), frame(10, 2)]));
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length + 16);
    socket.end();
    await sink.until(() => sink.ends[0] === "fin");
    assert.ok(performance.now() - started > 140);
    assert.equal(sink.received.byteLength, CONTROL_HEAD.length + 32);
  });

  it("a stall of one direction lets the other pass", async () => {
    proxy.arm(wire("message", 0, { type: "stall", ms: 5000, directions: "one", isLink: false }));
    const socket = await dial();
    socket.write(Buffer.concat([Buffer.from(CONTROL_HEAD), frame(10, 1)]));
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length);
    sink.sockets[0]?.write("answer");
    const [answer] = (await once(socket, "data")) as [Buffer];
    assert.equal(answer.toString(), "answer");
    assert.equal(sink.received.byteLength, CONTROL_HEAD.length);
    await proxy.comeBack();
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length + 16);
  });

  it("a delay makes everything late, in order", async () => {
    proxy.arm(wire("message", 0, { type: "delay", ms: 60, isLink: false }));
    const socket = await dial();
    socket.write(CONTROL_HEAD);
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length);
    const started = performance.now();
    for (const byte of "abcdefgh") socket.write(byte);
    socket.end();
    await sink.until(() => sink.ends[0] === "fin");
    assert.ok(performance.now() - started > 55);
    assert.match(sink.received.toString(), /abcdefgh$/);
  });

  it("a fault of the link takes every connection with it", async () => {
    proxy.arm(wire("message", 1, { type: "cut", how: "rst", isLink: true }));
    const pages = await dial();
    pages.write(PAGES_HEAD);
    await sink.until(() => sink.sockets.length === 1);
    const control = await dial();
    control.write(Buffer.concat([Buffer.from(CONTROL_HEAD), frame(10, 1)]));
    await sink.until(() => sink.ends[0] === "rst" && sink.ends[1] !== undefined);
  });
});

describe("the link", () => {
  it("falls silent: what is sent arrives when it comes back, also on a connection made meanwhile", async () => {
    const old = await dial();
    old.write(CONTROL_HEAD);
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length);
    proxy.fallSilent();
    old.write("x");
    const fresh = await dial();
    fresh.write(PAGES_HEAD);
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(sink.received.byteLength, CONTROL_HEAD.length);
    await proxy.comeBack();
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length + 1 + PAGES_HEAD.length);
  });

  it("while it is silent the death of one side is not told to the other, and afterwards it is", async () => {
    const socket = await dial();
    socket.write(CONTROL_HEAD);
    await sink.until(() => sink.sockets.length === 1);
    proxy.fallSilent();
    sink.sockets[0]?.resetAndDestroy();
    const closed = new Promise((resolve) => socket.once("close", resolve));
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(socket.destroyed, false);
    await proxy.comeBack();
    socket.write("x");
    await closed;
  });

  it("refuses new connections, keeps the open ones, and comes back at the same port", async () => {
    const old = await dial();
    old.write(CONTROL_HEAD);
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length);
    proxy.refuse();
    await assert.rejects(dial(), { code: "ECONNREFUSED" });
    old.write("x");
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length + 1);
    await proxy.comeBack();
    await dial();
  });

  it("passes an end and a reset on as what they are", async () => {
    const ending = await dial();
    ending.end(CONTROL_HEAD);
    await sink.until(() => sink.ends[0] === "fin");
    const resetting = await dial();
    resetting.write(CONTROL_HEAD);
    await sink.until(() => sink.received.byteLength === 2 * CONTROL_HEAD.length); // the proxy has connected: before, there is nothing to reset
    reset(resetting);
    await sink.until(() => sink.ends[1] === "rst");
  });

  it("cut at once, on one kind of channel, leaves the other", async () => {
    const control = await dial();
    control.write(CONTROL_HEAD);
    const pages = await dial();
    pages.write(PAGES_HEAD);
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length + PAGES_HEAD.length);
    proxy.cut("rst", "pages");
    await sink.until(() => sink.ends.includes("rst"));
    control.write("x");
    await sink.until(() => sink.received.byteLength === CONTROL_HEAD.length + PAGES_HEAD.length + 1);
  });
});
