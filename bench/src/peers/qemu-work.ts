import { setTimeout as sleep } from "node:timers/promises";
import { MAX_BANDWIDTH_BYTES_PER_SECOND, buildGuest, numberAt, settingOf, withPair } from "./qemu.js";
import type { QemuPair } from "./qemu.js";
import { LISTEN_AGAIN_MS, told } from "./work.js";
import type { WorkOrder, WorkPeer, WorkRun } from "./work.js";

/** As many streams as precopy has channels by default. */
const SETTING = "multifd-2";

async function watchPair({ source, atSource, uri }: QemuPair, order: WorkOrder, ready: () => void): Promise<WorkRun> {
  ready();
  await sleep(LISTEN_AGAIN_MS);
  const watchedFrom = performance.now();
  await sleep(order.beforeMs);
  const askedAt = performance.now();
  const status = (wanted: string): Promise<unknown> => atSource.event("MIGRATION", (data) => data["status"] === wanted);
  await atSource.execute("migrate", { uri });
  const failed = status("failed").then((): never => {
    throw new Error("Migration failed");
  });
  await Promise.race([status("active"), failed]);
  const fromMs = performance.now();
  const waiting = new AbortController();
  const end = await Promise.race([
    atSource.event("STOP").then(() => "paused" as const),
    sleep(order.roundsMs, "watched long enough" as const, { signal: waiting.signal }),
    failed,
  ]);
  const untilMs = performance.now();
  waiting.abort();
  return {
    before: told(source.ticks.workShareFrom(watchedFrom, askedAt), "before it was moved"),
    during: told(source.ticks.workShareFrom(fromMs, untilMs), "while rounds ran"),
    roundsMs: untilMs - fromMs,
    rounds: numberAt(await atSource.execute("query-migrate"), "ram", "dirty-sync-count"),
    end,
  };
}

/** @returns the reason, if QEMU cannot be had here */
export async function qemuWork(): Promise<WorkPeer | string> {
  const built = await buildGuest();
  if (typeof built === "string") return built;
  return {
    name: `${built.name} ${SETTING}`,
    watch: (order, ready) => {
      const { load, maxBandwidthBytesPerSecond = MAX_BANDWIDTH_BYTES_PER_SECOND } = order;
      return withPair({ load, isUnpaced: load.isUnpaced, setting: settingOf(SETTING), maxBandwidthBytesPerSecond }, (pair) =>
        watchPair(pair, order, ready),
      );
    },
  };
}
