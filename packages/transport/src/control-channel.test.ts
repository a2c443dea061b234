import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer as createHttpServer } from "node:http";
import { createServer } from "node:net";
import type { Server } from "node:net";
import { describe, it, mock } from "node:test";
import type { TestContext } from "node:test";
import { crc32 } from "node:zlib";
import { CONTROL_MESSAGE_BYTES_MAX, HEARTBEAT_MS, MigrationError, PEER_DEAD_MS } from "@precopy/protocol";
import { decodeControl, encodeControl } from "@precopy/protocol/control";
import type { Address, ControlMessage, ErrorCode } from "@precopy/protocol";
import WebSocket from "ws";
import { CONTROL_PATH, ControlChannel } from "./control-channel.js";
import { AgentPort } from "./port.js";

const CLOSED = new MigrationError("ERR_LINK_LOST", "the test is over");
const timedOut = (): MigrationError => new MigrationError("ERR_PEER_DEAD", "the test waited in vain");
const flushed = (round: number): ControlMessage => ({ type: "flushed", channel: 0, generation: 1, round, packets: round });

/** A port that hands over the control channels opened to it, one after the other. */
async function listen(context: TestContext): Promise<{ address: Address; accepted: () => Promise<ControlChannel> }> {
  const ready: ControlChannel[] = [];
  let wake = (): void => {};
  const onControl = (channel: ControlChannel): void => {
    ready.push(channel);
    wake();
  };
  const port = await AgentPort.listen(
    { host: "127.0.0.1", port: 0 },
    { onControl, onPageChannel: () => false, onFaultChannel: () => false },
    "test",
  );
  context.after(() => port.close());
  const accepted = async (): Promise<ControlChannel> => {
    for (;;) {
      const channel = ready.shift();
      if (channel !== undefined) {
        context.after(() => channel.close(CLOSED));
        return channel;
      }
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  };
  return { address: port.address, accepted };
}

/** Two agents' ends of one channel. */
async function pair(context: TestContext): Promise<{ source: ControlChannel; target: ControlChannel }> {
  const { address, accepted } = await listen(context);
  const source = await ControlChannel.connect(address);
  context.after(() => source.close(CLOSED));
  return { source, target: await accepted() };
}

/** A channel whose peer is a bare WebSocket that does only what the test says; it answers no ping. */
async function withBarePeer(context: TestContext): Promise<{ channel: ControlChannel; peer: WebSocket }> {
  const { address, accepted } = await listen(context);
  const peer = new WebSocket(`ws://${address.host}:${address.port}${CONTROL_PATH}`);
  context.after(() => peer.terminate());
  await once(peer, "open");
  return { channel: await accepted(), peer };
}

const closing = (channel: ControlChannel): Promise<MigrationError> =>
  new Promise((resolve) => {
    if (channel.closed !== undefined) resolve(channel.closed);
    else channel.onClose = resolve;
  });

async function serve(context: TestContext, server: Server): Promise<Address> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  context.after(() => server.close());
  const at = server.address();
  assert.ok(at !== null && typeof at === "object");
  return { host: "127.0.0.1", port: at.port };
}

