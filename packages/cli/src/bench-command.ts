import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { plotSweep, runSweep, settingsOf, summarize } from "@precopy/lab";
import type { SweepResult } from "@precopy/lab";
import { MigrationError, formatAddress, formatBytes } from "@precopy/protocol";
import { greetAgent, measureTlsCost } from "@precopy/transport";
import type { TlsCost } from "@precopy/transport";
import type { BenchOptions } from "./bench-args.js";
import { loadSecurity } from "./load-security.js";
import { renderSweepEnd, renderSweepHeader, renderSweepRow } from "./render-sweep.js";
import { isColoured, printJson, writeReport } from "./run-context.js";
import { RELEASE } from "./release.js";
import type { RunContext } from "./run-context.js";
import { securityArguments } from "./security-options.js";

/**
 * `precopy bench`. What there is when it ends is printed and kept, however it ends.
 * @throws {MigrationError} what ended it early; else the code of the first run that failed.
 */
export async function runBench(options: BenchOptions, run: RunContext): Promise<void> {
  const security = loadSecurity(options.security);
  await greetAgent(options.to, security); // one that is not there is found out before a guest is booted
  const cost = await measureTlsCost(security.tls);
  if (options.plots !== undefined) makeFolder(options.plots);
  const results: SweepResult[] = [];
  const say = (text: string): void => {
    if (!options.isJson) run.output.write(`${text}\n`);
  };
  if (cost !== undefined) {
    say(wordsOf(cost, security.tls !== undefined));
    if (options.isJson)
      printJson(run, { type: "tls-cost", tls: security.tls !== undefined, cipher: cost.cipher, "seconds-per-gib": cost.secondsPerGib });
  }
  say(renderSweepHeader(isColoured(run)));
  try {
    await runSweep(
      {
        command: run.command,
        to: formatAddress(options.to),
        settings: settingsOf(options),
        repeats: options.repeats,
        guestArguments: sourceArguments(options),
        migrationArguments: ["--downtime-limit", String(options.downtimeLimitMs)],
        targetWaitMs: options.targetWaitMs,
        prepare: options.prepare,
        signal: run.signal,
      },
      (result) => {
        results.push(result);
        if (options.report !== undefined) writeReport(options.report, reportOf(options, results)); // a sweep takes long: what kills it costs the rest only
        say(renderSweepRow(result, isColoured(run)));
        if (options.isJson)
          printJson(run, { type: "setting", ...summarize(result), errors: result.runs.flatMap(({ error }) => error ?? []) });
      },
    );
  } finally {
    if (results.length > 0) {
      say(`\n${renderSweepEnd(results)}`);
      if (options.plots !== undefined) await writePlots(options.plots, options, results, say);
    }
  }
  const runs = results.flatMap((result) => result.runs);
  const failures = runs.flatMap(({ error }) => error ?? []);
  const [first] = failures;
  if (first !== undefined)
    throw new MigrationError(first.code, `${failures.length} of ${runs.length} runs failed, the first because: ${first.message}`);
}

/** So that nobody has to guess what it would be without, or with. */
const wordsOf = ({ cipher, secondsPerGib }: TlsCost, isTlsOn: boolean): string =>
  `${isTlsOn ? `${cipher}:` : "in clear; TLS would take"} ${secondsPerGib.toFixed(2)} s of processor more a GiB, both ends together\n`;

const sourceArguments = ({ memoryBytes, fill, workingSetBytes, security }: BenchOptions): string[] => [
  ...securityArguments(security),
  ...["--memory", String(memoryBytes)],
  ...(fill.bytes > 0 ? ["--fill", `${fill.bytes}:${fill.kind}`] : []),
  ...["--working-set", String(workingSetBytes)],
];

const reportOf = ({ to, memoryBytes, fill, workingSetBytes, downtimeLimitMs, repeats }: BenchOptions, results: readonly SweepResult[]) => ({
  to: formatAddress(to),
  release: RELEASE,
  "memory-bytes": memoryBytes,
  "fill-bytes": fill.bytes,
  "fill-kind": fill.kind,
  "working-set-bytes": workingSetBytes,
  "downtime-limit": downtimeLimitMs,
  repeat: repeats,
  results: results.map(({ setting, runs }) => ({
    "dirty-rate": setting.dirtyPagesPerSecond,
    "multifd-channels": setting.channels,
    "multifd-compression": setting.compression,
    "congestion-control": setting.congestionControl,
    runs,
  })),
});

const cannotWrite = (folder: string, cause: unknown): MigrationError =>
  new MigrationError("ERR_PARAMETER", `Cannot write plots to ${folder}`, { cause });

function makeFolder(folder: string): void {
  try {
    mkdirSync(folder, { recursive: true });
  } catch (cause) {
    throw cannotWrite(folder, cause);
  }
}

async function writePlots(
  folder: string,
  { to, memoryBytes, fill, repeats }: BenchOptions,
  results: readonly SweepResult[],
  say: (text: string) => void,
): Promise<void> {
  const guest = `${formatBytes(memoryBytes)} guest, ${formatBytes(fill.bytes)} of ${fill.kind} in it`;
  const plots = await plotSweep(results, `to ${formatAddress(to)}; ${guest}; median, least and most of ${repeats}`);
  for (const { name, svg } of plots) {
    const file = join(folder, name);
    try {
      writeFileSync(file, svg);
    } catch (cause) {
      throw cannotWrite(folder, cause);
    }
    say(`wrote ${file}`);
  }
}
