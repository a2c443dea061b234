import assert from "node:assert/strict";
import { it } from "node:test";
import { parseProcessorSeconds, processorSeconds } from "./processor-time.js";

it("the name of a program does not shift the fields, whatever is in it", () => {
  for (const name of ["node", "a b", "a) S 1 (b"])
    assert.equal(parseProcessorSeconds(`12 (${name}) S 1 2 2 0 -1 4194304 10 20 30 40 250 125 7 8 20 0 11 0`), 3.75);
});

it("grows with what this process does, and not beyond what the system says of it", () => {
  const before = processorSeconds(process.pid);
  const until = process.cpuUsage().user + 50_000;
  while (process.cpuUsage().user < until);
  const after = processorSeconds(process.pid);
  const { user, system } = process.cpuUsage();
  assert.ok(after > before && after <= (user + system) / 1e6 + 0.02, `${before} s to ${after} s`);
});
