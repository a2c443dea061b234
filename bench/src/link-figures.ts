import type { SweepRun } from "@precopy/lab";
import type { Figure } from "./define-bench.js";

/** What `precopy bench --report` holds, as far as it is kept. */
export interface SweepReport {
  readonly results: readonly {
    readonly "dirty-rate": number;
    readonly "multifd-channels": number;
    readonly "multifd-compression": string;
    readonly "congestion-control": string;
    readonly runs: readonly SweepRun[];
  }[];
}

/** For each setting on `link` what its completed runs took; a setting of which none completed has no figure. */
export function figuresOf(link: string, { results }: SweepReport): Figure[] {
  return results.flatMap((result) => {
    const setting = [
      `${result["dirty-rate"]} pages/s`,
      `${result["multifd-channels"]} ch`,
      result["multifd-compression"],
      result["congestion-control"],
    ].join(", ");
    const reports = result.runs.flatMap(({ report, error }) => (report === null || error !== null ? [] : [report]));
    const figure = (name: string, unit: Figure["unit"], values: readonly (number | null | undefined)[]): Figure[] => {
      const known = values.filter((value) => typeof value === "number");
      return known.length === 0 ? [] : [{ name: `${link}, ${setting}: ${name}`, unit, better: "lower", values: known }];
    };
    return [
      ...figure(
        "total",
        "ms",
        reports.map((report) => report["query-migrate"]["total-time"]),
      ),
      ...figure(
        "downtime",
        "ms",
        reports.map(({ clocks }) => clocks["source-ms"]),
      ),
      ...figure(
        "sent",
        "MiB",
        reports.flatMap((report) => report["query-migrate"].ram?.transferred ?? []).map((bytes) => bytes / 2 ** 20),
      ),
    ];
  });
}
