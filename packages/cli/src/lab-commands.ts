import { createInterface } from "node:readline";
import { LedgerClient, Switch, runDemo } from "@precopy/lab";
import { MigrationError, formatAddress, isLoopback } from "@precopy/protocol";
import type { ClientOptions, DemoOptions, SwitchOptions } from "./lab-args.js";
import { renderComparison } from "./render.js";
import { isColoured, makeRenderer, printJson, untilStopped, writeReport } from "./run-context.js";
import type { RunContext } from "./run-context.js";

/** How long the client waits for the last answers. */
const FINISH_MS = 10_000;

/** `precopy switch`. */
export async function runSwitch(options: SwitchOptions, run: RunContext): Promise<void> {
  if (!isLoopback(options.listen.host) && !options.isInsecure)
    throw new MigrationError("ERR_INSECURE_LISTEN", `${options.listen.host} is not a loopback address, and ports are not authenticated`);
  const network = await Switch.listen(options.listen);
  try {
    if (options.isJson) printJson(run, { type: "listening", listen: formatAddress(network.address), pid: process.pid });
    else run.output.write(`precopy switch listens on ${formatAddress(network.address)}\n`);
    await untilStopped(run.signal);
    if (options.isJson) printJson(run, { type: "statistics", ...network.statistics() });
  } finally {
    await network.close();
  }
}

/**
 * `precopy client`. Lines on standard input: `mark` prints the longest gap since the last mark, `finish` ends it, as do the duration and
 * Ctrl-C. @throws {MigrationError} ERR_VERIFICATION if an acknowledged request was lost, applied twice, or answered by two owners.
 */
export async function runClient(options: ClientOptions, run: RunContext): Promise<void> {
  const client = await LedgerClient.connect({ target: options.switchAddress, guestId: options.guest, rate: options.requestsPerSecond });
  try {
    if (options.isJson) printJson(run, { type: "connected", guest: options.guest });
    else run.output.write(`guest ${options.guest} answers\n`);
    await untilFinished(options, client, run);
    const report = await client.finish({ timeoutMs: FINISH_MS });
    if (options.isJson) printJson(run, { type: "report", ...report });
    else
      run.output.write(
        `${report.issued} requests, ${report.acknowledged} acknowledged, ${report.lost} lost, ${report.doubled} applied twice, ` +
          `${report.staleEpochAnswers} from an older owner; longest gap ${report.longestGapMs.toFixed(1)} ms\n`,
      );
    if (!report.isVerified)
      throw new MigrationError("ERR_VERIFICATION", `${report.lost} lost, ${report.doubled} applied twice, ${report.unanswered} unanswered`);
  } finally {
    client.close();
  }
}

async function untilFinished({ durationMs, isJson }: ClientOptions, client: LedgerClient, run: RunContext): Promise<void> {
  const waits: Promise<unknown>[] = [untilStopped(run.signal)];
  let timer: NodeJS.Timeout | undefined;
  if (durationMs > 0)
    waits.push(
      new Promise((resolve) => {
        timer = setTimeout(resolve, durationMs);
      }),
    );
  if (process.stdin.isTTY !== true) {
    const lines = createInterface({ input: process.stdin });
    waits.push(
      new Promise<void>((resolve) => {
        lines.on("line", (line) => {
          if (line === "finish") resolve();
          else if (line === "mark") {
            const mark = client.mark();
            if (isJson) printJson(run, { type: "mark", ...mark });
            else run.output.write(`longest gap ${mark.longestGapMs.toFixed(1)} ms, ${mark.acknowledged} acknowledged\n`);
          }
        });
      }),
    );
  }
  await Promise.race(waits);
  clearTimeout(timer);
}

/** `precopy demo`. @throws {MigrationError} ERR_VERIFICATION unless client, digests and audits all agree that nothing was lost. */
export async function runDemoCommand(options: DemoOptions, run: RunContext): Promise<void> {
  const renderer = makeRenderer(run, options.isJson);
  const say = (text: string): void => {
    if (!options.isJson) run.output.write(`${text}\n`);
  };
  const { reports, client } = await runDemo(
    {
      command: run.command,
      guestArguments: guestArguments(options),
      agentArguments: [
        "--dirty-log",
        options.dirtyLog,
        "--pump",
        options.parameters.pump,
        ...(options.hasFaultPoints ? ["--fault-points"] : []),
      ],
      migrationArguments: migrationArguments(options),
      modes: Array.from({ length: options.repeats }, () => options.modes).flat(),
      signal: run.signal,
    },
    (event) => renderer.show(event),
    say,
  );
  renderer.close();
  if (options.report !== undefined) writeReport(options.report, reports);
  if (options.isJson) printJson(run, { type: "client", ...client });
  say(`\n${renderComparison(reports, isColoured(run))}`);
  say(`client: ${client.acknowledged} of ${client.issued} requests acknowledged, ${client.lost} lost, ${client.doubled} applied twice`);
  const unproven = reports.find((report) => report["digest-equal"] === false);
  if (unproven !== undefined) throw new MigrationError("ERR_VERIFICATION", unproven.verdict);
  if (!client.isVerified)
    throw new MigrationError(
      "ERR_VERIFICATION",
      `The client found ${client.lost} lost, ${client.doubled} applied twice, ${client.unanswered} unanswered`,
    );
}

function guestArguments(options: DemoOptions): string[] {
  const { fill } = options;
  return [
    ...["--workload", options.vcpus.join(",")],
    ...["--memory", String(options.memoryBytes)],
    ...(fill.bytes > 0 ? ["--fill", `${fill.bytes}:${fill.kind}`] : []),
    ...["--dirty-rate", String(options.dirtyPagesPerSecond)],
    ...["--working-set", String(options.workingSetBytes)],
    ...["--hot-fraction", String(options.hotFraction)],
    ...["--write-pattern", options.writePattern],
  ];
}

function migrationArguments({ parameters }: DemoOptions): string[] {
  return [
    ...["--downtime-limit", String(parameters.downtimeLimitMs)],
    ...["--max-bandwidth", String(parameters.maxBandwidthBytesPerSecond)],
    ...["--max-postcopy-bandwidth", String(parameters.maxPostcopyBandwidthBytesPerSecond)],
    ...["--multifd-channels", String(parameters.multifdChannels)],
    ...["--multifd-compression", parameters.multifdCompression],
    ...["--xbzrle", parameters.isXbzrleOn ? "on" : "off"],
    ...["--hold-back", parameters.isHoldBackOn ? "on" : "off"],
    ...["--xbzrle-cache-size", String(parameters.xbzrleCacheBytes)],
    ...["--throttle", parameters.throttle],
    ...["--throttle-trigger-threshold", String(parameters.throttleTriggerThresholdPercent)],
    ...["--cpu-throttle-initial", String(parameters.cpuThrottleInitialPercent)],
    ...["--cpu-throttle-increment", String(parameters.cpuThrottleIncrementPercent)],
    ...["--max-cpu-throttle", String(parameters.maxCpuThrottlePercent)],
    ...["--vcpu-dirty-limit", String(parameters.vcpuDirtyLimitBytesPerSecond)],
    ...["--timeout", String(parameters.timeoutMs)],
    ...["--timeout-action", parameters.timeoutAction],
    ...["--congestion-control", parameters.congestionControl],
    ...["--digest", parameters.isDigestOn ? "on" : "off"],
    ...["--audit", parameters.isAuditOn ? "on" : "off"],
  ];
}
