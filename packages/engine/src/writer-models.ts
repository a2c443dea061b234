/** What a vCPU writes, as a dirty log sees it. */
export interface ModelVcpu {
  /** Pages that it ever writes. */
  readonly workingSetPages: number;
  /** How many different pages it has written after running for `ms`, from none at 0 on, never falling, `workingSetPages` at most. */
  distinctPages(ms: number): number;
}

/** Writes go to pages drawn at random, so that one page may be written many times. @param pagesPerSecond writes */
export const randomWriter = (pagesPerSecond: number, workingSetPages: number): ModelVcpu => ({
  workingSetPages,
  // So many writes to pages drawn at random leave that part of them clean.
  distinctPages: (ms) => workingSetPages * (1 - Math.exp((-pagesPerSecond * ms) / 1000 / workingSetPages)),
});

/** Writes go to one page after another, in order. @param pagesPerSecond writes */
export const sequentialWriter = (pagesPerSecond: number, workingSetPages: number): ModelVcpu => ({
  workingSetPages,
  distinctPages: (ms) => Math.min((pagesPerSecond * ms) / 1000, workingSetPages),
});

/** So many different pages were written within so long. */
export interface CurvePoint {
  readonly ms: number;
  readonly pages: number;
}

/** Beyond the last point a curve goes on as it went from a third of that time on: a working set that was written once is not written faster. */
const TAIL_SHARE = 1 / 3;

/**
 * A writer that was watched: between two points the curve is a power of time, which writers with hot and cold pages come close to; before the
 * first it is a straight line; behind the last it goes on as steeply as it ended.
 * @param points by time, ascending. @param workingSetPages it cannot write more than these
 */
export function watchedWriter(points: readonly CurvePoint[], workingSetPages: number): ModelVcpu {
  const known = points.filter(({ ms, pages }) => ms > 0 && pages > 0);
  const last = known.at(-1);
  const between = (one: CurvePoint, other: CurvePoint, ms: number): number => {
    const steepness = Math.log(other.pages / one.pages) / Math.log(other.ms / one.ms);
    return one.pages * (ms / one.ms) ** Math.min(Math.max(steepness, 0), 1);
  };
  const curve = (ms: number): number => {
    const [first] = known;
    if (first === undefined || last === undefined || ms <= 0) return 0;
    if (ms <= first.ms) return (first.pages * ms) / first.ms;
    const at = known.findIndex((point) => point.ms >= ms);
    if (at > 0) return between(known[at - 1]!, known[at]!, ms); // both are there: `at` was found, and is not the first
    const tail = known.findLast((point) => point.ms <= last.ms * TAIL_SHARE) ?? first;
    return tail === last ? (last.pages * ms) / last.ms : between(tail, last, ms);
  };
  return { workingSetPages, distinctPages: (ms) => Math.min(curve(ms), workingSetPages) };
}

/** The same writer, `factor` times as fast. */
export const faster = ({ workingSetPages, distinctPages }: ModelVcpu, factor: number): ModelVcpu => ({
  workingSetPages,
  distinctPages: (ms) => distinctPages(ms * factor),
});
