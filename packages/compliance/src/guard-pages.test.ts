import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { BlockingSocket, Pieces, SocketHandle, addressOf, descriptorOf, isLinuxAvailable } from "@precopy/linux";
import { PAGE_BYTES, PageEncoding } from "@precopy/protocol";
import { ChannelThreads } from "@precopy/transport";
import { labIdentity } from "./lab-identity.js";
import { PageTarget, hangUp, withMemories } from "./page-wire.js";
import { packet } from "./pump-suite.js";

/** Whole pages of WebAssembly: the image ends where its memory does. */
const BYTES = 4 * 2 ** 20;
const PAGES = BYTES / PAGE_BYTES;
const skip = isLinuxAvailable ? false : `no system calls on ${process.platform} ${process.arch}`;
const tls = await labIdentity();

/** Ranges of this process's addresses, in order, and what may be done with them. */
const maps = () =>
  readFileSync("/proc/self/maps", "latin1")
    .trim()
    .split("\n")
    .map((line) => {
      const [, from = "", to = "", mode = ""] = /^([0-9a-f]+)-([0-9a-f]+) (\S+)/.exec(line) ?? [];
      return { from: BigInt(`0x${from}`), to: BigInt(`0x${to}`), mode };
    });

/** Numbers of pages and runs that lie just inside, just outside, or anywhere. */
const number = fc.oneof(
  fc.constantFrom(0, 1, PAGES - 1, PAGES, PAGES + 1, 511, 512, 513, 2 ** 20, 2 ** 31, 2 ** 32 - 1),
  fc.nat(PAGES + 16),
);
const said = fc.record({
  runs: fc.array(fc.tuple(number, number), { maxLength: 4 }),
  zeroRuns: fc.array(fc.tuple(number, number), { maxLength: 4 }),
  encoding: fc.constantFrom(...Object.values(PageEncoding).filter((encoding) => encoding !== PageEncoding.Zstd)),
  /** More or less than the runs say. */
  lie: fc.constantFrom(0, 0, 0, -1, 1, PAGE_BYTES, -PAGE_BYTES),
  filler: fc.nat(255),
});

type Said = typeof said extends fc.Arbitrary<infer T> ? T : never;

function bytesOf({ runs, zeroRuns, encoding, lie, filler }: Said): Buffer {
  const bytes = runs.reduce((sum, [, pages]) => sum + pages, 0) * PAGE_BYTES;
  const payloadBytes = Math.min(Math.max(bytes + lie, 0), 2 ** 32 - 1);
  return packet(runs, zeroRuns, { encoding, payloadBytes }, Buffer.alloc(Math.min(payloadBytes, 2 * BYTES), filler));
}

describe("no packet touches a byte outside the image", { skip }, () => {
  const threads = new ChannelThreads();
  after(() => threads.end());

  it("before and behind the image lies memory that nobody may touch, more than a run can reach past it by mistake", () =>
    withMemories([BYTES], async (memory) => {
      assert.ok(memory !== undefined);
      memory.view(0, PAGES).fill(1);
      const from = addressOf(memory.view(0, 1));
      const to = from + BigInt(BYTES);
      const all = maps();
      assert.ok(
        all.some((map) => map.from <= from && map.to === to && map.mode.startsWith("rw")),
        "the image ends with its mapping",
      );
      const behind = all.find((map) => map.from === to);
      assert.ok(behind?.mode.startsWith("---") === true && behind.to - behind.from >= 2n ** 32n, `behind it: ${String(behind?.mode)}`);
      const before = all.find((map) => map.to === from);
      assert.ok(before === undefined || before.mode.startsWith("---"), `before it: ${String(before?.mode)}`);
    }));

  for (const [way, pump, security] of [
    ["direct pump", "direct", {}],
    ["portable pump", "portable", {}],
    ["direct pump with TLS", "direct", { tls }],
  ] as const)
    it(`whatever it says: a hostile peer is refused with a code, and never with a fault of the memory's (${way})`, () =>
      withMemories([BYTES], async (memory) => {
        assert.ok(memory !== undefined);
        const target = await PageTarget.listen(memory, { pump, security, threads, channels: 1 });
        try {
          await fc.assert(
            fc.asyncProperty(said, async (one) => {
              const failed = new Promise<string>((resolve) => {
                target.onFailure = ({ code, message, cause }) => resolve(`${code} ${message} ${String(cause)}`);
              });
              const peer = await target.connect(0);
              peer.on("error", () => {}); // it is cut off, as it deserves
              peer.end(bytesOf(one));
              const why = await failed;
              assert.doesNotMatch(why, /EFAULT|ERR_INTERNAL/);
              await hangUp(peer);
              await target.endChannels();
            }),
            { numRuns: 300 },
          );
        } finally {
          await target.close();
        }
      }));

  it("a pump that believed such a run would hear of it from the kernel: what is looked for above would be there", () =>
    withMemories([BYTES], async (memory) => {
      assert.ok(memory !== undefined);
      const server = createServer((socket) => socket.on("error", () => {}).end(Buffer.alloc(PAGE_BYTES, 1)));
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
      const at = server.address();
      assert.ok(at !== null && typeof at === "object");
      const socket = createConnection(at.port, "127.0.0.1");
      await once(socket, "connect");
      const handle = new SocketHandle(descriptorOf(socket) ?? -1);
      socket.destroy();
      await once(socket, "close");
      const pieces = new Pieces(1);
      pieces.set(0, memory.addressOf(0) + BYTES, PAGE_BYTES);
      const blocking = new BlockingSocket(handle.fd, 50, 10_000, () => true);
      assert.throws(() => blocking.readAll(pieces, 1), { code: "ERR_SYSTEM_CALL", message: "readv: EFAULT" });
      handle.close();
      server.close();
    }));
});
