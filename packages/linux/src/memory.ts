import { readFileSync } from "node:fs";
import { declare, declareOptional, systemCallError } from "./library.js";
import type { Pieces } from "./socket.js";

const madvise = declare("int madvise(uintptr_t address, size_t bytes, int advice)");
const MADV_DONTNEED = 4;
const MADV_HUGEPAGE = 14;
const MADV_NOHUGEPAGE = 15;
const MADV_DONTDUMP = 16;
/** One call stays under a few ms, so that the thread stays responsive. */
export const FREE_SLICE_BYTES = 64 * 2 ** 20;

/**
 * Lets the kernel populate a range with huge pages, or no longer. Filling one takes a fifth of the time of its 512 small ones, and its first
 * byte costs 2 MiB. Advice: where there are none nothing happens, and a process whose address space is in too many parts already keeps it.
 */
export function adviseHugePages(address: bigint, bytes: number, isWanted: boolean): void {
  madvise(address, bytes, isWanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

/** Keeps a range out of core dumps, whoever asks for one. */
export function leaveOutOfDumps(address: bigint, bytes: number): void {
  madvise(address, bytes, MADV_DONTDUMP);
}

/** Gives a range back to the system; it reads as zeros afterwards. Call it off the main thread: 1 GiB takes some 50 ms. @throws ERR_SYSTEM_CALL */
export function freePages(address: bigint, bytes: number): void {
  for (let at = 0; at < bytes; at += FREE_SLICE_BYTES) {
    const slice = Math.min(FREE_SLICE_BYTES, bytes - at);
    if (madvise(address + BigInt(at), slice, MADV_DONTNEED) !== 0) throw systemCallError("madvise");
  }
}

const SYS_PROCESS_MADVISE = 440;
const PIDFD_SELF = -10_001; // this thread's process
const processMadvise = declare("long syscall(long number, long process, void *pieces, size_t count, int advice, unsigned int flags)");

/**
 * Gives scattered pages back, as `freePages`, a thousand ranges a call where the kernel allows that of its own process (Linux 6.13): 0.7 us
 * a page instead of 3. @param pieces at most PIECES_MAX of them. @throws {MigrationError} ERR_SYSTEM_CALL
 */
export function freePieces({ words }: Pieces, count: number): void {
  let bytes = 0n;
  for (let at = 0; at < count; at++) bytes += words[2 * at + 1]!;
  if (count === 0 || BigInt(processMadvise(SYS_PROCESS_MADVISE, PIDFD_SELF, words, count, MADV_DONTNEED, 0)) === bytes) return;
  for (let at = 0; at < count; at++) if (madvise(words[2 * at]!, words[2 * at + 1]!, MADV_DONTNEED) !== 0) throw systemCallError("madvise"); // twice does no harm
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
