import { PAGE_BYTES, MigrationError } from "@precopy/protocol";
import { fillRegion } from "../fill.js";
import { Pacing } from "../pacing.js";
import { workingSetPages } from "../working-set.js";
import type { Program, Workload, WorkloadContext } from "../workload.js";

/** The hot part of the working set: one tenth. */
const HOT_SHARE = 10;
/** For so long a hot spot that moves stays where it is. */
const MOVE_MS = 1000;

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
 * start of the region, default all of it), hotFraction (0 to 1: share of the writes that goes to one tenth of it, the first one), pattern (steady,
 * bursty, phases; moving: the hot tenth is another one each second), fill, fillKind.
 */
class RandomWriter implements Program {
  readonly #context: WorkloadContext;
  readonly #pacing: Pacing;
  readonly #pages: number;
  readonly #hotFraction: number;
  readonly #isMoving: boolean;
  #random = 0x2545f491;
  #written = 0;

  constructor(context: WorkloadContext) {
    this.#context = context;
    this.#pages = workingSetPages(context);
    this.#hotFraction = Number(context.options["hotFraction"] ?? 0);
    this.#isMoving = context.options["pattern"] === "moving";
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

  #write(): void {
    const { memory, region } = this.#context;
    const isHot = this.#hotFraction > 0 && this.#next() < this.#hotFraction * 2 ** 32;
    const page = isHot ? this.#hotPage() : this.#next() % this.#pages;
    const line = region.start + page * PAGE_BYTES + (this.#next() % 64) * 64;
    for (let word = 0; word < 64; word += 4) memory.storeU32(line + word, this.#next());
    this.#written++;
  }

  #hotPage(): number {
    const pages = Math.max(1, Math.floor(this.#pages / HOT_SHARE));
    const start = this.#isMoving ? (Math.floor(this.#context.now() / MOVE_MS) % HOT_SHARE) * pages : 0;
    return (start + (this.#next() % pages)) % this.#pages;
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
    this.#pacing.restart();
  }
}

const randomWriter: Workload = { create: (context) => new RandomWriter(context) };
export default randomWriter;
