import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { enterSource, sourceMayAbort, sourceMayRunGuest } from "./source-state.js";
import type { SourcePhase, SourceState } from "./source-state.js";
import { enterTarget, targetMayRunGuest } from "./target-state.js";
import type { TargetState } from "./target-state.js";

const EVERY: { readonly [P in SourcePhase]: SourceState & { readonly phase: P } } = {
  setup: { phase: "setup" },
  active: { phase: "active", round: 1 },
  device: { phase: "device", epoch: 2, pausedAtMs: 0 },
  committing: { phase: "committing", epoch: 2, pausedAtMs: 0 },
  "in-doubt": { phase: "in-doubt", epoch: 2, pausedAtMs: 0 },
  completed: { phase: "completed", downtimeMs: 1 },
  failed: { phase: "failed", cause: "x" },
  cancelled: { phase: "cancelled", cause: "x" },
  "taken-back": { phase: "taken-back", epoch: 3 },
};
const PHASES = Object.values(EVERY).map(({ phase }) => phase);

/** What may follow what, written down a second time, by hand. */
const EXPECTED: Readonly<Record<SourcePhase, string>> = {
  setup: "active device failed cancelled",
  active: "active device failed cancelled",
  device: "committing failed cancelled",
  committing: "completed in-doubt taken-back",
  "in-doubt": "completed taken-back",
  completed: "",
  failed: "",
  cancelled: "",
  "taken-back": "",
};
// The casts below ask at run time what the compiler refuses: every pair of phases, not only the legal ones.
const mayEnter = (from: SourcePhase, to: SourcePhase): boolean => {
  try {
    assert.equal(enterSource(EVERY[from], EVERY[to] as never), EVERY[to]);
    return true;
  } catch (error) {
    assert.equal(error instanceof Error && "code" in error && error.code, "ERR_ILLEGAL_TRANSITION");
    return false;
  }
};
const reachable = (from: SourcePhase, without: readonly SourcePhase[] = []): Set<SourcePhase> => {
  const found = new Set<SourcePhase>();
  const visit = (phase: SourcePhase): void => {
    for (const next of PHASES) if (mayEnter(phase, next) && !found.has(next) && !without.includes(next)) visit(found.add(next) && next);
  };
  visit(from);
  return found;
};

describe("source state", () => {
  for (const from of PHASES)
    it(`${from} leads to ${EXPECTED[from] || "nothing"} and to no other phase`, () =>
      assert.equal(
        PHASES.filter((to) => mayEnter(from, to))
          .sort()
          .join(" "),
        EXPECTED[from].split(" ").sort().join(" "),
      ));

  it("may run the guest exactly in setup, active, failed, cancelled and taken-back", () =>
    assert.deepEqual(
      PHASES.filter((phase) => sourceMayRunGuest(EVERY[phase])),
      ["setup", "active", "failed", "cancelled", "taken-back"],
    ));

  it("may abort exactly where failed and cancelled can be entered, which is before COMMIT", () => {
    assert.deepEqual(PHASES.filter(sourceMayAbort), ["setup", "active", "device"]);
    for (const phase of PHASES) {
      assert.equal(mayEnter(phase, "failed"), sourceMayAbort(phase), phase);
      assert.equal(mayEnter(phase, "cancelled"), sourceMayAbort(phase), phase);
    }
  });

  it("runs the guest again after COMMIT only as taken-back: with that taken away, nothing reachable may run it", () => {
    assert.deepEqual(
      [...reachable("committing")].filter((phase) => sourceMayRunGuest(EVERY[phase])),
      ["taken-back"],
    );
    assert.deepEqual(
      [...reachable("committing", ["taken-back"])].filter((phase) => sourceMayRunGuest(EVERY[phase])),
      [],
    );
  });

  it("comes to COMMIT only through device, in which the guest is paused", () => {
    assert.equal(reachable("setup", ["device"]).has("committing"), false);
    assert.equal(sourceMayRunGuest(EVERY.device), false);
  });

  it("can always end: every phase reaches one that leads nowhere", () => {
    for (const phase of PHASES)
      assert.ok(
        [phase, ...reachable(phase)].some((end) => PHASES.every((next) => !mayEnter(end, next))),
        phase,
      );
  });
});

/**
 * Both sides of one hand-over and what is on its way between them. Every order of delivery, every loss, every abort and every doubt is
 * explored from "paused, state sent" on. `mayReorder`: a message may overtake another, as over two connections.
 */
interface World {
  readonly source: SourceState;
  readonly target: TargetState;
  readonly toTarget: readonly string[];
  readonly toSource: readonly string[];
}
/** A source that does not wait for the target's last word, to see that the exploration finds it. */
type Rules = { readonly isHasty: boolean };
const START: World = {
  source: { phase: "device", epoch: 2, pausedAtMs: 0 },
  target: { phase: "receiving", epoch: 2 },
  toTarget: [],
  toSource: [],
};

