import { setTimeout as sleep } from "node:timers/promises";
import { PAGE_BYTES, SEGMENT_BYTES } from "@precopy/protocol";
import type { MigrationReport } from "@precopy/protocol";
import { Agents } from "../agents.js";
import type { Bench, Figure } from "../define-bench.js";
import { areasOf, findSegments, residentOutside } from "../memory-areas.js";
import type { AddressSpan } from "../memory-areas.js";
import { warmMemory } from "../warm-memory.js";

const MIB = 2 ** 20;
const MEMORY_BYTES = 8 * 2 ** 30;
const FILLED_BYTES = 2 ** 30;
const SEGMENTS = Array.from({ length: MEMORY_BYTES / SEGMENT_BYTES }, () => SEGMENT_BYTES);
const LOAD = ["--workload", "random-writer", "--dirty-rate", "25k", "--working-set", "64MiB"];
/** A busy host compresses too slowly for the usual limit; what an agent holds in the rounds is the same. */
const DOWNTIME_LIMIT = ["--downtime-limit", "2s"];
const CHANNELS = [1, 2, 4, 8];
const DIGESTS = ["off", "on"] as const;
/** What is compressed is compressible: random pages would be sent as they are. */
const COMPRESSIONS = [
  { compression: "none", fill: "random" },
  { compression: "lz4", fill: "text" },
] as const;

const WARM_BYTES = 2 * FILLED_BYTES;
/** A guest runs for so long before it moves. */
const SETTLE_MS = 300;
/** Between two looks at an agent: so many times as long as a look took, for looking must not be what keeps the agents busy; a long one only waited. */
const REST_SHARE = 2;
const REST_MS_MIN = 15;
const REST_MS_MAX = 50;

/** Above the same agent without a guest. */
const TARGET_MIB = 100;
const TARGET_CHANNELS = 2;
const TARGET_MIB_EACH_FURTHER = 12;
const targetMiB = (channels: number): number => TARGET_MIB + TARGET_MIB_EACH_FURTHER * Math.max(channels - TARGET_CHANNELS, 0);

/** Each side's hash table has 8 bytes for every page of the guest; what of it was never written is address space only. */
const HASH_BYTES = 8;
const hashMiB = (bytes: number): number => ((bytes / PAGE_BYTES) * HASH_BYTES) / MIB;
/** One bit a page. The source has the round's and the audit's, the target that of what has arrived. */
const bitmapMiB = (bitmaps: number): number => (bitmaps * MEMORY_BYTES) / PAGE_BYTES / 8 / MIB;

interface Setting {
  readonly channels: number;
  readonly compression: (typeof COMPRESSIONS)[number]["compression"];
  readonly fill: (typeof COMPRESSIONS)[number]["fill"];
  readonly digest: (typeof DIGESTS)[number];
}

/** Of one side, MiB. */
interface Held {
  /** Without a guest, right before. */
  readonly before: number;
  /** The most that was seen while the guest moved, guest memory left out, hashes and bitmaps not. */
  readonly peak: number;
  /** What it is above `before`, less hashes and bitmaps. */
  readonly own: number;
  readonly looks: number;
}

interface Run {
  readonly source: Held;
  readonly target: Held;
  readonly totalMs: number | undefined;
}

/**
 * The most that one agent has in memory besides its guest's while `moving` is pending, MiB; from when the guest's memory is there.
 * @throws {Error} if it never is
 */
async function watch(pid: number, moving: AbortSignal): Promise<{ readonly peak: number; readonly looks: number }> {
  let [peak, looks] = [0, 0];
  let guest: readonly AddressSpan[] = [];
  while (!moving.aborted) {
    const started = performance.now();
    const areas = await areasOf(pid);
    if (guest.length < SEGMENTS.length) guest = findSegments(areas, SEGMENTS);
    if (guest.length === SEGMENTS.length) {
      peak = Math.max(peak, residentOutside(areas, guest) / MIB);
      looks++;
    }
    await sleep(Math.min(Math.max(REST_MS_MIN, (performance.now() - started) * REST_SHARE), REST_MS_MAX));
  }
  if (looks === 0) throw new Error(`${guest.length} segments of a guest in process ${pid}, not ${SEGMENTS.length}`);
  return { peak, looks };
}

