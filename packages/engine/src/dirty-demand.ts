import type { VcpuActivity } from "@precopy/guest";

/** What a vCPU did longer ago than this, in time that it ran, hardly counts any more. */
const MEMORY_MS = 100;
/** A shorter look tells nothing. */
const LOOK_MS_MIN = 20;
/** What is counted is compared with what was collected if it was at least so much. */
const SCALE_PAGES_MIN = 256;
/** A count that is wrong by more than this factor counts something else. */
const SCALE_MAX = 8;
/** Nobody runs for less and dirties something: a step takes as long. */
const RAN_MS_MIN = 0.05;

/** Pages dirtied, and the time that it took; both fade while the vCPU runs. */
interface Record {
  pages: number;
  ranMs: number;
}

/**
 * What each vCPU would dirty if nothing were withheld of it, told from counters of what it did and how long it stood: pages over the time that it ran.
 * One that hardly ran shows hardly anything new, so what was known of it stays.
 */
export class DirtyDemand {
  #before: readonly VcpuActivity[] = [];
  #atMs = 0;
  #counted = 0; // since the last collection, all vCPUs
  /** Pages collected for each one counted: a fault may be of something else than guest memory, or of many pages at once. */
  #scale = 1;
  #records: Record[] = [];
  #peaks: number[] = []; // of the looks since the last collection; empty before one

  /** Pages/s of each vCPU. */
  get perVcpu(): readonly number[] {
    return this.#records.map(({ pages, ranMs }) => (ranMs === 0 ? 0 : (pages * this.#scale * 1000) / ranMs));
  }

  /**
   * Looks at the counters. A page counts once between two collections, so a small working set wants less and less while a round lasts.
   * @returns pages dirtied since the last look by all, and over which time; nothing if it was only just now.
   */
  look(now: readonly VcpuActivity[], nowMs: number): { readonly dirtiedPages: number; readonly elapsedMs: number } {
    const elapsedMs = nowMs - this.#atMs;
    const before = this.#before;
    const isFirst = before.length !== now.length;
    if (!isFirst && elapsedMs < LOOK_MS_MIN) return { dirtiedPages: 0, elapsedMs: 0 };
    this.#before = now;
    this.#atMs = nowMs;
    if (isFirst) {
      this.#records = now.map(() => ({ pages: 0, ranMs: 0 }));
      return { dirtiedPages: 0, elapsedMs: 0 };
    }
    let counted = 0;
    now.forEach(({ dirtiedPages, withheldMs }, at) => {
      const dirtied = Math.max(dirtiedPages - (before[at]?.dirtiedPages ?? 0), 0); // a thread that has ended counts no more
      const ranMs = Math.min(Math.max(elapsedMs - (withheldMs - (before[at]?.withheldMs ?? 0)), RAN_MS_MIN), elapsedMs);
      counted += dirtied;
      const record = this.#records[at]!; // as many as there are counters
      const faded = Math.exp(-ranMs / MEMORY_MS);
      record.pages = record.pages * faded + dirtied;
      record.ranMs = record.ranMs * faded + ranMs;
    });
    this.#peaks = this.perVcpu.map((rate, at) => Math.max(rate, this.#peaks[at] ?? 0));
    this.#counted += counted;
    return { dirtiedPages: counted * this.#scale, elapsedMs };
  }

  /** Right after a collection: every page is clean again, so each vCPU wants what it wanted at most since the one before. */
  collected(pages: number): void {
    this.#peaks.forEach((rate, at) => {
      const record = this.#records[at]!;
      record.ranMs = Math.max(record.ranMs, RAN_MS_MIN);
      record.pages = (rate * record.ranMs) / 1000 / this.#scale;
    });
    this.#peaks = [];
    if (this.#counted >= SCALE_PAGES_MIN && pages >= SCALE_PAGES_MIN)
      this.#scale = Math.min(Math.max(pages / this.#counted, 1 / SCALE_MAX), SCALE_MAX);
    this.#counted = 0;
  }
}
