import type { Spread } from "./sweep-summary.js";

/** What was measured with one setting of everything but x. */
export interface ChartLine {
  readonly label: string;
  readonly colour: string;
  /** Of the stroke. */
  readonly dashes: string;
  /** By x, ascending. */
  readonly points: readonly { readonly x: number; readonly y: Spread }[];
}

/** Where ratios matter more than differences, `log`: it has no 0. `sqrt` draws small values apart, and has one. Default: `linear`. */
export type ChartScale = "linear" | "log" | "sqrt";

export interface LineChart {
  readonly title: string;
  /** One line. */
  readonly subtitle: string;
  /** A tick where there is a point. */
  readonly x: { readonly label: string; readonly scale?: ChartScale; readonly tickText: (x: number) => string };
  readonly y: { readonly label: string; readonly scale?: ChartScale };
  /** From the top of the legend on. */
  readonly lines: readonly ChartLine[];
}

/** Told apart on white, with a colour vision deficiency too (Okabe and Ito). */
export const CHART_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"] as const;

const WIDTH = 840;
const HEIGHT_LEAST = 420;
const MARGIN = { top: 60, right: 230, bottom: 48, left: 72 };
const LEGEND_LINE = 18;
const SAMPLE = 28;
/** Lines stand this far beside one another, so that their bars do not hide one another. */
const BESIDE = 5;

/** From 0 where the scale has one, and never empty. */
function domainOf(values: readonly number[], scale: ChartScale): [number, number] {
  const most = Math.max(0, ...values);
  if (scale !== "log") return [0, most || 1];
  const least = Math.min(...values);
  return values.length === 0 ? [1, 10] : [least, most > least ? most : 2 * least];
}

/** The median of each point, and a bar from the least to the most, as an SVG file. */
export async function lineChart({ title, subtitle, x, y, lines }: LineChart): Promise<string> {
  // Only who wants a plot waits for the library.
  const [Plot, { parseHTML }] = await Promise.all([import("@observablehq/plot"), import("linkedom")]);
  const { document } = parseHTML("<!doctype html><html><body></body></html>");

  const heading = (text: string, dy: number, fontSize: number, fontWeight: string) =>
    Plot.text([text], {
      frameAnchor: "top-left",
      textAnchor: "start",
      dx: 12 - MARGIN.left,
      dy: dy - MARGIN.top,
      fontSize,
      fontWeight,
    });
  const marksOf = ({ points, colour, dashes, label }: ChartLine, at: number) => {
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

  const points = lines.flatMap((line) => line.points);
  const ticks = [...new Set(points.map(({ x }) => x))].toSorted((one, other) => one - other);
  const [xScale, yScale] = [x.scale ?? "linear", y.scale ?? "linear"];
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
      type: xScale,
      domain: domainOf(ticks, xScale),
      inset: 12 + (lines.length * BESIDE) / 2,
    },
    y: {
      type: yScale,
      domain: domainOf(
        points.flatMap(({ y }) => [y.least, y.most]),
        yScale,
      ),
      label: y.label,
      labelAnchor: "center",
      labelArrow: "none",
      grid: true,
      nice: true,
    },
    marks: [
      // As a tickFormat `tickText` would not be asked for every tick of a log scale.
      Plot.axisX(ticks, { text: x.tickText, label: x.label, labelAnchor: "center", labelArrow: "none" }),
      Plot.frame({ anchor: "bottom" }),
      heading(title, 12, 15, "bold"),
      heading(subtitle, 32, 12, "normal"),
      ...lines.flatMap(marksOf),
    ],
  });
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  return `${svg.outerHTML}\n`;
}
