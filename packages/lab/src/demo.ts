import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MigrationError, isErrorCode } from "@precopy/protocol";
import type { MigrationReport, ProgressEvent } from "@precopy/protocol";
import { JsonChild } from "./child.js";
import type { JsonLine } from "./child.js";
import type { ClientReport } from "./client.js";

export interface DemoPlan {
  /** How to start `precopy`. */
  readonly command: readonly string[];
  /** For `source`: what the guest is. */
  readonly guestArguments: readonly string[];
  /** For both agents. */
  readonly agentArguments: readonly string[];
  /** For each `migrate`, without --mode. */
  readonly migrationArguments: readonly string[];
  /** One migration each, there and back again. */
  readonly modes: readonly string[];
  readonly signal: AbortSignal;
}

export interface DemoResult {
  /** One a migration, with all three clocks. */
  readonly reports: readonly MigrationReport[];
  readonly client: ClientReport;
}

const GUEST = "demo";
/** Requests flow for this long before each migration and after it, so that its gap stands alone. */
const SETTLE_MS = 500;

/**
 * Two agents as processes of their own, a switch, and an outside client: the guest moves once for each mode, back and forth between the
 * agents, while the client counts. @throws {MigrationError} what ended it; every process is gone then.
 */
export async function runDemo(plan: DemoPlan, onEvent: (event: ProgressEvent) => void, say: (text: string) => void): Promise<DemoResult> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-demo-"));
  const children: JsonChild[] = [];
  let isOver = false;
  const start = (name: string, ...rest: string[]): JsonChild => {
    if (isOver) throw interruption(); // the demo goes on beside its end, until it waits for a child that has ended
    const child = new JsonChild(name, [...plan.command, ...rest, "--json"]);
    children.push(child);
    return child;
  };
  const interrupted = new Promise<never>((_, reject) => {
    const interrupt = (): void => reject(interruption());
    if (plan.signal.aborted) interrupt();
    plan.signal.addEventListener("abort", interrupt, { once: true });
  });
  interrupted.catch(() => {}); // raced against the demo below
  try {
    return await Promise.race([drive(plan, folder, start, onEvent, say), interrupted]);
  } finally {
    // The client first: it would count the end of the agents as an outage.
    isOver = true;
    for (const child of children.toReversed()) await child.end();
    rmSync(folder, { recursive: true, force: true });
  }
}

const interruption = (): MigrationError => new MigrationError("ERR_CANCELLED", "Interrupted");
type Start = (name: string, ...rest: string[]) => JsonChild;
const text = (line: JsonLine, key: string): string => String(line[key]);
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function drive(
  plan: DemoPlan,
  folder: string,
  start: Start,
  onEvent: (event: ProgressEvent) => void,
  say: (text: string) => void,
): Promise<DemoResult> {
  const network = text(await start("switch", "switch", "--listen", "127.0.0.1:0").expect("listening"), "listen");
  const agent = (role: string, name: string, ...rest: string[]): JsonChild =>
    start(
      `agent ${name}`,
      role,
      ...["--listen", "127.0.0.1:0", "--name", name, "--socket", join(folder, `${name}.sock`), "--state-dir", join(folder, name)],
      ...["--switch", network, ...plan.agentArguments, ...rest],
    );
  const source = agent("source", "a", "--guest", GUEST, ...plan.guestArguments);
  const target = agent("target", "b");
  const addresses = [text(await source.expect("listening"), "listen"), text(await target.expect("listening"), "listen")] as const;
  say(`agent a: process ${source.pid}, ${addresses[0]}`);
  say(`agent b: process ${target.pid}, ${addresses[1]}; switch: ${network}`);
  await source.expect("running");
  const client = start("client", "client", "--switch", network, "--guest", GUEST);
  await client.expect("connected");
  say(`guest ${GUEST} runs at a and answers the client`);

  const reports: MigrationReport[] = [];
  for (const [at, mode] of plan.modes.entries()) {
    await sleep(SETTLE_MS);
    client.write("mark");
    await client.expect("mark");
    const from = at % 2 === 0 ? "a" : "b";
    say(`\n${mode}: ${from} -> ${from === "a" ? "b" : "a"}`);
    const report = await migrate(
      start(
        "migrate",
        "migrate",
        addresses[(at + 1) % 2] ?? "",
        "--socket",
        join(folder, `${from}.sock`),
        "--mode",
        mode,
        ...plan.migrationArguments,
      ),
      onEvent,
    );
    await sleep(SETTLE_MS);
    client.write("mark");
    const gap = Number((await client.expect("mark"))["longestGapMs"]);
    reports.push({ ...report, clocks: { ...report.clocks, "client-ms": Math.round(gap * 100) / 100 } });
  }
  client.write("finish");
  // The line is the client's own report; it is printed before it exits, verified or not.
  return { reports, client: (await client.expect("report")) as unknown as ClientReport };
}

/** Runs one `precopy migrate` to its end. @throws {MigrationError} what it failed with. */
async function migrate(child: JsonChild, onEvent: (event: ProgressEvent) => void): Promise<MigrationReport> {
  let failure: MigrationError | undefined;
  let report: MigrationReport | undefined;
  child.onLine = (line) => {
    const event = line as unknown as ProgressEvent; // `migrate --json` prints progress events, one a line
    if (event.type === "failed") failure = new MigrationError(isErrorCode(event.code) ? event.code : "ERR_INTERNAL", event.message);
    if (event.type === "done") report = event.report;
    onEvent(event);
  };
  await child.exited;
  if (report === undefined)
    throw failure ?? new MigrationError("ERR_INTERNAL", `The migration ended without a report: ${child.stderr.trim()}`);
  return report;
}
