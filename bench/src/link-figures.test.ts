import assert from "node:assert/strict";
import { it } from "node:test";
import type { SweepRun } from "@precopy/lab";
import { figuresOf } from "./link-figures.js";

const run = (totalMs: number, isFailed = false): SweepRun => ({
  report: {
    "query-migrate": { "total-time": totalMs, ram: { transferred: 2 ** 20 * totalMs } },
    clocks: { "source-ms": totalMs / 10 },
  } as unknown as SweepRun["report"],
  error: isFailed ? { code: "ERR_LINK_LOST", message: "" } : null,
});
const setting = { "dirty-rate": 2000, "multifd-channels": 2, "multifd-compression": "lz4", "congestion-control": "auto" };

it("a setting on a link has the total time, downtime and bytes of the runs that completed; one that never did has nothing", () => {
  const name = "1.00 Gbit/s, MTU 1500, 2000 pages/s, 2 ch, lz4, auto";
  assert.deepEqual(
    figuresOf("1.00 Gbit/s, MTU 1500", {
      results: [
        { ...setting, runs: [run(100), run(900, true), run(200)] },
        { ...setting, "multifd-channels": 8, runs: [run(100, true)] },
      ],
    }),
    [
      { name: `${name}: total`, unit: "ms", better: "lower", values: [100, 200] },
      { name: `${name}: downtime`, unit: "ms", better: "lower", values: [10, 20] },
      { name: `${name}: sent`, unit: "MiB", better: "lower", values: [100, 200] },
    ],
  );
});
