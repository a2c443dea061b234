import type { SweepResult, SweepRun, SweepSetting } from "./sweep.js";

/** Of an even number the mean of the middle two; undefined of none. */
export function median(values: readonly (number | null | undefined)[]): number | undefined {
  const sorted = values.filter((value) => typeof value === "number").sort((one, other) => one - other);
  const [low, high] = [sorted[Math.floor((sorted.length - 1) / 2)], sorted[Math.floor(sorted.length / 2)]];
  return low === undefined || high === undefined ? undefined : (low + high) / 2;
}

/** A median and how far the runs are apart. */
export interface Spread {
  readonly median: number;
  readonly least: number;
  readonly most: number;
}

/** The runs of one setting that completed, figure by figure; undefined where none of them has the figure. */
export interface SweepSummary {
  readonly setting: SweepSetting;
  readonly runs: number;
  readonly completed: number;
  readonly totalMs: Spread | undefined;
  /** By the source's clock. */
  readonly downtimeMs: Spread | undefined;
  readonly rounds: Spread | undefined;
  readonly sentBytes: Spread | undefined;
  /** Acknowledged in the round that sends everything; runs in which that was too short to tell have none. */
  readonly firstRoundBytesPerSecond: Spread | undefined;
  /** That the page channels had; null where it was the system's choice. */
  readonly congestionControl: string | null;
}

type Report = NonNullable<SweepRun["report"]>;

export function summarize({ setting, runs }: SweepResult): SweepSummary {
  const reports = runs.flatMap(({ report, error }) => (report === null || error !== null ? [] : [report]));
  const spread = (figure: (report: Report) => unknown): Spread | undefined => {
    const values = reports.map(figure).filter((value) => typeof value === "number");
    const middle = median(values);
    return middle === undefined ? undefined : { median: middle, least: Math.min(...values), most: Math.max(...values) };
  };
  const used = reports[0]?.parameters["congestion-control"];
  return {
    setting,
    runs: runs.length,
    completed: reports.length,
    totalMs: spread((report) => report["query-migrate"]["total-time"]),
    downtimeMs: spread(({ clocks }) => clocks["source-ms"]),
    rounds: spread(({ iterations }) => iterations.length),
    sentBytes: spread((report) => report["query-migrate"].ram?.transferred),
    firstRoundBytesPerSecond: spread(({ iterations }) => iterations[0]?.["bandwidth-bytes-per-second"]),
    congestionControl: typeof used === "string" ? used : null,
  };
}

/** The setting with the least median among those whose every run completed: one that fails now and then is not the best of anything. */
export function bestOf(summaries: readonly SweepSummary[], figure: "totalMs" | "downtimeMs"): SweepSummary | undefined {
  const of = (summary: SweepSummary): number => summary[figure]?.median ?? Number.POSITIVE_INFINITY;
  return summaries
    .filter((summary) => summary.completed === summary.runs && summary[figure] !== undefined)
    .reduce<SweepSummary | undefined>((best, summary) => (best === undefined || of(summary) < of(best) ? summary : best), undefined);
}
