import { Worker } from "node:worker_threads";
import type { WorkerOptions } from "node:worker_threads";

/**
 * A worker thread that loads koffi, and posts its first message when it has loaded all of its modules. Stopped by Node in the middle of
 * loading a native addon, the thread cannot throw what the addon wants to throw, and the whole process aborts: so `terminate` waits.
 */
export class NativeThread extends Worker {
  readonly #up: Promise<void>;

  constructor(module: string | URL, options?: WorkerOptions) {
    super(module, options);
    this.#up = new Promise((resolve, reject) => {
      this.once("message", () => resolve());
      this.once("error", reject);
      this.once("exit", (code) => reject(new Error(`The thread ended with ${code} before it was up`)));
    });
    this.#up.catch(() => {}); // whoever asks is told
  }

  /** Resolves when its modules are loaded. @throws what the thread threw before that */
  up(): Promise<void> {
    return this.#up;
  }

  override async terminate(): Promise<number> {
    await this.#up.catch(() => {});
    return super.terminate();
  }
}
