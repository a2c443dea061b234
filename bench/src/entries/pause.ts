import {
  Guest,
  LEDGER_REGION_BYTES,
  MemoryService,
  SegmentPool,
  VcpuThreads,
  WorkloadCatalogue,
  layOutGuest,
  whyNoMmuDirtyLog,
} from "@precopy/guest";
import type { VcpuOrder } from "@precopy/guest";
import type { Bench } from "../define-bench.js";

const PAUSES = 500;
const RUN_MS = 4;
const MEMORY_BYTES = 64 * 2 ** 20;

/** How long each of PAUSES pauses of a one-vCPU guest takes, from asking to the state in hand, in ms; it runs for a while in between. */
async function pauses(order: VcpuOrder): Promise<number[]> {
  const threads = new VcpuThreads(1);
  await threads.refill();
  const memory = new MemoryService();
  const workloads = new WorkloadCatalogue();
  const guest = await Guest.create(layOutGuest("pause", MEMORY_BYTES, [order], false, workloads), {
    segments: new SegmentPool(),
    threads,
    memory,
    workloads,
    dirtyLog: whyNoMmuDirtyLog() === undefined ? "mmu" : "barrier",
    onGuestFailure: (_, error) => {
      throw error;
    },
    openDevice: () => Promise.reject(new Error("this guest has no devices")),
  });
  await guest.boot();
  await guest.run(1, false);
  const values: number[] = [];
  for (let at = 0; at < PAUSES; at++) {
    await new Promise((resolve) => setTimeout(resolve, RUN_MS));
    const started = performance.now();
    await guest.pause();
    values.push(performance.now() - started);
    guest.resume();
  }
  await guest.destroy();
  await Promise.all([threads.end(), memory.end()]);
  return values;
}

const pause = (name: string, order: VcpuOrder): Bench => ({
  name: `pause-${name}`,
  suite: "full",
  workload: { workload: order.workload, memory: "64MiB", pauses: PAUSES },
  measure: async () => ({ figures: [{ name: "pause", unit: "ms", better: "lower", values: await pauses(order), target: 0.2 }] }),
});

export const pauseEntries: readonly Bench[] = [
  pause("idle", { workload: "idle", options: {} }),
  pause("random-writer", { workload: "random-writer", options: { rate: 25_000 } }),
  pause("ledger", { workload: "ledger", options: {}, regionBytes: LEDGER_REGION_BYTES }),
];