describe("ControlChannel", () => {
  it("delivers messages in the order they were sent, in both directions", async (context) => {
    const { source, target } = await pair(context);
    for (const [from, to] of [
      [source, target],
      [target, source],
    ] as const) {
      const got: ControlMessage[] = [];
      const all = new Promise<void>((resolve) => {
        to.onMessage = (message) => {
          if (got.push(message) === 500) resolve();
        };
      });
      for (let round = 0; round < 500; round++) from.send(flushed(round));
      await all;
      assert.deepEqual(
        got,
        Array.from({ length: 500 }, (_, round) => flushed(round)),
      );
    }
  });

  it("gives an expected message to whoever expects it, and every other one to onMessage", async (context) => {
    const { source, target } = await pair(context);
    const others: string[] = [];
    source.onMessage = ({ type }) => others.push(type);
    const expected = source.expect(["prepared"], 5000, timedOut);
    target.send(flushed(1));
    target.send({ type: "prepared", epoch: 3, digest: null, verifyMs: 1 });
    target.send(flushed(2));
    const last = source.expect(["active"], 5000, timedOut);
    target.send({ type: "active", epoch: 3, resumeMs: 1 });
    assert.deepEqual(await expected, { type: "prepared", epoch: 3, digest: null, verifyMs: 1 });
    await last;
    assert.deepEqual(others, ["flushed", "flushed"]);
  });

  it("rejects an expectation with the caller's error when its time is over, and the channel stays open", async (context) => {
    const { source, target } = await pair(context);
    await assert.rejects(
      source.expect(["active"], 10, () => new MigrationError("ERR_PREPARED_TIMEOUT", "not in 10 ms")),
      { code: "ERR_PREPARED_TIMEOUT" },
    );
    const later = source.expect(["active"], 5000, timedOut);
    target.send({ type: "active", epoch: 1, resumeMs: 0 });
    assert.equal((await later).epoch, 1);
  });

  it("rejects everything expected with the peer's code and our remedy for it when the peer says refused, failed or abort", async (context) => {
    for (const type of ["refused", "failed", "abort"] as const) {
      const { source, target } = await pair(context);
      const heard: string[] = [];
      source.onMessage = (message) => heard.push(message.type);
      const waiting = [source.expect(["admitted"], 5000, timedOut), source.expect(["prepared", "active"], 5000, timedOut)];
      target.send({ type, code: "ERR_MEMORY_LIMIT", message: "8 GiB, --memory-limit 4 GiB" });
      for (const one of waiting) {
        const error = await one.then(() => assert.fail(), MigrationError.from);
        assert.deepEqual(
          [error.code, error.message, error.remedy],
          ["ERR_MEMORY_LIMIT", "8 GiB, --memory-limit 4 GiB", new MigrationError("ERR_MEMORY_LIMIT", "").remedy],
        );
      }
      assert.deepEqual(heard, [type], "and onMessage hears of it, too");
    }
  });

  it("takes a code it does not know from a later release as ERR_INTERNAL, with the code in the message", async (context) => {
    const { source, target } = await pair(context);
    const waiting = source.expect(["admitted"], 5000, timedOut);
    target.send({ type: "refused", code: "ERR_OF_TOMORROW", message: "the moon is full" });
    await assert.rejects(waiting, { code: "ERR_INTERNAL", message: "ERR_OF_TOMORROW: the moon is full" });
  });

  it("resolves an expectation that names failed with that very message", async (context) => {
    const { source, target } = await pair(context);
    const waiting = source.expect(["failed"], 5000, timedOut);
    target.send({ type: "failed", code: "ERR_MEMORY", message: "none" });
    assert.equal((await waiting).code, "ERR_MEMORY");
  });

  it("rejects what is expected, and what is expected later, with the reason it was closed for, and says so once", async (context) => {
    const { source, target } = await pair(context);
    const reasons: MigrationError[] = [];
    source.onClose = (reason) => reasons.push(reason);
    const waiting = source.expect(["active"], 5000, timedOut);
    const reason = new MigrationError("ERR_CANCELLED", "enough");
    const far = closing(target);
    source.close(reason);
    source.close(new MigrationError("ERR_INTERNAL", "later"));
    await assert.rejects(waiting, (error) => error === reason);
    await assert.rejects(source.expect(["active"], 5000, timedOut), (error) => error === reason);
    assert.equal((await far).code, "ERR_LINK_LOST");
    source.send(flushed(1)); // dropped: onClose has told why
    assert.deepEqual(reasons, [reason]);
  });

  it("knows the round trip after the first heartbeat, and it is that of this host", async (context) => {
    const { source, target } = await pair(context);
    const last = source.expect(["active"], 5000, timedOut);
    target.send({ type: "active", epoch: 1, resumeMs: 0 }); // after the answer to the first ping, or just before it
    await last;
    while (source.rttMs === undefined) await new Promise((resolve) => setImmediate(resolve));
    assert.ok(source.rttMs > 0 && source.rttMs < 1000, `${source.rttMs} ms`);
  });

  it("takes the shortest round trip: one answer that waited on a busy host is not the link's", async (context) => {
    const { channel, peer } = await withBarePeer(context);
    channel.ping(); // the second, after the first heartbeat's
    const late = 100;
    await new Promise((resolve) => setTimeout(resolve, late));
    for (const id of [1, 2]) peer.send(encodeControl({ type: "pong", id }));
    while (channel.rttMs === undefined) await new Promise((resolve) => setImmediate(resolve));
    assert.ok(channel.rttMs >= late - 1, `${channel.rttMs} ms`); // a timer may be 1 ms early
    peer.on("message", (data: Buffer) => {
      const asked = decodeControl(data);
      if (asked.type === "ping") peer.send(encodeControl({ type: "pong", id: asked.id }));
    });
    for (let asked = 0; channel.rttMs >= late - 1 && asked < 100; asked++) {
      channel.ping();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert.ok(channel.rttMs < late - 1, `${channel.rttMs} ms`);
  });

  const admit = encodeControl({ type: "ask", guest: "g", epoch: 1, session: "00000000-0000-4000-8000-000000000001", hasImage: true });
  const sealed = (hex: string): Buffer => {
    const packed = Buffer.from(hex, "hex");
    const checksum = Buffer.alloc(4);
    checksum.writeUInt32LE(crc32(packed));
    return Buffer.concat([checksum, packed]);
  };
  const garbage: readonly (readonly [what: string, bytes: Buffer | string, code: ErrorCode])[] = [
    ["bytes that are no msgpack", sealed("c1c1c1c1"), "ERR_BAD_MESSAGE"],
    ["a msgpack value that is no message", sealed("93010203"), "ERR_BAD_MESSAGE"],
    ["a message of an unknown type", sealed("81a474797065a5687572747a"), "ERR_BAD_MESSAGE"],
    ["a message cut short", admit.subarray(0, admit.byteLength - 1), "ERR_PACKET_CHECKSUM"],
    ["a message with bytes after it", Buffer.concat([admit, Buffer.from([0])]), "ERR_PACKET_CHECKSUM"],
    ["text", "hello", "ERR_PACKET_CHECKSUM"],
    ["nothing", Buffer.alloc(0), "ERR_PACKET_CHECKSUM"],
  ];
  for (const [what, bytes, code] of garbage)
    it(`closes with ${code} at ${what}, and hears nothing that comes after it`, async (context) => {
      const { channel, peer } = await withBarePeer(context);
      const heard: ControlMessage[] = [];
      channel.onMessage = (message) => heard.push(message);
      const closed = closing(channel);
      const gone = once(peer, "close");
      peer.send(bytes);
      peer.send(admit);
      assert.equal((await closed).code, code);
      await gone;
      assert.deepEqual(heard, []);
    });

  it("closes at a frame over the limit without taking it in, with the peer told 1009", async (context) => {
    const { channel, peer } = await withBarePeer(context);
    channel.onMessage = () => assert.fail("it was delivered");
    const closed = closing(channel);
    const gone = once(peer, "close");
    peer.send(Buffer.alloc(CONTROL_MESSAGE_BYTES_MAX + 1));
    const reason = await closed;
    assert.equal(reason.code, "ERR_LINK_LOST");
    assert.match(String(reason.cause), /payload size exceeded/i);
    assert.equal((await gone)[0], 1009);
  });

  it("refuses to send a message that the peer would not take, and stays open", async (context) => {
    const { source, target } = await pair(context);
    const registers = [new Uint8Array(CONTROL_MESSAGE_BYTES_MAX)];
    const state: ControlMessage = { type: "state", epoch: 1, round: 1, registers, devices: [], clockMs: 0 };
    assert.throws(() => source.send(state), { code: "ERR_PARAMETER" });
    const next = target.expect(["flushed"], 5000, timedOut);
    source.send(flushed(1));
    await next;
  });
});

describe("a peer that does not read", () => {
  it("is given up with ERR_PEER_DEAD before our buffers for it grow without end", async (context) => {
    const { channel, peer } = await withBarePeer(context);
    peer.pause();
    const registers = [new Uint8Array(2 ** 19)];
    const state: ControlMessage = { type: "state", epoch: 1, round: 1, registers, devices: [], clockMs: 0 };
    let sent = 0;
    for (; channel.closed === undefined && sent < 100; sent++) {
      channel.send(state);
      await new Promise((resolve) => setImmediate(resolve)); // what the kernel takes is not ours any more
    }
    assert.equal((await closing(channel)).code, "ERR_PEER_DEAD");
  });
});

describe("the heartbeat", () => {
  /** From here to the end of the test only `tick` moves the heartbeat and its clock. Sockets and their time-outs go on as ever. */
  function fakeTime(context: TestContext): { tick: (ms: number) => void } {
    let ahead = 0;
    const began = Math.ceil(performance.now()); // whole, so that sums are exact
    const now = mock.method(performance, "now", () => began + ahead);
    mock.timers.enable({ apis: ["setInterval"] });
    context.after(() => {
      mock.timers.reset();
      now.mock.restore();
    });
    return {
      tick: (ms) => {
        ahead += ms;
        mock.timers.tick(ms);
      },
    };
  }

  it(`takes a peer that is silent for more than ${PEER_DEAD_MS} ms for dead, whatever its socket says, and not before`, async (context) => {
    const time = fakeTime(context);
    const { channel, peer } = await withBarePeer(context);
    const gone = once(peer, "close");
    for (let ms = 0; ms < PEER_DEAD_MS; ms += HEARTBEAT_MS) time.tick(HEARTBEAT_MS);
    assert.ok(channel.closed === undefined, `after ${PEER_DEAD_MS} ms`);
    const waiting = channel.expect(["active"], 60_000, timedOut);
    time.tick(HEARTBEAT_MS);
    assert.equal((await closing(channel)).code, "ERR_PEER_DEAD");
    await assert.rejects(waiting, { code: "ERR_PEER_DEAD" });
    assert.equal((await gone)[0], 1006, "cut off: a silent peer would never finish a handshake");
  });

  it("keeps a peer that says anything at all, for as long as it does", async (context) => {
    const time = fakeTime(context);
    const { channel, peer } = await withBarePeer(context);
    for (let id = 1; id <= 20; id++) {
      const heard = channel.expect(["ask"], 60_000, timedOut);
      peer.send(encodeControl({ type: "ask", guest: "g", epoch: id, session: "00000000-0000-4000-8000-000000000001", hasImage: true }));
      await heard;
      time.tick(PEER_DEAD_MS);
      assert.equal(channel.closed, undefined, `message ${id}`);
    }
  });

  it("pings at once and then every heartbeat", async (context) => {
    const time = fakeTime(context);
    const { peer } = await withBarePeer(context);
    let pings = 0;
    const enough = new Promise<void>((resolve) => {
      peer.on("message", () => {
        if (++pings === 3) resolve();
      });
    });
    time.tick(HEARTBEAT_MS);
    time.tick(HEARTBEAT_MS);
    time.tick(HEARTBEAT_MS);
    await enough; // the one sent before this listener came may be missed
  });
});

describe("ControlChannel.connect", () => {
  it("fails with ERR_UNREACHABLE where nobody listens", async (context) => {
    const server = createServer();
    const address = await serve(context, server);
    server.close();
    await once(server, "close");
    await assert.rejects(ControlChannel.connect(address), { code: "ERR_UNREACHABLE" });
  });

  it("fails with ERR_NOT_AN_AGENT at a server that speaks HTTP and not this, and at one that does not speak HTTP", async (context) => {
    const http = await serve(
      context,
      createHttpServer((_, response) => response.end("welcome")).on("upgrade", (_, socket) =>
        socket.end("HTTP/1.1 404 Not Found\r\n\r\n", () => socket.destroy()),
      ),
    );
    await assert.rejects(ControlChannel.connect(http), { code: "ERR_NOT_AN_AGENT" });
    const ssh = await serve(
      context,
      createServer((socket) => socket.on("error", () => {}).end("SSH-2.0-OpenSSH_9.6\r\n")),
    );
    await assert.rejects(ControlChannel.connect(ssh), { code: "ERR_NOT_AN_AGENT" });
  });

  it("ends at once when it is aborted while a silent server lets it wait", async (context) => {
    const server = createServer((socket) => context.after(() => socket.destroy()));
    const address = await serve(context, server);
    const abort = new AbortController();
    const connecting = ControlChannel.connect(address, abort.signal);
    await once(server, "connection");
    abort.abort();
    await assert.rejects(connecting, { code: "ERR_UNREACHABLE" });
  });

  it("does not connect at all when it was aborted before", async (context) => {
    const { address } = await listen(context);
    await assert.rejects(ControlChannel.connect(address, AbortSignal.abort()), { code: "ERR_UNREACHABLE" });
  });
});
