import { workerData } from "node:worker_threads";
import { GuestMemory, MemoryAccess } from "@precopy/guest";
import type { SharedBarrier, SharedMemory } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";

/** What a hostile writer does: random words until told to stop, or every page of its share exactly once. */
export interface WriterOrder {
  readonly task: "random" | "sweep";
  readonly memory: SharedMemory;
  /** Given: it writes through the accessor. Undefined: with plain stores that nobody else knows of. */
  readonly barrier: SharedBarrier | undefined;
  readonly seed: number;
  readonly writer: number;
  readonly writers: number;
  /** Word 0: stop. Word 1: words written by all writers. */
  readonly control: Int32Array;
}

// Whoever starts this file passes exactly this.
const { task, memory: shared, barrier, seed, writer, writers, control } = workerData as WriterOrder;
const memory = new GuestMemory(shared);
const access = new MemoryAccess(memory, barrier);
const words = memory.views.map((view) => new Uint32Array(view.buffer, view.byteOffset, view.byteLength / 4))[0]!; // a guest has a first segment
const store =
  barrier === undefined
    ? (word: number, value: number): void => {
        words[word] = value;
      }
    : (word: number, value: number): void => access.storeU32(word * 4, value);

/** xorshift32. */
let x = seed | 1;
const next = (): number => {
  x ^= x << 13;
  x ^= x >>> 17;
  x ^= x << 5;
  return x >>> 0;
};

const BATCH = 64;
const STEP = 5003;
if (task === "random") {
  while (Atomics.load(control, 0) === 0) {
    for (let write = 0; write < BATCH; write++) store(next() % words.length, next());
    Atomics.add(control, 1, BATCH);
  }
} else {
  // Every page of its share once, in an order that jumps about: a prime step meets each before any comes twice.
  const pageWords = PAGE_BYTES / 4;
  const share = Math.floor((memory.pages - writer - 1) / writers) + 1;
  for (let turn = 0; turn < share; turn++) {
    const page = writer + writers * ((turn * STEP + seed) % share);
    store(page * pageWords + (next() % pageWords), next());
  }
  Atomics.add(control, 1, share);
}
