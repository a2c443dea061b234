import assert from "node:assert/strict";
import { it } from "node:test";
import type { MigrationReport } from "@precopy/protocol";
import type { SweepRun, SweepSetting } from "./sweep.js";
import { bestOf, median, summarize } from "./sweep-summary.js";

const setting: SweepSetting = { dirtyPagesPerSecond: 0, channels: 1, compression: "none", congestionControl: "auto" };
const failed: SweepRun = { report: null, error: { code: "ERR_LINK_LOST", message: "x" } };
/** What a summary reads of a report. */
const run = (totalMs: number, firstRound?: number): SweepRun => ({
  error: null,
  report: {
    "query-migrate": { status: "completed", "total-time": totalMs },
    clocks: { "source-ms": totalMs / 10 },
    iterations: [firstRound === undefined ? {} : { "bandwidth-bytes-per-second": firstRound }],
    parameters: { "congestion-control": null },
  } as unknown as MigrationReport,
});

it("median is the middle one, the mean of the middle two, and nothing of nothing", () => {
  assert.deepEqual([median([9, 1, 5]), median([9, 1, 5, 7]), median([null, undefined]), median([null, 3])], [5, 6, undefined, 3]);
});

it("summarize counts the runs that completed, and a run whose image is not to be trusted is none", () => {
  const mistrusted: SweepRun = { report: run(1).report, error: { code: "ERR_VERIFICATION", message: "x" } };
  const summary = summarize({ setting, runs: [run(30), failed, run(10), mistrusted, run(20)] });
  assert.deepEqual([summary.runs, summary.completed, summary.totalMs], [5, 3, { median: 20, least: 10, most: 30 }]);
  assert.deepEqual(summary.downtimeMs, { median: 2, least: 1, most: 3 });
});

it("summarize has no figure that no run has", () => {
  assert.equal(summarize({ setting, runs: [failed] }).totalMs, undefined);
  const summary = summarize({ setting, runs: [run(1), run(1, 7)] });
  assert.deepEqual([summary.sentBytes, summary.firstRoundBytesPerSecond], [undefined, { median: 7, least: 7, most: 7 }]);
});

it("bestOf is the least median of those whose every run completed; the first of equals; none of none", () => {
  const summaries = [[run(20)], [run(10), failed], [run(15)], [run(15)]].map((runs) => summarize({ setting, runs }));
  assert.equal(bestOf(summaries, "totalMs"), summaries[2]);
  assert.equal(bestOf(summaries.slice(1, 2), "totalMs"), undefined);
});
