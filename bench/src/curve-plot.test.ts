import assert from "node:assert/strict";
import { it } from "node:test";
import { plotCurve } from "./curve-plot.js";
import type { CurvePlot } from "./curve-plot.js";

const curve = (scale: CurvePlot["x"]["scale"], from: number): CurvePlot => ({
  name: "curve-x",
  title: "Growth",
  subtitle: "of 3",
  x: { label: "size", scale },
  points: [from, 4, 16].map((x) => ({ x, label: `${x}GiB`, values: { total: [100 * x + 7, 90, 1000], pause: [4, 3.5] } })),
  lines: ["total", "pause"],
});

const textsOf = (svg: string): string[] => [...svg.matchAll(/<text[^>]*>([^<]*)<\/text>/g)].map(([, text]) => text ?? "");

it("a curve becomes an SVG file with headings, unit, a tick for each point, a name for each line, and a dot for each median", async () => {
  for (const plotted of [curve("log", 1), curve("sqrt", 0)]) {
    const { name, svg } = await plotCurve(plotted);
    assert.equal(name, "curve-x");
    assert.match(svg, /^<svg [^>]*xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
    const texts = textsOf(svg);
    for (const text of ["Growth", "of 3", "size", "ms", "total", "pause", ...plotted.points.map(({ label }) => label)])
      assert.ok(texts.includes(text), text);
    assert.equal(svg.match(/<circle /g)?.length, 6);
    assert.doesNotMatch(svg, /NaN|Infinity/);
  }
});

it("a curve of a single point is a plot, too", async () => {
  const whole = curve("log", 1);
  const { svg } = await plotCurve({ ...whole, points: whole.points.slice(0, 1) });
  assert.equal(svg.match(/<circle /g)?.length, 2);
  assert.doesNotMatch(svg, /NaN|Infinity/);
});
