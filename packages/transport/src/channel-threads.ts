import { NativeThread } from "@precopy/linux";

/** Threads that wait for a channel: starting one takes 30 to 50 ms. */
export class ChannelThreads {
  readonly #idle: NativeThread[] = [];
  #isEnded = false;

  async prepare(count: number): Promise<void> {
    const fresh = Array.from({ length: Math.max(0, count - this.#idle.length) }, () => this.#start());
    this.#idle.push(...fresh);
    await Promise.all(fresh.map((thread) => thread.up()));
  }

  #start(): NativeThread {
    // Pages pass through buffers outside the heap; without a bound, V8 keeps up to 48 MiB of young generation for each thread.
    const thread = new NativeThread(new URL("./channel-thread.js", import.meta.url), { resourceLimits: { maxYoungGenerationSizeMb: 4 } });
    // One that fails while it waits here concerns nobody, and is not lent again: an agent with a guest must not end for it.
    thread
      .on("error", () => {})
      .once("exit", () => {
        const at = this.#idle.indexOf(thread);
        if (at >= 0) this.#idle.splice(at, 1);
      });
    return thread;
  }

  take(): NativeThread {
    return this.#idle.pop() ?? this.#start();
  }

  /** Only after its channel has ended. */
  give(thread: NativeThread): void {
    if (this.#isEnded) void thread.terminate();
    else this.#idle.push(thread);
  }

  /** Ends the threads that wait here, and each that is lent as soon as it is given back. */
  async end(): Promise<void> {
    this.#isEnded = true;
    await Promise.all(this.#idle.splice(0).map((thread) => thread.terminate()));
  }
}
