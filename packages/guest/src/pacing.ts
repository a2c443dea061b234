import type { WorkloadContext } from "./workload.js";
import { fastestOf, momentOf, patternOf, steadyMs } from "./write-pattern.js";
import type { WritePattern } from "./write-pattern.js";

/** Writes a step at most, so that a step stays short. */
const BATCH = 32;
/** A paced writer sleeps at least this long, so that it does not spend its time on waking up. */
const REST_MS = 0.5;
/** A writer that fell further behind than this gives up the arrears instead of catching up. */
const ARREARS_MS = 50;

/**
 * When a writer writes, by the options `rate` (pages/s, 0 for as fast as it can, always) and `pattern` (by the guest's clock). A step asks `take` how many writes are due, makes them,
 * and returns `restMs`. Nothing here survives a migration: a program calls `restart` in `boot` and in `load`.
 */
export class Pacing {
  readonly #context: Pick<WorkloadContext, "options" | "now">;
  readonly #rate: number;
  readonly #pattern: WritePattern;
  #startedAtMs: number;
  #elapsedMs = 0; // at the last `take`
  #taken = 0; // since #startedAtMs

  constructor(context: Pick<WorkloadContext, "options" | "now">) {
    this.#context = context;
    this.#rate = Number(context.options["rate"] ?? 0);
    this.#pattern = patternOf(context.options["pattern"]);
    this.#startedAtMs = context.now();
  }

  /** Nothing is due from before now. */
  restart(): void {
    this.#startedAtMs = this.#context.now();
    this.#elapsedMs = 0;
    this.#taken = 0;
  }

  /** How many writes to make in this step, at most BATCH; they count as made. */
  take(): number {
    if (this.#rate === 0) return BATCH;
    this.#elapsedMs = this.#context.now() - this.#startedAtMs;
    const due = this.#due() - this.#taken;
    if (due > (this.#rate * fastestOf(this.#pattern) * ARREARS_MS) / 1000 + BATCH) {
      this.restart();
      return 0;
    }
    const writes = Math.min(Math.floor(due), BATCH);
    this.#taken += writes;
    return writes;
  }

  /** After the writes of `take`: ms until another one is due, 0 if one is. */
  restMs(): number {
    if (this.#rate === 0 || this.#taken + 1 <= this.#due()) return 0;
    const steady = steadyMs(this.#pattern, this.#startedAtMs) + ((this.#taken + 1) * 1000) / this.#rate;
    return Math.max(momentOf(this.#pattern, steady) - this.#startedAtMs - this.#elapsedMs, REST_MS);
  }

  #due(): number {
    const workMs = steadyMs(this.#pattern, this.#startedAtMs + this.#elapsedMs) - steadyMs(this.#pattern, this.#startedAtMs);
    return (workMs * this.#rate) / 1000;
  }
}
