/** Bit 7 of a byte that is a tick; the others are the milliseconds of work done so far, modulo WORK_MODULUS. Without it: text, a complaint. */
const TICK_BIT = 0x80;
const WORK_MODULUS = 0x80;

interface Waiting {
  readonly count: number;
  resolve(): void;
  reject(cause: Error): void;
}

/** What one guest sends to its debug port: a byte each millisecond (bench/peers/guest/guest.c). */
export class TickLog {
  readonly #arrivals: number[] = [];
  readonly #work: number[] = [];
  readonly #waiting: Waiting[] = [];
  #complaint = "";

  /** @param atMs when the bytes were read, by a clock that never goes back */
  push(bytes: Uint8Array, atMs: number): void {
    for (const byte of bytes) {
      if (byte < TICK_BIT) {
        this.#complaint += String.fromCharCode(byte);
        continue;
      }
      const before = this.#work.at(-1);
      const work = byte % WORK_MODULUS;
      this.#work.push(before === undefined ? work : before + ((work - (before % WORK_MODULUS) + WORK_MODULUS) % WORK_MODULUS));
      this.#arrivals.push(atMs);
    }
    for (const waiting of this.#waiting.splice(0)) this.#settle(waiting);
  }

  #settle(waiting: Waiting): void {
    if (this.#complaint !== "") waiting.reject(new Error(`The guest stopped: ${this.#complaint}`));
    else if (this.#arrivals.length >= waiting.count) waiting.resolve();
    else this.#waiting.push(waiting);
  }

  /** Resolves when so many ticks have come. @throws {Error} if the guest stops before */
  reached(count: number): Promise<void> {
    return new Promise((resolve, reject) => this.#settle({ count, resolve, reject }));
  }

  /** When the ticks were read. */
  get arrivals(): readonly number[] {
    return this.#arrivals;
  }

  /** Share of its work that the guest did between two moments; see `workShare`. */
  workShareFrom(atMs: number, untilMs = Number.POSITIVE_INFINITY): number | undefined {
    return workShare(this.#arrivals, this.#work, atMs, untilMs);
  }
}

/**
 * Share of its work that a guest did between two moments, 0 to 1 and a little more where it caught up; undefined unless it told of it twice.
 * @param toldMs when it told, ascending. @param workMs how far it was then, in ms of the work that is due in that time
 */
export function workShare(
  toldMs: readonly number[],
  workMs: readonly number[],
  fromMs: number,
  untilMs = Number.POSITIVE_INFINITY,
): number | undefined {
  const first = toldMs.findIndex((told) => told >= fromMs);
  const last = toldMs.findLastIndex((told) => told <= untilMs);
  const [from, until, done, doneAtEnd] = [toldMs[first], toldMs[last], workMs[first], workMs[last]];
  if (from === undefined || until === undefined || done === undefined || doneAtEnd === undefined || until <= from) return undefined;
  return (doneAtEnd - done) / (until - from);
}

/**
 * Longest time between two ticks, from `marginMs` before the source's last to `marginMs` after the target's first.
 * @param source arrivals, ascending, as are those of `target`, by one clock
 * @returns undefined if either side never ticked
 */
export function tickGapMs(source: readonly number[], target: readonly number[], marginMs: number): number | undefined {
  const [last, first] = [source.at(-1), target[0]];
  if (last === undefined || first === undefined) return undefined;
  const around = [...source, ...target]
    .filter((at) => at >= last - marginMs && at <= first + marginMs)
    .toSorted((one, other) => one - other);
  return Math.max(...around.slice(1).map((at, before) => at - (around[before] ?? at)));
}
