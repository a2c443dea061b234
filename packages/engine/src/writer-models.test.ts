import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { faster, randomWriter, sequentialWriter, watchedWriter } from "./writer-models.js";
import type { CurvePoint, ModelVcpu } from "./writer-models.js";

const TIMES = [10, 30, 100, 300, 1000, 3000];
const watch = (vcpu: ModelVcpu, times: readonly number[] = TIMES): CurvePoint[] =>
  times.map((ms) => ({ ms, pages: vcpu.distinctPages(ms) }));
const isNear = (actual: number, expected: number, share: number): void =>
  assert.ok(Math.abs(actual - expected) <= share * expected, `${actual}, not ${expected}`);

describe("a writer's model", () => {
  it("random: most writes hit clean pages at first, and few at the end", () => {
    const writer = randomWriter(1000, 1000);
    isNear(writer.distinctPages(10), 10, 0.01);
    isNear(writer.distinctPages(1000), 632, 0.001);
    isNear(writer.distinctPages(100_000), 1000, 0.001);
  });

  it("sequential: every write hits a clean page until the lap is over", () => {
    const writer = sequentialWriter(1000, 1500);
    assert.deepEqual(
      [0, 500, 1500, 9000].map((ms) => writer.distinctPages(ms)),
      [0, 500, 1500, 1500],
    );
  });

  it("watched: goes through every point, and comes close to the writer that was watched, between the points, before and behind them", () => {
    for (const writer of [randomWriter(20_000, 3000), randomWriter(5000, 100_000), sequentialWriter(10_000, 50_000)]) {
      const model = watchedWriter(watch(writer), writer.workingSetPages);
      for (const { ms, pages } of watch(writer)) isNear(model.distinctPages(ms), pages, 1e-9);
      for (const ms of [1, 5, 20, 55, 170, 550, 1700, 4000, 6000]) isNear(model.distinctPages(ms), writer.distinctPages(ms), 0.15);
    }
  });

  it("watched for a moment only: goes on in a straight line, up to its working set", () => {
    const model = watchedWriter([{ ms: 50, pages: 100 }], 1000);
    assert.deepEqual(
      [25, 50, 100, 5000].map((ms) => model.distinctPages(ms)),
      [50, 100, 200, 1000],
    );
  });

  it("watched and idle: writes nothing", () => {
    assert.equal(watchedWriter([], 10).distinctPages(1000), 0);
    assert.equal(
      watchedWriter(
        [
          { ms: 100, pages: 0 },
          { ms: 1000, pages: 0 },
        ],
        10,
      ).distinctPages(5000),
      0,
    );
  });

  it("never falls with time, and never exceeds the working set, whatever was seen", () => {
    const points = fc
      .array(fc.tuple(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 0, max: 100_000 })), { maxLength: 8 })
      .map((pairs) => {
        const pages = pairs.map(([, count]) => count).toSorted((one, other) => one - other);
        const times = [...new Set(pairs.map(([ms]) => ms))].toSorted((one, other) => one - other);
        return times.map((ms, at) => ({ ms, pages: pages[at]! }));
      });
    fc.assert(
      fc.property(points, fc.array(fc.double({ min: 0, max: 20_000, noNaN: true }), { minLength: 2 }), (seen, times) => {
        const model = watchedWriter(seen, 50_000);
        let before = 0;
        for (const ms of times.toSorted((one, other) => one - other)) {
          const now = model.distinctPages(ms);
          assert.ok(now >= before - 1e-6 && now <= 50_000, `${now} at ${ms} ms, ${before} before`);
          before = now;
        }
      }),
    );
  });

  it("faster: does the same in less time", () => {
    const writer = randomWriter(1000, 1000);
    assert.equal(faster(writer, 2).distinctPages(100), writer.distinctPages(200));
  });
});
