import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Lab, precopy, untilPhase } from "./lab.js";

let lab: Lab;
beforeEach(async () => {
  lab = new Lab();
  await lab.startSwitch();
});
afterEach(() => lab.end());

describe("cancel", () => {
  for (const { phase, fault, args } of [
    { phase: "setup", fault: "source.setup=hold:6000", args: [] },
    { phase: "active", fault: undefined, args: ["--max-bandwidth", "60Mbit"] },
    { phase: "device", fault: "source.device=hold:6000", args: ["--downtime-limit", "5s"] },
  ] as const)
    it(`in ${phase} the guest runs on at the source and the target is free again`, async () => {
      const source = await lab.source("a", [], fault);
      const target = await lab.agent("target", "b");
      const client = await lab.client();
      const migration = lab.migrate(source, target.listen, args);
      await untilPhase(migration, phase);
      assert.equal((await precopy(["cancel", "--socket", source.socket])).code, 0);
      assert.equal(await migration.exited, 8);
      await lab.runsOnAt(source, client);
    });
});
