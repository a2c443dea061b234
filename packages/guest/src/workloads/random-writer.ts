import { PAGE_BYTES, MigrationError } from "@precopy/protocol";
import { fillRegion } from "../fill.js";
import type { Program, Workload, WorkloadContext } from "../workload.js";

/** Writes a step at most, so that a step stays short. */
const BATCH = 32;
/** A paced writer sleeps at least this long, so that it does not spend its time on waking up. */
const REST_MS = 0.5;
/** A writer that fell further behind than this gives up the arrears instead of catching up. */
const ARREARS_MS = 50;
/** The hot part of the working set: one tenth. */
const HOT_SHARE = 10;

interface Registers {
  readonly random: number;
  readonly written: number;
}
const isRegisters = (value: unknown): value is Registers =>
  typeof value === "object" &&
  value !== null &&
  "random" in value &&
  "written" in value &&
  typeof value.random === "number" &&
  typeof value.written === "number";

/**
 * Writes 64 bytes to one uniformly random page after another. Options: rate (pages/s, 0 for as fast as it can), workingSet (bytes from the
 * start of the region, default all of it), hotFraction (0 to 1: share of the writes that goes to the first tenth), fill, fillKind.
 */
class RandomWriter implements Program {
  readonly #context: WorkloadContext;
  readonly #rate: number;
  readonly #pages: number;
  readonly #hotFraction: number;
  #random = 0x2545f491;
  #written = 0;
  #dueFrom: number;
  #done = 0; // since #dueFrom

  constructor(context: WorkloadContext) {
    const { options, region } = context;
    const workingSet = Number(options["workingSet"] ?? 0) || region.bytes;
    if (workingSet > region.bytes || workingSet < PAGE_BYTES)
      throw new MigrationError("ERR_PARAMETER", `Working set of ${workingSet} B in a region of ${region.bytes} B`);
    this.#context = context;
    this.#rate = Number(options["rate"] ?? 0);
    this.#pages = Math.floor(workingSet / PAGE_BYTES);
    this.#hotFraction = Number(options["hotFraction"] ?? 0);
    this.#dueFrom = context.now();
  }

  boot(): void {
    fillRegion(this.#context);
    this.#dueFrom = this.#context.now();
  }

  step(): number {
    const elapsedMs = this.#context.now() - this.#dueFrom;
    const due = this.#rate === 0 ? this.#done + BATCH : (elapsedMs * this.#rate) / 1000;
    if (this.#rate > 0 && due - this.#done > (this.#rate * ARREARS_MS) / 1000 + BATCH) {
      this.#startOver();
      return 0;
    }
    const end = Math.min(Math.floor(due), this.#done + BATCH);
    while (this.#done < end) this.#write();
    if (this.#done + 1 <= due || this.#rate === 0) return 0;
    return Math.max(((this.#done + 1) * 1000) / this.#rate - elapsedMs, REST_MS);
  }

  #startOver(): void {
    this.#dueFrom = this.#context.now();
    this.#done = 0;
  }

  #write(): void {
    const { memory, region } = this.#context;
    const isHot = this.#hotFraction > 0 && this.#next() < this.#hotFraction * 2 ** 32;
    const page = this.#next() % (isHot ? Math.max(1, Math.floor(this.#pages / HOT_SHARE)) : this.#pages);
    const line = region.start + page * PAGE_BYTES + (this.#next() % 64) * 64;
    for (let word = 0; word < 64; word += 4) memory.storeU32(line + word, this.#next());
    this.#written++;
    this.#done++;
  }

  /** xorshift32 (Marsaglia 2003). */
  #next(): number {
    let x = this.#random;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#random = x;
    return x >>> 0;
  }

  save(): Registers {
    return { random: this.#random, written: this.#written };
  }

  load(registers: unknown): void {
    if (!isRegisters(registers)) throw new MigrationError("ERR_WORKLOAD_FAILED", "random-writer: these are not its registers");
    this.#random = registers.random | 0;
    this.#written = registers.written;
    this.#startOver();
  }
}

const randomWriter: Workload = { create: (context) => new RandomWriter(context) };
export default randomWriter;
