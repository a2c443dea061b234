import { fileURLToPath } from "node:url";
import type { ChartScale } from "@precopy/lab";
import { availableMemoryBytes } from "@precopy/linux";
import { PAGE_BYTES, formatBytes } from "@precopy/protocol";
import { plotCurve } from "../curve-plot.js";
import type { Bench, BenchRun, Figure, Measurement } from "../define-bench.js";
import type { Load } from "../peer.js";
import { UNPROVEN, guestArgs, migrateOnce, runOf } from "../peers/precopy.js";
import type { Order, Outcome } from "../peers/precopy.js";
import { spreadOf } from "../spread.js";
import { warmMemory } from "../warm-memory.js";
import { SCATTERED_SHARE } from "../workloads/scattered.js";

const MIB = 2 ** 20;
const GIB = 2 ** 30;
/** Of two agents and all that runs beside them. */
const SPARE_BYTES = GIB;

interface Point {
  readonly x: number;
  /** Of x: in the figures' names and at the axis. */
  readonly label: string;
  readonly memory: number;
  readonly populated: number;
  readonly order: Order;
}

interface Curve {
  readonly name: string;
  readonly title: string;
  readonly axis: string;
  readonly scale: ChartScale;
  /** Of every point. */
  readonly workload: Readonly<Record<string, unknown>>;
  /** By x, ascending. */
  readonly points: readonly Point[];
}

/** Times in ms. */
type Taken = ReturnType<typeof takenOf>;

function takenOf(outcome: Outcome) {
  const { "query-migrate": query, "downtime-breakdown": breakdown, iterations, verdict } = outcome.report;
  const setupMs = query["setup-time"];
  if (setupMs === undefined || breakdown === null) throw new Error(`The report has no setup-time or downtime-breakdown: ${verdict}`);
  return { ...runOf(outcome), setupMs, collectMs: breakdown.collect, breakdown, iterations };
}

const FIGURES: Readonly<Record<string, (run: Taken) => number>> = {
  total: ({ totalMs }) => totalMs,
  "set-up": ({ setupMs }) => setupMs,
  pause: ({ pauseMs }) => pauseMs,
  collect: ({ collectMs }) => collectMs,
};
const PLOTTED = ["total", "set-up", "pause"];

const show = (values: readonly number[]): string => {
  const { median, min, max } = spreadOf(values);
  const digits = median < 100 ? 2 : 0;
  return `${median.toFixed(digits)} (${min.toFixed(digits)}-${max.toFixed(digits)})`;
};

/** Those that fit into what is available now, and a line for each that does not. */
function fittingOf({ name, points }: Curve, say: BenchRun["say"]): readonly Point[] {
  const available = availableMemoryBytes() ?? Number.POSITIVE_INFINITY;
  return points.filter(({ label, memory, populated }) => {
    // The target admits a guest only if all of its memory is there, and by then the source holds what is populated.
    const needed = populated + memory + SPARE_BYTES;
    if (needed <= available) return true;
    say(`${name} at ${label}: left out, for it needs ${formatBytes(needed)} of memory, and ${formatBytes(available)} are available`);
    return false;
  });
}

async function measure(curve: Curve, { pairs, say }: BenchRun): Promise<Measurement | string> {
  const points = fittingOf(curve, say).map((point): Point & { readonly runs: Taken[] } => ({ ...point, runs: [] }));
  if (points.length === 0) return "There is not enough free memory for any point of the curve";
  for (let round = 0; round < pairs; round++)
    for (const { order, populated, runs } of points) runs.push(takenOf(await migrateOnce(order, () => warmMemory(2 * populated + GIB))));

  const valuesOf = (runs: readonly Taken[]): Record<string, number[]> =>
    Object.fromEntries(Object.entries(FIGURES).map(([name, of]) => [name, runs.map(of)]));
  const measured = points.map((point) => ({ ...point, values: valuesOf(point.runs) }));
  const cells = (label: string, columns: readonly string[]): string =>
    `  ${label.padEnd(14)}${columns.map((text) => text.padEnd(24)).join("")}`;
  say(`${curve.name}: ${curve.title}; median (min-max) of ${pairs}, ms`);
  say(cells(curve.axis, Object.keys(FIGURES)));
  for (const { label, values } of measured) say(cells(label, Object.values(values).map(show)));
  return {
    figures: measured.flatMap(({ label, values }) =>
      Object.entries(values).map(([name, of]): Figure => ({ name: `${name} at ${label}`, unit: "ms", better: "lower", values: of })),
    ),
    runs: measured.map(({ label, runs }) => ({ [curve.axis]: label, runs })),
    plots: [
      await plotCurve({
        name: curve.name,
        title: curve.title,
        subtitle: `two fresh agents a run, ${UNPROVEN.join(" ")}; median, least and most of ${pairs}`,
        x: { label: curve.axis, scale: curve.scale },
        points: measured,
        lines: PLOTTED,
      }),
    ],
  };
}

const LOAD: Omit<Load, "name"> = { memory: 8 * GIB, filled: GIB, zeroed: 0, dirtyRate: 0, workingSet: 0 };

