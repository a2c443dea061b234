import { readFileSync } from "node:fs";
import { declare, declareOptional, systemCallError } from "./library.js";

const madvise = declare("int madvise(uintptr_t address, size_t bytes, int advice)");
const MADV_DONTNEED = 4;
const MADV_HUGEPAGE = 14;
const MADV_NOHUGEPAGE = 15;
/** One call stays under a few ms, so that the thread stays responsive. */
export const FREE_SLICE_BYTES = 64 * 2 ** 20;

/**
 * Lets the kernel populate a range with huge pages, or no longer. Filling one takes a fifth of the time of its 512 small ones, and its first
 * byte costs 2 MiB. Advice: where there are none nothing happens, and a process whose address space is in too many parts already keeps it.
 */
export function adviseHugePages(address: bigint, bytes: number, isWanted: boolean): void {
  madvise(address, bytes, isWanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

/** Gives a range back to the system; it reads as zeros afterwards. Call it off the main thread: 1 GiB takes some 50 ms. @throws ERR_SYSTEM_CALL */
export function freePages(address: bigint, bytes: number): void {
  for (let at = 0; at < bytes; at += FREE_SLICE_BYTES) {
    const slice = Math.min(FREE_SLICE_BYTES, bytes - at);
    if (madvise(address + BigInt(at), slice, MADV_DONTNEED) !== 0) throw systemCallError("madvise");
  }
}

const mallocTrim = declareOptional("int malloc_trim(size_t keep)");

/** Gives back what the C library keeps of freed buffers, in every thread's arena; does nothing where it has no such call. */
export function trimHeap(): void {
  mallocTrim(0);
}

/** Bytes the system can give without swapping (MemAvailable); undefined where it does not say. */
export function availableMemoryBytes(): number | undefined {
  if (process.platform !== "linux") return undefined;
  const kib = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"))?.[1];
  return kib === undefined ? undefined : Number(kib) * 1024;
}
