import type { Bench, Figure } from "../define-bench.js";
import { interleave, ratiosOf } from "../pairs.js";
import type { Pair } from "../pairs.js";
import { LOADS, UNPACED_RATE } from "../peer.js";
import { precopyWork } from "../peers/precopy-work.js";
import { qemuWork } from "../peers/qemu-work.js";
import type { WorkLoad, WorkRun } from "../peers/work.js";
import { warmMemory } from "../warm-memory.js";

const GIB = 2 ** 30;
const BEFORE_MS = 1000;
const ROUNDS_MS = 8000;
/** bits/s; undefined is as much as there is. Capped, the first round alone takes more than four seconds. */
const CAPS: readonly (number | undefined)[] = [2e9, undefined];

const PACED = LOADS.filter(({ name }) => name === "hot1024-25k" || name === "hot1024-100k");
const WORK_LOADS: readonly WorkLoad[] = [
  ...PACED.map((load) => ({ ...load, isUnpaced: false })),
  ...PACED.slice(0, 1).map((load) => ({ ...load, name: "hot1024-unpaced", dirtyRate: UNPACED_RATE, isUnpaced: true })),
];

/** What is left of the guest's speed while rounds run: 1 if it does not notice them, and noise beyond that. */
const kept = ({ before, during }: WorkRun): number => during / before;

export const slowdownEntries: readonly Bench[] = [
  {
    name: "slowdown",
    suite: "full",
    workload: {
      loads: WORK_LOADS,
      "max-bandwidth bits/s": CAPS.map((cap) => cap ?? "none"),
      "before-ms": BEFORE_MS,
      "rounds-ms": ROUNDS_MS,
    },
    measure: async ({ pairs, say }) => {
      const theirs = await qemuWork();
      if (typeof theirs === "string") return theirs;
      const figures: Figure[] = [];
      const runs: unknown[] = [];
      for (const load of WORK_LOADS)
        for (const cap of CAPS) {
          const order = {
            load,
            maxBandwidthBytesPerSecond: cap === undefined ? undefined : cap / 8,
            beforeMs: BEFORE_MS,
            roundsMs: ROUNDS_MS,
          };
          const watch = (peer: typeof precopyWork) => (): Promise<WorkRun> => peer.watch(order, () => warmMemory(2 * load.filled + GIB));
          const measured = await interleave(pairs, watch(precopyWork), watch(theirs));
          const name = `${load.name}, ${cap === undefined ? "no cap" : `${cap / 1e9} Gbit/s`}`;
          say(`  ${name}: done`);
          figures.push(...figuresOf(name, theirs.name, measured));
          runs.push({ load: load.name, cap: cap ?? null, ours: precopyWork.name, theirs: theirs.name, measured });
        }
      return { figures, runs };
    },
  },
];

function figuresOf(name: string, theirName: string, measured: readonly Pair<WorkRun>[]): Figure[] {
  const figure = (what: string, unit: Figure["unit"], of: (pair: Pair<WorkRun>) => number): Figure => ({
    name: `${name}: ${what}`,
    unit,
    better: "higher",
    values: measured.map(of),
  });
  return [
    figure("speed kept by precopy's guest", "share", ({ ours }) => kept(ours)),
    figure(`speed kept by ${theirName}'s guest`, "share", ({ theirs }) => kept(theirs)),
    {
      name: `${name}: speed kept, to ${theirName}'s`,
      unit: "ratio",
      better: "higher",
      values: ratiosOf(
        measured.map(({ ours }) => kept(ours)),
        measured.map(({ theirs }) => kept(theirs)),
      ),
      target: 1,
    },
  ];
}
