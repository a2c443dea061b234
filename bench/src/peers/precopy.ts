import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { JsonChild } from "@precopy/lab";
import type { MigrationReport } from "@precopy/protocol";
import { PRECOPY } from "../migrations.js";
import type { Load, Peer, PeerRun } from "../peer.js";
import { processorSeconds } from "./processor-time.js";

/** As long as the other peers' guests dirty before they move. */
const SETTLE_MS = 300;
const LOCAL = ["--listen", "127.0.0.1:0"];

/** `--digest off` is what the others do: none of them hashes anything. */
const SETTINGS: ReadonlyMap<string, readonly string[]> = new Map([
  ["default", ["--digest", "off"]],
  ["1 channel", ["--digest", "off", "--multifd-channels", "1"]],
  ["4 channels", ["--digest", "off", "--multifd-channels", "4"]],
  ["proven", ["--digest", "on", "--audit", "on"]],
]);

function guestArgs({ memory, filled, zeroed, dirtyRate, workingSet }: Load): string[] {
  if (filled > 0 && zeroed > 0) throw new Error("A guest is filled with one kind of data");
  const workload =
    dirtyRate === 0 ? ["--workload", "random-writer", "--dirty-rate", "1", "--working-set", "4096"] : ["--workload", "random-writer"];
  const load = dirtyRate === 0 ? [] : ["--dirty-rate", String(dirtyRate), "--working-set", String(workingSet)];
  return ["--guest", "g", "--memory", String(memory), "--fill", `${filled + zeroed}${zeroed > 0 ? ":zeros" : ""}`, ...workload, ...load];
}

/** Two fresh agents as processes of their own, one migration between them. */
export function precopyPeer(): Peer {
  return {
    name: "precopy",
    settings: [...SETTINGS.keys()],
    async migrate(load: Load, setting: string, ready: () => void): Promise<PeerRun> {
      const parameters = SETTINGS.get(setting);
      if (parameters === undefined) throw new Error(`precopy has no setting ${setting}`);
      const folder = mkdtempSync(join(tmpdir(), "precopy-bench-"));
      const children: JsonChild[] = [];
      const start = (name: string, ...args: string[]): JsonChild => {
        const child = new JsonChild(name, [process.execPath, PRECOPY, ...args, "--json"]);
        children.push(child);
        return child;
      };
      const agent = (name: string, role: string, ...args: string[]): JsonChild =>
        start(name, role, ...LOCAL, "--name", name, "--socket", join(folder, `${name}.sock`), "--state-dir", join(folder, name), ...args);
      try {
        const target = agent("target", "target");
        const { listen } = await target.expect("listening");
        const source = agent("source", "source", ...guestArgs(load));
        await source.expect("running");
        await sleep(SETTLE_MS);
        ready();
        const spent = (): readonly [number, number] => [processorSeconds(source.pid ?? -1), processorSeconds(target.pid ?? -1)];
        const before = spent();
        const migrate = start("migrate", "migrate", String(listen), "--socket", join(folder, "source.sock"), ...parameters);
        const report = (await migrate.expect("done"))["report"] as MigrationReport; // what `migrate --json` of this release prints
        const after = spent();
        return runOf(report, after[0] - before[0], after[1] - before[1]);
      } finally {
        for (const child of children.toReversed()) await child.end();
        rmSync(folder, { recursive: true, force: true });
      }
    },
  };
}

function runOf(report: MigrationReport, cpuSource: number, cpuTarget: number): PeerRun {
  const query = report["query-migrate"];
  const { clocks } = report;
  const need = (value: number | null | undefined, name: string): number => {
    if (typeof value !== "number") throw new Error(`The report has no ${name}: ${report.verdict}`);
    return value;
  };
  return {
    totalMs: need(query["total-time"], "total-time"),
    ownDowntimeMs: need(query.downtime, "downtime"),
    // Until ACTIVE was back at the source: a little later than the guest ran.
    pauseMs: need(clocks["source-ms"], "source-ms"),
    tickGapMs: need(clocks["guest-ms"], "guest-ms"),
    bytesSent: need(query.ram?.transferred, "transferred"),
    rounds: report.iterations.length,
    cpuSource,
    cpuTarget,
    parts: report["downtime-breakdown"] ?? undefined,
  };
}
