import assert from "node:assert/strict";
import { after, afterEach, before, describe, it } from "node:test";
import { precopy, untilPhase } from "./lab.js";
import { Pair } from "./pair.js";

describe("cancel", () => {
  const pair = new Pair();
  before(() => pair.start());
  afterEach(() => pair.settle());
  after(() => pair.end());

  for (const { phase, fault, args } of [
    { phase: "setup", fault: "source.setup=hold:6000", args: [] },
    { phase: "active", fault: "", args: ["--max-bandwidth", "60Mbit"] },
    { phase: "device", fault: "source.device=hold:6000", args: ["--downtime-limit", "5s"] },
  ] as const)
    it(`in ${phase} the guest runs on at the source and the target is free again`, async () => {
      pair.lab.setFault(pair.here, fault);
      const migration = pair.migrate(args);
      await untilPhase(migration, phase);
      assert.equal((await precopy(["cancel", "--socket", pair.here.socket])).code, 0);
      assert.equal(await migration.exited, 8);
      await pair.runsOnHere();
      assert.equal(await pair.lab.guestAt(pair.there), null);
    });
});
