import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { FAULT_POINTS, OPTIMISATIONS, forgetDirtyEvery, parseFaults, reachPoint, switchedOff } from "./fault-points.js";

/** Faults of an environment, and what they did. */
function faults(environment: Record<string, string>, isAllowed = true) {
  const seen: string[] = [];
  const reach = reachPoint(environment, isAllowed, {
    announce: ({ type, point }) => seen.push(`${type} ${point}`),
    kill: () => seen.push("killed"),
  });
  return { reach, seen, forgetEvery: forgetDirtyEvery(environment, isAllowed), without: [...switchedOff(environment, isAllowed)] };
}
const refusal = (message: RegExp) => ({ name: "MigrationError", code: "ERR_PARAMETER", message });

describe("an agent in production", () => {
  it("starts without faults and with every optimisation, and no point does anything", async () => {
    const { reach, seen, forgetEvery, without } = faults({}, false);
    for (const point of FAULT_POINTS) await reach(point);
    assert.deepEqual([forgetEvery, without, seen], [0, [], []]);
  });

  for (const [name, value] of [
    ["PRECOPY_FAULT", "target.owner=kill"],
    ["PRECOPY_FAULT", "nonsense"],
    ["PRECOPY_FORGET_DIRTY", "10000"],
    ["PRECOPY_FORGET_DIRTY", "0"],
    ["PRECOPY_WITHOUT", "populated-map"],
    ["PRECOPY_WITHOUT", "nonsense"],
  ] as const)
    it(`refuses to start with ${name}=${value} left in its environment`, () => {
      assert.throws(() => faults({ [name]: value }, false), refusal(new RegExp(`^${name} is set, .* add --fault-points$`)));
    });
});

describe("what is not understood is refused, with what is known", () => {
  const bad: readonly (readonly [text: string, message: RegExp])[] = [
    ["source.nowhere=kill", /"source.nowhere" is no fault point; known: source.setup, .*target.claimed$/],
    ["=kill", /"" is no fault point/],
    ["target.owner", /"target.owner" is not POINT=hold:MS or POINT=kill/],
    ["target.owner=", /"" is neither kill nor hold:MS/],
    ["target.owner=stop", /"stop" is neither kill nor hold:MS/],
    ["target.owner=kill9", /"kill9" is neither kill nor hold:MS/],
    ["target.owner=hold", /"hold" is neither kill nor hold:MS/],
    ["target.owner=hold:-1", /"hold:-1" is neither/],
    ["target.owner=hold:1.5", /"hold:1.5" is neither/],
    ["target.owner=hold:9999999999", /"hold:9999999999" is neither/],
    ["target.owner#0=kill", /#0 is no count from 1/],
    ["target.owner#x=kill", /#x is no count from 1/],
    ["source.setup=hold:5;target.owner=stop", /"stop" is neither/],
    ["source.setup:5", /is not POINT=hold:MS/],
  ];
  for (const [text, message] of bad)
    it(text, () => {
      assert.throws(() => faults({ PRECOPY_FAULT: text }), refusal(message));
    });

  for (const text of ["zero-check", "populated-map,zero-check", "Populated-Map", "all"])
    it(`PRECOPY_WITHOUT=${text}`, () => {
      const message = /" is no optimisation; known: deferred-cleanup, vector-zero-check, populated-map, rehearsal$/;
      assert.throws(() => faults({ PRECOPY_WITHOUT: text }), refusal(message));
    });

  it("PRECOPY_FORGET_DIRTY=often", () => {
    assert.throws(() => faults({ PRECOPY_FORGET_DIRTY: "often" }), refusal(/"often" is no whole number/));
  });
});

it("each optimisation can be switched off, alone or with others, with spaces and a comma behind the last", () => {
  for (const name of OPTIMISATIONS) assert.deepEqual(faults({ PRECOPY_WITHOUT: name }).without, [name]);
  assert.deepEqual(faults({ PRECOPY_WITHOUT: OPTIMISATIONS.join(",") }).without, OPTIMISATIONS);
  assert.deepEqual(faults({ PRECOPY_WITHOUT: "populated-map, deferred-cleanup,populated-map," }).without, [
    "populated-map",
    "deferred-cleanup",
  ]);
});

it("several faults stand in one text, with spaces and a semicolon behind the last", () => {
  assert.deepEqual(parseFaults("source.setup=hold:5; target.owner#2=kill;"), [
    { point: "source.setup", nth: undefined, action: { holdMs: 5 } },
    { point: "target.owner", nth: 2, action: "kill" },
  ]);
});

it("a kill happens before the call returns, and at no other point", () => {
  const { reach, seen } = faults({ PRECOPY_FAULT: "target.owner=kill" });
  void reach("target.commit");
  assert.deepEqual(seen, []);
  void reach("target.owner");
  assert.deepEqual(seen, ["killed"]);
});

it("a hold is announced at once and ends after its time", async () => {
  const { reach, seen } = faults({ PRECOPY_FAULT: "source.device=hold:30" });
  const started = performance.now();
  const held = reach("source.device");
  assert.deepEqual(seen, ["hold source.device"]);
  await held;
  assert.ok(performance.now() - started > 25);
});

it("POINT#N is the Nth time and no other", async () => {
  const { reach, seen } = faults({ PRECOPY_FAULT: "source.active#2=hold:0" });
  for (const expected of [[], ["hold source.active"], ["hold source.active"]]) {
    await reach("source.active");
    assert.deepEqual(seen, expected);
  }
});

it("@FILE may come, change and go while the agent runs, and new text counts from one", async () => {
  const folder = mkdtempSync(join(tmpdir(), "precopy-faults-"));
  try {
    const file = join(folder, "faults");
    const { reach, seen } = faults({ PRECOPY_FAULT: `@${file}` });
    await reach("target.prepared");
    writeFileSync(file, "target.prepared#1=kill");
    await reach("target.prepared");
    await reach("target.prepared");
    assert.deepEqual(seen, ["killed"]);
    writeFileSync(file, "target.prepared#1=hold:0");
    await reach("target.prepared");
    assert.deepEqual(seen, ["killed", "hold target.prepared"]);
    rmSync(file);
    await reach("target.prepared");
    assert.equal(seen.length, 2);
    writeFileSync(file, "target.prepare=kill");
    await assert.rejects(reach("target.prepared"), refusal(/no fault point/));
  } finally {
    rmSync(folder, { recursive: true });
  }
});
