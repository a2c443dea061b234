import { TYPICAL_COSTS, sequentialWriter, simulate } from "@precopy/engine";
import { PAGE_BYTES } from "@precopy/protocol";
import type { MigrationParameters } from "@precopy/protocol";
import { plotCurve } from "../curve-plot.js";
import type { Bench, BenchRun, Figure, Measurement } from "../define-bench.js";
import { figuresOf, moveGuests, withLinks } from "../link-moves.js";
import type { LinkGuest, MadeLink } from "../link-moves.js";
import { undisturbed } from "../noise.js";

const MIB = 2 ** 20;
const LIMIT_MS = 180_000;
const SLOW_RATE = 0.5e9;
const TIMES = 4;
const LINKS = [SLOW_RATE, TIMES * SLOW_RATE].map((rate) => ({ rate, mtu: 1500, congestionControl: undefined }));
/** Of a link's bits at MTU 1500, what is left for TCP's payload. */
const PAYLOAD_SHARE = 0.941;
const PAGES_PER_SECOND = (SLOW_RATE * PAYLOAD_SHARE) / 8 / TYPICAL_COSTS.wireBytesPerPage;
const ROUND_TRIP_MS = 0.2;
/** Of the pages that the slow link carries. */
const FRACTIONS = [0.01, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 1.2, 2, 3];
/** Guests are left alone as long as pre-copy can follow them, as in the paper, whose ratios cannot be had otherwise. */
const PARAMETERS: Partial<MigrationParameters> = { throttle: "sdps", throttleTriggerThresholdPercent: 95 };
const FILLED = 128 * MIB;
const GUEST = {
  ...{ memory: 256 * MIB, filled: FILLED, fillKind: "random", workload: "sequential-writer", workingSet: FILLED },
} as const satisfies Omit<LinkGuest, "dirtyRate">;

/** The same migration, simulated over a link of so many times the slow one's speed. */
async function simulatedMs(dirtyRate: number, times: number): Promise<number> {
  const guest = {
    pages: GUEST.memory / PAGE_BYTES,
    populatedPages: FILLED / PAGE_BYTES,
    vcpus: [sequentialWriter(dirtyRate, GUEST.workingSet / PAGE_BYTES)],
  };
  const link = { bytesPerSecond: (times * SLOW_RATE * PAYLOAD_SHARE) / 8, roundTripMs: ROUND_TRIP_MS };
  const { failure, totalMs } = await simulate(guest, link, PARAMETERS);
  if (failure !== undefined) throw failure;
  return totalMs;
}

async function measure({ pairs, say }: BenchRun, links: readonly MadeLink[]): Promise<Measurement> {
  const figures = new Map<string, Figure & { readonly values: number[] }>();
  const add = (name: string, unit: Figure["unit"], better: Figure["better"], value: number, target?: number): void => {
    const figure = figures.get(name) ?? { name, unit, better, values: [], ...(target === undefined ? {} : { target }) };
    figure.values.push(value);
    figures.set(name, figure);
  };
  const runs: unknown[] = [];
  const points = new Map(FRACTIONS.map((fraction) => [fraction, { measured: [] as number[], simulated: [] as number[] }]));
  for (let pair = 0; pair < pairs; pair++)
    for (const fraction of FRACTIONS) {
      const dirtyRate = Math.round(fraction * PAGES_PER_SECOND);
      const took: number[] = [];
      for (const [at, { link, name }] of links.entries()) {
        const plan = { guest: { ...GUEST, dirtyRate }, count: 1, order: "together", parameters: PARAMETERS, limitMs: LIMIT_MS } as const;
        const { result: moves, stealShare, tries } = await undisturbed(() => moveGuests(link, plan));
        const [run] = moves.runs;
        const figure = run && figuresOf(run);
        if (figure === undefined) throw new Error(`A guest that may be throttled did not end: ${run?.error?.message}`);
        took.push(figure.totalMs);
        const simulated = await simulatedMs(dirtyRate, at === 0 ? 1 : TIMES);
        runs.push({
          pair,
          fraction,
          dirtyRate,
          link: name,
          stealShare,
          tries,
          totalMs: figure.totalMs,
          downtimeMs: figure.downtimeMs,
          simulatedMs: simulated,
        });
        add(`${fraction} of the slow link, ${name}: total`, "ms", "lower", figure.totalMs);
        add(`${fraction} of the slow link, ${name}: simulated`, "ms", "lower", simulated);
      }
      const ratio = took[0]! / took[1]!; // there are two links
      const simulated = (await simulatedMs(dirtyRate, 1)) / (await simulatedMs(dirtyRate, TIMES));
      points.get(fraction)?.measured.push(ratio);
      points.get(fraction)?.simulated.push(simulated);
      add(`${fraction} of the slow link: total, slow link to fast`, "ratio", "higher", ratio);
      add(`${fraction} of the slow link: the same, simulated`, "ratio", "higher", simulated);
      say(
        `${fraction} of the slow link: ${took.map((ms) => ms.toFixed(0)).join(" and ")} ms, ${ratio.toFixed(1)} times; simulated ${simulated.toFixed(1)}`,
      );
    }
  const plot = await plotCurve({
    name: "link-speed",
    title: `A link ${TIMES} times as fast: how many times faster a migration is`,
    subtitle: `sequential-writer over ${FILLED / MIB} MiB, sdps at 95 %, ${SLOW_RATE / 1e6} and ${(TIMES * SLOW_RATE) / 1e6} Mbit/s, MTU 1500`,
    x: { label: "dirtied, of what the slow link carries", scale: "linear" },
    yLabel: "total time, slow link to fast",
    points: FRACTIONS.map((x) => ({ x, label: String(x), values: { ...points.get(x)! } })),
    lines: ["measured", "simulated"],
  });
  return { figures: [...figures.values()], runs, plots: [plot] };
}

/** The superlinear effect that a paper on vMotion reports, on real runs, and the simulator's beside it. */
export const linkSpeedEntries: readonly Bench[] = [
  {
    name: "link-speed",
    suite: "full",
    workload: { links: LINKS, guest: GUEST, fractions: FRACTIONS, parameters: PARAMETERS },
    measure: (run) => withLinks(LINKS, (links) => measure(run, links)),
  },
];
