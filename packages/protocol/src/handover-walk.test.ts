import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MISTAKES, Violation, World } from "./handover-world.js";
import type { Mistake } from "./handover-world.js";
import { SOURCE_EVENTS, SOURCE_PHASES, recoverSource, stepSource } from "./source-state.js";
import type { Step } from "./source-state.js";
import { TARGET_EVENTS, TARGET_PHASES, stepTarget } from "./target-state.js";

const SEED = Number(process.env["HANDOVER_SEED"] ?? Date.now() % 2 ** 31);
const STEPS = Number(process.env["HANDOVER_STEPS"] ?? 2_000_000);
/** Of one world: long enough for many attempts, short enough to be read. */
const WORLD_STEPS = 1000;

/** Walks until so many steps are done; a failure says what happened in the world that it happened in. */
function walk(seed: number, steps: number, mistake: Mistake | undefined, seen: Set<string>): void {
  for (let done = 0, at = seed; done < steps; at++) {
    const live = (world: World): void => {
      for (let drawn = 0; drawn < WORLD_STEPS; drawn++) if (world.step()) done++;
      world.settle();
    };
    try {
      live(new World(at, mistake, seen));
    } catch (error) {
      if (mistake !== undefined) throw error;
      const story: string[] = [];
      assert.throws(() => live(new World(at, mistake, seen, story)));
      throw new Error(`HANDOVER_SEED=${at} HANDOVER_STEPS=1\n${story.slice(-60).join("\n")}`, { cause: error });
    }
  }
}

/** Every step that the tables allow, and where it leads. */
function allowed(): string[] {
  const found = new Set<string>();
  const look = <P extends string, E extends string>(
    who: string,
    step: (event: E) => Step<{ readonly phase: P }>,
    from: { readonly phase: P },
    event: E,
  ): void => {
    try {
      const { state, effects } = step(event);
      if (state !== from || effects.length > 0) found.add(`${who} ${from.phase} ${event}: ${state.phase}`);
    } catch {
      // a mistake of ours, which the walk never makes
    }
  };
  const image = { epoch: 2, epochBefore: 1, hasImage: true };
  const sources = SOURCE_PHASES.flatMap((phase) => [
    { ...image, phase, isSplit: false },
    { ...image, phase, isSplit: true },
  ]);
  for (const from of [...sources, recoverSource(2)])
    for (const event of SOURCE_EVENTS) look("source", (one) => stepSource(from, one), from, event);
  for (const phase of TARGET_PHASES) {
    const from = { phase, epoch: 2 };
    for (const event of TARGET_EVENTS) look("target", (one) => stepTarget(from, one), from, event);
  }
  return [...found];
}

describe(`a random walk of two agents over a bad link, HANDOVER_SEED=${SEED}`, () => {
  it(`in ${STEPS} steps never has two owners, a lost image, half a guest, a silent rollback or an old epoch, and ends with an owner`, () => {
    const seen = new Set<string>();
    walk(SEED, STEPS, undefined, seen);
    if (STEPS < 100_000) return; // a single world that is looked at
    assert.deepEqual(
      allowed().filter((step) => !seen.has(step)),
      [],
      "steps that the walk never took",
    );
  });

  for (const mistake of MISTAKES) it(`finds ${mistake}`, () => assert.throws(() => walk(SEED, 10_000_000, mistake, new Set()), Violation));
});
