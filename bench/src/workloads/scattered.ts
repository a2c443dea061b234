import { randomFillSync } from "node:crypto";
import type { Program, Workload, WorkloadContext } from "@precopy/guest";

/** Of so many pages one is populated. */
export const SCATTERED_SHARE = 8;
const REST_MS = 1000;

/**
 * Populates an eighth of its region with random data, in runs of `fill` bytes with the same gap between any two, and then does nothing.
 * It is `fill` because the command line gives a workload no other option, and only to the last vCPU.
 */
class Scattered implements Program {
  readonly #context: WorkloadContext;

  constructor(context: WorkloadContext) {
    this.#context = context;
  }

  boot(): void {
    const { memory, options, region } = this.#context;
    const run = new Uint8Array(Number(options["fill"]));
    for (let at = 0; at + run.byteLength <= region.bytes; at += SCATTERED_SHARE * run.byteLength)
      memory.write(region.start + at, randomFillSync(run));
  }

  step(): number {
    return REST_MS;
  }

  save(): null {
    return null;
  }

  load(): void {}
}

const scattered: Workload = { create: (context) => new Scattered(context) };
export default scattered;
