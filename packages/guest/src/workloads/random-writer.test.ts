import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES } from "@precopy/protocol";
import { BarrierDirtyLog, allocateBarrier } from "../dirty-log-barrier.js";
import { Bitmap } from "../bitmap.js";
import { GuestMemory, SegmentPool } from "../guest-memory.js";
import { MemoryAccess } from "../memory-access.js";
import randomWriter from "./random-writer.js";

const PAGES = 256;
const WORKING_SET = 200;

/** Pages that a writer at full speed wrote within so many steps at that time of the guest. */
function written(options: Record<string, number | string>): (nowMs: number, steps?: number) => number[] {
  const memory = GuestMemory.allocate(PAGES * PAGE_BYTES, new SegmentPool());
  const barrier = allocateBarrier(PAGES);
  const log = new BarrierDirtyLog(barrier);
  log.start(new Bitmap(PAGES));
  let nowMs = 0;
  const program = randomWriter.create({
    vcpu: 0,
    options: { rate: 0, workingSet: WORKING_SET * PAGE_BYTES, ...options },
    region: { start: 0, bytes: PAGES * PAGE_BYTES },
    memory: new MemoryAccess(memory, barrier),
    segments: memory.segments,
    nic: undefined,
    now: () => nowMs,
  });
  program.boot?.();
  return (at, steps = 20) => {
    nowMs = at;
    for (let step = 0; step < steps; step++) program.step();
    const into = new Bitmap(PAGES);
    log.collect(into);
    return Array.from({ length: PAGES }, (_, page) => page).filter((page) => into.has(page));
  };
}

describe("random-writer", () => {
  it("writes all over its working set, and nowhere else", () => {
    const pages = written({})(0, 200);
    assert.equal(pages.length, WORKING_SET);
    assert.equal(pages.at(-1), WORKING_SET - 1);
  });

  it("writes to its hot tenth only, if all writes are hot; and that stays where it is", () => {
    const at = written({ hotFraction: 1 });
    for (const ms of [0, 1500, 9000]) assert.ok(at(ms).every((page) => page < WORKING_SET / 10));
  });

  it("moving: its hot tenth is another one each second, and the first again after ten", () => {
    const at = written({ hotFraction: 1, pattern: "moving" });
    for (const [ms, tenth] of [
      [0, 0],
      [999, 0],
      [1000, 1],
      [9500, 9],
      [10_000, 0],
    ] as const) {
      const pages = at(ms);
      assert.ok(pages.length > 10 && pages.every((page) => Math.floor(page / (WORKING_SET / 10)) === tenth), `${ms} ms: ${pages.join()}`);
    }
  });
});
