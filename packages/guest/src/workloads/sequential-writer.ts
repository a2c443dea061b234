import { PAGE_BYTES, MigrationError } from "@precopy/protocol";
import { fillRegion } from "../fill.js";
import { Pacing } from "../pacing.js";
import { workingSetPages } from "../working-set.js";
import type { Program, Workload, WorkloadContext } from "../workload.js";

/** Odd, so that different numbers stay different; scatters the bits (Knuth's multiplicative hash). */
const SCATTER = 0x9e3779b1;

interface Registers {
  readonly page: number;
  readonly lap: number;
}
const areRegisters = (value: unknown): value is Registers =>
  typeof value === "object" &&
  value !== null &&
  "page" in value &&
  "lap" in value &&
  Number.isSafeInteger(value.page) &&
  Number.isSafeInteger(value.lap);

/**
 * Writes 64 bytes to one page after another, in order, lap after lap. Each page of the working set is dirty again exactly one lap
 * (workingSet / rate) later, so no round dirties a page twice before all of them are dirty, and whether pre-copy converges depends on rate
 * against link only. Options: rate (pages/s, 0 for as fast as it can), pattern (steady, bursty, phases), workingSet (bytes from the start of the region, default all of it),
 * fill, fillKind.
 */
class SequentialWriter implements Program {
  readonly #context: WorkloadContext;
  readonly #pacing: Pacing;
  readonly #pages: number;
  /** To be written next; below #pages. */
  #page = 0;
  #lap = 0;

  constructor(context: WorkloadContext) {
    this.#context = context;
    this.#pages = workingSetPages(context);
    this.#pacing = new Pacing(context);
  }

  boot(): void {
    fillRegion(this.#context);
    this.#pacing.restart();
  }

  step(): number {
    for (let left = this.#pacing.take(); left > 0; left--) this.#write();
    return this.#pacing.restMs();
  }

  /** The 16 words differ from one another, so they are not all zero, and each from what it was a lap ago. */
  #write(): void {
    const { memory, region } = this.#context;
    const line = region.start + this.#page * PAGE_BYTES;
    const stamp = this.#lap + this.#page;
    for (let word = 0; word < 64; word += 4) memory.storeU32(line + word, Math.imul(stamp + word, SCATTER));
    this.#page++;
    if (this.#page < this.#pages) return;
    this.#page = 0;
    this.#lap++;
  }

  save(): Registers {
    return { page: this.#page, lap: this.#lap };
  }

  load(registers: unknown): void {
    if (!areRegisters(registers) || registers.page < 0 || registers.page >= this.#pages)
      throw new MigrationError("ERR_WORKLOAD_FAILED", "sequential-writer: these are not its registers");
    this.#page = registers.page;
    this.#lap = registers.lap;
    this.#pacing.restart();
  }
}

const sequentialWriter: Workload = { create: (context) => new SequentialWriter(context) };
export default sequentialWriter;
