import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Bitmap } from "@precopy/guest";
import { STRIPE_PAGES } from "@precopy/protocol";
import { addStripes, draw, stripesWith } from "./stripe-sample.js";

describe("stripesWith and addStripes", () => {
  it("list the blocks with a page in them, and set all their pages, of the last one those there are", () => {
    const pages = new Bitmap(3 * STRIPE_PAGES + 5);
    pages.setRun(STRIPE_PAGES + 7, 1);
    pages.setRun(3 * STRIPE_PAGES, 2);
    assert.deepEqual(stripesWith(pages), [1, 3]);
    const all = new Bitmap(pages.pages);
    addStripes(all, [1, 3]);
    assert.deepEqual([all.countStripe(0), all.countStripe(1), all.countStripe(2), all.countStripe(3)], [0, STRIPE_PAGES, 0, 5]);
  });
});

describe("draw", () => {
  it("draws so many, each once, and each as likely as any other", () => {
    const all = Array.from({ length: 20 }, (_, at) => at);
    const times = all.map(() => 0);
    for (let run = 0; run < 4000; run++) {
      const drawn = draw(all, 5);
      assert.equal(new Set(drawn).size, 5);
      for (const one of drawn) times[one]!++;
    }
    for (const count of times) assert.ok(count > 800 && count < 1200, times.join()); // 1000 are expected, 27 is a standard deviation
    assert.deepEqual(new Set(draw([1, 2], 5)), new Set([1, 2]));
  });
});
