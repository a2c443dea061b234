import assert from "node:assert/strict";
import { once } from "node:events";
import { closeSync, openSync, readdirSync } from "node:fs";
import { connect, createServer } from "node:net";
import type { Socket } from "node:net";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker, isMainThread, parentPort, workerData } from "node:worker_threads";
import { addressOf, isLinuxAvailable } from "./library.js";
import { BlockingSocket, PIECES_MAX, Pieces, PolledSocket, SocketHandle, mayUseCongestionControl } from "./socket.js";

/** This file is also the thread at the other end: one blocking call, told by this order. */
interface Order {
  readonly call: "readAll" | "writeAll";
  readonly fd: number;
  readonly pollMs: number;
  readonly memory: SharedArrayBuffer;
  /** Bytes of each piece, one behind the other. */
  readonly pieces: readonly number[];
  /** Word 0: how often mayGoOn was asked. Word 1: not zero: it says no. */
  readonly control: Int32Array;
}
const piecesOver = (memory: SharedArrayBuffer, sizes: readonly number[]): Pieces => {
  let at = Number(addressOf(new Uint8Array(memory)));
  const pieces = new Pieces(sizes.length);
  sizes.forEach((bytes, index) => {
    pieces.set(index, at, bytes);
    at += bytes;
  });
  return pieces;
};
if (!isMainThread) {
  const { call, fd, pollMs, memory, pieces, control } = workerData as Order; // only startThread below starts this
  const socket = new BlockingSocket(fd, pollMs, 10_000, () => {
    Atomics.add(control, 0, 1);
    Atomics.notify(control, 0);
    return Atomics.load(control, 1) === 0;
  });
  parentPort?.postMessage("ready");
  let outcome: unknown;
  try {
    outcome = socket[call](piecesOver(memory, pieces), pieces.length);
  } catch (error) {
    outcome = error instanceof Error ? error.message : error;
  }
  parentPort?.postMessage({ outcome });
}

/** Starts a thread in a blocking call; `outcome` is what the call gave or the message of what it threw. */
async function startThread(order: Order): Promise<{ readonly outcome: Promise<unknown> }> {
  const worker = new Worker(new URL(import.meta.url), { workerData: order });
  await once(worker, "message");
  return { outcome: once(worker, "message").then(([message]: { outcome: unknown }[]) => message?.outcome) };
}

/** libuv's descriptor of a socket: what an agent takes over too. */
const descriptorOf = (socket: Socket): number => Number(Reflect.get(Object(Reflect.get(socket, "_handle")), "fd"));

