import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DirtyDemand } from "./dirty-demand.js";

const vcpu = (dirtiedPages: number, withheldMs = 0): { dirtiedPages: number; withheldMs: number } => ({ dirtiedPages, withheldMs });
const rounded = (demand: DirtyDemand): number[] => demand.perVcpu.map((rate) => Math.round(rate));

describe("DirtyDemand", () => {
  it("is the rate of each vCPU since the first look", () => {
    const demand = new DirtyDemand();
    demand.look([vcpu(5000), vcpu(0)], 1000);
    assert.deepEqual(demand.look([vcpu(5200), vcpu(50)], 1100), { dirtiedPages: 250, elapsedMs: 100 });
    assert.deepEqual(rounded(demand), [2000, 500]);
  });

  it("follows what a vCPU does: after three looks of running on, little is left of what it did before", () => {
    const demand = new DirtyDemand();
    demand.look([vcpu(0)], 0);
    demand.look([vcpu(1000)], 100);
    for (const at of [200, 300, 400]) demand.look([vcpu(1000)], at);
    assert.ok(demand.perVcpu[0]! < 350, String(demand.perVcpu[0]));
  });

  it("is what a vCPU would dirty if it had run all the time", () => {
    const demand = new DirtyDemand();
    demand.look([vcpu(0)], 0);
    demand.look([vcpu(100, 75)], 100);
    assert.deepEqual(rounded(demand), [4000]);
  });

  it("stays what it was while the vCPU hardly runs: it shows nothing new", () => {
    const demand = new DirtyDemand();
    demand.look([vcpu(0)], 0);
    demand.look([vcpu(2000)], 100);
    for (let look = 1; look <= 5; look++) demand.look([vcpu(2000, 99 * look)], 100 + 100 * look);
    assert.ok(demand.perVcpu[0]! > 17_000, String(demand.perVcpu[0]));
  });

  it("a look too soon after another changes nothing", () => {
    const demand = new DirtyDemand();
    demand.look([vcpu(0)], 0);
    demand.look([vcpu(100)], 100);
    assert.deepEqual(demand.look([vcpu(199)], 101), { dirtiedPages: 0, elapsedMs: 0 });
    assert.deepEqual(rounded(demand), [1000]);
    assert.deepEqual(demand.look([vcpu(300)], 200), { dirtiedPages: 200, elapsedMs: 100 });
  });

  it("after a collection a vCPU wants again what it wanted at most in the round before: its working set is clean", () => {
    const demand = new DirtyDemand();
    demand.look([vcpu(0)], 0);
    demand.look([vcpu(900)], 100);
    demand.look([vcpu(900)], 200);
    assert.ok(demand.perVcpu[0]! < 3000);
    demand.collected(900);
    assert.deepEqual(rounded(demand), [9000]);
    demand.collected(10); // a round too short to look
    assert.deepEqual(rounded(demand), [9000]);
  });

  it("is scaled to what is collected: faults may be of something else, or of many pages at once", () => {
    const demand = new DirtyDemand();
    demand.look([vcpu(0)], 0);
    demand.look([vcpu(1000)], 100);
    assert.deepEqual(rounded(demand), [10_000]);
    demand.collected(2000);
    assert.deepEqual(rounded(demand), [20_000]);
  });
});
