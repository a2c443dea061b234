import { fileURLToPath } from "node:url";
import { JsonChild } from "@precopy/lab";
import type { Bench, Figure } from "../define-bench.js";
import { interleave, ratiosOf } from "../pairs.js";
import { iperf3 } from "../peers/iperf3.js";
import { PageWalk } from "../peers/page-walk.js";
import type { ImageOrder, ImageRun } from "../peers/page-walk.js";
import { warmMemory } from "../warm-memory.js";

const GIB = 2 ** 30;
const SENDER = fileURLToPath(new URL("../channel-sender.js", import.meta.url));
/** Against page-walk, which asks for huge pages at both ends, as ours does where memory is dense. */
const THROUGHPUT_MIN = 0.9;
const PROCESSOR_TIME_MAX = 1.15;

/** The first round of our page channels, without a digest, between two fresh processes. @param beforeStart as PageWalk.carry has it. */
async function carryByChannels({ bytes, filled, channels }: ImageOrder, beforeStart: () => void): Promise<ImageRun> {
  const sender = new JsonChild("channel-sender", [process.execPath, SENDER, ...[bytes, filled, channels].map(String)]);
  try {
    await sender.expect("ready");
    beforeStart();
    sender.write("go");
    const { ms, bytes: carried, cpuSource, cpuTarget } = await sender.expect("carried");
    await sender.exited;
    return { ms: Number(ms), bytes: Number(carried), cpuSource: Number(cpuSource), cpuTarget: Number(cpuTarget) };
  } finally {
    await sender.end();
  }
}

const gibPerSecond = ({ bytes, ms }: ImageRun): number => bytes / GIB / (ms / 1000);
/** Processor seconds of both ends. */
const cpuPerGib = ({ bytes, cpuSource, cpuTarget }: ImageRun): number => (cpuSource + cpuTarget) / (bytes / GIB);

const throughput = (channels: number): Bench => ({
  name: `channel-throughput-${channels}`,
  suite: "table",
  workload: { bytes: GIB, channels, pages: "huge" },
  async measure({ pairs, say }) {
    const walk = PageWalk.build();
    if (typeof walk === "string") return walk;
    // Three times what the target will touch: of what is given back it gets some, and memory that the host has to find first would be all there
    // is to see.
    const beforeStart = (): void => warmMemory(3 * GIB);
    const order: ImageOrder = { bytes: GIB, filled: GIB, channels };
    const runs = await interleave(
      pairs,
      () => carryByChannels(order, beforeStart),
      () => walk.carry(order, "huge", beforeStart),
    );
    const ours = runs.map((pair) => pair.ours);
    const theirs = runs.map((pair) => pair.theirs);
    const ratio = (of: (run: ImageRun) => number): number[] => ratiosOf(ours.map(of), theirs.map(of));
    const path = await iperf3(channels);
    if (typeof path === "string") say(`  without iperf3: ${path}`);
    const figures: Figure[] = [
      { name: "throughput to page-walk's", unit: "ratio", better: "higher", values: ratio(gibPerSecond), target: THROUGHPUT_MIN },
      { name: "processor time to page-walk's", unit: "ratio", better: "lower", values: ratio(cpuPerGib), target: PROCESSOR_TIME_MAX },
      { name: "throughput", unit: "GiB/s", better: "higher", values: ours.map(gibPerSecond) },
      { name: "throughput, page-walk", unit: "GiB/s", better: "higher", values: theirs.map(gibPerSecond) },
      { name: "processor time", unit: "s/GiB", better: "lower", values: ours.map(cpuPerGib) },
      { name: "processor time, page-walk", unit: "s/GiB", better: "lower", values: theirs.map(cpuPerGib) },
      ...(typeof path === "string" ? [] : [{ name: "iperf3 -C cubic", unit: "Gbit/s", better: "higher", values: [path] } as const]),
    ];
    return { figures, runs };
  },
});

export const throughputEntries: readonly Bench[] = [1, 2, 4].map(throughput);
