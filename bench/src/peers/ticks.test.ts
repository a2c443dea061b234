import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { TickLog, tickGapMs } from "./ticks.js";

const tick = (workMs: number): number => 0x80 | (workMs % 0x80);

describe("gap between ticks", () => {
  it("is that of the hand-over when both sides tick evenly", () => {
    assert.equal(tickGapMs([100, 101, 102], [106, 107, 108], 50), 4);
  });

  it("is a longer one close before or after it", () => {
    assert.equal(tickGapMs([93, 101, 102], [106, 107], 10), 8);
    assert.equal(tickGapMs([100, 101], [103, 104, 110, 111], 10), 6);
  });

  it("is none beyond the margin, on either side", () => {
    assert.equal(tickGapMs([0, 98, 99, 100], [103, 104, 105, 900], 5), 3);
  });

  it("holds the hand-over even without a margin", () => {
    assert.equal(tickGapMs([100], [107], 0), 7);
  });

  it("is unknown if a side never ticked", () => {
    assert.equal(tickGapMs([], [1, 2], 50), undefined);
    assert.equal(tickGapMs([1, 2], [], 50), undefined);
  });
});

describe("log", () => {
  it("resolves with the tick that was waited for, also when it came before", async () => {
    const log = new TickLog();
    let isReached = false;
    const reached = log.reached(3).then(() => {
      isReached = true;
    });
    log.push(Uint8Array.of(tick(0), tick(0)), 1);
    await Promise.resolve();
    assert.equal(isReached, false);
    log.push(Uint8Array.of(tick(0)), 2);
    await reached;
    await log.reached(3);
    assert.deepEqual(log.arrivals, [1, 1, 2]);
  });

  it("a text is the end of the guest, for who waits and who comes later", async () => {
    const log = new TickLog();
    const reached = log.reached(1);
    log.push(Buffer.from("!G"), 1);
    await assert.rejects(reached, /!G/);
    log.push(Uint8Array.of(tick(0)), 2);
    await assert.rejects(log.reached(1), /!G/);
  });

  it("the share of work is counted over the turns of the 7 bits, from the moment asked for", () => {
    const log = new TickLog();
    for (let ms = 0; ms <= 1000; ms++) log.push(Uint8Array.of(tick(ms <= 500 ? 0 : (ms - 500) / 2)), ms);
    assert.equal(log.workShareFrom(0), 0.25);
    assert.equal(log.workShareFrom(500), 0.5);
    assert.equal(log.workShareFrom(0, 500), 0);
    assert.equal(log.workShareFrom(400, 600), 0.25);
    assert.equal(log.workShareFrom(499.5, 500.5), undefined);
    assert.equal(log.workShareFrom(1000), undefined);
    assert.equal(log.workShareFrom(2000), undefined);
  });

  it("work caught up after a pause of the guest counts", () => {
    const log = new TickLog();
    log.push(Uint8Array.of(tick(120)), 0);
    log.push(Uint8Array.of(tick(160)), 40);
    assert.equal(log.workShareFrom(0), 1);
  });
});
