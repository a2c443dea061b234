import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MigrationError, isErrorCode } from "@precopy/protocol";
import type { ErrorCode, MigrationReport, ProgressEvent } from "@precopy/protocol";
import { JsonChild } from "./child.js";

/** Between two tries at a target that is full. */
const FULL_AGAIN_MS = 250;

/** One combination of what is swept. */
export interface SweepSetting {
  /** 0: the guest writes nothing. */
  readonly dirtyPagesPerSecond: number;
  readonly channels: number;
  readonly compression: string;
  readonly congestionControl: string;
}

export interface SweepPlan {
  /** How to start `precopy`. */
  readonly command: readonly string[];
  /** The target, HOST:PORT: an agent that discards guests after a while. */
  readonly to: string;
  readonly settings: readonly SweepSetting[];
  /** Runs of each setting, one after the other. */
  readonly repeats: number;
  /** For `source`: what the guest is, without its dirty rate. */
  readonly guestArguments: readonly string[];
  /** For each `migrate`, without what is swept. */
  readonly migrationArguments: readonly string[];
  /** How long the target may be full before a run. */
  readonly targetWaitMs: number;
  /** For a shell, before each `migrate`, when its guest runs; undefined: nothing. */
  readonly prepare: string | undefined;
  readonly signal: AbortSignal;
}

/** One migration; `error` is null only if it completed, and nothing spoke against its image. */
export interface SweepRun {
  /** Null if it did not come to one. */
  readonly report: MigrationReport | null;
  readonly error: { readonly code: ErrorCode; readonly message: string } | null;
}

export interface SweepResult {
  readonly setting: SweepSetting;
  /** As many as there were when the sweep ended. */
  readonly runs: readonly SweepRun[];
}

/** Every combination; the last list turns fastest. */
export const settingsOf = (lists: {
  readonly dirtyPagesPerSecond: readonly number[];
  readonly channels: readonly number[];
  readonly compressions: readonly string[];
  readonly congestionControls: readonly string[];
}): SweepSetting[] =>
  lists.dirtyPagesPerSecond.flatMap((dirtyPagesPerSecond) =>
    lists.congestionControls.flatMap((congestionControl) =>
      lists.compressions.flatMap((compression) =>
        lists.channels.map((channels) => ({ dirtyPagesPerSecond, channels, compression, congestionControl })),
      ),
    ),
  );

/**
 * Runs one setting after the other, each run with a fresh guest in a source agent of its own. What a migration fails with is a result; when
 * this rejects the results so far were told, and every process of ours is gone.
 * @throws {MigrationError} ERR_CANCELLED; ERR_AGENT_FULL if the target stays full, since no later run would find it empty; ERR_PARAMETER if
 * `prepare` fails
 */
export async function runSweep(plan: SweepPlan, onResult: (result: SweepResult) => void): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-sweep-"));
  // Of this sweep: the target's journal remembers every guest that it met.
  const name = `bench-${randomBytes(3).toString("hex")}`;
  let started = 0;
  try {
    for (const setting of plan.settings) {
      const runs: SweepRun[] = [];
      try {
        while (runs.length < plan.repeats) runs.push(await runOnce(plan, setting, folder, `${name}-${++started}`));
      } finally {
        if (runs.length > 0) onResult({ setting, runs });
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true, maxRetries: 10 });
  }
}

/** @throws {MigrationError} what ends the sweep; every process of this run is gone then. */
async function runOnce(plan: SweepPlan, setting: SweepSetting, folder: string, guest: string): Promise<SweepRun> {
  const children: JsonChild[] = [];
  const launch: Launch = (name, command) => {
    const child = new JsonChild(name, command);
    children.push(child);
    return child;
  };
  let interrupt = (): void => {};
  const interrupted = new Promise<never>((_, reject) => {
    interrupt = () => reject(new MigrationError("ERR_CANCELLED", "Interrupted"));
    if (plan.signal.aborted) interrupt();
    plan.signal.addEventListener("abort", interrupt, { once: true });
  });
  interrupted.catch(() => {}); // raced against the run below
  try {
    return await Promise.race([moveGuest(plan, setting, join(folder, guest), guest, launch), interrupted]);
  } finally {
    plan.signal.removeEventListener("abort", interrupt);
    for (const child of children.toReversed()) await child.end();
  }
}

