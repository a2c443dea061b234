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
  readonly collections: number;
  readonly copiedPages: number;
  /** Pages of the copy that are not as in the guest, with the writers stopped and everything collected: a lost write each. */
  readonly differing: readonly number[];
}

/**
 * Two threads write random words at full speed until `leastWrites`, then every page once more, while this thread collects and copies
 * what was collected. Then they stop, a last collection is copied, and both images are compared byte for byte.
 * The sweep at the end makes a lost page stay lost: no later write brings it back.
 */
export async function copyWhileWritten(guest: TrackedGuest, leastWrites: number, seed: number): Promise<CopyResult> {
  const { memory, log, barrier } = guest;
  const copy = Buffer.alloc(memory.bytes);
  const control = new Int32Array(new SharedArrayBuffer(8));
  const into = new Bitmap(memory.pages);
  let collections = 0;
  let copiedPages = 0;
  const copyListed = (): void => {
    collections++;
    into.forEachRun(0, 1, (first, pages) => {
      copy.set(memory.view(first, pages), first * PAGE_BYTES);
      copiedPages += pages;
    });
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
      if (Atomics.load(control, 1) >= leastWrites) Atomics.store(control, 0, 1);
      await setImmediate();
    }
    await Promise.all(ends);
    collect();
  };

  log.start(into);
  copyListed();
  await copyDuring("random");
  await copyDuring("sweep");
  const differing: number[] = [];
  for (let page = 0; page < memory.pages; page++)
    if (Buffer.compare(memory.view(page, 1), copy.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)) !== 0) differing.push(page);
  return { writes: Atomics.load(control, 1), collections, copiedPages, differing };
}
