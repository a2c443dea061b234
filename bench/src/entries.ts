import {
  Bitmap,
  BarrierDirtyLog,
  GuestMemory,
  MemoryAccess,
  MmuDirtyLog,
  SegmentPool,
  allocateBarrier,
  whyNoMmuDirtyLog,
} from "@precopy/guest";
import type { DirtyLog } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";
import { defineBench } from "./define-bench.js";
import type { Bench } from "./define-bench.js";
import { figures } from "./migrations.js";
import { PAUSE_ORDERS, pauses } from "./pause.js";

const GIB = 2 ** 30;
const LOADED = { memory: "8GiB", fill: "1GiB", "dirty-rate": "25k", "working-set": "64MiB" };
const args = (workload: Readonly<Record<string, string | number>>): string[] =>
  Object.entries(workload).flatMap(([key, value]) => [`--${key}`, String(value)]);

function downtime(name: string, extra: Record<string, string>, median: number): Bench {
  const workload = { ...LOADED, ...extra };
  return defineBench({
    name,
    unit: "ms",
    better: "lower",
    workload,
    runs: 1,
    promise: { median, row: "docs/promises.md" },
    warmBytes: 6 * GIB,
    run: () => figures(args(workload), 10, (report) => report.clocks["source-ms"]),
  });
}

const empty = { memory: "8GiB", fill: 0, workload: "idle" };
const collectPages = 10_000;

/** One collection of 10,000 scattered dirty pages in 1 GiB, milliseconds. */
function collect(makeLog: (memory: GuestMemory) => { log: DirtyLog; access: MemoryAccess }): () => Promise<number[]> {
  const pool = new SegmentPool();
  return async () => {
    const memory = GuestMemory.allocate(GIB, pool);
    const { log, access } = makeLog(memory);
    access.fill(0, GIB, 1);
    const into = new Bitmap(memory.pages);
    log.start(into);
    for (let page = 0; page < collectPages; page++) access.storeU32(((page * 7919) % memory.pages) * PAGE_BYTES, page);
    into.clear();
    const started = performance.now();
    log.collect(into);
    const ms = performance.now() - started;
    log.stop();
    if (into.count() !== collectPages) throw new Error(`collected ${into.count()} pages of ${collectPages}`);
    pool.give(memory.segments);
    return [ms];
  };
}
const collection = (name: string, run: () => Promise<number[]>): Bench =>
  defineBench({
    name,
    unit: "ms",
    better: "lower",
    workload: { memory: "1GiB", dirtyPages: collectPages },
    runs: 10,
    promise: undefined,
    warmBytes: 2 * GIB,
    run,
  });

export const entries: readonly Bench[] = [
  ...Object.entries(PAUSE_ORDERS).map(([name, order]) =>
    defineBench({
      name: `pause_${name}_ms`,
      unit: "ms",
      better: "lower",
      workload: { workload: order.workload, memory: "64MiB", pauses: 500 },
      runs: 1,
      promise: { median: 0.2, row: "docs/promises.md" },
      warmBytes: 0,
      run: () => pauses(order),
    }),
  ),
  ...(whyNoMmuDirtyLog() === undefined
    ? [
        downtime("downtime_mmu_direct_ms", { "dirty-log": "mmu", pump: "direct" }, 15),
        downtime("downtime_mmu_portable_ms", { "dirty-log": "mmu", pump: "portable" }, 60),
        collection(
          "dirty_log_mmu_collect_ms",
          collect((memory) => ({ log: new MmuDirtyLog(memory.ranges()), access: new MemoryAccess(memory, undefined) })),
        ),
      ]
    : []),
  downtime("downtime_barrier_portable_ms", { "dirty-log": "barrier", pump: "portable" }, 60),
  defineBench({
    name: "empty_guest_total_ms",
    unit: "ms",
    better: "lower",
    workload: empty,
    runs: 1,
    promise: { median: 150, row: "docs/promises.md" },
    warmBytes: GIB,
    run: () => figures(args(empty), 10, (report) => report["query-migrate"]["total-time"]),
  }),
  defineBench({
    name: "empty_guest_transferred_bytes",
    unit: "bytes",
    better: "lower",
    workload: empty,
    runs: 1,
    promise: { median: 2 ** 20, row: "docs/promises.md" },
    warmBytes: 0,
    run: () => figures(args(empty), 3, (report) => report["query-migrate"].ram?.transferred),
  }),
  collection(
    "dirty_log_barrier_collect_ms",
    collect((memory) => {
      const barrier = allocateBarrier(memory.pages);
      return { log: new BarrierDirtyLog(barrier), access: new MemoryAccess(memory, barrier) };
    }),
  ),
];