/** Two fresh agents, one migration. @throws {Error} if it did not complete */
const moveOnce = ({ channels, compression, fill, digest }: Setting): Promise<Run> =>
  Agents.during(async (agents) => {
    const target = agents.agent("target");
    const { listen } = await target.expect("listening");
    const source = agents.agent("source", "--memory", String(MEMORY_BYTES), "--fill", `${FILLED_BYTES}:${fill}`, ...LOAD);
    await source.expect("running");
    await sleep(SETTLE_MS);
    warmMemory(WARM_BYTES); // an agent whose memory is cold waits in the kernel, and cannot be looked at
    const [atSource, atTarget] = [source.pid ?? -1, target.pid ?? -1];
    const before = residentOutside(await areasOf(atTarget), []) / MIB; // of any agent that waits
    const over = new AbortController();
    const watching = Promise.all([watch(atSource, over.signal), watch(atTarget, over.signal)]);
    watching.catch(() => {}); // awaited when the migration is over; if that failed, it is told instead
    const parameters = [
      "--multifd-channels",
      String(channels),
      "--multifd-compression",
      compression,
      "--digest",
      digest,
      ...DOWNTIME_LIMIT,
    ];
    const done = agents.migrate(listen, ...parameters).expect("done");
    const { report } = await done.finally(() => over.abort());
    const [sourcePeak, targetPeak] = await watching;
    // The part of the hash table that is in use: the pages that hold something, which lie together.
    const hashes = digest === "on" ? hashMiB(FILLED_BYTES) : 0;
    const held = ({ peak, looks }: typeof sourcePeak, bitmaps: number): Held => ({
      before,
      peak,
      own: peak - before - hashes - bitmapMiB(bitmaps),
      looks,
    });
    return {
      source: held(sourcePeak, digest === "on" ? 2 : 1),
      target: held(targetPeak, 1),
      totalMs: (report as MigrationReport)["query-migrate"]["total-time"], // what `migrate --json` of this release prints
    };
  });

const SETTINGS: readonly Setting[] = COMPRESSIONS.flatMap((kind) =>
  DIGESTS.flatMap((digest) => CHANNELS.map((channels) => ({ ...kind, digest, channels }))),
);
const nameOf = ({ channels, compression, digest }: Setting): string => `${channels} ch, ${compression}, digest ${digest}`;

export const agentMemoryEntries: readonly Bench[] = [
  {
    name: "agent-memory",
    suite: "full",
    workload: {
      memory: "8GiB",
      fill: "1GiB",
      "dirty-rate": "25k",
      "working-set": "64MiB",
      channels: CHANNELS,
      compressions: COMPRESSIONS,
      digests: DIGESTS,
      "page hashes MiB a side": hashMiB(MEMORY_BYTES),
      "a bitmap MiB": bitmapMiB(1),
    },
    measure: async ({ pairs, say }) => {
      if (process.platform !== "linux") return "memory is read from /proc, which only Linux has";
      const figures: Figure[] = [];
      const runs: unknown[] = [];
      for (const setting of SETTINGS) {
        const moved: Run[] = [];
        for (let at = 0; at < pairs; at++) moved.push(await moveOnce(setting));
        for (const side of ["source", "target"] as const)
          figures.push({
            name: `${side}, ${nameOf(setting)}`,
            unit: "MiB",
            better: "lower",
            target: targetMiB(setting.channels),
            values: moved.map((run) => run[side].own),
          });
        runs.push({ ...setting, moved });
        const most = (side: "source" | "target"): string => Math.max(...moved.map((run) => run[side].own)).toFixed(0);
        say(`${nameOf(setting)}: source ${most("source")} MiB, target ${most("target")} MiB, of ${targetMiB(setting.channels)}`);
      }
      return { figures, runs };
    },
  },
];
