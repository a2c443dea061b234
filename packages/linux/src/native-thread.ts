import { Worker } from "node:worker_threads";
import type { WorkerOptions } from "node:worker_threads";
import { LoadingLock } from "./loading-lock.js";

/** A worker thread that may call native code, and posts its first message when it has loaded its modules. It can be stopped at any moment. */
export class NativeThread extends Worker {
  readonly #up: Promise<void>;
  readonly #loading: LoadingLock;

  constructor(module: string | URL, options?: Omit<WorkerOptions, "workerData">) {
    const loading = new LoadingLock();
    super(module, { ...options, workerData: loading.share() });
    this.#loading = loading;
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

  /** @param onTold called when the thread is bound to end at its next step, though it may be stopped at a page that is missing. */
  override async terminate(onTold: () => void = () => {}): Promise<number> {
    await this.#up.catch(() => {}); // modules may be addons themselves
    await this.#loading.stop();
    const ended = super.terminate();
    onTold();
    return ended;
  }
}
