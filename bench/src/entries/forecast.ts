import { PAGE_BYTES } from "@precopy/protocol";
import type { Forecast, ForecastOutcome, MigrationParameters } from "@precopy/protocol";
import type { Bench, BenchRun, Figure, Measurement } from "../define-bench.js";
import { figuresOf, moveGuests, withLinks } from "../link-moves.js";
import type { LinkGuest, MadeLink } from "../link-moves.js";
import { isDisturbed, watchSteal } from "../noise.js";

const MIB = 2 ** 20;
const LIMIT_MS = 180_000;
const LINK_RATES = [0.3e9, 1e9, 4e9];

interface Load {
  readonly pattern: NonNullable<LinkGuest["pattern"]>;
  /** Of the pages that the link carries. */
  readonly ofLink: number;
  readonly filledMiB: number;
  readonly workingSetMiB: number;
  readonly hotFraction: number;
  readonly throttle: MigrationParameters["throttle"];
}
const load = (pattern: Load["pattern"], ofLink: number, filledMiB: number, workingSetMiB: number, hotFraction: number): Load => ({
  pattern,
  ofLink,
  filledMiB,
  workingSetMiB,
  hotFraction,
  throttle: ofLink > 0.6 ? "sdps" : "none",
});
/** Five of each pattern; a guest that fights its link may be throttled. */
const LOADS: readonly Load[] = [
  load("steady", 0.05, 128, 64, 0),
  load("steady", 0.3, 256, 128, 0),
  load("steady", 0.5, 192, 32, 0.5),
  load("steady", 1.5, 256, 256, 0),
  load("steady", 3, 128, 96, 0.9),
  load("bursty", 0.05, 256, 32, 0),
  load("bursty", 0.15, 128, 128, 0.9),
  load("bursty", 0.3, 192, 64, 0),
  load("bursty", 0.5, 256, 128, 0.5),
  load("bursty", 2, 192, 192, 0),
  load("phases", 0.05, 192, 192, 0.5),
  load("phases", 0.2, 128, 64, 0),
  load("phases", 0.3, 256, 128, 0.9),
  load("phases", 0.5, 192, 32, 0),
  load("phases", 1.5, 128, 128, 0),
  load("moving", 0.1, 128, 128, 0.9),
  load("moving", 0.3, 192, 64, 0.9),
  load("moving", 0.5, 256, 256, 0.7),
  load("moving", 0.5, 128, 32, 0.5),
  load("moving", 2, 256, 192, 0.9),
];

/** Either of these off, and a forecast of a pause is good. */
const PAUSE_SHARE = 0.2;
const PAUSE_MS = 5;

const errorOf = (expected: number, came: number): number => Math.abs(came / expected - 1);
/** Of what a forecast of the pause may be off: 1 is at the edge. */
const pauseErrorOf = (expected: number, came: number): number => Math.abs(came - expected) / Math.max(PAUSE_SHARE * came, PAUSE_MS);

async function measure({ pairs, say }: BenchRun, links: readonly MadeLink[]): Promise<Measurement> {
  const figures = new Map<string, Figure & { readonly values: number[] }>();
  const add = (name: string, unit: Figure["unit"], value: number, target?: number): void => {
    const figure = figures.get(name) ?? { name, unit, better: "lower", values: [], ...(target === undefined ? {} : { target }) };
    figure.values.push(value);
    figures.set(name, figure);
  };
  const judge = (forecast: Forecast, outcome: ForecastOutcome, hasMoved: boolean): void => {
    const { by, ends, "total-ms": total, "downtime-ms": pause } = forecast;
    const isPlan = by === "plan";
    const name = isPlan ? "plan" : "after the first round";
    if (!ends) return add(`${name}: said it would not end, and it did`, "count", 1);
    add(`${name}: total off by`, "share", errorOf(total.expected, outcome["total-ms"]), isPlan ? 0.1 : undefined);
    add(`${name}: pause off, of 20 % or 5 ms`, "ratio", pauseErrorOf(pause.expected, outcome["downtime-ms"]), isPlan ? 1 : undefined);
    if (hasMoved) return;
    add(`${name}, on a quiet host: total off by`, "share", errorOf(total.expected, outcome["total-ms"]));
    add(`${name}, on a quiet host: pause off, of 20 % or 5 ms`, "ratio", pauseErrorOf(pause.expected, outcome["downtime-ms"]));
  };
  const runs: unknown[] = [];
  for (let pair = 0; pair < pairs; pair++)
    for (const [at, { pattern, ofLink, filledMiB, workingSetMiB, hotFraction, throttle }] of LOADS.entries()) {
      const made = links[(pair + at) % links.length];
      const rate = made?.options.rate;
      if (made === undefined || rate === undefined) throw new Error("Every link here has a rate");
      const guest: LinkGuest = {
        memory: 512 * MIB,
        filled: filledMiB * MIB,
        fillKind: "random",
        workload: "random-writer",
        dirtyRate: Math.max(1, Math.round((ofLink * rate) / 8 / PAGE_BYTES)),
        workingSet: workingSetMiB * MIB,
        hotFraction,
        pattern,
      };
      const stealShare = watchSteal();
      const plan = { guest, count: 1, order: "together", parameters: { throttle }, limitMs: LIMIT_MS, isPlanned: true } as const;
      const [run] = (await moveGuests(made.link, plan)).runs;
      const stolen = stealShare();
      if (run === undefined) throw new Error("One guest is one run");
      const ended = figuresOf(run) !== undefined;
      const { forecasts = [], outcome = null } = run.report ?? {};
      runs.push({ pair, link: made.name, ofLink, throttle, ...guest, stolen, ended, failure: run.error?.message, forecasts, outcome });
      const [planned] = forecasts.filter(({ by }) => by === "plan");
      if (outcome !== null) for (const one of forecasts) judge(one, outcome, isDisturbed(stolen));
      else if (planned !== undefined) add("plan: of those that did not end, said otherwise", "share", planned.ends ? 1 : 0);
      say(
        `${made.name}, ${pattern}, ${ofLink} of the link: ` +
          `plan ${planned?.["total-ms"].expected.toFixed(0)} ms and ${planned?.["downtime-ms"].expected.toFixed(1)}, ` +
          `came to ${outcome?.["total-ms"].toFixed(0) ?? run.error?.code} and ${outcome?.["downtime-ms"].toFixed(1)}; the host took ${(stolen * 100).toFixed(0)} %`,
      );
    }
  return { figures: [...figures.values()], runs };
}

/** How far off `precopy plan` is, over loads that stay as they are, burst, change, or move on. */
export const forecastEntries: readonly Bench[] = [
  {
    name: "forecast",
    suite: "full",
    workload: { linkRates: LINK_RATES, loads: LOADS },
    measure: (run) =>
      withLinks(
        LINK_RATES.map((rate) => ({ rate, mtu: 1500, congestionControl: undefined })),
        (links) => measure(run, links),
      ),
  },
];
