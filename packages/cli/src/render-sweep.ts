import { bestOf, summarize } from "@precopy/lab/sweep-summary";
import type { SweepResult, SweepSetting, SweepSummary } from "@precopy/lab";
import { bandwidth, bytes, count, milliseconds, paint, paragraph, row, shown, time } from "./figures.js";

const WIDTHS = [6, 2, -5, -6, 7, 8, 6, 4, 8, 11, 5] as const;
const HEADER = [
  row(WIDTHS, ["dirty", "", "com-", "", "total", "downtime", "worst", "", "", "round 1", ""]),
  row(WIDTHS, ["/s", "ch", "press", "cc", "ms", "ms", "ms", "rnds", "sent", "bandwidth", "done"]),
];

export const renderSweepHeader = (isColoured = false): string => HEADER.map((line) => paint(isColoured, "dim", line)).join("\n");

/** As typed, and short: 25000 is 25k. */
const rate = (pagesPerSecond: number): string =>
  pagesPerSecond >= 1000 && pagesPerSecond < 1e6 && pagesPerSecond % 100 === 0 ? `${pagesPerSecond / 1000}k` : count(pagesPerSecond);

const fit = (text: string, columns: number): string => (text.length <= columns ? text : `${text.slice(0, columns - 1)}…`);

/** Why runs did not complete, each reason once. */
function failureLines({ runs }: SweepResult): string[] {
  const reasons = runs.flatMap(({ error }) => (error === null ? [] : [`${error.code}: ${error.message}`]));
  return [...new Set(reasons)].flatMap((reason) =>
    paragraph(`  ${reasons.filter((other) => other === reason).length} of ${runs.length}`, reason),
  );
}

/** The row of one setting: medians of the runs that completed, and below it why the others did not. At most 80 columns. */
export function renderSweepRow(result: SweepResult, isColoured = false): string {
  const { setting, runs, completed, ...figures } = summarize(result);
  const line = row(WIDTHS, [
    rate(setting.dirtyPagesPerSecond),
    String(setting.channels),
    setting.compression,
    fit(setting.congestionControl, 6),
    milliseconds(figures.totalMs?.median),
    milliseconds(figures.downtimeMs?.median),
    milliseconds(figures.downtimeMs?.most),
    shown(figures.rounds?.median, String),
    bytes(figures.sentBytes?.median),
    bandwidth(figures.firstRoundBytesPerSecond?.median),
    `${completed}/${runs}`,
  ]);
  return [paint(isColoured && completed < runs, "red", line), ...failureLines(result)].join("\n");
}

const name = ({ channels, compression, congestionControl }: SweepSetting): string => `${channels} ch, ${compression}, ${congestionControl}`;

/** What to take at each dirty rate: the least median total time, and the least median downtime. */
function bestLine(dirtyPagesPerSecond: number, summaries: readonly SweepSummary[]): string[] {
  const label = `best: ${rate(dirtyPagesPerSecond)}/s`.padEnd(15);
  const [quickest, shortest] = [bestOf(summaries, "totalMs"), bestOf(summaries, "downtimeMs")];
  if (quickest === undefined || shortest === undefined) return [`${label} none: no setting completed every run`];
  const total = `total ${time(quickest.totalMs?.median)}`;
  const downtime = `downtime ${time(shortest.downtimeMs?.median)}`;
  if (quickest === shortest) return [`${label} ${name(quickest.setting)}: ${total}, ${downtime}`];
  return [`${label} ${total} by ${name(quickest.setting)};`, `${"".padEnd(15)} ${downtime} by ${name(shortest.setting)}`];
}

/** What stands below the rows: what was best, and what `auto` came to. */
export function renderSweepEnd(results: readonly SweepResult[]): string {
  const summaries = results.map(summarize);
  const rates = [...new Set(results.map(({ setting }) => setting.dirtyPagesPerSecond))];
  const best = rates.flatMap((of) =>
    bestLine(
      of,
      summaries.filter(({ setting }) => setting.dirtyPagesPerSecond === of),
    ),
  );
  const auto = new Set(
    summaries.flatMap(({ setting, completed, congestionControl }) =>
      setting.congestionControl === "auto" && completed > 0 ? [congestionControl ?? "the system's choice"] : [],
    ),
  );
  return [...best, ...(auto.size === 0 ? [] : [`congestion control auto: ${[...auto].join(", ")}`])].join("\n");
}
