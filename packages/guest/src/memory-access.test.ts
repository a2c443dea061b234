import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES } from "@precopy/protocol";
import fc from "fast-check";
import { Bitmap } from "./bitmap.js";
import { BarrierDirtyLog, allocateBarrier } from "./dirty-log-barrier.js";
import { GuestMemory, SegmentPool } from "./guest-memory.js";
import { MemoryAccess } from "./memory-access.js";

/** No multiple of 32 pages, so that a mark past the end would have a bit to go to. */
const BYTES = 2 ** 20 + 3 * PAGE_BYTES;
const pool = new SegmentPool();
function tracked(): { access: MemoryAccess; memory: GuestMemory; marked: () => number[] } {
  const memory = GuestMemory.allocate(BYTES, pool);
  const barrier = allocateBarrier(memory.pages);
  const log = new BarrierDirtyLog(barrier);
  log.start(new Bitmap(memory.pages));
  const marked = (): number[] => {
    const into = new Bitmap(memory.pages);
    log.collect(into);
    const pages: number[] = [];
    into.forEachRun((first, count) => pages.push(...Array.from({ length: count }, (_, at) => first + at)));
    return pages;
  };
  return { access: new MemoryAccess(memory, barrier), memory, marked };
}
/** Pages that [at, at + bytes) touches. */
const touched = (at: number, bytes: number): number[] =>
  bytes === 0
    ? []
    : Array.from(
        { length: Math.floor((at + bytes - 1) / PAGE_BYTES) - Math.floor(at / PAGE_BYTES) + 1 },
        (_, n) => Math.floor(at / PAGE_BYTES) + n,
      );

describe("MemoryAccess", () => {
  it("reads back every word as it was stored, unsigned, and marks its page", () => {
    const { access, marked } = tracked();
    for (const [at, value] of [
      [0, 0],
      [4, 1],
      [PAGE_BYTES - 4, 0x7fffffff],
      [PAGE_BYTES, 0x80000000],
      [BYTES - 4, 0xffffffff],
    ] as const) {
      access.storeU32(at, value);
      assert.equal(access.loadU32(at), value);
      assert.deepEqual(marked(), [Math.floor(at / PAGE_BYTES)], `word at ${at}`);
    }
  });

  it("keeps words little-endian, as the bytes travel", () => {
    const { access } = tracked();
    access.storeU32(8, 0x01020304);
    const bytes = new Uint8Array(4);
    access.read(8, bytes);
    assert.deepEqual([...bytes], [4, 3, 2, 1]);
  });

  it("writes, fills and reads like one plain array, and marks exactly the pages it wrote", () => {
    const { access, marked } = tracked();
    const model = new Uint8Array(BYTES);
    const spans = fc
      .tuple(fc.integer({ min: 0, max: BYTES }), fc.integer({ min: 0, max: 3 * PAGE_BYTES }))
      .filter(([at, bytes]) => at + bytes <= BYTES);
    fc.assert(
      fc.property(spans, fc.constantFrom("write", "fill", "wrote"), fc.integer({ min: 0, max: 255 }), ([at, bytes], how, value) => {
        if (how === "write") access.write(at, new Uint8Array(bytes).fill(value));
        else if (how === "fill") access.fill(at, bytes, value);
        else access.wrote(at, bytes);
        if (how !== "wrote") model.fill(value, at, at + bytes);
        assert.deepEqual(marked(), touched(at, bytes));
        const from = Math.max(0, at - 10);
        const got = new Uint8Array(Math.min(bytes + 20, BYTES - from));
        access.read(from, got);
        assert.equal(Buffer.compare(got, model.subarray(from, from + got.byteLength)), 0);
      }),
    );
  });

  it("has stored a word before it marks the page", (context) => {
    const { access } = tracked();
    const seen: string[] = [];
    const { store, or } = Atomics;
    context.mock.method(Atomics, "store", (words: Int32Array, at: number, value: number) => {
      seen.push("store");
      return store(words, at, value);
    });
    context.mock.method(Atomics, "or", (words: Uint32Array, at: number, bits: number) => {
      seen.push("mark");
      return or(words, at, bits);
    });
    access.storeU32(0, 1);
    assert.deepEqual([seen[0], seen.at(-1)], ["store", "mark"]);
  });

  it("refuses everything outside guest memory with ERR_RUN_OUT_OF_RANGE, and changes and marks nothing", () => {
    const { access, memory, marked } = tracked();
    for (const at of [-4, BYTES, BYTES + 4, 1, 2, 3, BYTES - 2, 2 ** 32, 2 ** 40, Number.NaN]) {
      assert.throws(() => access.loadU32(at), { code: "ERR_RUN_OUT_OF_RANGE" }, `load at ${at}`);
      assert.throws(() => access.storeU32(at, 1), { code: "ERR_RUN_OUT_OF_RANGE" }, `store at ${at}`);
    }
    for (const [at, bytes] of [
      [-1, 1],
      [-1, 2],
      [BYTES, 1],
      [BYTES - 1, 2],
      [0, BYTES + 1],
      [2 ** 40, 1],
      [BYTES + PAGE_BYTES, 1],
    ] as const) {
      const note = `${bytes} B at ${at}`;
      assert.throws(() => access.read(at, new Uint8Array(bytes)), { code: "ERR_RUN_OUT_OF_RANGE" }, note);
      assert.throws(() => access.write(at, new Uint8Array(bytes).fill(1)), { code: "ERR_RUN_OUT_OF_RANGE" }, note);
      assert.throws(() => access.fill(at, bytes, 1), { code: "ERR_RUN_OUT_OF_RANGE" }, note);
      assert.throws(() => access.wrote(at, bytes), { code: "ERR_RUN_OUT_OF_RANGE" }, `wrote: ${note}`);
    }
    assert.deepEqual(marked(), []);
    assert.ok(memory.view(0, memory.pages).every((byte) => byte === 0));
  });

  it("refuses the same without a barrier", () => {
    const access = new MemoryAccess(GuestMemory.allocate(BYTES, pool), undefined);
    access.wrote(0, BYTES);
    assert.throws(() => access.wrote(BYTES, 1), { code: "ERR_RUN_OUT_OF_RANGE" });
    assert.throws(() => access.storeU32(BYTES, 1), { code: "ERR_RUN_OUT_OF_RANGE" });
  });
});
