import {
  BarrierDirtyLog,
  Bitmap,
  GuestMemory,
  MemoryAccess,
  MmuDirtyLog,
  SegmentPool,
  allocateBarrier,
  whyNoMmuDirtyLog,
} from "@precopy/guest";
import type { DirtyLog } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";
import type { Bench } from "../define-bench.js";
import { warmMemory } from "../warm-memory.js";

const GIB = 2 ** 30;
const DIRTY_PAGES = 10_000;
/** Coprime to every number of pages: strides reach all of them, and no two that follow one another are neighbours. */
const STRIDE = 7919;

interface LoggedMemory {
  readonly log: DirtyLog;
  readonly access: MemoryAccess;
}

/** One collection of DIRTY_PAGES scattered dirty pages in 1 GiB, ms. @throws {Error} if others were collected */
function collect(memory: GuestMemory, { log, access }: LoggedMemory): number {
  access.fill(0, GIB, 1);
  const into = new Bitmap(memory.pages);
  log.start(into);
  for (let page = 0; page < DIRTY_PAGES; page++) access.storeU32(((page * STRIDE) % memory.pages) * PAGE_BYTES, page);
  into.clear();
  const started = performance.now();
  log.collect(into);
  const ms = performance.now() - started;
  log.stop();
  if (into.count() !== DIRTY_PAGES) throw new Error(`collected ${into.count()} pages of ${DIRTY_PAGES}`);
  return ms;
}

const collection = (kind: "mmu" | "barrier", logOf: (memory: GuestMemory) => LoggedMemory): Bench => {
  const pool = new SegmentPool();
  return {
    name: `dirty-log-${kind}`,
    suite: "full",
    workload: { memory: "1GiB", "dirty-pages": DIRTY_PAGES },
    measure: async ({ pairs }) => {
      const reason = kind === "mmu" ? whyNoMmuDirtyLog() : undefined;
      if (reason !== undefined) return reason;
      const values = Array.from({ length: pairs }, () => {
        warmMemory(2 * GIB);
        const memory = GuestMemory.allocate(GIB, pool);
        const ms = collect(memory, logOf(memory));
        pool.give(memory.segments);
        return ms;
      });
      return { figures: [{ name: "collect", unit: "ms", better: "lower", values }] };
    },
  };
};

export const dirtyLogEntries: readonly Bench[] = [
  collection("mmu", (memory) => ({ log: new MmuDirtyLog(memory.ranges()), access: new MemoryAccess(memory, undefined) })),
  collection("barrier", (memory) => {
    const barrier = allocateBarrier(memory.pages);
    return { log: new BarrierDirtyLog(barrier), access: new MemoryAccess(memory, barrier) };
  }),
];
