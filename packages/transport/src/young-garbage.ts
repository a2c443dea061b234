import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { trimHeap } from "@precopy/linux";

const COLLECT_BYTES = 4 * 2 ** 20;

/** The flag is the whole process's, and other threads do this, too: so it stays set. Only contexts made from here on have a `gc`. */
function collector(): () => void {
  setFlagsFromString("--expose-gc");
  const collect: unknown = runInNewContext("globalThis.gc");
  return typeof collect === "function" ? () => void collect({ type: "minor" }) : () => {};
}
let collect: (() => void) | undefined; // this thread's; a context costs a millisecond
let bytes = 0;
let isClean = true;

/**
 * Says that buffers of so many bytes were made and will not be used any more; 4 MiB of them are collected. V8 takes memory outside its heap
 * for cheap until there are 32 MiB and more of it in each thread, and by then the next buffer is in no processor's cache.
 * @returns true if it collected: what an addon allocated is freed in the next turn of the event loop.
 */
export function dropped(dropping: number): boolean {
  bytes += dropping;
  isClean = false;
  if (bytes < COLLECT_BYTES) return false;
  bytes = 0;
  collect ??= collector();
  collect();
  return true;
}

/** All of it, and back to the system: at the end of a channel, for its thread may wait for the next one for days. */
export function collectDropped(): void {
  if (isClean) return;
  isClean = true;
  bytes = 0;
  collect ??= collector();
  collect();
  setImmediate(trimHeap); // behind what addons free
}
