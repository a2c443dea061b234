import { CHART_COLOURS, lineChart } from "@precopy/lab";
import type { ChartScale } from "@precopy/lab";
import type { Plot } from "./define-bench.js";
import { spreadOf } from "./spread.js";

export interface CurvePlot {
  /** Of the file, without its ending. */
  readonly name: string;
  readonly title: string;
  /** What all points have in common, one line. */
  readonly subtitle: string;
  readonly x: { readonly label: string; readonly scale: ChartScale };
  /** Of what the values are; `ms` if left out. */
  readonly yLabel?: string;
  /** By x, ascending. `values`: of each line, above 0, at least one. */
  readonly points: readonly { readonly x: number; readonly label: string; readonly values: Readonly<Record<string, readonly number[]>> }[];
  /** The names in `values`. */
  readonly lines: readonly string[];
}

const DASHES = ["none", "6,3", "2,3"];

/** Times by their logarithm: a total and the pause in it may be a thousand to one, and growth by a factor has the same slope in both. */
export async function plotCurve({ name, title, subtitle, x, yLabel = "ms", points, lines }: CurvePlot): Promise<Plot> {
  const labels = new Map(points.map((point) => [point.x, point.label]));
  const svg = await lineChart({
    title,
    subtitle,
    x: { ...x, tickText: (at) => labels.get(at) ?? "" },
    y: { label: yLabel, scale: "log" },
    lines: lines.map((label, at) => ({
      label,
      colour: CHART_COLOURS[at % CHART_COLOURS.length] ?? "black",
      dashes: DASHES[at % DASHES.length] ?? "none",
      points: points.map((point) => {
        const { median, min, max } = spreadOf(point.values[label] ?? []);
        return { x: point.x, y: { median, least: min, most: max } };
      }),
    })),
  });
  return { name, svg };
}
