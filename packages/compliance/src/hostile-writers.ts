import { once } from "node:events";
import { setImmediate } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { Bitmap } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";
import type { TrackedGuest } from "./tracked-guest.js";
import type { WriterOrder } from "./writer-thread.js";

const WRITERS = 2;

/** What came of copying a guest that was written all the time. */
export interface CopyResult {
  /** Words written altogether. */
  readonly writes: number;
  /** Those that listed something. */
  readonly collections: number;
  readonly copiedPages: number;
  /** Pages of the copy that are not as in the guest, with the writers stopped and everything collected: a lost write each. */
  readonly differing: readonly number[];
}

/**
 * Two threads write random words at full speed until `leastWrites` and `leastCollections`, then every page once more, while this thread collects and copies
 * what was collected. Then they stop, a last collection is copied, and both images are compared byte for byte.
 * `leastCollections` is what makes both overlap: two million plain stores take a few milliseconds. The sweep at the end makes a lost page stay lost: no later write brings it back.
 */
export async function copyWhileWritten(guest: TrackedGuest, leastWrites: number, leastCollections: number, seed: number): Promise<CopyResult> {
  const { memory, log, barrier } = guest;
  const copy = Buffer.alloc(memory.bytes);
  const control = new Int32Array(new SharedArrayBuffer(8));
  const into = new Bitmap(memory.pages);
  let collections = 0;
  let copiedPages = 0;
  const copyListed = (): void => {
    const before = copiedPages;
    into.forEachRun((first, pages) => {
      copy.set(memory.view(first, pages), first * PAGE_BYTES);
      copiedPages += pages;
    });
    if (copiedPages > before) collections++;
    into.clear();
  };
  const collect = (): void => {
    log.collect(into);
    copyListed();
  };
  const copyDuring = async (task: WriterOrder["task"]): Promise<void> => {
    let running = WRITERS;
    const ends = Array.from({ length: WRITERS }, async (_, writer) => {
      const order: WriterOrder = { task, memory: memory.share(), barrier, seed: seed + writer * 7919, writer, writers: WRITERS, control };
      await once(new Worker(new URL("./writer-thread.js", import.meta.url), { workerData: order }), "exit"); // an error rejects
      running--;
    });
    while (running > 0) {
      collect();
      if (Atomics.load(control, 1) >= leastWrites && collections >= leastCollections) Atomics.store(control, 0, 1);
      await setImmediate();
    }
    await Promise.all(ends);
    collect();
  };

  log.start(into);
  copyListed();
  try {
    await copyDuring("random");
    await copyDuring("sweep");
  } finally {
    Atomics.store(control, 0, 1); // a failure here must not leave the writers writing
  }
  const differing: number[] = [];
  for (let page = 0; page < memory.pages; page++)
    if (Buffer.compare(memory.view(page, 1), copy.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)) !== 0) differing.push(page);
  return { writes: Atomics.load(control, 1), collections, copiedPages, differing };
}
