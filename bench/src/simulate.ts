import { readFileSync } from "node:fs";
import { TYPICAL_COSTS, randomWriter, sequentialWriter, simulate } from "@precopy/engine";
import type { ModelGuest, Simulated } from "@precopy/engine";
import { PAGE_BYTES } from "@precopy/protocol";
import type { MigrationParameters } from "@precopy/protocol";
import { spreadOf } from "./spread.js";

const GIB_PAGES = 2 ** 30 / PAGE_BYTES;
/** Of a gigabit a second of Ethernet at MTU 1500, what is left for TCP's payload. */
const PAYLOAD_SHARE = 0.941;
const bytesPerSecond = (gigabits: number): number => (gigabits * 1e9 * PAYLOAD_SHARE) / 8;
const pagesPerSecond = (gigabits: number): number => bytesPerSecond(gigabits) / TYPICAL_COSTS.wireBytesPerPage;
const ROUND_TRIP_MS = 0.2;

/**
 * The set-up of a paper on vMotion over 10 and 40 GbE: guests of 128 and 256 GiB, stun during page send on; it reports 38 times for a Linux
 * guest with a file workload, and 5.5 times for a Windows guest, for four times the link. What the guests dirtied it does not say.
 */
const GUESTS_GIB = [128, 256];
const LINKS_GBIT = [10, 40, 100];
/** Of what 10 GbE carries. */
const DIRTY_FRACTIONS = [0, 0.1, 0.33, 0.5, 0.75, 0.92, 1, 2];
/** How much of what is sent a guest may dirty and is left alone: at QEMU's 50 % none would be more than 8 times faster, so theirs must have allowed more. */
const THRESHOLD_PERCENT = 95;
const PARAMETERS: Partial<MigrationParameters> = {
  throttle: "sdps",
  throttleTriggerThresholdPercent: THRESHOLD_PERCENT,
  downtimeLimitMs: 500, // vMotion's own goal
};

const line = (cells: readonly string[], widths: readonly number[]): string =>
  cells.map((cell, at) => cell.padStart(widths[at] ?? 0)).join("  ");
const seconds = ({ failure, totalMs }: Simulated): string => (failure === undefined ? (totalMs / 1000).toFixed(1) : failure.code);

/** A file workload writes page after page of its cache, a benchmark of disks anywhere. */
const PATTERNS = ["sequential", "random"] as const;

/** All of its memory has data, and all of it is written. */
const guestOf = (gib: number, pattern: (typeof PATTERNS)[number], rate: number): ModelGuest => ({
  pages: gib * GIB_PAGES,
  populatedPages: gib * GIB_PAGES,
  vcpus: [(pattern === "sequential" ? sequentialWriter : randomWriter)(rate, gib * GIB_PAGES)],
});

async function vmotionTable(): Promise<void> {
  console.log(`SIMULATED: total time in s, sdps at ${THRESHOLD_PERCENT} %, a guest whose whole memory has data and is written`);
  const widths = [8, 11, 18, ...LINKS_GBIT.map(() => 9), 8, 12, 14];
  const links = LINKS_GBIT.map((gbit) => `${gbit} GbE`);
  console.log(line(["guest", "writes", "dirtied, of 10 GbE", ...links, "40 : 10", "withheld 10", "pause 10, ms"], widths));
  const cases = GUESTS_GIB.flatMap((gib) => PATTERNS.map((pattern) => ({ gib, pattern })));
  for (const { gib, pattern } of cases)
    for (const fraction of DIRTY_FRACTIONS) {
      const guest = guestOf(gib, pattern, fraction * pagesPerSecond(10));
      const runs: Simulated[] = [];
      for (const gbit of LINKS_GBIT)
        runs.push(await simulate(guest, { bytesPerSecond: bytesPerSecond(gbit), roundTripMs: ROUND_TRIP_MS }, PARAMETERS));
      const [slow, fast] = runs;
      if (slow === undefined || fast === undefined) throw new Error("A ratio needs two links");
      const withheld = `${(slow.lostShare * 100).toFixed(0)} %`;
      const ratio = (slow.totalMs / fast.totalMs).toFixed(1);
      const cells = [`${gib} GiB`, pattern, fraction.toString(), ...runs.map(seconds), ratio, withheld, slow.downtimeMs.toFixed(0)];
      console.log(line(cells, widths));
    }
}

const MEASURED = new URL("../results/convergence.json", import.meta.url);
interface MeasuredRun {
  readonly fraction: number;
  readonly technique: string;
  readonly dirtyRate: number;
  readonly figures?: { readonly totalMs: number; readonly downtimeMs: number };
}

/** The same guests as the bench's `convergence` moved for real. */
async function calibration(): Promise<void> {
  const { environment, workload, runs } = JSON.parse(readFileSync(MEASURED, "utf8")) as {
    readonly environment: { readonly date: string; readonly revision: string };
    readonly workload: {
      readonly link: number;
      readonly guest: { readonly memory: number; readonly filled: number; readonly workingSet: number };
      readonly techniques: Readonly<Record<string, Partial<MigrationParameters>>>;
    };
    readonly runs: readonly MeasuredRun[];
  };
  const { link, guest, techniques } = workload;
  console.log(
    `\nCalibration: MEASURED here (bench/results/convergence.json, ${environment.date}, ${environment.revision}) and SIMULATED, total and pause in ms`,
  );
  const widths = [5, 14, 10, 10, 7, 9, 10];
  console.log(line(["dirty", "technique", "measured", "simulated", "off by", "pause", "simulated"], widths));
  for (const [fraction, technique] of new Map(
    runs.map((run) => [`${run.fraction} ${run.technique}`, [run.fraction, run.technique] as const]),
  ).values()) {
    const parameters = techniques[technique];
    const { multifdCompression, isXbzrleOn = false, isHoldBackOn = false } = parameters ?? {};
    if (multifdCompression !== undefined || isXbzrleOn || isHoldBackOn) continue; // the model's pages have no contents, and no names
    const own = runs.filter((run) => run.fraction === fraction && run.technique === technique);
    const moved = own.flatMap(({ figures }) => figures ?? []);
    const model: ModelGuest = {
      pages: guest.memory / PAGE_BYTES,
      populatedPages: guest.filled / PAGE_BYTES,
      vcpus: [randomWriter(own[0]?.dirtyRate ?? 0, guest.workingSet / PAGE_BYTES)],
    };
    const simulated = await simulate(model, { bytesPerSecond: bytesPerSecond(link / 1e9), roundTripMs: ROUND_TRIP_MS }, parameters);
    if (moved.length === 0 || simulated.failure !== undefined) {
      const real = moved.length === 0 ? "no end" : "ends";
      console.log(line([String(fraction), technique, real, simulated.failure === undefined ? "ends" : "no end"], widths));
      continue;
    }
    const [total, pause] = [
      spreadOf(moved.map(({ totalMs }) => totalMs)).median,
      spreadOf(moved.map(({ downtimeMs }) => downtimeMs)).median,
    ];
    const off = `${((simulated.totalMs / total - 1) * 100).toFixed(0)} %`;
    const cells = [
      String(fraction),
      technique,
      total.toFixed(0),
      simulated.totalMs.toFixed(0),
      off,
      pause.toFixed(1),
      simulated.downtimeMs.toFixed(1),
    ];
    console.log(line(cells, widths));
  }
}

await vmotionTable();
await calibration();
