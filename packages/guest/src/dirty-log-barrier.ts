import { MigrationError } from "@precopy/protocol";
import type { Bitmap } from "./bitmap.js";
import type { DirtyLog, FirstList } from "./dirty-log.js";

/** Shared words of one guest's barrier; goes through postMessage. */
export interface SharedBarrier {
  readonly marks: Uint32Array;
  readonly populated: Uint32Array;
}

export const allocateBarrier = (pages: number): SharedBarrier => {
  const words = (): Uint32Array => new Uint32Array(new SharedArrayBuffer(Math.ceil(pages / 32) * 4));
  return { marks: words(), populated: words() };
};

/** The writer's side. Call it after the store: store first, mark second (docs/adr/0003). */
export class WriteBarrier {
  readonly #marks: Uint32Array;
  readonly #populated: Uint32Array;
  /** Pages this writer was the first to mark since a collection, over all of them. */
  dirtied = 0;

  constructor({ marks, populated }: SharedBarrier) {
    this.#marks = marks;
    this.#populated = populated;
  }

  /**
   * Order matters. `populated` before `marks`: a collector that starts between the two finds the page in one of them. And always a
   * read-modify-write, never "is it set already?": only the locked instruction also drains the store of the data, without which a
   * collector could clear the mark and read the page before the data is visible.
   */
  mark(page: number): void {
    const word = page >>> 5;
    const bit = 1 << (page & 31);
    if ((this.#populated[word]! & bit) === 0) Atomics.or(this.#populated, word, bit); // bits here are never cleared while a guest lives
    if ((Atomics.or(this.#marks, word, bit) & bit) === 0) this.dirtied++;
  }

  markRun(firstPage: number, pages: number): void {
    for (let page = firstPage; page < firstPage + pages; page++) this.mark(page);
  }
}

/** Written pages, told by the writer; works on any platform. The map of pages ever written lives with the guest. */
export class BarrierDirtyLog implements DirtyLog {
  readonly kind = "barrier";
  readonly #marks: Uint32Array;
  readonly #populated: Uint32Array;
  readonly #firstList: FirstList;
  #isArmed = false;

  constructor({ marks, populated }: SharedBarrier, firstList: FirstList = "populated") {
    this.#marks = marks;
    this.#populated = populated;
    this.#firstList = firstList;
  }

  start(into: Bitmap): void {
    if (this.#isArmed) throw new MigrationError("ERR_ALREADY_TRACKING", "The dirty log is in use");
    this.#isArmed = true;
    for (let word = 0; word < this.#marks.length; word++) {
      // Marks first, then populated: a write whose mark is cleared here has its populated bit already.
      if (Atomics.load(this.#marks, word) !== 0) Atomics.exchange(this.#marks, word, 0);
      into.words[word]! |= Atomics.load(this.#populated, word);
    }
    if (this.#firstList === "all") into.setRun(0, into.pages);
  }

  collect(into: Bitmap): void {
    if (!this.#isArmed) throw new MigrationError("ERR_NOT_TRACKING", "collect() before start()");
    for (let word = 0; word < this.#marks.length; word++)
      if (Atomics.load(this.#marks, word) !== 0) into.words[word]! |= Atomics.exchange(this.#marks, word, 0);
  }

  peek(into: Bitmap): void {
    if (!this.#isArmed) throw new MigrationError("ERR_NOT_TRACKING", "peek() before start()");
    for (let word = 0; word < this.#marks.length; word++) into.words[word]! |= Atomics.load(this.#marks, word);
  }

  stop(): void {
    this.#isArmed = false;
  }
}
