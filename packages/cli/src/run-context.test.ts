import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { StopSwitch } from "./run-context.js";

/** A switch, and what became of the process behind it: each word once for each time. */
function watched() {
  const fate: string[] = [];
  const stopping = new StopSwitch(() => fate.push("killed"));
  stopping.signal.addEventListener("abort", () => fate.push("asked to end"));
  return { stopping, fate };
}

describe("StopSwitch", () => {
  it("asks for an end at the first signal and insists at every later one", () => {
    const { stopping, fate } = watched();
    assert.equal(stopping.signal.aborted, false);
    stopping.request();
    assert.deepEqual([fate, stopping.signal.aborted], [["asked to end"], true]);
    stopping.request();
    stopping.request();
    assert.deepEqual(fate, ["asked to end", "killed", "killed"]);
  });

  it("with a guard that refuses the first signal lets the second one through and kills at the third", () => {
    const { stopping, fate } = watched();
    stopping.guard((count) => count > 1);
    stopping.request();
    assert.deepEqual([fate, stopping.signal.aborted], [[], false]);
    stopping.request();
    assert.deepEqual(fate, ["asked to end"]);
    stopping.request();
    assert.deepEqual(fate, ["asked to end", "killed"]);
  });

  it("tells the guard the count of all signals, and asks it no more once the end has begun", () => {
    const { stopping } = watched();
    const counts: number[] = [];
    stopping.guard((count) => {
      counts.push(count);
      return count === 3;
    });
    for (let signal = 0; signal < 5; signal++) stopping.request();
    assert.deepEqual(counts, [1, 2, 3]);
  });

  it("forgets a guard that was taken away, and keeps the one that took its place", () => {
    const { stopping, fate } = watched();
    const removeFirst = stopping.guard(() => assert.fail("the first guard was asked"));
    const removeSecond = stopping.guard(() => false);
    removeFirst();
    stopping.request();
    assert.deepEqual(fate, []);
    removeSecond();
    stopping.request();
    assert.deepEqual(fate, ["asked to end"]);
  });

  it("ends at a command's own wish whatever the guard says; twice is no insistence, and a signal after it is one", () => {
    const { stopping, fate } = watched();
    stopping.guard(() => false);
    stopping.stop();
    stopping.stop();
    assert.deepEqual(fate, ["asked to end"]);
    stopping.request();
    assert.deepEqual(fate, ["asked to end", "killed"]);
  });
});
