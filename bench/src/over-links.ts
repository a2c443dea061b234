import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { JsonChild } from "@precopy/lab";
import { formatBandwidth, formatBytes } from "@precopy/protocol";
import type { DowntimeBreakdown, MigrationReport } from "@precopy/protocol";
import { spreadOf } from "./spread.js";
import type { Spread } from "./spread.js";
import { LabLink } from "./links.js";
import type { LinkOptions, Side } from "./links.js";
import { PRECOPY } from "./migrations.js";
import { planOf } from "./over-links-plan.js";
import type { Setting } from "./over-links-plan.js";
import { environment, keepResult } from "./report.js";
import { warmMemory } from "./warm-memory.js";

// sudo node bench/dist/over-links.js [--rates 1Gbit,10Gbit,none] [--mtu 1500,9000] [--channels 1,2,4] [--compression none,lz4] [--repeat 3]
//   [--memory 2GiB] [--fill 256MiB] [--dirty-rate 2k] [--working-set 16MiB] [--compressible] [--congestion-control cubic|bbr] [--quick]
// A guest moves between two agents over a link of this host, on every combination; two fresh agents for each migration. Prints medians, and
// keeps every value in bench/results. Exit code 0 only if all of them completed, and were proven by digest and audit.
// --congestion-control holds for every connection; without it the direct pump asks for cubic, and everything else has the default of this host.
const plan = planOf(process.argv.slice(2));

/** Times in ms. */
type Run =
  | {
      readonly isCompleted: true;
      readonly totalMs: number;
      readonly downtimeMs: number;
      readonly guestGapMs: number | null;
      readonly setupMs: number | null;
      readonly breakdown: DowntimeBreakdown | null;
      readonly rounds: number;
      readonly sentBytes: number;
      /** From the command to ACTIVE, setup and pause included. */
      readonly averageBytesPerSecond: number;
      /** Acknowledged in the round that sends everything; null if it was too short to tell. */
      readonly firstRoundBytesPerSecond: number | null;
      /** That the page channels asked for and got; null where they leave it to the link or the system. */
      readonly congestionControl: string | null;
      readonly isProven: boolean;
    }
  | { readonly isCompleted: false; readonly error: string };

function runOf(report: MigrationReport): Run {
  const { "query-migrate": query, clocks, parameters, iterations } = report;
  const control = parameters["congestion-control"];
  const firstRound = iterations[0]?.["bandwidth-bytes-per-second"];
  return {
    isCompleted: true,
    totalMs: query["total-time"] ?? Number.NaN,
    downtimeMs: clocks["source-ms"] ?? Number.NaN,
    guestGapMs: clocks["guest-ms"],
    setupMs: query["setup-time"] ?? null,
    breakdown: report["downtime-breakdown"],
    rounds: iterations.length,
    sentBytes: query.ram?.transferred ?? Number.NaN,
    averageBytesPerSecond: ((query.ram?.mbps ?? Number.NaN) * 1e6) / 8,
    firstRoundBytesPerSecond: typeof firstRound === "number" ? firstRound : null,
    congestionControl: typeof control === "string" ? control : null,
    isProven: report["digest-equal"] === true,
  };
}

const folder = mkdtempSync(join(tmpdir(), "precopy-over-links-"));
process.once("exit", () => rmSync(folder, { recursive: true, force: true, maxRetries: 10 })); // what was just killed may still be writing
let started = 0;

/** One migration from a to b, with two fresh agents. */
async function migrate(link: LabLink, { channels, compression }: Setting): Promise<Run> {
  const serial = String(started++); // a journal knows the guests of before
  const children: JsonChild[] = [];
  // All of them inside: ending the link ends them, whatever becomes of this process.
  const start = (side: Side, command: string, ...args: string[]): JsonChild => {
    const socket = ["--socket", join(folder, `${serial}${side}.sock`)];
    const child = new JsonChild(command, link.command(side, [process.execPath, PRECOPY, command, ...socket, ...args, "--json"]));
    children.push(child);
    return child;
  };
  const agent = (role: string, side: Side, ...rest: string[]): JsonChild => {
    const state = ["--name", side, "--state-dir", join(folder, `${serial}${side}`)];
    return start(side, role, "--listen", `${link.address(side)}:0`, "--insecure", ...state, ...rest);
  };
  try {
    const target = agent("target", "b");
    const guest = Object.entries(plan.guest).flatMap(([name, value]) => [`--${name}`, value]);
    const source = agent("source", "a", "--workload", "random-writer", ...guest);
    const to = String((await target.expect("listening"))["listen"]);
    await source.expect("running");
    const settings = ["--multifd-channels", String(channels), "--multifd-compression", compression];
    const migration = start("a", "migrate", to, ...settings);
    const end = await Promise.race([migration.expect("done"), migration.expect("failed")]);
    // What `migrate --json` prints last: `done` with the report, or why it `failed`.
    return end.type === "done"
      ? runOf(end["report"] as MigrationReport)
      : { isCompleted: false, error: `${String(end["code"])}: ${String(end["message"])}` };
  } finally {
    for (const child of children.toReversed()) await child.end();
  }
}

