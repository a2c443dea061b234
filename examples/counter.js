import { writeSync } from "node:fs";

/**
 * A workload of one's own: counts to the thousand a second and remembers the last SLOTS numbers in a ring.
 *
 *   guest memory, from the start of the region: 0 the counter, u32 | from 4096 the ring, SLOTS words
 *   registers: the counter once more, and how often the guest has moved
 *
 * Run it with `precopy source --workload counter=examples/counter.js` (docs/own-workload.md).
 */
const SLOTS = 1024;
const RING_AT = 4096;

/** @param {unknown} value @returns {value is { count: number, moves: number }} */
const areRegisters = (value) =>
  typeof value === "object" &&
  value !== null &&
  "count" in value &&
  "moves" in value &&
  Number.isInteger(value.count) &&
  Number.isInteger(value.moves);

/** @implements {Program} */
class Counter {
  #memory;
  #start;
  #count = 0;
  #moves = 0;
  #hasArrived = false;

  /** Runs on both sides, before any page has arrived: looks at the context, and leaves guest memory alone. @param {WorkloadContext} context */
  constructor({ memory, region }) {
    if (region.bytes < RING_AT + SLOTS * 4) throw new Error(`counter: a region of ${region.bytes} B is too small`);
    this.#memory = memory;
    this.#start = region.start;
  }

  /** One number a millisecond. */
  step() {
    if (this.#hasArrived) this.#checkArrival();
    this.#count++;
    this.#memory.storeU32(this.#slotOf(this.#count), this.#count);
    this.#memory.storeU32(this.#start, this.#count);
    return 1;
  }

  save() {
    return { count: this.#count, moves: this.#moves };
  }

  /** Pages may still be on their way: guest memory is looked at in the first step. @param {unknown} registers */
  load(registers) {
    if (!areRegisters(registers)) throw new Error("counter: these are not its registers");
    this.#count = registers.count;
    this.#moves = registers.moves + 1;
    this.#hasArrived = true;
  }

  /** Memory and registers must be of the same moment, and the ring without a gap. */
  #checkArrival() {
    this.#hasArrived = false;
    const oldest = Math.max(1, this.#count - SLOTS + 1);
    let isRight = this.#memory.loadU32(this.#start) === this.#count;
    for (let number = oldest; number <= this.#count; number++) isRight &&= this.#memory.loadU32(this.#slotOf(number)) === number;
    // console.log would wait for this thread's event loop, to which a running vCPU never returns.
    writeSync(2, `counter: move ${this.#moves}, goes on after ${this.#count}, ring ${isRight ? "in order" : "DAMAGED"}\n`);
    if (!isRight) throw new Error("counter: memory and registers do not fit together");
  }

  /** @param {number} number */
  #slotOf(number) {
    return this.#start + RING_AT + (number % SLOTS) * 4;
  }
}

/** @typedef {import("@precopy/guest").Program} Program */
/** @typedef {import("@precopy/guest").WorkloadContext} WorkloadContext */
/** @type {import("@precopy/guest").Workload} */
const counter = { create: (context) => new Counter(context) };
export default counter;