/** Starts a process of one run. */
type Launch = (name: string, command: readonly string[]) => JsonChild;

async function moveGuest(
  plan: SweepPlan,
  { dirtyPagesPerSecond, channels, compression, congestionControl }: SweepSetting,
  path: string,
  guest: string,
  launch: Launch,
): Promise<SweepRun> {
  const start = (...args: string[]): JsonChild => launch(args[0] ?? "", [...plan.command, ...args, "--json"]);
  // A random-writer of rate 0 would write as fast as it can.
  const workload =
    dirtyPagesPerSecond === 0 ? ["--workload", "idle"] : ["--workload", "random-writer", "--dirty-rate", String(dirtyPagesPerSecond)];
  const agent = ["--listen", "127.0.0.1:0", "--name", guest, "--socket", `${path}.sock`, "--state-dir", path];
  const source = start("source", "--guest", guest, ...agent, ...workload, ...plan.guestArguments);
  try {
    await source.expect("running");
  } catch (error) {
    return { report: null, error: endedWith(source, error) };
  }
  const migrate = (): JsonChild =>
    start(
      ...["migrate", plan.to, "--socket", `${path}.sock`, ...plan.migrationArguments],
      ...["--multifd-channels", String(channels), "--multifd-compression", compression, "--congestion-control", congestionControl],
    );
  for (const until = performance.now() + plan.targetWaitMs; ; await sleep(FULL_AGAIN_MS)) {
    if (plan.prepare !== undefined) await prepare(plan.prepare, launch);
    const run = await migrated(migrate());
    if (run.error?.code !== "ERR_AGENT_FULL") return run;
    if (performance.now() >= until)
      throw new MigrationError(
        "ERR_AGENT_FULL",
        `The target still holds a guest after ${plan.targetWaitMs / 1000} s, and takes no other: start it with \`precopy target --discard-after 2s\`, ` +
          `or give --target-wait more than its --discard-after (${run.error.message})`,
      );
  }
}

/** @throws {MigrationError} ERR_PARAMETER: what was to be prepared is not, for this run and every later one */
async function prepare(command: string, launch: Launch): Promise<void> {
  const child = launch("prepare", ["sh", "-c", command]);
  const code = await child.exited;
  if (code === 0) return;
  const said = child.stderr.trim();
  throw new MigrationError("ERR_PARAMETER", `--prepare "${command}" ended with ${code ?? "a signal"}${said === "" ? "" : `: ${said}`}`);
}

/** Runs one `precopy migrate` to its end. */
async function migrated(child: JsonChild): Promise<SweepRun> {
  let run: SweepRun | undefined;
  child.onLine = (line) => {
    const event = line as unknown as ProgressEvent; // `migrate --json` prints progress events, one a line
    if (event.type === "failed") run = { report: event.report ?? null, error: { code: event.code, message: event.message } };
    if (event.type === "done") run = { report: event.report, error: mistrust(event.report) };
  };
  await child.exited;
  return run ?? { report: null, error: endedWith(child, undefined) };
}

const mistrust = ({ "digest-equal": isEqual, verdict }: MigrationReport): SweepRun["error"] =>
  isEqual === false ? { code: "ERR_VERIFICATION", message: verdict } : null;

/** Why a process of ours ended: it has said so in one line of a known form, or it crashed. */
function endedWith(child: JsonChild, thrown: unknown): { readonly code: ErrorCode; readonly message: string } {
  const [, code = "", message = ""] = /^precopy: (ERR_[A-Z_]+): (.*)$/m.exec(child.stderr) ?? [];
  if (isErrorCode(code)) return { code, message: message.replace(` ${new MigrationError(code, "").remedy}`, "") };
  return { code: "ERR_INTERNAL", message: thrown === undefined ? child.stderr.trim() : MigrationError.from(thrown).message };
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
