import { whyNoMmuDirtyLog } from "@precopy/guest";
import type { MigrationReport } from "@precopy/protocol";
import type { Bench, Figure } from "../define-bench.js";
import { figures } from "../migrations.js";
import { warmMemory } from "../warm-memory.js";

const GIB = 2 ** 30;
const LOADED = { memory: "8GiB", fill: "1GiB", "dirty-rate": "25k", "working-set": "64MiB" };
const EMPTY = { memory: "8GiB", fill: "0", workload: "idle" };
type Options = Readonly<Record<string, string>>;
const argumentsOf = (workload: Options): string[] => Object.entries(workload).flatMap(([key, value]) => [`--${key}`, value]);

/** Back and forth between two agents, with switch, client, digest and audit; the first value is the first migration of two fresh agents. */
const migrations = (
  name: string,
  workload: Options,
  warmBytes: number,
  figure: Omit<Figure, "values"> & { of(report: MigrationReport): number | null | undefined },
): Bench => ({
  name,
  suite: "full",
  workload,
  measure: async ({ pairs }) => {
    const reason = workload["dirty-log"] === "mmu" ? whyNoMmuDirtyLog() : undefined;
    if (reason !== undefined) return reason;
    warmMemory(warmBytes);
    const { of, ...rest } = figure;
    return { figures: [{ ...rest, values: await figures(argumentsOf(workload), pairs, of) }] };
  },
});

const downtime = (dirtyLog: string, pump: string, target: number): Bench =>
  migrations(`downtime-${dirtyLog}-${pump}`, { ...LOADED, "dirty-log": dirtyLog, pump }, 6 * GIB, {
    name: "downtime",
    unit: "ms",
    better: "lower",
    target,
    of: ({ clocks }) => clocks["source-ms"],
  });

export const demoEntries: readonly Bench[] = [
  downtime("mmu", "direct", 15),
  downtime("mmu", "portable", 60),
  downtime("barrier", "portable", 60),
  migrations("empty-guest-total", EMPTY, GIB, {
    name: "total time",
    unit: "ms",
    better: "lower",
    target: 150,
    of: (report) => report["query-migrate"]["total-time"],
  }),
  migrations("empty-guest-bytes", EMPTY, 0, {
    name: "transferred",
    unit: "bytes",
    better: "lower",
    target: 2 ** 20,
    of: (report) => report["query-migrate"].ram?.transferred,
  }),
];
