import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { CHANNELS_MAX, STRIPE_PAGES } from "./limits.js";
import { STRIPE_WORDS, channelOfPage } from "./stripe.js";

const channelCounts = fc.integer({ min: 1, max: CHANNELS_MAX });
const pageIndices = fc.integer({ min: 0, max: 2 ** 32 - 1 });

describe("channelOfPage", () => {
  it("names one of the channels for every page index there is", () =>
    fc.assert(
      fc.property(pageIndices, channelCounts, (page, channels) => {
        const channel = channelOfPage(page, channels);
        assert.ok(Number.isInteger(channel) && channel >= 0 && channel < channels);
      }),
    ));
  it("gives all pages of one stripe to one channel, and the next stripe to the next", () =>
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 22 }), channelCounts, (stripe, channels) => {
        const first = stripe * STRIPE_PAGES;
        for (let page = first; page < first + STRIPE_PAGES; page++) assert.equal(channelOfPage(page, channels), stripe % channels);
      }),
    ));
  it("deals the stripes out evenly: no channel has two more than another", () =>
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 100 }), channelCounts, (stripes, channels) => {
        const load = new Array<number>(channels).fill(0);
        for (let stripe = 0; stripe < stripes; stripe++) load[channelOfPage(stripe * STRIPE_PAGES, channels)]!++;
        assert.ok(Math.max(...load) - Math.min(...load) <= 1);
      }),
    ));
});

it("a stripe is a whole number of bitmap words and of 2 MiB", () => {
  assert.equal(STRIPE_WORDS * 32, STRIPE_PAGES);
  assert.equal(STRIPE_PAGES * 4096, 2 * 2 ** 20);
});
