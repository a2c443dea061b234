import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { Withholding } from "./withholding.js";

/** Lets a vCPU run whose steps take `stepMs`, and tells which share of the time it stood. */
function stoodShare(share: number, stepMs: number, totalMs: number): number {
  const withholding = new Withholding(0);
  let now = 0;
  let stood = 0;
  while (now < totalMs) {
    now += stepMs;
    const standMs = withholding.standMs(now, share);
    if (standMs === 0) continue;
    stood += standMs;
    now += standMs;
    withholding.restart(now);
  }
  return stood / now;
}

describe("Withholding", () => {
  it("withholds exactly its share of the time, whatever a step or a rest takes", () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 0.95, noNaN: true }), fc.double({ min: 0.01, max: 2, noNaN: true }), (share, stepMs) => {
        assert.ok(Math.abs(stoodShare(share, stepMs, 20_000) - share) < 0.02, `${share} of steps of ${stepMs} ms`);
      }),
    );
  });

  it("stands in turns of about 10 ms, so that a guest that stands half of its time answers within 5 ms", () => {
    const withholding = new Withholding(0);
    assert.equal(withholding.standMs(4.9, 0.5), 0);
    assert.equal(withholding.standMs(5, 0.5), 5);
  });

  it("the time before anything was withheld is not made up for", () => {
    const withholding = new Withholding(0);
    assert.equal(withholding.standMs(60_000, 0), 0);
    assert.equal(withholding.standMs(60_000.01, 0.5), 0);
  });

  it("a step that took long is followed by a second at most", () => {
    assert.equal(new Withholding(0).standMs(500, 0.99), 1000);
  });
});
