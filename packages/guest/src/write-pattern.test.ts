import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { WRITE_PATTERNS, fastestOf, momentOf, steadyMs } from "./write-pattern.js";

describe("a write pattern", () => {
  it("has written as much as a steady one after each period, and in between by its rhythm", () => {
    for (const pattern of WRITE_PATTERNS) assert.equal(steadyMs(pattern, 30_000), 30_000);
    assert.deepEqual(
      [100, 250, 600, 1000, 1100].map((ms) => steadyMs("bursty", ms)),
      [400, 1000, 1000, 1000, 1400],
    );
    assert.deepEqual(
      [1000, 5000, 6000, 10_000].map((ms) => steadyMs("phases", ms)),
      [1500, 7500, 8000, 10_000],
    );
    assert.equal(steadyMs("moving", 123), 123);
    assert.deepEqual(
      [400, 1000, 1400, 2000].map((steady) => momentOf("bursty", steady)),
      [100, 250, 1100, 1250],
    );
  });

  it("never goes back, never is faster than its fastest, and tells when so much will have been written", () =>
    fc.assert(
      fc.property(
        fc.constantFrom(...WRITE_PATTERNS),
        fc.double({ min: 0, max: 1e6, noNaN: true }),
        fc.double({ min: 0, max: 5000, noNaN: true }),
        (pattern, ms, more) => {
          const gained = steadyMs(pattern, ms + more) - steadyMs(pattern, ms);
          assert.ok(gained >= -1e-6 && gained <= more * fastestOf(pattern) + 1e-6, `${gained} in ${more} ms`);
          const work = steadyMs(pattern, ms);
          assert.ok(momentOf(pattern, work) <= ms + 1e-6, "no later than it was");
          assert.ok(Math.abs(steadyMs(pattern, momentOf(pattern, work)) - work) < 1e-3, `${work} is reached`);
        },
      ),
    ));
});
