import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { JsonChild } from "@precopy/lab";
import { Agents } from "../agents.js";
import { readTold, toldWriterModule } from "../told-writer.js";
import { DOWNTIME_LIMIT_MS } from "./qemu.js";
import { workShare } from "./ticks.js";
import { LISTEN_AGAIN_MS, told } from "./work.js";
import type { WorkLoad, WorkOrder, WorkPeer, WorkRun } from "./work.js";

type Rounds = Pick<WorkRun, "rounds" | "end"> & { readonly fromMs: number; readonly untilMs: number };

/** Watches a migration from when it sends until its rounds are over. @throws {Error} if it fails for another reason than that it does not converge */
async function roundsOf(migrate: JsonChild, longestMs: number): Promise<Rounds> {
  let [fromMs, rounds] = [Number.NaN, 0];
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise((resolve, reject) => {
      const over = (end: WorkRun["end"]): void => resolve({ end, rounds, fromMs, untilMs: performance.now() });
      migrate.onLine = (line) => {
        if (line.type === "round") rounds++;
        else if (line.type === "phase" && line["phase"] === "active") {
          fromMs = performance.now();
          timer = setTimeout(() => over("watched long enough"), longestMs);
        } else if (line.type === "phase" && line["phase"] === "device") over("paused");
        else if (line.type === "failed" && line["code"] === "ERR_NOT_CONVERGING") over("given up");
      };
      migrate.exited.then((code) => reject(new Error(`precopy migrate ended (${String(code)}): ${migrate.stderr.trim()}`)), reject);
    });
  } finally {
    clearTimeout(timer);
  }
}

/** Pages as ms of the work that is due in that time. */
const workMs = (pages: readonly number[], { dirtyRate }: WorkLoad): number[] => pages.map((written) => (written * 1000) / dirtyRate);

const watch = ({ load, maxBandwidthBytesPerSecond = 0, beforeMs, roundsMs }: WorkOrder, ready: () => void): Promise<WorkRun> =>
  Agents.during(async (agents) => {
    const module = join(agents.folder, "told-writer.mjs");
    writeFileSync(module, toldWriterModule(agents.folder, { rate: load.isUnpaced ? 0 : load.dirtyRate, workingSet: load.workingSet }));
    const workload = ["--workload", `told-writer=${module}`];
    const target = agents.agent("target", ...workload);
    const { listen } = await target.expect("listening");
    const source = agents.agent("source", ...workload, "--memory", String(load.memory), "--fill", String(load.filled));
    await source.expect("running");
    ready();
    await sleep(LISTEN_AGAIN_MS);
    const watchedFrom = performance.now();
    await sleep(beforeMs);
    const askedAt = performance.now();
    const cap = ["--max-bandwidth", String(maxBandwidthBytesPerSecond)];
    const migrate = agents.migrate(listen, "--digest", "off", "--downtime-limit", String(DOWNTIME_LIMIT_MS), ...cap);
    const { fromMs, untilMs, rounds, end } = await roundsOf(migrate, roundsMs);
    const { atMs, pages } = readTold(agents.folder, source.pid ?? -1);
    const work = workMs(pages, load);
    return {
      before: told(workShare(atMs, work, watchedFrom, askedAt), "before it was moved"),
      during: told(workShare(atMs, work, fromMs, untilMs), "while rounds ran"),
      roundsMs: untilMs - fromMs,
      rounds,
      end,
    };
  });

/** With its default settings, but for the digest: the others hash nothing. */
export const precopyWork: WorkPeer = { name: "precopy", watch };
