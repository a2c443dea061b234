import { once } from "node:events";
import { setImmediate } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { Bitmap } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";
import type { TrackedGuest } from "./tracked-guest.js";
import type { WriterOrder } from "./writer-thread.js";

const WRITERS = 2;
/** Collections that are joined before anything is copied: most of the time goes into collecting, where a write could slip through. */
const COLLECTIONS_A_COPY = 20;

/** How hard the guest is written. */
export interface Hardship {
  /** Random words, by both writers together. */
  readonly randomWrites: number;
  /** Copies during which they are written, at least: two million plain stores take a few milliseconds. */
  readonly copies: number;
  /** Passes that write every page once; a page lost in one stays lost. */
  readonly sweeps: number;
  readonly seed: number;
}
/** What came of copying a guest that was written all the time. */
export interface CopyResult {
  readonly writes: number;
  readonly collections: number;
  readonly copiedPages: number;
  /** Pages of the copy that were not as in the guest, with the writers stopped and everything collected: a lost write each. */
  readonly differing: readonly number[];
}

/**
 * Two threads write random words at full speed, then every page once in each sweep, while this thread collects and copies what was
 * collected. After each of these phases, with the writers stopped and everything collected, both images are compared byte for byte.
 */
export async function copyWhileWritten(guest: TrackedGuest, { randomWrites, copies, sweeps, seed }: Hardship): Promise<CopyResult> {
  const { memory, log, barrier } = guest;
  const copy = Buffer.alloc(memory.bytes);
  const control = new Int32Array(new SharedArrayBuffer(8));
  const into = new Bitmap(memory.pages);
  const differing = new Set<number>();
  let collections = 0;
  let copiedPages = 0;
  let filledCopies = 0;
  const copyListed = (): void => {
    const before = copiedPages;
    into.forEachRun((first, pages) => {
      copy.set(memory.view(first, pages), first * PAGE_BYTES);
      copiedPages += pages;
    });
    into.clear();
    if (copiedPages > before) filledCopies++;
  };
  const collect = (times: number): void => {
    for (let time = 0; time < times; time++) log.collect(into);
    collections += times;
    copyListed();
  };
  const compare = (): void => {
    for (let page = 0; page < memory.pages; page++)
      if (Buffer.compare(memory.view(page, 1), copy.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)) !== 0) differing.add(page);
  };
  const copyDuring = async (task: WriterOrder["task"], phase: number): Promise<void> => {
    let running = WRITERS;
    const ends = Array.from({ length: WRITERS }, async (_, writer) => {
      const order: WriterOrder = {
        task,
        memory: memory.share(),
        barrier,
        seed: seed + phase * 104729 + writer * 7919,
        writer,
        writers: WRITERS,
        control,
      };
      await once(new Worker(new URL("./writer-thread.js", import.meta.url), { workerData: order }), "exit"); // an error rejects
      running--;
    });
    while (running > 0) {
      collect(COLLECTIONS_A_COPY);
      if (Atomics.load(control, 1) >= randomWrites && filledCopies >= copies) Atomics.store(control, 0, 1);
      await setImmediate();
    }
    await Promise.all(ends);
    collect(1);
    compare();
  };

  log.start(into);
  copyListed();
  try {
    await copyDuring("random", 0);
    for (let sweep = 1; sweep <= sweeps; sweep++) await copyDuring("sweep", sweep);
  } finally {
    Atomics.store(control, 0, 1); // a failure here must not leave the writers writing
  }
  return { writes: Atomics.load(control, 1), collections, copiedPages, differing: [...differing] };
}