function atSource(world: World, message: string): World {
  const { source } = world;
  if (message === "prepared" && source.phase === "device")
    return { ...world, source: enterSource(source, { ...source, phase: "committing" }), toTarget: [...world.toTarget, "commit"] };
  if (source.phase !== "committing" && source.phase !== "in-doubt") return world; // too late, or to nobody
  if (message === "active") return { ...world, source: enterSource(source, { phase: "completed", downtimeMs: 1 }) };
  if (message === "discarded") return { ...world, source: enterSource(source, { phase: "taken-back", epoch: source.epoch + 1 }) };
  return world;
}
function atTarget(world: World, message: string): World {
  const { target } = world;
  const answer = (text: string, next: TargetState): World => ({ ...world, target: next, toSource: [...world.toSource, text] });
  if (message === "commit" && target.phase === "prepared") return answer("active", enterTarget(target, { phase: "active", epoch: 2 }));
  if (message === "abort" && (target.phase === "receiving" || target.phase === "prepared"))
    return { ...world, target: enterTarget(target, { phase: "discarded", epoch: 2, cause: "abort" }) };
  // COMMIT may have been lost, so asking repeats it; a target that discarded says so for good.
  if (message === "ask" && target.phase === "prepared") return atTarget(world, "commit");
  if (message === "ask" && (target.phase === "active" || target.phase === "discarded")) return answer(target.phase, target);
  return world;
}
const without = (list: readonly string[], at: number): string[] => list.filter((_, index) => index !== at);

function steps(world: World, { isHasty }: Rules): World[] {
  const { source, target, toTarget, toSource } = world;
  const next: World[] = [];
  toTarget.forEach((message, at) => {
    const rest = { ...world, toTarget: without(toTarget, at) };
    next.push(rest, atTarget(rest, message)); // lost, delivered; any of them first
  });
  toSource.forEach((message, at) => {
    const rest = { ...world, toSource: without(toSource, at) };
    next.push(rest, atSource(rest, message));
  });
  if (target.phase === "receiving") {
    next.push({ ...world, target: enterTarget(target, { phase: "prepared", epoch: 2, digest: "" }), toSource: [...toSource, "prepared"] });
    next.push({ ...world, target: enterTarget(target, { phase: "discarded", epoch: 2, cause: "failed" }) });
  }
  if (target.phase === "prepared") next.push({ ...world, target: enterTarget(target, { phase: "discarded", epoch: 2, cause: "memory" }) });
  if (source.phase === "device")
    next.push({ ...world, source: enterSource(source, { phase: "failed", cause: "link" }), toTarget: [...toTarget, "abort"] });
  if (source.phase === "committing") next.push({ ...world, source: enterSource(source, { ...source, phase: "in-doubt" }) });
  if (source.phase === "in-doubt" && toTarget.length < 2) next.push({ ...world, toTarget: [...toTarget, "ask"] });
  if (isHasty && source.phase === "in-doubt") next.push({ ...world, source: enterSource(source, { phase: "taken-back", epoch: 3 }) });
  return next;
}
function explore(rules: Rules): World[] {
  const seen = new Map<string, World>();
  const open = [START];
  for (let world = open.pop(); world !== undefined; world = open.pop()) {
    const key = JSON.stringify([world.source.phase, world.target.phase, [...world.toTarget].sort(), [...world.toSource].sort()]);
    if (seen.has(key) || world.toTarget.length + world.toSource.length > 4) continue;
    seen.set(key, world);
    open.push(...steps(world, rules));
  }
  return [...seen.values()];
}
const bothRun = ({ source, target }: World): boolean => sourceMayRunGuest(source) && targetMayRunGuest(target);
const names = (worlds: readonly World[]): Set<string> => new Set(worlds.map(({ source, target }) => `${source.phase}/${target.phase}`));

describe("source and target together, in every order of delivery and loss", () => {
  const worlds = explore({ isHasty: false });

  it("never both may run the guest", () => assert.deepEqual(names(worlds.filter(bothRun)), new Set()));
  it("with a source that takes the guest back without an answer, both may: the test above can fail", () =>
    assert.deepEqual(names(explore({ isHasty: true }).filter(bothRun)), new Set(["taken-back/active"])));
  it("reach each end that there is, and no other pair of ends", () => {
    const ends = worlds.filter(({ source }) => ["completed", "failed", "taken-back"].includes(source.phase));
    assert.deepEqual(
      names(ends),
      new Set(["completed/active", "failed/receiving", "failed/prepared", "failed/discarded", "taken-back/discarded"]),
    );
    assert.ok(worlds.length > 50, `only ${worlds.length} worlds were explored`);
  });
  it("never lose the guest: from every world one of the two can still come to run it", () => {
    const mayComeToRun = new Map<string, boolean>();
    for (const world of worlds) {
      const open = [world];
      const seen = new Set<string>();
      let isFound = false;
      for (let at = open.pop(); at !== undefined && !isFound; at = open.pop()) {
        const key = JSON.stringify([at.source.phase, at.target.phase, at.toTarget, at.toSource]);
        if (seen.has(key) || at.toTarget.length + at.toSource.length > 4) continue;
        seen.add(key);
        isFound = sourceMayRunGuest(at.source) || targetMayRunGuest(at.target);
        open.push(...steps(at, { isHasty: false }));
      }
      mayComeToRun.set(`${world.source.phase}/${world.target.phase}`, isFound);
    }
    assert.deepEqual(
      [...mayComeToRun].filter(([, may]) => !may),
      [],
    );
  });
});
