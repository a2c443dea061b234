import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { listenForNoise, parseProcessorTimes, undisturbed, whyTooNoisy } from "./noise.js";

const QUIET = { load: 0.1, busyShare: 0.02, stealShare: 0, spinSpread: 1.05 };

describe("noise", () => {
  it("reads processor times from the first line of /proc/stat", () => {
    const stat = "cpu  100 1 50 800 20 3 6 20 0 0\ncpu0 50 0 25 400 10 1 3 10 0 0\nintr 1 2 3\n";
    assert.deepEqual(parseProcessorTimes(stat), { idle: 820, steal: 20, all: 1000 });
  });

  it("is a reason to refuse when others take processors, the host takes them, or equal work takes unequal time", () => {
    assert.equal(whyTooNoisy(QUIET), undefined);
    assert.match(whyTooNoisy({ ...QUIET, busyShare: 0.4 }) ?? "", /^others take 40 % of \d+ processors/);
    assert.match(whyTooNoisy({ ...QUIET, stealShare: 0.1 }) ?? "", /^the host gives 10 % /);
    assert.match(whyTooNoisy({ ...QUIET, spinSpread: 2 }) ?? "", /^equal work takes up to 2\.0 times/);
  });

  it("a run that the host disturbs is made again, four times at most, and the one disturbed least counts", async () => {
    const of = async (shares: number[], isFinal?: (made: number) => boolean) => {
      let made = 0;
      return undisturbed(async () => ++made, {
        ...(isFinal && { isFinal }),
        watch: () => () => shares[made - 1] ?? Number.NaN,
        againMs: 0,
      });
    };
    assert.deepEqual(await of([0.01]), { result: 1, stealShare: 0.01, tries: 1 });
    assert.deepEqual(await of([0.3, 0.02]), { result: 2, stealShare: 0.02, tries: 2 });
    assert.deepEqual(await of([0.3, 0.2, 0.4, 0.5]), { result: 2, stealShare: 0.2, tries: 4 });
    assert.deepEqual(await of([0.3, 0.2, 0.1], (made) => made === 2), { result: 2, stealShare: 0.2, tries: 2 }, "which is final");
  });

  it("is measured in shares of this machine", async () => {
    const { busyShare, stealShare, spinSpread } = await listenForNoise();
    if (process.platform === "linux")
      for (const share of [busyShare, stealShare]) assert.ok(share >= -0.01 && share <= 1.01, String(share));
    assert.ok(spinSpread >= 1, String(spinSpread));
  });
});
