import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DEFAULT_PARAMETERS } from "@precopy/protocol";
import type { RoundOutlook } from "./policy.js";
import { verdict } from "./verdict.js";

const outlook = (given: Partial<RoundOutlook>): RoundOutlook => ({
  remainingPages: 25_000,
  sentPages: 25_000,
  throttlePercent: 0,
  throttleStepPercent: 0,
  dirtyPagesPerSecond: 30_000,
  sendPagesPerSecond: 29_000,
  expectedDowntimeMs: 900,
  nextRoundMs: 100,
  forecastDowntimeMs: 900,
  ...given,
});

describe("verdict", () => {
  it("of a guest that outruns its link: both speeds, the best pause so far, and what would help", () => {
    const { converges, text } = verdict([outlook({ expectedDowntimeMs: 850.2 }), outlook({})], DEFAULT_PARAMETERS);
    assert.equal(converges, false);
    assert.equal(
      text,
      "dirtying 983 Mbit/s, sending 950 Mbit/s: the best reachable pause is about 850 ms, downtime-limit is 300 ms; " +
        "what would help: --throttle sdps, --downtime-limit 851, a faster link",
    );
  });
  it("does not advise what is done already", () => {
    assert.doesNotMatch(verdict([outlook({})], { ...DEFAULT_PARAMETERS, throttle: "sdps" }).text, /throttle/);
  });
  it("of one that is slower than its link: it gets there", () => {
    const { converges, text } = verdict([outlook({ dirtyPagesPerSecond: 10_000 })], DEFAULT_PARAMETERS);
    assert.equal(converges, true);
    assert.match(text, /it gets there$/);
  });
  it("of one that is slower than its link and was given up: the pause has parts that do not depend on it", () => {
    const { converges, text } = verdict(
      [outlook({ dirtyPagesPerSecond: 10_000, expectedDowntimeMs: 8.2 })],
      { ...DEFAULT_PARAMETERS, downtimeLimitMs: 1 },
      true,
    );
    assert.equal(converges, false);
    assert.match(text, /; what would help: --downtime-limit 9$/);
  });
  it("of one that is within the limit: it can be switched over, however much it dirties", () => {
    const { converges, text } = verdict([outlook({ expectedDowntimeMs: 300 })], DEFAULT_PARAMETERS);
    assert.equal(converges, true);
    assert.match(text, /can be switched over$/);
  });
});
