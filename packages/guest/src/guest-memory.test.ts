import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { addressOf, freePages, isLinuxAvailable } from "@precopy/linux";
import { MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, MigrationError, PAGE_BYTES, SEGMENT_BYTES } from "@precopy/protocol";
import { GuestMemory, SegmentPool } from "./guest-memory.js";

const MIB = 2 ** 20;
const FIRST_OF_SECOND = SEGMENT_BYTES / PAGE_BYTES;
const pool = new SegmentPool();
/** A guest of two segments, 4 GiB and 8 MiB: address space only. */
let large: GuestMemory | undefined;
let skip: string | false = false;
try {
  large = GuestMemory.allocate(SEGMENT_BYTES + 8 * MIB, pool);
} catch (error) {
  if (!(error instanceof MigrationError) || error.code !== "ERR_MEMORY") throw error;
  skip = `no address space for 4 GiB here: ${error.message}`;
}
function twoSegments(): GuestMemory {
  assert.ok(large !== undefined);
  return large;
}

describe("GuestMemory", () => {
  it("is zero, page-aligned and exactly as large as asked for, also where that is no multiple of 64 KiB", () => {
    const memory = GuestMemory.allocate(MIB + 3 * PAGE_BYTES, pool);
    assert.equal(memory.pages, 259);
    assert.equal(memory.views.length, 1);
    assert.equal(memory.views[0]?.byteLength, MIB + 3 * PAGE_BYTES);
    assert.ok(memory.view(0, 259).every((byte) => byte === 0));
    if (isLinuxAvailable) assert.equal(memory.addressOf(0) % PAGE_BYTES, 0);
  });

  it("refuses sizes below the least, above the most, and that are no whole pages", () => {
    for (const bytes of [
      0,
      -MIB,
      MEMORY_BYTES_MIN - PAGE_BYTES,
      MIB + 1,
      MEMORY_BYTES_MAX + PAGE_BYTES,
      Number.NaN,
      Number.POSITIVE_INFINITY,
    ])
      assert.throws(() => GuestMemory.allocate(bytes, pool), { code: "ERR_PARAMETER" }, String(bytes));
  });

  it("gives views of its own bytes, and refuses pages outside with ERR_RUN_OUT_OF_RANGE", () => {
    const memory = GuestMemory.allocate(MIB, pool);
    memory.view(255, 1)[4095] = 7;
    assert.equal(memory.views[0]?.[MIB - 1], 7);
    for (const [page, pages] of [
      [256, 1],
      [255, 2],
      [0, 257],
      [-1, 1],
      [2 ** 32, 1],
    ] as const)
      assert.throws(() => memory.view(page, pages), { code: "ERR_RUN_OUT_OF_RANGE" }, `${page}+${pages}`);
  });

  it("is the same memory for whoever got share()", () => {
    const memory = GuestMemory.allocate(MIB, pool);
    const same = new GuestMemory(memory.share());
    same.view(3, 1)[0] = 9;
    assert.equal(memory.view(3, 1)[0], 9);
    assert.deepEqual([same.bytes, same.pages], [memory.bytes, memory.pages]);
  });

  it("of more than 4 GiB goes on in a second segment, at offset 0 and another address", { skip }, () => {
    const memory = twoSegments();
    assert.equal(memory.pages, FIRST_OF_SECOND + 2048);
    assert.deepEqual(
      memory.views.map(({ byteLength }) => byteLength),
      [SEGMENT_BYTES, 8 * MIB],
    );
    assert.deepEqual(
      [FIRST_OF_SECOND - 1, FIRST_OF_SECOND, FIRST_OF_SECOND + 5].map((page) => memory.segmentOf(page)),
      [0, 1, 1],
    );
    assert.deepEqual(
      [FIRST_OF_SECOND - 1, FIRST_OF_SECOND, FIRST_OF_SECOND + 5].map((page) => memory.offsetOf(page)),
      [SEGMENT_BYTES - PAGE_BYTES, 0, 5 * PAGE_BYTES],
    );
    memory.view(FIRST_OF_SECOND - 1, 1).fill(1);
    memory.view(FIRST_OF_SECOND, 1).fill(2);
    assert.equal(memory.views[0]?.[SEGMENT_BYTES - 1], 1);
    assert.equal(memory.views[1]?.[0], 2);
    assert.equal(memory.view(FIRST_OF_SECOND + 2047, 1).byteLength, PAGE_BYTES);
    for (const [page, pages] of [
      [FIRST_OF_SECOND - 1, 2],
      [FIRST_OF_SECOND, 2049],
      [FIRST_OF_SECOND + 2048, 1],
    ] as const)
      assert.throws(() => memory.view(page, pages), { code: "ERR_RUN_OUT_OF_RANGE" }, `${page}+${pages}`);
  });

  it("tells system calls the address of every page, in both segments", { skip: isLinuxAvailable ? skip : "no system calls here" }, () => {
    const memory = twoSegments();
    for (const page of [0, 1, FIRST_OF_SECOND - 1, FIRST_OF_SECOND, FIRST_OF_SECOND + 2047])
      assert.equal(BigInt(memory.addressOf(page)), addressOf(memory.view(page, 1)), `page ${page}`);
    assert.deepEqual(
      memory.ranges(),
      memory.views.map((view) => ({ address: addressOf(view), bytes: view.byteLength })),
    );
  });
});

describe("SegmentPool", () => {
  it("lends a segment again that was given back, and not one of another size", () => {
    const own = new SegmentPool();
    const first = GuestMemory.allocate(2 * MIB, own);
    own.give(first.segments);
    const smaller = GuestMemory.allocate(MIB, own);
    assert.notEqual(smaller.segments[0], first.segments[0]);
    const again = GuestMemory.allocate(2 * MIB, own);
    assert.equal(again.segments[0], first.segments[0]);
    assert.notEqual(GuestMemory.allocate(2 * MIB, own).segments[0], first.segments[0], "lent twice");
  });

  it("lends both segments of a large guest again", { skip }, () => {
    const own = new SegmentPool();
    const memory = twoSegments();
    own.give(memory.segments);
    const again = GuestMemory.allocate(memory.bytes, own);
    assert.deepEqual(new Set(again.segments), new Set(memory.segments));
    if (isLinuxAvailable) for (const { address, bytes } of memory.ranges()) freePages(address, bytes);
  });
});
