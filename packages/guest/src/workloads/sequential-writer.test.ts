import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES } from "@precopy/protocol";
import { Bitmap } from "../bitmap.js";
import { BarrierDirtyLog, allocateBarrier } from "../dirty-log-barrier.js";
import { GuestMemory, SegmentPool } from "../guest-memory.js";
import { MemoryAccess } from "../memory-access.js";
import type { Program, WorkloadContext } from "../workload.js";
import sequentialWriter from "./sequential-writer.js";

const WORKING_SET = 7;
const FIRST_PAGE = 3;
const REGION = { start: FIRST_PAGE * PAGE_BYTES, bytes: 12 * PAGE_BYTES };
const MEMORY_PAGES = 256; // the fewest a guest has
const WRITE_BYTES = 64;
const pool = new SegmentPool();
const pageOf = (at: number): number => Math.floor(at / PAGE_BYTES);

/** Notes which page each write goes to, 64 bytes being one write. */
class NotedAccess extends MemoryAccess {
  readonly written: number[] = [];
  #words = 0;

  override storeU32(at: number, value: number): void {
    super.storeU32(at, value);
    if (this.#words++ % (WRITE_BYTES / 4) === 0) this.written.push(pageOf(at) - FIRST_PAGE);
    assert.equal(pageOf(at) - FIRST_PAGE, this.written.at(-1), "a write goes on in another page");
  }
}

/** A writer with a region in the middle of memory, on a clock that only the test moves. */
class Bench {
  readonly memory = GuestMemory.allocate(MEMORY_PAGES * PAGE_BYTES, pool);
  readonly barrier = allocateBarrier(MEMORY_PAGES);
  readonly access = new NotedAccess(this.memory, this.barrier);
  readonly context: WorkloadContext;
  readonly program: Program;
  nowMs = 0;

  constructor(options: WorkloadContext["options"] = {}) {
    this.context = {
      vcpu: 0,
      options: { rate: 1000, workingSet: WORKING_SET * PAGE_BYTES, ...options },
      region: REGION,
      memory: this.access,
      segments: this.memory.segments,
      nic: undefined,
      now: () => this.nowMs,
    };
    this.program = sequentialWriter.create(this.context);
  }

  /** One write: at 1000 pages/s, in a millisecond. */
  write(): void {
    this.nowMs++;
    this.program.step();
  }

  page(page: number): Buffer {
    const at = (FIRST_PAGE + page) * PAGE_BYTES;
    return Buffer.from(this.memory.views[0]!.slice(at, at + PAGE_BYTES));
  }
}
const inOrder = (from: number, writes: number): number[] => Array.from({ length: writes }, (_, at) => (from + at) % WORKING_SET);

describe("sequential-writer", () => {
  it("writes 64 bytes to page after page, in order, and begins again after the last one", () => {
    const bench = new Bench();
    bench.program.boot?.();
    for (let at = 0; at < 3 * WORKING_SET + 2; at++) bench.write();
    assert.deepEqual(bench.access.written, inOrder(0, 3 * WORKING_SET + 2));
  });

  it("keeps order at rate 0 too, where a step makes more writes than the working set has pages", () => {
    const bench = new Bench({ rate: 0 });
    for (let step = 0; step < 5; step++) assert.equal(bench.program.step(), 0);
    assert.ok(bench.access.written.length > 5 * WORKING_SET);
    assert.deepEqual(bench.access.written, inOrder(0, bench.access.written.length));
  });

  it("changes the page with every write, and never leaves the 64 bytes zero", () => {
    const bench = new Bench();
    for (let at = 0; at < 5 * WORKING_SET; at++) {
      const before = bench.page(at % WORKING_SET);
      bench.write();
      const after = bench.page(at % WORKING_SET);
      assert.ok(!after.equals(before), `write ${at} changed nothing`);
      assert.ok(
        after.subarray(0, WRITE_BYTES).some((byte) => byte !== 0),
        `write ${at} is zero`,
      );
    }
  });

  it("has its working set dirty again, all of it and nothing else, workingSet / rate later and not before", () => {
    const bench = new Bench();
    const log = new BarrierDirtyLog(bench.barrier);
    log.start(new Bitmap(MEMORY_PAGES));
    const dirty = new Bitmap(MEMORY_PAGES);
    for (let lap = 1; lap <= 4; lap++) {
      dirty.clear();
      while (bench.nowMs < lap * WORKING_SET - 1) bench.write();
      log.collect(dirty);
      assert.ok(!dirty.has(FIRST_PAGE + WORKING_SET - 1), `lap ${lap} is over early`);
      bench.write();
      log.collect(dirty);
      for (let page = 0; page < MEMORY_PAGES; page++)
        assert.equal(dirty.has(page), page >= FIRST_PAGE && page < FIRST_PAGE + WORKING_SET, `lap ${lap}, page ${page}`);
    }
  });

  it("goes on elsewhere with the page after the last one, with nothing due from the time between", () => {
    const source = new Bench();
    for (let at = 0; at < WORKING_SET + 4; at++) source.write();
    const target = new Bench();
    for (const [at, view] of source.memory.views.entries()) target.memory.views[at]?.set(view);
    target.nowMs = source.nowMs + 30;
    target.program.load(structuredClone(source.program.save()));
    target.program.step();
    assert.deepEqual(target.access.written, []);
    for (let at = 0; at < WORKING_SET; at++) {
      const page = (4 + at) % WORKING_SET;
      const before = target.page(page);
      target.write();
      assert.ok(!target.page(page).equals(before), `page ${page} was written and did not change`);
    }
    assert.deepEqual(target.access.written, inOrder(4, WORKING_SET));
  });

  it("refuses registers that are not its own or lie past its working set with ERR_WORKLOAD_FAILED", () => {
    const { program } = new Bench();
    for (const page of [-1, 0.5, Number.NaN, WORKING_SET, "1"])
      assert.throws(() => program.load({ page, lap: 0 }), { code: "ERR_WORKLOAD_FAILED" }, String(page));
    for (const registers of [null, undefined, 1, {}, { page: 1 }, { random: 1, written: 1 }, { page: 1, lap: 0.5 }])
      assert.throws(() => program.load(registers), { code: "ERR_WORKLOAD_FAILED" }, JSON.stringify(registers));
    program.load({ page: WORKING_SET - 1, lap: 0 });
  });

  it("takes its whole region without workingSet, and refuses one larger than the region or smaller than a page with ERR_PARAMETER", () => {
    const whole = new Bench({ rate: 0, workingSet: 0 });
    whole.program.step();
    assert.equal(Math.max(...whole.access.written), REGION.bytes / PAGE_BYTES - 1);
    for (const workingSet of [REGION.bytes + 1, 2 ** 30, PAGE_BYTES - 1, -PAGE_BYTES])
      assert.throws(() => new Bench({ workingSet }), { code: "ERR_PARAMETER" }, String(workingSet));
    assert.ok(new Bench({ workingSet: REGION.bytes }));
  });

  it("boots with the fill that its options ask for", () => {
    const bench = new Bench({ fill: 2 * PAGE_BYTES, fillKind: "text" });
    bench.program.boot?.();
    for (const page of [0, 1, 2])
      assert.equal(
        bench.page(page).some((byte) => byte !== 0),
        page < 2,
        `page ${page}`,
      );
  });
});
