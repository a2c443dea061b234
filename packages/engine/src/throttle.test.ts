import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { SHARE_MAX, SdpsBudget, dealOut, shareFor } from "./throttle.js";

const rate = (demand: number, share: number): number => demand * (1 - share);

describe("dealOut", () => {
  it("withholds nothing while all together want no more than is allowed", () => {
    assert.deepEqual(dealOut([100, 0, 200], 300), [0, 0, 0]);
    assert.deepEqual(dealOut([100, 200], Infinity), [0, 0]);
  });

  it("leaves a vCPU that wants little what it wants, and shares the rest among the others", () => {
    assert.deepEqual(dealOut([1000, 50, 450], 450), [0.8, 0, 1 - 200 / 450]);
  });

  it("never withholds more than it may", () => {
    assert.deepEqual(dealOut([1000, 0], 0), [SHARE_MAX, 0]);
  });

  it("allows exactly what was allowed where that can be met, and treats equals as equals", () =>
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0, max: 1e6, noNaN: true }), { minLength: 1, maxLength: 8 }),
        fc.double({ min: 0.02, max: 1.5, noNaN: true }),
        (demands, part) => {
          const wanted = demands.reduce((sum, demand) => sum + demand, 0);
          const allowance = wanted * part;
          const shares = dealOut(demands, allowance);
          const granted = demands.map((demand, at) => rate(demand, shares[at]!));
          const total = granted.reduce((sum, one) => sum + one, 0);
          const isCut = shares.some((share) => share === SHARE_MAX);
          if (!isCut) assert.ok(Math.abs(total - Math.min(allowance, wanted)) <= 1e-6 * (1 + wanted), `${total} of ${allowance}`);
          // Whoever is held gets at least as much as anybody who is not.
          const held = granted.filter((_, at) => shares[at]! > 0 && shares[at]! < SHARE_MAX);
          const others = granted.filter((_, at) => shares[at] === 0);
          for (const one of held) for (const other of others) assert.ok(other <= one * (1 + 1e-9) + 1e-9);
        },
      ),
    ));
});

describe("shareFor", () => {
  it("brings a vCPU down to its limit, and leaves one below it alone", () => {
    assert.equal(shareFor(1000, 250), 0.75);
    assert.equal(shareFor(250, 250), 0);
    assert.equal(shareFor(0, 0), 0);
    assert.equal(shareFor(1000, 0), SHARE_MAX);
  });
});

describe("SdpsBudget", () => {
  /** More than any threshold here. */
  const much = 10 ** 6;

  it("allows anything while nobody knows the link, and to a guest that stays under its share of it", () => {
    const budget = new SdpsBudget();
    assert.equal(budget.allowance(1000, 100, much, 0, 50), Infinity);
    assert.equal(budget.allowance(1000, 100, 10_000, 20_000, 50), Infinity);
  });

  it("holds one that would dirty more at half of that share", () => {
    assert.equal(new SdpsBudget().allowance(0, 100, 10_001, 20_000, 50), 5000);
  });

  it("takes what was dirtied beyond it off what may be dirtied next", () => {
    const budget = new SdpsBudget();
    assert.equal(budget.allowance(1500, 100, much, 20_000, 50), 4000, "500 were allowed in 100 ms, 1000 are owed");
    assert.equal(budget.allowance(0, 100, much, 20_000, 50), 4500, "and 500 were paid back");
    assert.equal(budget.allowance(0, 1000, much, 20_000, 50), 5000);
  });

  it("gives no credit for quiet times, and lets no debt grow beyond what a second allows", () => {
    const budget = new SdpsBudget();
    assert.equal(budget.allowance(0, 60_000, much, 20_000, 50), 5000);
    assert.equal(budget.allowance(10 ** 9, 100, much, 20_000, 50), 0);
    assert.equal(budget.allowance(0, 500, much, 20_000, 50), 2500);
  });
});
