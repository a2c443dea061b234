import { spreadOf } from "./define-bench.js";
import type { Spread } from "./define-bench.js";

/** One run of ours and the run of theirs that followed it: what moved the machine meanwhile moved both. */
export interface Pair<T> {
  readonly ours: T;
  readonly theirs: T;
}

/** Ours, theirs, ours, theirs, and so on. */
export async function interleave<T>(pairs: number, ours: () => T | Promise<T>, theirs: () => T | Promise<T>): Promise<Pair<T>[]> {
  const runs: Pair<T>[] = [];
  for (let at = 0; at < pairs; at++) runs.push({ ours: await ours(), theirs: await theirs() });
  return runs;
}

/** Spread of ours divided by theirs, pair by pair. */
export const ratioOf = <T>(pairs: readonly Pair<T>[], figure: (run: T) => number): Spread =>
  spreadOf(pairs.map(({ ours, theirs }) => figure(ours) / figure(theirs)));

/** `name: ours 3.21 GiB/s, theirs 3.40 GiB/s; ratio 0.944 (0.930 to 0.951, 3 pairs)`, medians first. */
export function formatPairs<T>(name: string, unit: string, pairs: readonly Pair<T>[], figure: (run: T) => number): string {
  const ratio = ratioOf(pairs, figure);
  const ours = spreadOf(pairs.map((pair) => figure(pair.ours)));
  const theirs = spreadOf(pairs.map((pair) => figure(pair.theirs)));
  const spread = `${ratio.min.toFixed(3)} to ${ratio.max.toFixed(3)}, ${pairs.length} pairs`;
  return `${name}: ours ${ours.median} ${unit}, theirs ${theirs.median} ${unit}; ratio ${ratio.median.toFixed(3)} (${spread})`;
}
