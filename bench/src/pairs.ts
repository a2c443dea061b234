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

/** Each of ours divided by that of theirs which ran beside it. */
export const ratiosOf = (ours: readonly number[], theirs: readonly number[]): number[] =>
  ours.map((value, at) => value / (theirs[at] ?? Number.NaN));
