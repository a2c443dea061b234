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

/** One line of a plot: everything but the dirty rate is the same. */
interface Line {
  readonly label: string;
  readonly colour: string;
  /** Of the stroke. */
  readonly dashes: string;
  readonly points: readonly { readonly x: number; readonly y: Spread }[];
}

/** Told apart on white, with a colour vision deficiency too (Okabe and Ito). */
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"];
const DASHES = ["none", "6,3", "2,3", "9,3,2,3"];

const WIDTH = 840;
const HEIGHT_LEAST = 420;
const MARGIN = { top: 60, right: 230, bottom: 48, left: 72 };
const LEGEND_LINE = 18;
const SAMPLE = 28;
/** Lines stand this far beside one another, so that their bars do not hide one another. */
const BESIDE = 5;

const distinct = <T>(values: readonly T[]): T[] => [...new Set(values)];
const rateText = (pagesPerSecond: number): string =>
  pagesPerSecond < 1000 ? String(pagesPerSecond) : pagesPerSecond < 1e6 ? `${pagesPerSecond / 1000}k` : `${pagesPerSecond / 1e6}M`;

/** Colours tell the channels, dashes the rest; where all have the same channels, colours tell the rest, too. */
function linesOf(summaries: readonly SweepSummary[], of: Figure["of"]): Line[] {
  const settings = summaries.map(({ setting }) => setting);
  const hasControls = distinct(settings.map(({ congestionControl }) => congestionControl)).length > 1;
  const restOf = ({ compression, congestionControl }: SweepSetting): string =>
    [compression === "none" ? "uncompressed" : compression, ...(hasControls ? [congestionControl] : [])].join(", ");
  const counts = distinct(settings.map(({ channels }) => channels));
  return distinct(settings.map(restOf)).flatMap((rest, atRest) =>
    counts.flatMap((channels, atCount): Line[] => {
      const points = summaries.flatMap((summary) => {
        const y = of(summary);
        const isOfLine = summary.setting.channels === channels && restOf(summary.setting) === rest;
        return isOfLine && y !== undefined ? [{ x: summary.setting.dirtyPagesPerSecond, y }] : [];
      });
      if (points.length === 0) return [];
      return [
        {
          label: `${channels} ${channels === 1 ? "channel" : "channels"}, ${rest}`,
          colour: COLOURS[(counts.length > 1 ? atCount : atRest) % COLOURS.length] ?? "black",
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
  // Only who wants a plot waits for the library.
  const [Plot, { parseHTML }] = await Promise.all([import("@observablehq/plot"), import("linkedom")]);
  const { document } = parseHTML("<!doctype html><html><body></body></html>");
  const summaries = results.map(summarize);

  const heading = (text: string, dy: number, fontSize: number, fontWeight: string) =>
    Plot.text([text], {
      frameAnchor: "top-left",
      textAnchor: "start",
      dx: 12 - MARGIN.left,
      dy: dy - MARGIN.top,
      fontSize,
      fontWeight,
    });
  const marksOf = ({ points, colour, dashes, label }: Line, at: number, lines: readonly Line[]) => {
    const dx = (at - (lines.length - 1) / 2) * BESIDE;
    const legend = { frameAnchor: "top-right", dy: at * LEGEND_LINE } as const;
    return [
      Plot.ruleX(points, { x: "x", y1: ({ y }) => y.least, y2: ({ y }) => y.most, stroke: colour, strokeOpacity: 0.6, dx }),
      Plot.line(points, { x: "x", y: ({ y }) => y.median, stroke: colour, strokeWidth: 1.8, strokeDasharray: dashes, dx }),
      Plot.dot(points, { x: "x", y: ({ y }) => y.median, fill: colour, r: 3, dx }),
      Plot.vector([SAMPLE], {
        ...legend,
        dx: 16,
        anchor: "start",
        rotate: 90,
        length: SAMPLE,
        shape: {
          draw(context, length) {
            context.moveTo(0, 0);
            context.lineTo(0, -length);
          },
        },
        stroke: colour,
        strokeWidth: 1.8,
        strokeDasharray: dashes,
      }),
      Plot.text([label], { ...legend, dx: 16 + SAMPLE + 8, textAnchor: "start", lineAnchor: "middle" }),
    ];
  };

  return FIGURES.map(({ name, title, label, of }) => {
    const lines = linesOf(summaries, of);
    const rates = distinct(lines.flatMap(({ points }) => points.map(({ x }) => x))).toSorted((one, other) => one - other);
    const most = Math.max(0, ...lines.flatMap(({ points }) => points.map(({ y }) => y.most)));
    const svg = Plot.plot({
      document,
      width: WIDTH,
      height: Math.max(HEIGHT_LEAST, MARGIN.top + MARGIN.bottom + lines.length * LEGEND_LINE),
      marginTop: MARGIN.top,
      marginRight: MARGIN.right,
      marginBottom: MARGIN.bottom,
      marginLeft: MARGIN.left,
      style: { fontSize: "12px", background: "white", color: "#222" },
      x: {
        domain: [0, rates.at(-1) || 1],
        label: "dirty rate, pages/s",
        labelAnchor: "center",
        labelArrow: "none",
        ticks: rates,
        tickFormat: rateText,
        inset: 12 + (lines.length * BESIDE) / 2,
      },
      y: { domain: [0, most || 1], label, labelAnchor: "center", labelArrow: "none", grid: true, nice: true },
      marks: [
        Plot.frame({ anchor: "bottom" }),
        heading(title, 12, 15, "bold"),
        heading(subtitle, 32, 12, "normal"),
        ...lines.flatMap((line, at) => marksOf(line, at, lines)),
      ],
    });
    svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    return { name, svg: `${svg.outerHTML}\n` };
  });
}