/** A guest with one random-writer, idle or not. */
function pointOf(x: number, label: string, load: Partial<Load>, parameters: readonly string[] = []): Point {
  const whole = { ...LOAD, ...load };
  return {
    x,
    label,
    memory: whole.memory,
    populated: whole.filled,
    order: { source: guestArgs(whole), parameters: [...UNPROVEN, ...parameters] },
  };
}

const sizeLabel = (bytes: number): string => (bytes < GIB ? `${bytes / MIB}MiB` : `${bytes / GIB}GiB`);
const rateLabel = (pagesPerSecond: number): string => (pagesPerSecond < 1000 ? String(pagesPerSecond) : `${pagesPerSecond / 1000}k`);

const guestSize: Curve = {
  name: "curve-guest-size",
  title: "Guest memory: 256 MiB filled, the rest never populated, idle",
  axis: "guest memory",
  scale: "log",
  workload: { filled: "256MiB", dirtyRate: 0 },
  points: [1, 2, 4, 8, 16].map((size) => pointOf(size * GIB, sizeLabel(size * GIB), { memory: size * GIB, filled: 256 * MIB })),
};

const populated: Curve = {
  name: "curve-populated",
  title: "Populated memory: random data in a guest of 8 GiB, or of 10 GiB where they are 10, idle",
  axis: "populated",
  scale: "sqrt",
  workload: { memory: "8GiB, at 10GiB 10GiB", dirtyRate: 0 },
  points: [0.25, 1, 2, 4, 8, 10].map((size) =>
    pointOf(size * GIB, sizeLabel(size * GIB), { memory: Math.max(LOAD.memory, size * GIB), filled: size * GIB }),
  ),
};

const dirtyRate: Curve = {
  name: "curve-dirty-rate",
  title: "Dirty rate: over 64 MiB of 1 GiB filled in an 8 GiB guest",
  axis: "pages/s",
  scale: "sqrt",
  workload: { memory: "8GiB", filled: "1GiB", workingSet: "64MiB" },
  points: [0, 5000, 25_000, 50_000, 100_000, 200_000].map((rate) =>
    pointOf(rate, rateLabel(rate), { dirtyRate: rate, workingSet: 64 * MIB }),
  ),
};

const workingSet: Curve = {
  name: "curve-working-set",
  title: "Working set: 25k pages/s in 1 GiB filled of an 8 GiB guest",
  axis: "working set",
  scale: "log",
  workload: { memory: "8GiB", filled: "1GiB", dirtyRate: 25_000 },
  points: [16, 64, 256, 1024].map((size) => pointOf(size * MIB, sizeLabel(size * MIB), { dirtyRate: 25_000, workingSet: size * MIB })),
};

const channels: Curve = {
  name: "curve-channels",
  title: "Page channels: 1 GiB filled in an 8 GiB guest, idle",
  axis: "channels",
  scale: "log",
  workload: { memory: "8GiB", filled: "1GiB", dirtyRate: 0 },
  points: [1, 2, 4, 8].map((count) => pointOf(count, String(count), {}, ["--multifd-channels", String(count)])),
};

const SHARED_SET = 64 * MIB;
/**
 * Rate and working set are divided among the vCPUs, so that all points have the same load. Each has its share of the memory. The fill goes
 * to the last one's, and is less by what the others populate with their writes.
 */
const vcpus: Curve = {
  name: "curve-vcpus",
  title: "vCPUs: together 25k pages/s over 64 MiB of 1 GiB populated in an 8 GiB guest",
  axis: "vCPUs",
  scale: "log",
  workload: { memory: "8GiB", populated: "1GiB", dirtyRate: 25_000, workingSet: "64MiB" },
  points: [1, 2, 4].map((count) => {
    const own = SHARED_SET / count;
    const point = pointOf(count, String(count), { filled: GIB - (count - 1) * own, dirtyRate: 25_000 / count, workingSet: own });
    return { ...point, order: { ...point.order, source: [...point.order.source, "--vcpus", String(count)] } };
  }),
};

const SCATTERED = `scattered=${fileURLToPath(new URL("../workloads/scattered.js", import.meta.url))}`;
const pageRuns: Curve = {
  name: "curve-page-runs",
  title: "Runs of pages: 512 MiB in a 4 GiB guest, in runs with equal gaps, idle",
  axis: "pages a run",
  scale: "log",
  workload: { memory: "4GiB", populated: "512MiB", dirtyRate: 0 },
  points: [1, 4, 16, 64, 512].map((pages) => ({
    x: pages,
    label: String(pages),
    memory: 4 * GIB,
    populated: (4 * GIB) / SCATTERED_SHARE,
    order: {
      source: ["--guest", "g", "--memory", String(4 * GIB), "--workload", SCATTERED, "--fill", String(pages * PAGE_BYTES)],
      target: ["--workload", SCATTERED],
      parameters: UNPROVEN,
    },
  })),
};

/** Cost as work grows: from one point to the next only one thing does. */
export const curveEntries: readonly Bench[] = [guestSize, populated, dirtyRate, workingSet, channels, vcpus, pageRuns].map((curve) => ({
  name: curve.name,
  suite: "full",
  workload: { ...curve.workload, [curve.axis]: curve.points.map(({ label }) => label) },
  measure: (run) => measure(curve, run),
}));
