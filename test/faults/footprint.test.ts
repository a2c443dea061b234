import assert from "node:assert/strict";
import { it } from "node:test";
import { footprintOf, growthOf } from "./footprint.js";

/** Samples whose resident memory, descriptors and threads are given by their number. */
const samples = (count: number, of: (at: number) => readonly [number, number, number]) =>
  Array.from({ length: count }, (_, at) => {
    const [residentMiB, descriptors, threads] = of(at);
    return { residentMiB, descriptors, threads };
  });

it("a process that swings, and fills its pools in the beginning, has not grown", () => {
  const swinging = samples(60, (at) => [150 + ((at * 37) % 81), at < 10 ? 40 + at : 50, at < 10 ? 12 : 20]);
  assert.deepEqual(growthOf(swinging).grown, []);
});

it("a descriptor lost in every tenth sample, a thread, and a MiB a sample are each found", () => {
  assert.deepEqual(growthOf(samples(60, (at) => [150, 50 + Math.floor(at / 10), 20])).grown, ["descriptors from 51 to 55"]);
  assert.deepEqual(growthOf(samples(60, (at) => [150, 50, 20 + Math.floor(at / 10)])).grown, ["threads from 21 to 25"]);
  assert.deepEqual(growthOf(samples(120, (at) => [150 + at, 50, 20])).grown, ["residentMiB from 186 to 258"]);
});

it("a few samples prove nothing", () => {
  assert.deepEqual(growthOf(samples(5, (at) => [100 * at, 100 * at, 100 * at])).grown, []);
  assert.deepEqual(growthOf(samples(20, (at) => [100 * at, 50, 20])).grown, [], "memory needs more of them than descriptors do");
});

it("this process has memory, descriptors and threads", () => {
  for (const value of Object.values(footprintOf(process.pid))) assert.ok(value > 0);
});
