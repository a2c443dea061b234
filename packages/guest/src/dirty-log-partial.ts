import { PAGE_BYTES, SEGMENT_BYTES } from "@precopy/protocol";
import { Bitmap } from "./bitmap.js";
import { BarrierDirtyLog } from "./dirty-log-barrier.js";
import type { SharedBarrier } from "./dirty-log-barrier.js";
import { MmuDirtyLog } from "./dirty-log-mmu.js";
import type { DirtyLog } from "./dirty-log.js";
import type { GuestMemory } from "./guest-memory.js";

const SEGMENT_PAGES = SEGMENT_BYTES / PAGE_BYTES;

/**
 * Watches some of a guest's pages, by the page tables: all others cost the guest nothing. Not while another dirty log is armed on the same memory.
 * @param memory the bitmaps that it fills are of all its pages
 */
class PartialMmuDirtyLog implements DirtyLog {
  readonly kind = "mmu";
  readonly #log: MmuDirtyLog;
  readonly #runs: { readonly first: number; readonly pages: number }[] = [];
  /** Of the watched pages alone, one after another. */
  readonly #found: Bitmap;

  constructor(memory: GuestMemory, watched: Bitmap) {
    watched.forEachRun((first, pages) => {
      for (const end = first + pages; first < end; ) {
        const count = Math.min(end - first, SEGMENT_PAGES - (first % SEGMENT_PAGES));
        this.#runs.push({ first, pages: count });
        first += count;
      }
    });
    this.#found = new Bitmap(watched.count());
    this.#log = new MmuDirtyLog(
      this.#runs.map(({ first, pages }) => ({ address: BigInt(memory.addressOf(first)), bytes: pages * PAGE_BYTES })),
    );
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
    let base = 0;
    for (const { first, pages } of this.#runs) {
      for (let page = 0; page < pages; page++) if (this.#found.has(base + page)) into.setRun(first + page, 1);
      base += pages;
    }
  }
}

/** The writer tells of every page anyway: what is not watched is left out. */
class PartialBarrierDirtyLog implements DirtyLog {
  readonly kind = "barrier";
  readonly #log: BarrierDirtyLog;
  readonly #watched: Bitmap;

  constructor(barrier: SharedBarrier, watched: Bitmap) {
    this.#log = new BarrierDirtyLog(barrier);
    this.#watched = watched;
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
    const found = new Bitmap(this.#watched.pages);
    ask(found);
    found.intersect(this.#watched);
    into.join(found);
  }
}

/** A dirty log of the `watched` pages only. @param barrier given for the barrier log, undefined for mmu. */
export const partialDirtyLog = (memory: GuestMemory, barrier: SharedBarrier | undefined, watched: Bitmap): DirtyLog =>
  barrier === undefined ? new PartialMmuDirtyLog(memory, watched) : new PartialBarrierDirtyLog(barrier, watched);
