import { Bitmap } from "./bitmap.js";
import type { DirtyLog, DirtyLogKind } from "./dirty-log.js";

/**
 * A log that loses one written page in `every`: the mistake that suite, audit and demo exist to find, so that each can be seen to fail.
 * Switched on by PRECOPY_FORGET_DIRTY=N together with --fault-points, and never otherwise.
 */
export class ForgetfulDirtyLog implements DirtyLog {
  readonly kind: DirtyLogKind;
  readonly #log: DirtyLog;
  readonly #every: number;
  readonly #pages: number;
  #seen = 0;

  constructor(log: DirtyLog, every: number, pages: number) {
    this.kind = log.kind;
    this.#log = log;
    this.#every = every;
    this.#pages = pages;
  }

  start(into: Bitmap): void {
    this.#log.start(into);
  }

  collect(into: Bitmap, known?: Bitmap): void {
    const found = new Bitmap(this.#pages);
    this.#log.collect(found, known);
    found.forEachRun((first, pages) => {
      for (let page = first; page < first + pages; page++) if (++this.#seen % this.#every !== 0) into.setRun(page, 1);
    });
  }

  peek(into: Bitmap): void {
    this.#log.peek(into);
  }

  stop(): void {
    this.#log.stop();
  }
}