const WIDTHS = [-11, 5, 3, -5, 7, 8, 6, 5, 8, 11, 11, -6, 6] as const;
const row = (cells: readonly string[]): string =>
  cells
    .map((cell, at) => ((WIDTHS[at] ?? 0) < 0 ? cell.padEnd(-(WIDTHS[at] ?? 0)) : cell.padStart(WIDTHS[at] ?? 0)))
    .join(" ")
    .trimEnd();
const nameOf = ({ rate }: LinkOptions): string => (rate === undefined ? "unshaped" : formatBandwidth(rate / 8));

const fixed =
  (digits: number) =>
  (value: number): string =>
    value.toFixed(digits);

/** The median of those that completed; `proven` counts all. */
function printRow(link: LinkOptions, { channels, compression }: Setting, runs: readonly Run[]): void {
  const completed = runs.filter((run) => run.isCompleted);
  const spread = (figure: (run: (typeof completed)[number]) => number | null): Spread | undefined => {
    const values = completed.map(figure).filter((value) => value !== null);
    return values.length === 0 ? undefined : spreadOf(values);
  };
  const median = (figure: (run: (typeof completed)[number]) => number | null, show: (value: number) => string): string => {
    const value = spread(figure)?.median;
    return value === undefined ? "-" : show(value);
  };
  console.log(
    row([
      nameOf(link),
      String(link.mtu),
      String(channels),
      compression,
      median((run) => run.totalMs, fixed(0)),
      median((run) => run.downtimeMs, fixed(1)),
      spread((run) => run.downtimeMs)?.max.toFixed(1) ?? "-",
      median((run) => run.rounds, String),
      median((run) => run.sentBytes, formatBytes),
      median((run) => run.averageBytesPerSecond, formatBandwidth),
      median((run) => run.firstRoundBytesPerSecond, formatBandwidth),
      link.congestionControl ?? completed[0]?.congestionControl ?? "-",
      `${completed.filter((run) => run.isProven).length}/${runs.length}`,
    ]),
  );
  for (const run of runs) if (!run.isCompleted) console.log(`  ${run.error}`);
}

type Result = LinkOptions & Setting & { readonly runs: readonly Run[] };

function keep(results: readonly Result[]): void {
  keepResult("over-links", {
    command: ["node bench/dist/over-links.js", ...process.argv.slice(2)].join(" "),
    guest: { workload: "random-writer", ...plan.guest },
    repeat: plan.repeat,
    results: results.map(({ rate, mtu, congestionControl, channels, compression, runs }) => ({
      link: { bitsPerSecond: rate ?? null, mtu, congestionControl: congestionControl ?? null },
      channels,
      compression,
      runs,
    })),
    environment: { ...environment(), link: "veth between two network namespaces, shaped by htb" },
  });
}

const reason = LabLink.whyNot();
if (reason !== undefined) {
  console.error(`over-links: ${reason}`);
  process.exitCode = 1;
} else {
  const results: Result[] = [];
  console.log(row(["", "", "", "com-", "total", "downtime", "worst", "", "", "average", "round 1", "", ""]));
  console.log(row(["link", "MTU", "ch", "press", "ms", "ms", "ms", "rnds", "sent", "bandwidth", "bandwidth", "cc", "proven"]));
  for (const options of plan.links) {
    const link = await LabLink.make(options);
    try {
      for (const setting of plan.settings) {
        const runs: Run[] = [];
        while (runs.length < plan.repeat) {
          warmMemory(2 * plan.filledBytes);
          runs.push(await migrate(link, setting));
        }
        printRow(options, setting, runs);
        results.push({ ...options, ...setting, runs });
        if (!plan.isQuick) keep(results); // a sweep takes minutes: what interrupts it costs the rest only
      }
    } finally {
      link.end();
    }
  }
  process.exitCode = results.every(({ runs }) => runs.every((run) => run.isCompleted && run.isProven)) ? 0 : 1;
}
