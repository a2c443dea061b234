import { PAGE_BYTES, SEGMENT_BYTES } from "@precopy/protocol";
import { Bitmap } from "./bitmap.js";
import { BarrierDirtyLog } from "./dirty-log-barrier.js";
import type { SharedBarrier } from "./dirty-log-barrier.js";
import { MmuDirtyLog } from "./dirty-log-mmu.js";
import type { DirtyLog } from "./dirty-log.js";
import type { GuestMemory } from "./guest-memory.js";

const SEGMENT_PAGES = SEGMENT_BYTES / PAGE_BYTES;

/** A dirty log whose findings are put among all the guest's pages by `place`. */
class PartialDirtyLog implements DirtyLog {
  readonly #log: DirtyLog;
  readonly #found: Bitmap;
  readonly #place: (found: Bitmap, into: Bitmap) => void;

  /** @param pages that `log` knows */
  constructor(log: DirtyLog, pages: number, place: (found: Bitmap, into: Bitmap) => void) {
    this.#log = log;
    this.#found = new Bitmap(pages);
    this.#place = place;
  }

  get kind(): DirtyLog["kind"] {
    return this.#log.kind;
  }

  start(into: Bitmap): void {
    this.#tell(into, (found) => this.#log.start(found));
  }

  collect(into: Bitmap): void {
    this.#tell(into, (found) => this.#log.collect(found));
  }

  peek(into: Bitmap): void {
    this.#tell(into, (found) => this.#log.peek(found));
  }

  stop(): void {
    this.#log.stop();
  }

  #tell(into: Bitmap, ask: (found: Bitmap) => void): void {
    this.#found.clear();
    ask(this.#found);
    this.#place(this.#found, into);
  }
}

/** By the page tables: pages that are not watched cost the guest nothing. Its log knows the watched ones alone, one after another. */
function partialMmuDirtyLog(memory: GuestMemory, watched: Bitmap): DirtyLog {
  const runs: { readonly first: number; readonly pages: number }[] = [];
  watched.forEachRun((first, pages) => {
    for (const end = first + pages; first < end; ) {
      const count = Math.min(end - first, SEGMENT_PAGES - (first % SEGMENT_PAGES));
      runs.push({ first, pages: count });
      first += count;
    }
  });
  const log = new MmuDirtyLog(runs.map(({ first, pages }) => ({ address: BigInt(memory.addressOf(first)), bytes: pages * PAGE_BYTES })));
  return new PartialDirtyLog(log, watched.count(), (found, into) => {
    let base = 0;
    for (const { first, pages } of runs) {
      for (let page = 0; page < pages; page++) if (found.has(base + page)) into.setRun(first + page, 1);
      base += pages;
    }
  });
}

/** The writer tells of every page anyway: what is not watched is left out. */
const partialBarrierDirtyLog = (barrier: SharedBarrier, watched: Bitmap): DirtyLog =>
  new PartialDirtyLog(new BarrierDirtyLog(barrier), watched.pages, (found, into) => {
    found.intersect(watched);
    into.join(found);
  });

/**
 * A dirty log of the `watched` pages only; the bitmaps that it fills are of all the guest's pages. Not while another dirty log is armed on the
 * same memory. @param barrier given for the barrier log, undefined for mmu.
 */
export const partialDirtyLog = (memory: GuestMemory, barrier: SharedBarrier | undefined, watched: Bitmap): DirtyLog =>
  barrier === undefined ? partialMmuDirtyLog(memory, watched) : partialBarrierDirtyLog(barrier, watched);
