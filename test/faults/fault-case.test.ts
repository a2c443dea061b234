import assert from "node:assert/strict";
import { it } from "node:test";
import { precopy } from "../e2e/lab.js";
import { POINTS, deriveCase, derivePostcopyCase, everyPoint, faultText, parseFault } from "./fault-case.js";
import { seedOf } from "./random.js";

const seeds = Array.from({ length: 2000 }, (_, at) => seedOf(1, at));

it("a seed has one case, and no two cases of a campaign have one seed", () => {
  for (const seed of seeds.slice(0, 50)) assert.deepEqual(deriveCase(seed), deriveCase(seed));
  assert.equal(new Set(seeds).size, seeds.length);
});

it("every fault reads as it was written", () => {
  const faults = [...seeds.flatMap((seed) => [deriveCase(seed), derivePostcopyCase(seed)]), ...everyPoint()].flatMap((one) => one.faults);
  for (const fault of faults) assert.deepEqual(parseFault(faultText(fault)), fault);
  for (const text of ["", "target.nowhere=kill", "target.owner=stop", "control.up.message#3=flip:8", "link=down@5", "operator=kill-a"])
    assert.throws(() => parseFault(text), /is no fault/);
});

it("2,000 seeds have every point, every kind of fault, and one to some faults each", () => {
  const cases = seeds.map((seed) => deriveCase(seed));
  const texts = cases.flatMap((one) => one.faults.map(faultText));
  for (const point of POINTS)
    for (const action of ["kill", "hold"])
      assert.ok(
        texts.some((text) => text.startsWith(`${point}=${action}`)),
        `${point} ${action}`,
      );
  for (const effect of ["rst", "fin", "stall-both", "stall-one", "delay", "flip"])
    for (const channel of ["control", "pages"])
      assert.ok(
        texts.some((text) => text.startsWith(channel) && text.includes(`=${effect}`)),
        `${channel} ${effect}`,
      );
  for (const act of ["silent", "down", "broken"])
    assert.ok(
      texts.some((text) => text.startsWith(`link=${act}:`)),
      act,
    );
  for (const act of ["cancel", "term", "kill"])
    for (const role of ["source", "target"])
      assert.ok(
        texts.some((text) => text.startsWith(`operator=${act}-${role}@`)),
        `${act} ${role}`,
      );
  for (const { faults } of cases) assert.ok(faults.length >= 1);
});

it("500 seeds of post-copy break every channel and kill both sides while the guest fetches, in both modes, and damage no page", () => {
  const cases = seeds.slice(0, 500).map((seed) => derivePostcopyCase(seed));
  const texts = cases.flatMap((one) => one.faults.map(faultText));
  for (const mode of ["postcopy", "hybrid"]) assert.ok(cases.filter(({ parameters }) => parameters.mode === mode).length > 100, mode);
  for (const pattern of [
    ...["control", "pages", "faults"].map((channel) => new RegExp(`^${channel}\\..*=(link-)?rst`)),
    ...["silent", "down", "broken"].map((act) => new RegExp(`^link=${act}:\\d+@postcopy\\+`)),
    ...["source", "target"].map((role) => new RegExp(`^operator=kill-${role}@postcopy\\+`)),
  ])
    assert.ok(texts.filter((text) => pattern.test(text)).length > 10, String(pattern));
  assert.ok(!texts.some((text) => text.includes("=flip")));
});

it("every point runs with a kill and with a hold", () => {
  const first = everyPoint().map(({ faults: [fault] }) => (fault === undefined ? "" : faultText(fault)));
  assert.deepEqual(first.toSorted(), POINTS.flatMap((point) => [`${point}=hold:1500`, `${point}=kill`]).toSorted());
});

it("the agents know exactly these points", async () => {
  const { stderr } = await precopy(["target", "--listen", "127.0.0.1:0", "--fault-points"], { env: { PRECOPY_FAULT: "x=kill" } });
  const [, known = ""] = /known: ([a-z., -]+)\./.exec(stderr) ?? [];
  assert.deepEqual(known.split(", ").toSorted(), [...POINTS].toSorted());
});
