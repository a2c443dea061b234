import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { describe, it } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { FaultReader, PagePlacing, Poll, UserFaults, addressOf, freePages, isLinuxAvailable } from "@precopy/linux";
import { PAGE_BYTES } from "@precopy/protocol";
import { GuestMemory, SegmentPool } from "./guest-memory.js";
import { MissingPages, whyNoMissingPages } from "./missing-pages.js";

const MIB = 2 ** 20;
const pool = new SegmentPool();
async function withMissing(bytes: number, use: (missing: MissingPages, memory: GuestMemory) => void | Promise<void>): Promise<void> {
  const memory = GuestMemory.allocate(bytes, pool);
  const missing = new MissingPages(memory);
  try {
    await use(missing, memory);
  } finally {
    missing.close();
    for (const range of memory.ranges()) freePages(range.address, range.bytes);
    pool.give(memory.segments);
  }
}
const page = Buffer.alloc(PAGE_BYTES, 7);
const why = whyNoMissingPages();
const options = { skip: why ?? false, timeout: 300_000 };

describe("whyNoMissingPages", () => {
  it("says why there are none where there can be none, and the same each time", () => {
    if (!isLinuxAvailable) assert.match(String(why), /^no system calls on /);
    assert.equal(whyNoMissingPages(), why);
    assert.notEqual(why, "");
  });

  it("leaves no descriptor open", options, () => {
    const before = readdirSync("/proc/self/fd").length;
    whyNoMissingPages();
    assert.equal(readdirSync("/proc/self/fd").length, before);
  });
});

describe("MissingPages", options, () => {
  it("has an empty bitmap of the guest's pages, and listens to nobody before it is told to", () =>
    withMissing(2 * MIB, (missing, memory) => {
      assert.deepEqual([missing.bitmap.pages, missing.bitmap.count()], [memory.pages, 0]);
      assert.deepEqual([missing.isListening, missing.listening[0]], [false, 0]);
      assert.ok(memory.view(0, memory.pages).every((byte) => byte === 0)); // would stop here for ever
    }));

  it("names its descriptor to other threads by one shared word, plus one: the same each time", () =>
    withMissing(2 * MIB, (missing) => {
      const descriptor = missing.listen();
      assert.ok(missing.listening.buffer instanceof SharedArrayBuffer && missing.bitmap.words.buffer instanceof SharedArrayBuffer);
      assert.deepEqual([missing.listening[0], missing.isListening], [descriptor + 1, true]);
      assert.equal(missing.listen(), descriptor);
      assert.equal(missing.listening[0], descriptor + 1);
    }));

  it("stops whoever touches any page of it, first and last of each segment, until it is placed; close() lets go of all of it", () =>
    withMissing(2 ** 32 + 2 * MIB, async (missing, memory) => {
      const descriptor = missing.listen();
      const placing = new PagePlacing(descriptor);
      const [poll, reader] = [new Poll([descriptor]), new FaultReader(descriptor)];
      const pages = [0, 2 ** 20 - 1, 2 ** 20, memory.pages - 1];
      const toucher = new Worker(
        `const { parentPort, workerData: { segments, places } } = require("node:worker_threads");
         parentPort.postMessage(places.map(([segment, offset]) => new Uint8Array(segments[segment].buffer)[offset]));`,
        { eval: true, workerData: { segments: memory.segments, places: pages.map((at) => [memory.segmentOf(at), memory.offsetOf(at)]) } },
      );
      const answer = new Promise<unknown>((resolve) => toucher.once("message", resolve));
      try {
        for (const at of pages) {
          let found: number | undefined;
          for (const until = performance.now() + 10_000; found === undefined && performance.now() < until; await turn())
            if (poll.wait(5)) reader.read((address) => (found = address));
          assert.equal(found, memory.addressOf(at));
          assert.equal(placing.copy(found, Number(addressOf(page)), PAGE_BYTES), PAGE_BYTES);
        }
        assert.deepEqual(await answer, [7, 7, 7, 7]);
      } finally {
        const ended = toucher.terminate();
        missing.close();
        await ended;
      }
      assert.equal(missing.isListening, false);
      assert.deepEqual([memory.view(1, 1)[0], memory.view(2 ** 20 + 1, 1)[0]], [0, 0]); // would stop here for ever
      assert.deepEqual([memory.view(0, 1)[0], memory.view(memory.pages - 1, 1)[0]], [7, 7]);
    }));

  it("may be closed before it listened, and more than once", () =>
    withMissing(2 * MIB, (missing) => {
      missing.close();
      missing.close();
      assert.equal(missing.isListening, false);
    }));

  const THP = "/sys/kernel/mm/transparent_hugepage/enabled";
  const hasHuge = existsSync(THP) && /\[(madvise|always)\]/.test(readFileSync(THP, "utf8"));
  /** One store into a stretch of 2 MiB that a huge page may take: how many of its pages it makes present. */
  const madePresent = (memory: GuestMemory): number => {
    const first = 1024 - ((memory.addressOf(1024) / PAGE_BYTES) % 512);
    memory.view(first, 1)[0] = 1;
    const faults = new UserFaults(memory.ranges());
    const placing = new PagePlacing(faults.descriptor);
    let present = 0;
    for (let page = first; page < first + 512; page++) if (placing.zero(memory.addressOf(page), PAGE_BYTES) === 0) present++;
    faults.close();
    return present;
  };
  it("takes huge pages away from memory that had been promised them: one store makes one page present, and not 512", {
    skip: hasHuge ? false : "this kernel has no huge pages",
  }, (context) => {
    const memories = [1, 2].map(() => GuestMemory.allocate(16 * MIB, pool));
    const [promised, missing] = memories;
    assert.ok(promised !== undefined && missing !== undefined);
    for (const memory of memories) memory.expectDense(0, memory.pages);
    new MissingPages(missing).close();
    assert.equal(madePresent(missing), 1);
    const present = madePresent(promised);
    if (present !== 512) context.diagnostic(`no huge page was to be had (${present} pages), so this shows nothing`);
    for (const range of memories.flatMap((memory) => memory.ranges())) freePages(range.address, range.bytes);
  });
});
