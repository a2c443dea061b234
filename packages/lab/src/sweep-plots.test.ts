import assert from "node:assert/strict";
import { it } from "node:test";
import type { MigrationReport } from "@precopy/protocol";
import { parseHTML } from "linkedom";
import type { SweepResult } from "./sweep.js";
import { settingsOf } from "./sweep.js";
import { plotSweep } from "./sweep-plots.js";

const LISTS = { dirtyPagesPerSecond: [0, 10_000, 25_000], channels: [1, 4], compressions: ["none", "lz4"], congestionControls: ["auto"] };

/** What a plot reads of a report. */
const results = (lists: Parameters<typeof settingsOf>[0], failing = -1): SweepResult[] =>
  settingsOf(lists).map((setting, at) => ({
    setting,
    runs: [100, 130].map((totalMs) =>
      at === failing
        ? { report: null, error: { code: "ERR_NOT_CONVERGING", message: "x" } }
        : {
            error: null,
            report: {
              "query-migrate": { status: "completed", "total-time": totalMs + at },
              clocks: { "source-ms": 5 },
              iterations: [{}],
              parameters: {},
            } as unknown as MigrationReport,
          },
    ),
  }));

const textsOf = (svg: string): string[] =>
  [...parseHTML(svg).document.querySelectorAll("text")].map(({ textContent }) => textContent ?? "");
const dotsOf = (svg: string): number => parseHTML(svg).document.querySelectorAll("circle").length;

it("a sweep becomes two SVG files of their own, with a title, both units, a tick for each dirty rate and a name for each line", async () => {
  const plots = await plotSweep(results(LISTS), "to far:4646");
  assert.deepEqual(
    plots.map(({ name }) => name),
    ["total-time.svg", "downtime.svg"],
  );
  for (const { svg } of plots) {
    assert.match(svg, /^<svg [^>]*xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
    const texts = textsOf(svg);
    const wanted = ["to far:4646", "dirty rate, pages/s", "0", "10k", "25k"];
    const lines = ["1 channel, uncompressed", "4 channels, uncompressed", "1 channel, lz4", "4 channels, lz4"];
    for (const text of [...wanted, ...lines]) assert.ok(texts.includes(text), text);
    assert.ok(texts.some((text) => text.endsWith(", ms")));
    assert.equal(dotsOf(svg), 12);
  }
});

it("the congestion control is in the names only where there are several, and then tells lines apart", async () => {
  const [plot] = await plotSweep(results({ ...LISTS, channels: [2], compressions: ["lz4"], congestionControls: ["cubic", "bbr"] }), "");
  const texts = textsOf(plot?.svg ?? "");
  assert.ok(texts.includes("2 channels, lz4, cubic") && texts.includes("2 channels, lz4, bbr"));
});

it("a setting whose every run failed is not in the plot, and a sweep of nothing else still has axes", async () => {
  assert.equal(dotsOf((await plotSweep(results(LISTS, 0), ""))[0]?.svg ?? ""), 11);
  const one = { ...LISTS, dirtyPagesPerSecond: [0], channels: [1], compressions: ["none"] };
  assert.equal(dotsOf((await plotSweep(results(one, 0), ""))[0]?.svg ?? ""), 0);
  assert.equal(dotsOf((await plotSweep(results(one), ""))[0]?.svg ?? ""), 1);
});
