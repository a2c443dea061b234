/** One figure. Its name ends in its unit. */
export interface Bench {
  readonly name: string;
  readonly unit: "ms" | "bytes" | "MiB";
  readonly better: "lower" | "higher";
  /** Fixed, and part of the result. */
  readonly workload: Readonly<Record<string, string | number>>;
  /** How often `run` is called. */
  readonly runs: number;
  /** What docs/promises.md claims; the run fails beyond it. */
  readonly promise: { readonly median: number; readonly row: string } | undefined;
  /** Bytes of memory to touch and give back before each call, so that the figure is not the hypervisor's. */
  readonly warmBytes: number;
  /** One value or several. */
  run(): Promise<readonly number[]>;
}

export const defineBench = (bench: Bench): Bench => bench;

export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly p99: number;
}

/** @param values at least one. */
export function spreadOf(values: readonly number[]): Spread {
  const sorted = values.toSorted((one, other) => one - other);
  const at = (share: number): number => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
  const middle = sorted.length % 2 === 1 ? at(0.5) : (at(0.5) + (sorted[sorted.length / 2 - 1] ?? Number.NaN)) / 2;
  return { median: Math.round(middle * 1000) / 1000, min: at(0), max: sorted.at(-1) ?? Number.NaN, p99: at(0.99) };
}
