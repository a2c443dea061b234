import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BANDWIDTH_BYTES_MIN, BANDWIDTH_WINDOW_BYTES, BANDWIDTH_WINDOW_MS, PAGE_BYTES } from "@precopy/protocol";
import { RoundStats } from "./round-stats.js";

function after(...rounds: readonly (readonly [bytes: number, ms: number, roundTripMs?: number])[]): RoundStats {
  const stats = new RoundStats();
  for (const [bytes, ms, roundTripMs = 0] of rounds) stats.add({ normalPages: 0, zeroPages: 0, bytes, ms }, roundTripMs);
  return stats;
}
const round = (stats: RoundStats, normalPages: number, zeroPages: number, bytes: number, ms: number): void =>
  stats.add({ normalPages, zeroPages, bytes, ms }, 0);
const bandwidth = (stats: RoundStats): number | undefined => stats.bandwidthBytesPerSecond;

describe("RoundStats", () => {
  it("knows neither bandwidth nor fixed part before the first round, and then sends in no time", () => {
    const stats = after();
    assert.deepEqual([bandwidth(stats), stats.fixedMs, stats.transferMs(2 ** 30)], [undefined, undefined, 0]);
  });

  it("takes the bandwidth of a round that carried 16 MiB, however fast, or was under way for 20 ms with 1 MiB", () => {
    assert.equal(bandwidth(after([BANDWIDTH_WINDOW_BYTES, 1])), BANDWIDTH_WINDOW_BYTES * 1000);
    assert.equal(bandwidth(after([BANDWIDTH_BYTES_MIN, BANDWIDTH_WINDOW_MS])), BANDWIDTH_BYTES_MIN * (1000 / BANDWIDTH_WINDOW_MS));
  });

  it("does not take a few pages that were long on their way for a slow link: they teach the fixed part", () => {
    const stats = after([100_000_000, 100], [5 * PAGE_BYTES, 60], [BANDWIDTH_BYTES_MIN - 1, 200]);
    assert.equal(bandwidth(stats), 1_000_000_000);
    assert.equal(stats.fixedMs, 200 - (BANDWIDTH_BYTES_MIN - 1) / 1e6);
    assert.equal(bandwidth(after([5 * PAGE_BYTES, 60])), undefined, "nor while nothing else is known");
  });

  it("leaves the round trip out of the bandwidth, on a link of any length", () => {
    assert.equal(bandwidth(after([100_000_000, 150, 50])), 1_000_000_000);
    assert.equal(bandwidth(after([BANDWIDTH_WINDOW_BYTES - 1, 39, 20])), undefined, "19 ms under way");
    assert.equal(bandwidth(after([100_000_000, 100, 99])), 2_000_000_000, "and no round is nearly all round trip: that was taken too long");
  });

  it("learns no bandwidth from a round that was a byte too small and a moment too short", () => {
    const stats = after([BANDWIDTH_WINDOW_BYTES - 1, BANDWIDTH_WINDOW_MS - 0.001]);
    assert.equal(bandwidth(stats), undefined);
  });

  it("keeps the bandwidth of a long round through any number of short ones", () => {
    const stats = after([100_000_000, 100], [100, 5], [0, 1], [BANDWIDTH_WINDOW_BYTES - 1, 19]);
    assert.equal(bandwidth(stats), 1_000_000_000);
    assert.equal(stats.transferMs(1_000_000), 1);
  });

  it("forgets an older bandwidth when a later long round shows another", () => {
    assert.equal(bandwidth(after([100_000_000, 100], [100_000_000, 1000])), 100_000_000);
  });

  it("is capped anew: what was carried is the least that is carried now, no more than the cap, and the next round that tells is believed", () => {
    const stats = after([100_000_000, 100]);
    stats.cap(2_000_000_000);
    assert.deepEqual([bandwidth(stats), stats.transferMs(1_000_000)], [undefined, 1], "the cap was raised");
    stats.cap(0);
    assert.deepEqual([bandwidth(stats), stats.transferMs(1_000_000)], [undefined, 1], "the cap was lifted");
    stats.cap(100_000_000);
    assert.deepEqual([bandwidth(stats), stats.transferMs(1_000_000)], [undefined, 10], "the cap was lowered");
    round(stats, 2500, 0, 10_000_000, 5);
    assert.deepEqual([bandwidth(stats), stats.transferMs(1_000_000)], [undefined, 0.5], "a short round was faster");
    round(stats, 25_000, 0, 100_000_000, 1000);
    assert.equal(bandwidth(stats), 100_000_000);
  });

  it("keeps the fixed part through long rounds: they say nothing of it", () => {
    assert.equal(after([0, 3], [100_000_000, 100]).fixedMs, 3);
  });

  it("takes what a short round took beyond its transfer as its fixed part, and never less than nothing", () => {
    assert.equal(after([100_000_000, 100], [2_000_000, 5]).fixedMs, 3);
    assert.equal(after([100_000_000, 100], [10_000_000, 5]).fixedMs, 0);
    assert.equal(after([2_000_000, 5]).fixedMs, 5, "while the bandwidth is unknown all of it is fixed");
  });

  it("learns nothing of the link from a round that mostly found zeros: its time went into looking", () => {
    const stats = after([100_000_000, 100]);
    round(stats, 0, 2 ** 20, 100_000, 1000); // 4 GiB of zeros
    assert.deepEqual([bandwidth(stats), stats.fixedMs], [1_000_000_000, undefined]);
    round(stats, 25_000, 1000, 100_000_000, 1000); // some zeros do no harm
    assert.equal(bandwidth(stats), 100_000_000);
  });

  it("forecasts by the fastest it has seen while no round has told the bandwidth, and by the bandwidth as soon as one has", () => {
    const stats = after();
    round(stats, 25_000, 2 ** 20, 100_000_000, 1000); // looked at 4 GiB of zeros meanwhile
    assert.deepEqual([bandwidth(stats), stats.transferMs(1_000_000)], [undefined, 10]);
    round(stats, 2500, 0, 10_000_000, 10); // too short for a bandwidth, and faster
    assert.deepEqual([bandwidth(stats), stats.transferMs(1_000_000)], [undefined, 1]);
    round(stats, 25_000, 0, 100_000_000, 1000); // slower, and long enough to tell
    assert.deepEqual([bandwidth(stats), stats.transferMs(1_000_000)], [100_000_000, 10]);
  });

  it("forecasts pages at the ratio to which the last ones were compressed, and at full size before any was sent", () => {
    const stats = after([100_000_000, 100]);
    assert.equal(stats.pagesMs(1000), (1000 * PAGE_BYTES) / 1e6);
    round(stats, 50_000, 0, 100_000_000, 100); // 2,000 B a page
    assert.equal(stats.pagesMs(1000), (1000 * 2000) / 1e6);
    round(stats, 0, 1, 60, 1); // no page with data: the ratio stays
    assert.equal(stats.pagesMs(1000), (1000 * 2000) / 1e6);
  });

  it("gives a finite bandwidth for a round that took no time by the clock", () => {
    assert.ok(Number.isFinite(bandwidth(after([BANDWIDTH_WINDOW_BYTES, 0]))));
  });
});
