import type { MigrationReport, PostcopyReport } from "@precopy/protocol";
import type { Bench, Figure } from "../define-bench.js";
import { undisturbed } from "../noise.js";
import { ratiosOf } from "../pairs.js";
import { UNPACED_RATE } from "../peer.js";
import type { Load, PeerRun } from "../peer.js";
import { UNPROVEN, migrateOnce, runOf } from "../peers/precopy.js";
import { buildGuest, migratePostcopy } from "../peers/qemu.js";
import { formatSpread, spreadOf } from "../spread.js";
import { warmMemory } from "../warm-memory.js";

const GIB = 2 ** 30;
/** What no pre-copy follows: it writes all that it has, as fast as it can. */
const LOAD: Load = {
  name: "postcopy-1G",
  memory: 8 * GIB,
  filled: GIB,
  zeroed: 0,
  dirtyRate: UNPACED_RATE,
  workingSet: GIB,
};
const WRITER = ["--workload", "random-writer", "--dirty-rate", "0", "--working-set", String(LOAD.workingSet)];
const SOURCE = ["--guest", "g", "--memory", String(LOAD.memory), "--fill", String(LOAD.filled), ...WRITER];
/** us. */
const LATENCIES = [64, 128, 256, 512, 1024, 4096] as const;

interface Run extends PeerRun {
  readonly postcopy: PostcopyReport;
}

/** @param isProven the image is compared page for page at the end, and a run in which it differs counts for nothing; QEMU does no such thing */
async function moveOurs(isProven: boolean, ready: () => void): Promise<Run> {
  const outcome = await migrateOnce({ source: SOURCE, parameters: ["--mode", "postcopy", ...(isProven ? [] : UNPROVEN)] }, ready);
  const { postcopy, "digest-equal": isEqual }: MigrationReport = outcome.report;
  if (postcopy === null || isEqual !== (isProven ? true : null))
    throw new Error(`A post-copy that proves nothing: ${outcome.report.verdict}`);
  return { ...runOf(outcome), postcopy };
}

/** Share of the faults that took so long or less; the histogram counts those that took up to 1, 2, 4, ... us. */
function shareWithin(us: number, { "latency-dist": counts }: PostcopyReport): number {
  const sum = (of: readonly number[]): number => of.reduce((total, count) => total + count, 0);
  return sum(counts.slice(0, Math.log2(us) + 1)) / sum(counts);
}

function figures(ours: readonly Run[], proven: readonly Run[], theirs: readonly PeerRun[], name: string): Figure[] {
  const times = (what: string, of: (run: PeerRun) => number, targetMs?: number, ratioTarget?: number): Figure[] => {
    const [own, other] = [ours.map(of), theirs.map(of)];
    return [
      { name: `${what}, precopy`, unit: "ms", better: "lower", values: own, target: targetMs },
      { name: `${what}, ${name}`, unit: "ms", better: "lower", values: other },
      { name: what, unit: "ratio", better: "lower", values: ratiosOf(own, other), target: ratioTarget },
    ];
  };
  const own = (
    what: string,
    unit: Figure["unit"],
    better: Figure["better"],
    of: (postcopy: PostcopyReport) => number,
    target?: number,
  ): Figure => ({
    ...{ name: what, unit, better, target },
    values: ours.map(({ postcopy }) => of(postcopy)),
  });
  const withDigest = (what: string, of: (run: PeerRun) => number): Figure => ({
    ...{ name: `${what}, precopy with digest`, unit: "ms", better: "lower" },
    values: proven.map(of),
  });
  return [
    ...times("pause", ({ pauseMs }) => pauseMs, 10),
    withDigest("pause", ({ pauseMs }) => pauseMs),
    ...times("total", ({ totalMs }) => totalMs, undefined, 0.5),
    withDigest("total", ({ totalMs }) => totalMs),
    own("fault latency, median", "ms", "lower", ({ "latency-us": { median } }) => median / 1000, 0.15),
    own("fault latency, 99 of 100", "ms", "lower", ({ "latency-us": { p99 } }) => p99 / 1000),
    own("faults sent for", "count", "lower", ({ requests }) => requests),
    ...LATENCIES.map((us) => own(`faults over within ${us} us`, "share", "higher", (postcopy) => shareWithin(us, postcopy))),
    own("vCPU blocktime", "ms", "lower", ({ "vcpu-blocktime-ms": [ms = NaN] }) => ms),
  ];
}

/** A guest that writes all of its data at full speed moves by post-copy, over loopback; QEMU's does the same. */
export const postcopyEntries: readonly Bench[] = [
  {
    name: "postcopy",
    suite: "full",
    workload: { ...LOAD, source: SOURCE },
    measure: async ({ pairs, say }) => {
      const qemu = await buildGuest();
      if (typeof qemu === "string") return qemu;
      const ready = (): void => warmMemory(2 * LOAD.filled + GIB);
      const ours: Run[] = [];
      const proven: Run[] = [];
      const theirs: PeerRun[] = [];
      for (let pair = 0; pair < pairs; pair++) {
        ours.push((await undisturbed(() => moveOurs(false, ready))).result);
        proven.push((await undisturbed(() => moveOurs(true, ready))).result);
        theirs.push((await undisturbed(() => migratePostcopy(LOAD, ready))).result);
      }
      const all = figures(ours, proven, theirs, qemu.name);
      for (const { name, unit, values } of all) say(`  ${name.padEnd(36)} ${formatSpread(spreadOf(values))} ${unit}`);
      return { figures: all, runs: { precopy: ours, proven, [qemu.name]: theirs } };
    },
  },
];
