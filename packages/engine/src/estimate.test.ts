import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES } from "@precopy/protocol";
import fc from "fast-check";
import { expectedDowntimeMs } from "./estimate.js";
import type { FixedParts } from "./estimate.js";
import { RoundStats } from "./round-stats.js";

/** 100,000 B/ms, and a fixed part of a round if given. */
function statsWith(fixedMs?: number): RoundStats {
  const stats = new RoundStats();
  stats.add({ normalPages: 0, zeroPages: 0, bytes: 10_000_000, ms: 100 }, 0);
  if (fixedMs !== undefined) stats.add({ normalPages: 0, zeroPages: 0, bytes: 0, ms: fixedMs }, 0);
  return stats;
}
const none: FixedParts = { pauseMs: 0, collectMs: 0, roundTripMs: 0, resumeMs: 0 };
const close = (actual: number, expected: number): void => assert.ok(Math.abs(actual - expected) < 1e-6, `${actual}, not ${expected}`);

describe("the expected downtime", () => {
  it("is pause, collection, transfer, fixed part of a round, two round trips and resume, added up", () =>
    fc.assert(
      fc.property(
        fc.tuple(...Array.from({ length: 5 }, () => fc.double({ min: 0, max: 19, noNaN: true }))),
        fc.nat(1_000_000),
        (parts, pages) => {
          const [pauseMs = 0, collectMs = 0, roundTripMs = 0, resumeMs = 0, fixedMs = 0] = parts;
          const expected = pauseMs + collectMs + (pages * PAGE_BYTES) / 100_000 + fixedMs + 2 * roundTripMs + resumeMs;
          close(expectedDowntimeMs(pages, statsWith(fixedMs), { pauseMs, collectMs, roundTripMs, resumeMs }), expected);
        },
      ),
    ));

  it("counts each part: 1 ms more of any of them makes it longer, by 1 ms or by two round trips", () => {
    const base = expectedDowntimeMs(1000, statsWith(5), none);
    close(base, 1000 * 0.04096 + 5);
    for (const part of ["pauseMs", "collectMs", "resumeMs"] as const)
      close(expectedDowntimeMs(1000, statsWith(5), { ...none, [part]: 1 }) - base, 1);
    close(expectedDowntimeMs(1000, statsWith(5), { ...none, roundTripMs: 1 }) - base, 2);
    close(expectedDowntimeMs(1000, statsWith(6), none) - base, 1);
    close(expectedDowntimeMs(2000, statsWith(5), none) - base, 1000 * 0.04096);
  });

  it("takes a round trip for the fixed part while no round was short enough to measure it", () => {
    close(expectedDowntimeMs(0, statsWith(), { ...none, roundTripMs: 7 }), 3 * 7);
    close(expectedDowntimeMs(0, statsWith(0), { ...none, roundTripMs: 7 }), 2 * 7);
  });
});
