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

/** `3.21 (3.10 to 3.40)`, with as many digits as there are to be seen. */
export function formatSpread({ median, min, max }: Spread): string {
  const digits = median >= 1000 ? 0 : median >= 20 ? 1 : 3;
  const [middle, low, high] = [median, min, max].map((value) => value.toFixed(digits));
  return low === high ? `${middle}` : `${middle} (${low} to ${high})`;
}
