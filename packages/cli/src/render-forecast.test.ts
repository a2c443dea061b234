import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Forecast, ForecastOutcome, MigrationPlanReport } from "@precopy/protocol";
import { COLUMNS } from "./figures.js";
import { forecastText, outcomeText, renderDirtyRate, renderHistory, renderPlan } from "./render-forecast.js";

const FORECAST: Forecast = {
  by: "plan",
  ends: true,
  failure: "",
  "total-ms": { low: 4990, expected: 5240, high: 5550 },
  "downtime-ms": { low: 9.84, expected: 10.3, high: 10.3 },
  "downtime-parts": { pause: 0.4, collect: 0.5, send: 7, commit: 2.4 },
  bytes: { low: 5e8, expected: 6e8, high: 7e8 },
  rounds: 6,
  "lost-percent": 0,
  "blocked-ms": { low: 0, expected: 0, high: 0 },
};
const NO_END: Forecast = { ...FORECAST, ends: false, failure: "After 6 rounds: dirtying 4 Gbit/s, sending 1 Gbit/s" };
const OUTCOME: ForecastOutcome = {
  "total-ms": 5500,
  "downtime-ms": 8.24,
  "downtime-parts": { pause: 0.4, collect: 0.5, send: 5, commit: 2.34 },
  bytes: 6e8,
};
const PLAN: MigrationPlanReport = {
  guest: "g",
  to: "127.0.0.1:4646",
  at: "2026-11-22T05:00:00.000Z",
  "dirty-rate": {
    "dirty-log": "mmu",
    "dirty-rate": 18.2,
    curve: [
      { ms: 10, pages: 80, "error-pages": 0 },
      { ms: 1000, pages: 4700, "error-pages": 230 },
    ],
    "populated-pages": 131_072,
    "watched-pages": 60_000,
    "cost-percent": 0.61,
    "list-ms": 0.4,
  },
  pages: { "sampled-pages": 16_384, "zero-share": 0.25, "lz4-ratio": 0.4, "lz4-bytes-per-second": 1e9 },
  link: {
    "bandwidth-bytes-per-second": 117e6,
    spread: 0.05,
    "round-trip-ms": 0.5,
    "probe-ms": 1003,
    "probed-bytes": 118e6,
    "setup-ms": 20,
    "round-ms": 1.1,
  },
  forecast: FORECAST,
  changes: [],
  parameters: {},
};
const isNarrow = (text: string): void => {
  for (const line of text.split("\n")) assert.ok(line.length <= COLUMNS, `${line.length} columns: ${line}`);
};

describe("what is shown of forecasts", () => {
  it("a forecast: what is expected, and within what range; what is withheld, if anything is; or why it does not end", () => {
    assert.equal(forecastText(FORECAST), "total 5240 ms (4990 ms to 5550 ms), pause 10.3 ms (9.84 ms to 10.3 ms), 572 MiB in 7 rounds");
    assert.match(forecastText({ ...FORECAST, "lost-percent": 45 }), /, 45 % of the guest's time withheld$/);
    assert.match(forecastText(NO_END), /^does not end: After 6 rounds/);
  });

  it("a forecast beside what it came to, with how far off it was", () => {
    assert.equal(outcomeText(FORECAST, OUTCOME), "by plan: total 5240 ms (+5%), pause 10.3 ms (-20%)");
    assert.equal(outcomeText(NO_END, OUTCOME), "by plan: would not end");
  });

  it("a plan: the answer first, then what it was made from, in 80 columns", () => {
    const text = renderPlan(PLAN);
    isNarrow(text);
    assert.match(text, /^g -> 127\.0\.0\.1:4646: simulated from what was measured just now\nends +total 5240 ms/);
    assert.match(text, /25 % of it zeros, LZ4 leaves 40 %/);
    assert.match(text, /^cost +0\.6 % of the guest's time/m);
  });

  it("a plan that does not end: what would help, each with its price", () => {
    const changes = [{ option: "--throttle sdps", price: "45 % of the guest's time meanwhile", forecast: FORECAST }];
    const text = renderPlan({ ...PLAN, forecast: NO_END, changes });
    isNarrow(text);
    assert.match(text, /^stays +does not end: /m);
    assert.match(text, /^or +--throttle sdps: total 5240 ms; costs 45 % of the guest's time\n +meanwhile$/m);
  });

  it("a dirty rate: the curve, and what it cost to look", () => {
    const text = renderDirtyRate(PLAN["dirty-rate"]);
    isNarrow(text);
    assert.match(text, /^ +1000 ms +4700 +±230 +154 Mbit\/s$/m);
    assert.match(text, /^watched +60000 of 131072 populated pages, mmu dirty log$/m);
  });

  it("a history: a row a forecast, what failed by its code, and the median errors", () => {
    const entry = { at: "2026-11-22T05:03:33.000Z", guest: "guest-1", to: "b:1", handover: null };
    const done = {
      ...entry,
      status: "completed",
      code: null,
      forecasts: [FORECAST, { ...FORECAST, by: "first-round" as const }],
      outcome: OUTCOME,
    };
    const failed = { ...entry, status: "failed", code: "ERR_NOT_CONVERGING", forecasts: [NO_END], outcome: null };
    const text = renderHistory([done, failed, { ...done, forecasts: [] }]);
    isNarrow(text);
    assert.match(text, /^11-22 05:03:33 guest-1 completed plan +5240 +5500 +\+5% +10\.3 +8\.24 +-20%$/m);
    assert.match(text, /^11-22 05:03:33 guest-1 NOT_CONVE/m);
    assert.match(text, /by plan: median error of 1: total 5\.0 %, pause 20 %/);
    assert.equal(renderHistory([]), "no migrations yet");
  });
});
