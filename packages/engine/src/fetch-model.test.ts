import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { fetchModel } from "./fetch-model.js";
import { randomWriter, sequentialWriter } from "./writer-models.js";

const GIB_PAGES = 2 ** 18;
const start = { missingPages: GIB_PAGES, populatedPages: GIB_PAGES, pagesPerMs: 28, faultMs: 0.1 };
const about = (value: number, expected: number, share = 0.05): void =>
  assert.ok(Math.abs(value / expected - 1) < share, `${value}, ${expected} expected`);

describe("fetchModel", () => {
  it("takes as long as the link needs for what is missing, whatever the guest does", () => {
    for (const rate of [0, 1000, 1e6]) about(fetchModel({ ...start, vcpus: [randomWriter(rate, GIB_PAGES)] }).ms, GIB_PAGES / 28);
  });

  it("a guest that touches nothing waits for nothing, and neither does one that misses nothing", () => {
    assert.deepEqual(fetchModel({ ...start, vcpus: [randomWriter(0, 100)] }).blockedMs, 0);
    assert.deepEqual(fetchModel({ ...start, missingPages: 0, vcpus: [randomWriter(1e6, GIB_PAGES)] }), { ms: 0, faults: 0, blockedMs: 0 });
  });

  it("a small working set is asked for once, and then runs freely", () => {
    const { faults, blockedMs } = fetchModel({ ...start, vcpus: [sequentialWriter(10_000, 1000)] });
    about(faults, 1000, 0.1);
    about(blockedMs, 100, 0.1);
  });

  it("a writer at random over all of it waits at half of its steps in the mean: half of the pages are there by then", () => {
    // 100 pages a second are no wait to speak of: 9.4 s, 936 touches, half of them missing.
    about(fetchModel({ ...start, vcpus: [randomWriter(100, GIB_PAGES)] }).faults, 468);
  });

  it("waiting slows a fast writer down: at the beginning it runs one ms of work per fault", () => {
    const { blockedMs, ms } = fetchModel({ ...start, vcpus: [randomWriter(100_000, GIB_PAGES)] });
    assert.ok(blockedMs > 0.5 * ms && blockedMs < ms, `${blockedMs} of ${ms} ms`);
  });
});
