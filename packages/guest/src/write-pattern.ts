/**
 * How a paced writer's rate goes over time, around the same mean: bursty is four times as fast in the first quarter of each second and rests for
 * the others; phases is half as fast again for five seconds and half as fast for five; moving is as steady as steady, and its hot spot moves on.
 */
export const WRITE_PATTERNS = ["steady", "bursty", "phases", "moving"] as const;
export type WritePattern = (typeof WRITE_PATTERNS)[number];

/** The first `share` of each period at `speed`, the rest of it so that the mean is 1. */
interface Rhythm {
  readonly periodMs: number;
  readonly share: number;
  readonly speed: number;
}
const STEADY: Rhythm = { periodMs: 1000, share: 1, speed: 1 };
const RHYTHMS: Readonly<Record<WritePattern, Rhythm>> = {
  steady: STEADY,
  bursty: { periodMs: 1000, share: 0.25, speed: 4 },
  phases: { periodMs: 10_000, share: 0.5, speed: 1.5 },
  moving: STEADY,
};

export const patternOf = (option: unknown): WritePattern => WRITE_PATTERNS.find((pattern) => pattern === option) ?? "steady";

/** The fastest that it ever is, times the mean. */
export const fastestOf = (pattern: WritePattern): number => RHYTHMS[pattern].speed;

const slowSpeed = ({ share, speed }: Rhythm): number => (share === 1 ? 1 : (1 - share * speed) / (1 - share));

/** For how long a steady writer would have written by then to have written as much, ms; both count from 0. */
export function steadyMs(pattern: WritePattern, ms: number): number {
  const rhythm = RHYTHMS[pattern];
  const { periodMs, share, speed } = rhythm;
  const into = ms % periodMs;
  const fastMs = Math.min(into, share * periodMs);
  return ms - into + fastMs * speed + (into - fastMs) * slowSpeed(rhythm);
}

/** The inverse: the first moment by which a writer has written what a steady one writes in `steady` ms. */
export function momentOf(pattern: WritePattern, steady: number): number {
  const rhythm = RHYTHMS[pattern];
  const { periodMs, share, speed } = rhythm;
  // A period's work may be done long before it is over.
  const into = steady > 0 && steady % periodMs === 0 ? periodMs : steady % periodMs;
  const fast = share * periodMs * speed; // of a period's work
  const slow = slowSpeed(rhythm);
  return steady - into + (into <= fast || slow === 0 ? into / speed : share * periodMs + (into - fast) / slow);
}
