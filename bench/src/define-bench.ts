/** One number that is measured again and again. */
export interface Figure {
  /** Within its entry; what it is of, in words or as an identifier. */
  readonly name: string;
  /** `ratio` is ours divided by theirs, pair by pair. */
  readonly unit: "ms" | "s" | "bytes" | "MiB" | "GiB/s" | "Gbit/s" | "s/GiB" | "ratio" | "share" | "count";
  readonly better: "lower" | "higher";
  /** At least one. */
  readonly values: readonly number[];
  /** Beyond it the median breaks what docs/promises.md or docs/benchmarks.md claims; undefined where nothing is claimed. */
  readonly target?: number | undefined;
}

export interface Plot {
  /** Of the file, without its ending. */
  readonly name: string;
  readonly svg: string;
}

export interface Measurement {
  readonly figures: readonly Figure[];
  /** Every run as it came, for who wants to look behind a figure. */
  readonly runs?: unknown;
  readonly plots?: readonly Plot[];
}

export interface BenchRun {
  /** How often each side runs; an entry that needs more runs more often. */
  readonly pairs: number;
  /** A line for whoever watches: tables of its own, what is being waited for. */
  say(line: string): void;
}

/** `table` takes some minutes in all; `full` is everything. */
export type Suite = "table" | "full";

/** What `npm run bench` can measure. */
export interface Bench {
  /** As in `--entry`, and of its file in bench/results. */
  readonly name: string;
  readonly suite: Suite;
  /** What is measured, fixed, and part of the result. */
  readonly workload: Readonly<Record<string, unknown>>;
  /** Why it cannot be measured here, in one line: what is missing, and where it comes from. */
  measure(run: BenchRun): Promise<Measurement | string>;
}