/** Two ends of one TCP connection over loopback, taken over from libuv. */
async function withPair(use: (near: SocketHandle, far: SocketHandle) => void | Promise<void>): Promise<void> {
  const server = createServer({ pauseOnConnect: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  const client = connect(address.port, "127.0.0.1");
  const [[accepted]] = (await Promise.all([once(server, "connection"), once(client, "connect")])) as [[Socket], unknown];
  const [near, far] = [new SocketHandle(descriptorOf(client)), new SocketHandle(descriptorOf(accepted))];
  const closed = [once(client, "close"), once(accepted, "close")];
  client.destroy();
  accepted.destroy();
  server.close();
  await Promise.all(closed);
  try {
    await use(near, far);
  } finally {
    for (const handle of [near, far]) {
      handle.shutdown();
      handle.close();
    }
  }
}
const numbered = (bytes: number): SharedArrayBuffer => {
  const memory = new SharedArrayBuffer(bytes);
  const view = new Uint8Array(memory);
  for (let at = 0; at < bytes; at++) view[at] = at * 31 + (at >>> 8) * 7 + (at >>> 16);
  return memory;
};
/** `count` sizes from 1 to `most` that are not all alike; they add up to `total` with a last one. */
function sizesOf(count: number, most: number, total: number): number[] {
  const sizes = Array.from({ length: count }, (_, at) => 1 + ((at * 7919) % most));
  const left = total - sizes.reduce((sum, bytes) => sum + bytes, 0);
  assert.ok(left > 0);
  return [...sizes, left];
}
const yes = (): boolean => true;
const newControl = (): Int32Array => new Int32Array(new SharedArrayBuffer(8));

if (isMainThread)
  describe("BlockingSocket", { skip: isLinuxAvailable ? false : `no system calls on ${process.platform} ${process.arch}` }, () => {
    it("carries more pieces than one call takes, cut one way by the writer and another by the reader, byte for byte", () =>
      withPair(async (near, far) => {
        const bytes = 12 * 2 ** 20; // more than both socket buffers hold, so that calls end in the middle of pieces
        const sent = numbered(bytes);
        const got = new SharedArrayBuffer(bytes);
        const [outgoing, incoming] = [sizesOf(4000, 5000, bytes), sizesOf(3000, 6000, bytes)];
        assert.ok(outgoing.length > 3 * PIECES_MAX && incoming.length > 2 * PIECES_MAX);
        const reader = await startThread({ call: "readAll", fd: far.fd, pollMs: 50, memory: got, pieces: incoming, control: newControl() });
        assert.equal(new BlockingSocket(near.fd, 50, 10_000, yes).writeAll(piecesOver(sent, outgoing), outgoing.length), true);
        assert.equal(await reader.outcome, true);
        assert.equal(Buffer.compare(new Uint8Array(sent), new Uint8Array(got)), 0);
      }));

    it("writes from a thread what the main thread reads slowly, without losing its place at a full buffer", () =>
      withPair(async (near, far) => {
        const bytes = 16 * 2 ** 20;
        const sent = numbered(bytes);
        const control = newControl();
        const writer = await startThread({
          call: "writeAll",
          fd: far.fd,
          pollMs: 10,
          memory: sent,
          pieces: sizesOf(2000, 8000, bytes),
          control,
        });
        while (Atomics.load(control, 0) < 3) Atomics.wait(control, 0, Atomics.load(control, 0), 100); // three time-outs: the buffers are full
        const got = Buffer.alloc(bytes);
        const socket = new BlockingSocket(near.fd, 50, 10_000, yes);
        for (let at = 0; at < bytes; at += 2 ** 18) assert.equal(socket.read(got, at, at + 2 ** 18), true);
        assert.equal(await writer.outcome, true);
        assert.equal(Buffer.compare(new Uint8Array(sent), got), 0);
      }));

    it("keeps its place in a piece over time-outs: half of it now, half later", () =>
      withPair(async (near, far) => {
        const got = new SharedArrayBuffer(1000);
        const control = newControl();
        const reader = await startThread({ call: "readAll", fd: far.fd, pollMs: 5, memory: got, pieces: [400, 600], control });
        const socket = new BlockingSocket(near.fd, 50, 10_000, yes);
        const sent = new Uint8Array(numbered(1000));
        for (const [from, to] of [
          [0, 399],
          [399, 401],
          [401, 1000],
        ] as const) {
          const asked = Atomics.load(control, 0);
          while (Atomics.load(control, 0) < asked + 2) Atomics.wait(control, 0, Atomics.load(control, 0), 100);
          assert.equal(socket.write(sent.subarray(from, to)), true);
        }
        assert.equal(await reader.outcome, true);
        assert.deepEqual(new Uint8Array(got), sent);
      }));

    it("asks mayGoOn at every time-out and ends with false when it says no: reading, writing, and reading into a buffer", () =>
      withPair((near, far) => {
        let asked = 0;
        const until = (times: number) => (): boolean => ++asked < times;
        const memory = new SharedArrayBuffer(64 * 2 ** 20); // more than any socket buffer
        assert.equal(new BlockingSocket(near.fd, 5, 10_000, until(3)).readAll(piecesOver(memory, [10]), 1), false);
        assert.equal(asked, 3);
        asked = 0;
        assert.equal(new BlockingSocket(near.fd, 5, 10_000, until(2)).read(Buffer.alloc(10), 0, 10), false);
        assert.equal(asked, 2);
        asked = 0;
        assert.equal(new BlockingSocket(far.fd, 5, 10_000, until(2)).writeAll(piecesOver(memory, [memory.byteLength]), 1), false);
        assert.equal(asked, 2);
      }));

    it("tells for how long the peer had no room for what was written, and nothing where it takes everything", () =>
      withPair(async (near, far) => {
        const memory = new SharedArrayBuffer(64 * 2 ** 20); // more than any socket buffer
        const socket = new BlockingSocket(far.fd, 100, 10_000, () => false);
        assert.equal(socket.linkState()?.peerLimitedMs, 0);
        assert.equal(socket.writeAll(piecesOver(memory, [memory.byteLength]), 1), false);
        await sleep(300);
        const limitedMs = socket.linkState()?.peerLimitedMs ?? 0;
        assert.ok(limitedMs >= 300, `${limitedMs} ms, and nobody reads`);
        assert.equal(new BlockingSocket(near.fd, 100, 10_000, yes).linkState()?.peerLimitedMs, 0);
      }));

    it("tells by how much round trips grew while what was written waited on its way", () =>
      withPair(async (near, far) => {
        const socket = new BlockingSocket(far.fd, 100, 10_000, yes);
        assert.equal(socket.write(new Uint8Array(1000)), true);
        assert.equal(new BlockingSocket(near.fd, 100, 10_000, yes).read(Buffer.alloc(1000), 0, 1000), true);
        const { queueMs } = socket.linkState()!;
        assert.ok(queueMs >= 0 && queueMs < 1000, `${queueMs} ms over loopback`);
      }));

    it("shutdown() frees a blocked reader at once: long before its time-out, and without asking mayGoOn", () =>
      withPair(async (_near, far) => {
        const control = newControl();
        const order: Order = { call: "readAll", fd: far.fd, pollMs: 100_000, memory: new SharedArrayBuffer(10), pieces: [10], control };
        const reader = await startThread(order);
        const started = performance.now();
        far.shutdown();
        assert.equal(await reader.outcome, false);
        assert.ok(performance.now() - started < 5000);
        assert.equal(Atomics.load(control, 0), 0);
      }));

    it("shutdown() frees a writer at full buffers, which throws EPIPE", () =>
      withPair(async (_near, far) => {
        const memory = new SharedArrayBuffer(64 * 2 ** 20);
        const writer = await startThread({
          call: "writeAll",
          fd: far.fd,
          pollMs: 100_000,
          memory,
          pieces: [memory.byteLength],
          control: newControl(),
        });
        far.shutdown();
        assert.match(String(await writer.outcome), /^writev: EPIPE$/);
      }));

    it("gives what came before the end of the stream, then false", () =>
      withPair((near, far) => {
        assert.equal(new BlockingSocket(near.fd, 50, 10_000, yes).write(Buffer.from("last")), true);
        near.shutdown();
        const socket = new BlockingSocket(far.fd, 50, 10_000, yes);
        const got = Buffer.alloc(8);
        assert.equal(socket.read(got, 2, 6), true);
        assert.equal(got.toString("latin1"), "\0\0last\0\0");
        assert.equal(socket.read(got, 0, 1), false);
        assert.equal(socket.readAll(piecesOver(new SharedArrayBuffer(4), [4]), 1), false);
      }));

    it("throws ERR_SYSTEM_CALL with call and error number for what is no socket", () => {
      assert.throws(() => new BlockingSocket(1 << 20, 50, 10_000, yes), { code: "ERR_SYSTEM_CALL", message: "fcntl: EBADF" });
      assert.throws(() => new SocketHandle(1 << 20), { code: "ERR_SYSTEM_CALL", message: "dup: EBADF" });
    });

    it("takes a pacing rate, lifts it, and says false for a congestion control that there is not", () =>
      withPair((near) => {
        const socket = new BlockingSocket(near.fd, 50, 10_000, yes);
        for (const rate of [1, 0.5, 10e9, 0]) assert.doesNotThrow(() => socket.setPacing(rate));
        assert.equal(near.tryCongestionControl("no-such-thing"), false);
      }));

    it("knows without a connection which congestion controls a socket may have, and leaves no descriptor open", () =>
      withPair((near) => {
        const names = ["reno", "cubic", "bbr", "no-such-thing"];
        const before = readdirSync("/proc/self/fd").length;
        for (const name of names) assert.equal(mayUseCongestionControl(name), near.tryCongestionControl(name), name);
        assert.ok(mayUseCongestionControl("reno"), "what every kernel has, and lets everybody have");
        assert.equal(readdirSync("/proc/self/fd").length, before);
      }));

    it("makes pairs whose ends carry bytes both ways and say when the other is gone, and closes what it does not keep", () => {
      const before = readdirSync("/proc/self/fd").length;
      const { near, far } = SocketHandle.pair();
      const ends = [new PolledSocket(near.fd), new PolledSocket(far)] as const;
      const got = Buffer.alloc(8);
      for (const [from, to] of [ends, ends.toReversed()] as const) {
        assert.equal(to?.read(got), undefined);
        assert.equal(from?.write(Buffer.from("abc")), true);
        assert.equal(to?.read(got), 3);
      }
      near.shutdown();
      near.close();
      assert.equal(ends[1].read(got), 0);
      closeSync(far);
      assert.equal(readdirSync("/proc/self/fd").length, before);
    });

    it("closed handles stay closed: a descriptor that got the same number is not closed by them", () =>
      withPair((near) => {
        near.close();
        const files: number[] = [];
        do files.push(openSync("/dev/null", "r"));
        while (files.at(-1) !== near.fd && files.length < 1000);
        near.shutdown();
        near.close();
        assert.ok(files.includes(near.fd), "the number was not used again, so this shows nothing");
        for (const file of files) closeSync(file); // EBADF if one is closed already
      }));
  });

if (isMainThread)
  describe("PolledSocket", { skip: isLinuxAvailable ? false : `no system calls on ${process.platform} ${process.arch}` }, () => {
    /** What comes next, once it is there. */
    const readSoon = async (socket: PolledSocket, buffer: Buffer): Promise<number> => {
      for (const until = performance.now() + 5000; performance.now() < until; await new Promise(setImmediate)) {
        const got = socket.read(buffer);
        if (got !== undefined) return got;
      }
      return assert.fail("nothing came within 5 s");
    };

    it("reads what is there, says undefined while there is nothing, and 0 at the end, and blocks at none of these", () =>
      withPair(async (near, far) => {
        void new BlockingSocket(near.fd, 100_000, 10_000, yes); // its descriptor would block
        const socket = new PolledSocket(near.fd);
        const buffer = Buffer.alloc(8);
        const started = performance.now();
        for (let time = 0; time < 3; time++) assert.equal(socket.read(buffer), undefined);
        assert.equal(new PolledSocket(far.fd).write(Buffer.from("0123456789")), true);
        assert.equal(await readSoon(socket, buffer), 8);
        assert.equal(buffer.toString("latin1"), "01234567");
        assert.equal(socket.read(buffer), 2);
        assert.equal(buffer.toString("latin1", 0, 2), "89");
        assert.equal(socket.read(buffer), undefined);
        far.shutdown();
        assert.equal(await readSoon(socket, buffer), 0);
        assert.equal(socket.read(buffer), 0, "it stays at the end");
        assert.ok(performance.now() - started < 10_000);
      }));

    it("writes a message whole though the peer makes room for it only by and by", () =>
      withPair(async (near, far) => {
        const bytes = 12 * 2 ** 20; // more than both socket buffers hold
        const got = new SharedArrayBuffer(bytes);
        const reader = await startThread({ call: "readAll", fd: far.fd, pollMs: 50, memory: got, pieces: [bytes], control: newControl() });
        const sent = new Uint8Array(numbered(bytes));
        assert.equal(new PolledSocket(near.fd).write(sent), true);
        assert.equal(await reader.outcome, true);
        assert.equal(Buffer.compare(new Uint8Array(got), sent), 0);
      }));

    it("gives up with false on a peer that reads nothing, within some seconds", () =>
      withPair((near) => {
        const started = performance.now();
        assert.equal(new PolledSocket(near.fd).write(Buffer.alloc(64 * 2 ** 20)), false);
        assert.ok(performance.now() - started < 10_000);
      }));

    it("throws ERR_SYSTEM_CALL where the connection is gone, without a signal, and for what is no socket", () =>
      withPair((near) => {
        const socket = new PolledSocket(near.fd);
        near.shutdown();
        assert.throws(() => socket.write(Buffer.from("x")), { code: "ERR_SYSTEM_CALL", message: "send: EPIPE" });
        assert.throws(() => new PolledSocket(1 << 20), { code: "ERR_SYSTEM_CALL", message: "setsockopt: EBADF" });
        const file = openSync("/dev/null", "r");
        try {
          assert.throws(() => new PolledSocket(file), { code: "ERR_SYSTEM_CALL", message: "setsockopt: ENOTSOCK" });
        } finally {
          closeSync(file);
        }
      }));
  });
