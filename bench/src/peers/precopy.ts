import { setTimeout as sleep } from "node:timers/promises";
import type { MigrationReport } from "@precopy/protocol";
import { Agents } from "../agents.js";
import type { Load, Peer, PeerRun } from "../peer.js";
import { processorSeconds } from "./processor-time.js";

/** As long as the other peers' guests dirty before they move. */
const SETTLE_MS = 300;

/** What the others do: none of them hashes anything. */
export const UNPROVEN: readonly string[] = ["--digest", "off"];
const SETTINGS: ReadonlyMap<string, readonly string[]> = new Map([
  ["default", UNPROVEN],
  ["1 channel", [...UNPROVEN, "--multifd-channels", "1"]],
  ["4 channels", [...UNPROVEN, "--multifd-channels", "4"]],
  ["proven", ["--digest", "on", "--audit", "on"]],
]);

/** Arguments of one migration, as on the command line. */
export interface Order {
  /** The guest, and what else its agent is to know. */
  readonly source: readonly string[];
  readonly target?: readonly string[];
  readonly parameters: readonly string[];
  /** Of both agents, beside this process's own. */
  readonly environment?: Readonly<Record<string, string>>;
}

export interface Outcome {
  readonly report: MigrationReport;
  /** Processor time of each side from the command to completion, s. */
  readonly cpuSource: number;
  readonly cpuTarget: number;
}

export function guestArgs({ memory, filled, zeroed, dirtyRate, workingSet }: Omit<Load, "name">): string[] {
  if (filled > 0 && zeroed > 0) throw new Error("A guest is filled with one kind of data");
  const workload =
    dirtyRate === 0 ? ["--workload", "random-writer", "--dirty-rate", "1", "--working-set", "4096"] : ["--workload", "random-writer"];
  const load = dirtyRate === 0 ? [] : ["--dirty-rate", String(dirtyRate), "--working-set", String(workingSet)];
  return ["--guest", "g", "--memory", String(memory), "--fill", `${filled + zeroed}${zeroed > 0 ? ":zeros" : ""}`, ...workload, ...load];
}

/**
 * Two fresh agents as processes of their own, one migration between them.
 * @param ready called when the guest runs under its load, right before it is moved, with where the target listens; awaited.
 * @throws {Error} if it did not complete
 */
export const migrateOnce = (order: Order, ready: (listen: string) => void | Promise<void>): Promise<Outcome> =>
  Agents.during(async (agents) => {
    const target = agents.agent("target", ...(order.target ?? []));
    const { listen } = await target.expect("listening");
    const source = agents.agent("source", ...order.source);
    await source.expect("running");
    await sleep(SETTLE_MS);
    await ready(String(listen));
    const spent = (): readonly [number, number] => [processorSeconds(source.pid ?? -1), processorSeconds(target.pid ?? -1)];
    const before = spent();
    const migrate = agents.migrate(listen, ...order.parameters);
    const report = (await migrate.expect("done"))["report"] as MigrationReport; // what `migrate --json` of this release prints
    const after = spent();
    return { report, cpuSource: after[0] - before[0], cpuTarget: after[1] - before[1] };
  }, order.environment);

/** Each migration by two fresh agents. */
export function precopyPeer(): Peer {
  return {
    name: "precopy",
    settings: [...SETTINGS.keys()],
    async migrate(load: Load, setting: string, ready: () => void): Promise<PeerRun> {
      const parameters = SETTINGS.get(setting);
      if (parameters === undefined) throw new Error(`precopy has no setting ${setting}`);
      return runOf(await migrateOnce({ source: guestArgs(load), parameters }, ready));
    },
  };
}

/** The figures of a report. @throws {Error} if one is missing */
export function runOf({ report, cpuSource, cpuTarget }: Outcome): PeerRun {
  const query = report["query-migrate"];
  const { clocks } = report;
  const need = (value: number | null | undefined, name: string): number => {
    if (typeof value !== "number") throw new Error(`The report has no ${name}: ${report.verdict}`);
    return value;
  };
  return {
    totalMs: need(query["total-time"], "total-time"),
    ownDowntimeMs: need(query.downtime, "downtime"),
    pauseMs: need(clocks["host-ms"], "host-ms"),
    tickGapMs: need(clocks["guest-ms"], "guest-ms"),
    bytesSent: need(query.ram?.transferred, "transferred"),
    rounds: report.iterations.length,
    cpuSource,
    cpuTarget,
    parts: report["downtime-breakdown"] ?? undefined,
  };
}
