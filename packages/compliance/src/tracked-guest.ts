import { readFileSync } from "node:fs";
import { Bitmap, GuestMemory, MemoryAccess, SegmentPool } from "@precopy/guest";
import type { DirtyLog, SharedBarrier } from "@precopy/guest";
import { freePages, isLinuxAvailable } from "@precopy/linux";

/** A log over `memory`, and the barrier its writers must mark, if it needs one. */
export type MakeLog = (memory: GuestMemory) => { readonly log: DirtyLog; readonly barrier: SharedBarrier | undefined };

/** Guest memory with a dirty log over it, and the way a well-behaved program writes there. */
export interface TrackedGuest {
  readonly memory: GuestMemory;
  readonly access: MemoryAccess;
  readonly log: DirtyLog;
  readonly barrier: SharedBarrier | undefined;
}

const pool = new SegmentPool();

/** Lends never-touched memory and gives it back afterwards, however `use` ends. */
export async function withTrackedGuest<T>(bytes: number, makeLog: MakeLog, use: (guest: TrackedGuest) => T | Promise<T>): Promise<T> {
  const memory = GuestMemory.allocate(bytes, pool);
  const { log, barrier } = makeLog(memory);
  try {
    return await use({ memory, access: new MemoryAccess(memory, barrier), log, barrier });
  } finally {
    log.stop();
    // Without system calls memory cannot become never-touched again, so it is not lent twice.
    if (isLinuxAvailable) {
      for (const { address, bytes: length } of memory.ranges()) freePages(address, length);
      pool.give(memory.segments);
    }
  }
}

/** What one call of `start` or `collect` lists. */
export function listed(memory: GuestMemory, fill: (into: Bitmap) => void): number[] {
  const into = new Bitmap(memory.pages);
  fill(into);
  const pages: number[] = [];
  into.forEachRun((first, count) => {
    for (let page = first; page < first + count; page++) pages.push(page);
  });
  return pages;
}

/** When the kernel of this host uses huge pages by itself. */
function hugePages(): "always" | "madvise" | "never" {
  if (process.platform !== "linux") return "never";
  try {
    const choice = readFileSync("/sys/kernel/mm/transparent_hugepage/enabled", "utf8");
    return choice.includes("[always]") ? "always" : choice.includes("[madvise]") ? "madvise" : "never";
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return "never"; // a kernel without huge pages
    throw error;
  }
}
/** Small pages in a huge one. */
export const HUGE_PAGES = 512;
/** How far from a written page the kernel may count pages as written: a whole huge page, where it backs memory with them unasked. */
export const NEIGHBOUR_PAGES = hugePages() === "always" ? HUGE_PAGES : 0;
export const whyNoHugePages: string | undefined = hugePages() === "never" ? "this kernel is set to use no huge pages" : undefined;
