import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { JsonChild } from "@precopy/lab";
import { parseCount, parseSize } from "@precopy/protocol";
import { formatPairs, interleave } from "./pairs.js";
import type { Pair } from "./pairs.js";
import { iperf3 } from "./peers/iperf3.js";
import { PageWalk } from "./peers/page-walk.js";
import type { ImageOrder, ImageRun, PageSize } from "./peers/page-walk.js";
import { warmMemory } from "./warm-memory.js";

const GIB = 2 ** 30;
const SENDER = fileURLToPath(new URL("channel-sender.js", import.meta.url));

/** The first round of our page channels, without a digest, between two fresh processes. @param beforeStart as PageWalk.carry has it. */
export async function carryByChannels({ bytes, filled, channels }: ImageOrder, beforeStart: () => void): Promise<ImageRun> {
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

/** Ours against page-walk with the same image. @param pages what page-walk asks for; ours does as the product does. */
export const channelThroughput = (order: ImageOrder, pages: PageSize, pairs: number, walk: PageWalk): Promise<Pair<ImageRun>[]> => {
  // Three times what the target will touch: of what is given back it gets some, and memory that the host has to find first would be all there
  // is to see.
  const beforeStart = (): void => warmMemory(3 * order.filled);
  return interleave(
    pairs,
    () => carryByChannels(order, beforeStart),
    () => walk.carry(order, pages, beforeStart),
  );
};

export const gibPerSecond = ({ bytes, ms }: ImageRun): number => bytes / GIB / (ms / 1000);
/** Processor seconds of both ends. */
export const cpuPerGib = ({ bytes, cpuSource, cpuTarget }: ImageRun): number => (cpuSource + cpuTarget) / (bytes / GIB);

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  // `node bench/dist/channel-throughput.js [--channels 1] [--pairs 3] [--bytes 1GiB] [--pages small|huge] [--iperf3]`
  const { values } = parseArgs({
    options: {
      channels: { type: "string", default: "1" },
      pairs: { type: "string", default: "3" },
      bytes: { type: "string", default: "1GiB" },
      pages: { type: "string", default: "small" },
      iperf3: { type: "boolean", default: false },
    },
  });
  const bytes = parseSize(values.bytes);
  const channels = parseCount(values.channels);
  const walk = PageWalk.build();
  if (typeof walk === "string") throw new Error(walk);
  const pages: PageSize = values.pages === "huge" ? "huge" : "small";
  const runs = await channelThroughput({ bytes, filled: bytes, channels }, pages, parseCount(values.pairs), walk);
  for (const run of runs) console.log(JSON.stringify(run));
  const name = `${values.bytes}, ${channels} channels, page-walk with ${pages} pages`;
  console.log(formatPairs(`throughput of ${name}`, "GiB/s", runs, gibPerSecond));
  console.log(formatPairs(`processor time for ${name}`, "s/GiB", runs, cpuPerGib));
  if (values.iperf3) {
    const path = await iperf3(channels);
    console.log(typeof path === "string" ? path : `iperf3 -C cubic -P ${channels}: ${path} Gbit/s`);
  }
}
