import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Pacing } from "./pacing.js";

const BATCH = 32;

/** A writer on a clock that stands still during a step, and then moves on by what the step returned. */
class Bench {
  nowMs = 1234.5;
  written = 0;
  readonly pacing: Pacing;

  constructor(rate: number) {
    this.pacing = new Pacing({ options: { rate }, now: () => this.nowMs });
  }

  step(): number {
    const writes = this.pacing.take();
    assert.ok(writes >= 0 && writes <= BATCH && Number.isInteger(writes), `${writes} writes in a step`);
    this.written += writes;
    return this.pacing.restMs();
  }

  /** @returns steps made */
  runUntil(endMs: number): number {
    for (let steps = 1; ; steps++) {
      const restMs = this.step();
      if (restMs > 0 && this.nowMs === endMs) return steps;
      this.nowMs = Math.min(this.nowMs + restMs, endMs);
    }
  }
}

describe("Pacing", () => {
  for (const rate of [1, 3, 640, 25_000, 1_000_000])
    it(`makes what ${rate} pages/s are worth, neither more at any time nor less in the end`, () => {
      const bench = new Bench(rate);
      const startMs = bench.nowMs;
      for (const endMs of [0.1, 7, 1000, 5000]) {
        bench.runUntil(startMs + endMs);
        const due = (endMs * rate) / 1000;
        assert.ok(bench.written <= due + 1e-6 && bench.written > due - 1 - 1e-6, `${bench.written} of ${due} after ${endMs} ms`);
      }
    });

  it("wakes a slow writer once for each write, and a fast one not more often than each half millisecond", () => {
    const slow = new Bench(10);
    assert.equal(slow.step(), 100);
    const fast = new Bench(25_000);
    assert.equal(fast.step(), 0.5);
    assert.ok(fast.runUntil(fast.nowMs + 1000) <= 2001);
  });

  it("catches up what a stall of 40 ms left undone, a batch at a time without rest", () => {
    const bench = new Bench(25_000);
    bench.nowMs += 40;
    for (let step = 1; step < 1000 / BATCH; step++) assert.equal(bench.step(), 0, `step ${step}`);
    assert.ok(bench.step() > 0);
    assert.equal(bench.written, 1000);
  });

  it("gives up the arrears of a stall of 60 ms, and keeps the rate from there on", () => {
    const bench = new Bench(25_000);
    bench.nowMs += 60;
    bench.step();
    assert.equal(bench.written, 0);
    bench.runUntil(bench.nowMs + 1000);
    assert.equal(bench.written, 25_000);
  });

  it("owes nothing from before a restart", () => {
    const bench = new Bench(25_000);
    bench.nowMs += 40;
    bench.pacing.restart();
    assert.ok(bench.step() > 0);
    assert.equal(bench.written, 0);
  });

  it("at rate 0, the default, makes a batch at every step and never rests, whatever the clock says", () => {
    const unpaced = new Pacing({ options: {}, now: () => 0 });
    assert.deepEqual([unpaced.take(), unpaced.restMs(), unpaced.take(), unpaced.restMs()], [BATCH, 0, BATCH, 0]);
  });
});
