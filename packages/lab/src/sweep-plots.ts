import { CHART_COLOURS, lineChart } from "./line-chart.js";
import type { ChartLine } from "./line-chart.js";
import type { SweepResult, SweepSetting } from "./sweep.js";
import { summarize } from "./sweep-summary.js";
import type { Spread, SweepSummary } from "./sweep-summary.js";

/** A file of a plot. */
export interface SweepPlot {
  readonly name: string;
  readonly svg: string;
}

interface Figure {
  readonly name: string;
  readonly title: string;
  readonly label: string;
  readonly of: (summary: SweepSummary) => Spread | undefined;
}
const FIGURES: readonly Figure[] = [
  { name: "total-time.svg", title: "Total time: command to ACTIVE", label: "total time, ms", of: ({ totalMs }) => totalMs },
  { name: "downtime.svg", title: "Downtime: the pause by the source's clock", label: "downtime, ms", of: ({ downtimeMs }) => downtimeMs },
];

const DASHES = ["none", "6,3", "2,3", "9,3,2,3"];

const distinct = <T>(values: readonly T[]): T[] => [...new Set(values)];
const rateText = (pagesPerSecond: number): string =>
  pagesPerSecond < 1000 ? String(pagesPerSecond) : pagesPerSecond < 1e6 ? `${pagesPerSecond / 1000}k` : `${pagesPerSecond / 1e6}M`;

/**
 * One line for each setting of everything but the dirty rate. Colours tell the channels, dashes the rest; where all have the same channels,
 * colours tell the rest, too.
 */
function linesOf(summaries: readonly SweepSummary[], of: Figure["of"]): ChartLine[] {
  const settings = summaries.map(({ setting }) => setting);
  const hasControls = distinct(settings.map(({ congestionControl }) => congestionControl)).length > 1;
  const restOf = ({ compression, congestionControl }: SweepSetting): string =>
    [compression === "none" ? "uncompressed" : compression, ...(hasControls ? [congestionControl] : [])].join(", ");
  const counts = distinct(settings.map(({ channels }) => channels));
  return distinct(settings.map(restOf)).flatMap((rest, atRest) =>
    counts.flatMap((channels, atCount): ChartLine[] => {
      const points = summaries.flatMap((summary) => {
        const y = of(summary);
        const isOfLine = summary.setting.channels === channels && restOf(summary.setting) === rest;
        return isOfLine && y !== undefined ? [{ x: summary.setting.dirtyPagesPerSecond, y }] : [];
      });
      if (points.length === 0) return [];
      return [
        {
          label: `${channels} ${channels === 1 ? "channel" : "channels"}, ${rest}`,
          colour: CHART_COLOURS[(counts.length > 1 ? atCount : atRest) % CHART_COLOURS.length] ?? "black",
          dashes: DASHES[atRest % DASHES.length] ?? "none",
          points: points.toSorted((one, other) => one.x - other.x),
        },
      ];
    }),
  );
}

/**
 * Each figure against the dirty rate: the median of a setting's runs, and a bar from the least to the most. Runs that failed are not in it.
 * @param subtitle what all runs have in common, one line.
 */
export async function plotSweep(results: readonly SweepResult[], subtitle: string): Promise<SweepPlot[]> {
  const summaries = results.map(summarize);
  const x = { label: "dirty rate, pages/s", tickText: rateText };
  return Promise.all(
    FIGURES.map(async ({ name, title, label, of }) => ({
      name,
      svg: await lineChart({ title, subtitle, x, y: { label }, lines: linesOf(summaries, of) }),
    })),
  );
}
