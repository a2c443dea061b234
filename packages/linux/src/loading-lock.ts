import { setTimeout as sleep } from "node:timers/promises";
import { workerData } from "node:worker_threads";

const FREE = 0;
const LOADING = 1;
const STOPPED = 2;

const NAME = "precopy.loadingLock";
const POLL_MS = 1;

/**
 * Between a thread that loads native code and whoever stops it. Stopped by Node in the middle of that, the thread cannot throw what the addon
 * wants to throw, and the whole process aborts. So whoever comes first has it: the thread loads to the end, or it does not begin.
 */
export class LoadingLock {
  readonly #word: Int32Array;

  constructor(word: Int32Array = new Int32Array(new SharedArrayBuffer(4))) {
    this.#word = word;
  }

  /** For the `workerData` of the thread that shall take it. */
  share(): Readonly<Record<string, Int32Array>> {
    return { [NAME]: this.#word };
  }

  /** Of the thread that this runs in; one of its own, which nobody else takes, if nobody gave it any. */
  static ofThisThread(): LoadingLock {
    const given: unknown = typeof workerData === "object" && workerData !== null ? Reflect.get(workerData, NAME) : undefined;
    return new LoadingLock(given instanceof Int32Array ? given : undefined);
  }

  /** Runs `load`, which must not call this itself. Never returns in a thread that is being stopped. */
  hold<T>(load: () => T): T {
    // Free to loading in one step: had it been seen free first, `stop` could come between, and the thread would end inside of `load`.
    while (Atomics.compareExchange(this.#word, 0, FREE, LOADING) !== FREE) Atomics.wait(this.#word, 0, STOPPED);
    try {
      return load();
    } finally {
      Atomics.store(this.#word, 0, FREE);
    }
  }

  /** Resolves when the thread is not loading, and will not load any more. */
  async stop(): Promise<void> {
    while (Atomics.compareExchange(this.#word, 0, FREE, STOPPED) === LOADING) await sleep(POLL_MS);
  }
}
