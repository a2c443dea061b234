import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { SweepResult, SweepRun, SweepSetting } from "@precopy/lab";
import type { MigrationReport } from "@precopy/protocol";
import { renderSweepEnd, renderSweepHeader, renderSweepRow } from "./render-sweep.js";

const SETTING: SweepSetting = { dirtyPagesPerSecond: 25_000, channels: 2, compression: "none", congestionControl: "auto" };

/** What the table reads of a report. */
const run = (totalMs: number, downtimeMs: number, used: string | null = "cubic"): SweepRun => ({
  error: null,
  report: {
    "query-migrate": { status: "completed", "total-time": totalMs, ram: { transferred: 303 * 2 ** 20 } },
    clocks: { "source-ms": downtimeMs, "host-ms": null, "guest-ms": null, "client-ms": null },
    iterations: [{ "bandwidth-bytes-per-second": 484e6 }, {}, {}],
    parameters: { "congestion-control": used },
  } as unknown as MigrationReport,
});
const failed = (message: string): SweepRun => ({ report: null, error: { code: "ERR_NOT_CONVERGING", message } });
const result = (runs: readonly SweepRun[], given: Partial<SweepSetting> = {}): SweepResult => ({ setting: { ...SETTING, ...given }, runs });

const fits = (text: string): void => {
  for (const line of text.split("\n")) assert.ok(line.length <= 80, line);
};

describe("the table of a sweep", () => {
  it("has the medians of a setting, its worst downtime, and how many of its runs completed", () => {
    const text = [renderSweepHeader(), renderSweepRow(result([run(700, 20), run(500, 40), run(600, 30)]))].join("\n");
    assert.equal(
      text,
      ` dirty    com-           total downtime  worst                   round 1
    /s ch press cc          ms       ms     ms rnds     sent   bandwidth  done
   25k  2 none  auto       600     30.0   40.0    3  303 MiB 3.87 Gbit/s   3/3`,
    );
  });

  it("says once why runs failed, below their row, and leaves them out of the medians", () => {
    const why = "the dirty rate keeps up with the bandwidth, and ".repeat(3);
    const text = renderSweepRow(result([failed(why), run(600, 30), failed(why), failed("no")]));
    fits(text);
    const [row = "", ...reasons] = text.split("\n");
    assert.match(row, / 600 .* 1\/4$/);
    assert.match(reasons[0] ?? "", /^ {2}2 of 4 +ERR_NOT_CONVERGING: the dirty rate/);
    assert.match(reasons.at(-1) ?? "", /^ {2}1 of 4 +ERR_NOT_CONVERGING: no$/);
  });

  it("fits 80 columns with the longest of everything", () => {
    const widest = { dirtyPagesPerSecond: 1e9, channels: 16, compression: "lz4", congestionControl: "a23456789012345" };
    const text = [
      renderSweepRow(result([run(99_999, 99_999)], widest)),
      renderSweepRow(result([failed("x")], widest)),
      renderSweepEnd([result([run(99_999, 99_999)], widest), result([run(1e6, 99_998)], { ...widest, channels: 15 })]),
    ].join("\n");
    fits(text);
  });

  it("is red where a run failed", () => {
    assert.ok(renderSweepRow(result([failed("x")]), true).startsWith("\u001b[31m"));
    assert.ok(!renderSweepRow(result([run(1, 1)]), true).includes("\u001b"));
  });
});

describe("the end of a sweep", () => {
  it("names the best of each dirty rate, by total time and by downtime", () => {
    const text = renderSweepEnd([
      result([run(600, 30)]),
      result([run(500, 40)], { channels: 4 }),
      result([run(900, 9)], { dirtyPagesPerSecond: 0, compression: "lz4" }),
    ]);
    assert.equal(
      text,
      `best: 25k/s     total 500 ms by 4 ch, none, auto;
                downtime 30.0 ms by 2 ch, none, auto
best: 0/s       2 ch, lz4, auto: total 900 ms, downtime 9.00 ms
congestion control auto: cubic`,
    );
  });

  it("calls no setting the best that fails now and then, though its median is", () => {
    const text = renderSweepEnd([result([run(1, 1), failed("x")]), result([run(600, 30), run(600, 30)], { channels: 4 })]);
    assert.match(text, /^best: 25k\/s +4 ch, none, auto: total 600 ms/);
    assert.match(renderSweepEnd([result([run(1, 1), failed("x")])]), /^best: 25k\/s +none: /);
  });

  it("says what auto came to, the system's choice included", () => {
    assert.match(renderSweepEnd([result([run(1, 1, null)])]), /congestion control auto: the system's choice$/);
    assert.doesNotMatch(renderSweepEnd([result([run(1, 1, "bbr")], { congestionControl: "bbr" })]), /auto/);
  });
});
