import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { CHANNELS_MAX, STRIPE_PAGES } from "./limits.js";
import { STRIPE_WORDS, laneOfPage } from "./stripe.js";

const laneCounts = fc.integer({ min: 1, max: CHANNELS_MAX });
const pageIndices = fc.integer({ min: 0, max: 2 ** 32 - 1 });

describe("laneOfPage", () => {
  it("names one of the lanes for every page index there is", () =>
    fc.assert(
      fc.property(pageIndices, laneCounts, (page, lanes) => {
        const lane = laneOfPage(page, lanes);
        assert.ok(Number.isInteger(lane) && lane >= 0 && lane < lanes);
      }),
    ));
  it("gives all pages of one stripe to one lane, and the next stripe to the next", () =>
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 22 }), laneCounts, (stripe, lanes) => {
        const first = stripe * STRIPE_PAGES;
        for (let page = first; page < first + STRIPE_PAGES; page++) assert.equal(laneOfPage(page, lanes), stripe % lanes);
      }),
    ));
  it("deals the stripes out evenly: no lane has two more than another", () =>
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 100 }), laneCounts, (stripes, lanes) => {
        const load = new Array<number>(lanes).fill(0);
        for (let stripe = 0; stripe < stripes; stripe++) load[laneOfPage(stripe * STRIPE_PAGES, lanes)]!++;
        assert.ok(Math.max(...load) - Math.min(...load) <= 1);
      }),
    ));
});

it("a stripe is a whole number of bitmap words and of 2 MiB", () => {
  assert.equal(STRIPE_WORDS * 32, STRIPE_PAGES);
  assert.equal(STRIPE_PAGES * 4096, 2 * 2 ** 20);
});
