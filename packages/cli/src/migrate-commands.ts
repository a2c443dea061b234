import { MigrationError, formatAddress } from "@precopy/protocol";
import type { MigrationReport, ProgressEvent } from "@precopy/protocol";
import { socketPath } from "./agent-selection.js";
import type { AgentSelection } from "./agent-selection.js";
import type {
  CancelOptions,
  MigrateOptions,
  PostcopyOptions,
  ResolveOptions,
  SetOptions,
  StatusOptions,
  WhoOwnsOptions,
} from "./migrate-args.js";
import { callAgent } from "./command-socket.js";
import type { Resolution, ResolveRequest, WhoOwnsAnswer } from "./command-socket.js";
import { verdictOf } from "./ownership-verdict.js";
import { renderOwnership, renderReport, renderResolution, renderStatus } from "./render.js";
import type { AgentStatus } from "./render.js";
import { isColoured, makeRenderer, printJson, writeReport } from "./run-context.js";
import type { RunContext } from "./run-context.js";

/** True from the doubt on, until something else is said of the hand-over. */
function isDoubt(event: ProgressEvent, was: boolean): boolean {
  if (event.type === "failed") return event.code === "ERR_IN_DOUBT";
  if (event.type === "phase") return event.phase === "in-doubt";
  return event.type === "done" ? false : was;
}

/** An agent that ends in doubt can only say that it ends: what it leaves behind is what its client has to know. */
function endedInDoubt(thrown: unknown): unknown {
  const { code, message } = MigrationError.from(thrown);
  if (code !== "ERR_SHUTTING_DOWN" && code !== "ERR_NO_AGENT") return thrown;
  return new MigrationError("ERR_IN_DOUBT", `COMMIT is out and unanswered, and the agent is gone: ${message}`, { cause: thrown });
}

/** `precopy migrate`. Ctrl-C cancels the migration and waits for its end. @throws {MigrationError} what the agent answers */
export async function runMigrate(options: MigrateOptions, run: RunContext): Promise<void> {
  const renderer = makeRenderer(run, options.isJson);
  const cancel = (): void => {
    callAgent(options.socket, { command: "cancel" }).catch((error: unknown) => run.output.write(`${MigrationError.from(error).message}\n`));
  };
  run.signal.addEventListener("abort", cancel, { once: true });
  try {
    const guest = options.guest === undefined ? {} : { guest: options.guest };
    const request = { command: "migrate", to: formatAddress(options.to), parameters: options.parameters, ...guest } as const;
    let kept: MigrationReport | undefined;
    let inDoubt = false;
    const answer = await callAgent(options.socket, request, (event) => {
      renderer.show(event);
      inDoubt = isDoubt(event, inDoubt);
      if (event.type === "failed") kept = event.report;
    })
      .catch((thrown: unknown) => {
        throw inDoubt ? endedInDoubt(thrown) : thrown;
      })
      .finally(() => {
        if (kept !== undefined && options.report !== undefined) writeReport(options.report, kept);
      });
    const report = answer as MigrationReport; // what an agent of this release answers to `migrate`
    renderer.close();
    if (options.report !== undefined) writeReport(options.report, report);
    if (!options.isJson) run.output.write(`${renderReport(report, isColoured(run))}\n`);
    if (report["digest-equal"] === false) throw new MigrationError("ERR_VERIFICATION", report.verdict);
  } finally {
    renderer.close();
    run.signal.removeEventListener("abort", cancel);
  }
}

/** What a command line needs to find the same agent again; empty for the default one. */
function selectionOf({ name, socket }: AgentSelection): string {
  if (socket !== socketPath(name)) return ` --socket ${/^[\w./-]+$/.test(socket) ? socket : `'${socket.replaceAll("'", `'\\''`)}'`}`;
  return name === "default" ? "" : ` --name ${name}`;
}

/** `precopy status`. */
export async function runStatus(options: StatusOptions, run: RunContext): Promise<void> {
  const { socket, isJson } = options;
  const status = (await callAgent(socket, { command: "status" })) as AgentStatus; // what an agent of this release answers to `status`
  if (isJson) printJson(run, status);
  else run.output.write(`${renderStatus(status, selectionOf(options))}\n`);
}

/** `precopy cancel`. Resolves when the guest runs at the source again. */
export async function runCancel({ socket }: CancelOptions): Promise<void> {
  await callAgent(socket, { command: "cancel" });
}

/** `precopy postcopy` and `precopy postcopy-recover`. @throws {MigrationError} ERR_NO_MIGRATION */
export async function runPostcopy({ socket, isRecovery }: PostcopyOptions): Promise<void> {
  await callAgent(socket, { command: isRecovery ? "postcopy-recover" : "postcopy" });
}

/** `precopy set`. @throws {MigrationError} ERR_NO_MIGRATION, ERR_PARAMETER */
export async function runSet({ socket, parameters }: SetOptions): Promise<void> {
  await callAgent(socket, { command: "set", parameters });
}

/** What was asked did not come about, since somebody else had decided first; undefined if it did. */
function refusalOf({ way }: ResolveRequest, { guest, outcome }: Resolution): MigrationError | undefined {
  const runsHere = outcome === "taken-back" || outcome === "claimed";
  if (way === "give-up")
    return runsHere
      ? new MigrationError("ERR_NOTHING_TO_RESOLVE", `The target refused guest ${guest}: it runs here again, and nothing was given up`)
      : undefined;
  if (runsHere) return undefined;
  return outcome === "completed"
    ? new MigrationError("ERR_OWNED_ELSEWHERE", `Guest ${guest} runs at the target already: nothing was taken back`)
    : new MigrationError("ERR_NO_GUEST", `The target refused guest ${guest}, and nothing was left here that could be taken back`);
}

/**
 * `precopy resolve`.
 * @throws {MigrationError} what the agent refuses with; ERR_OWNED_ELSEWHERE, ERR_NO_GUEST or ERR_NOTHING_TO_RESOLVE if the other side's answer
 * ended the doubt, and not as was asked.
 */
export async function runResolve(options: ResolveOptions, run: RunContext): Promise<void> {
  const { socket, guest, way, isOtherSideFenced, isRollbackAccepted, isJson } = options;
  const request = { command: "resolve", guest, way, isOtherSideFenced, isRollbackAccepted } as const;
  const resolution = (await callAgent(socket, request)) as Resolution; // what an agent of this release answers to `resolve`
  const refusal = refusalOf(request, resolution);
  if (isJson) printJson(run, resolution);
  else if (refusal === undefined) run.output.write(`${renderResolution(resolution)}\n`);
  if (refusal !== undefined) throw refusal;
}

/** `precopy who-owns`. */
export async function runWhoOwns(options: WhoOwnsOptions, run: RunContext): Promise<void> {
  const { socket, guest, peer, isJson } = options;
  const request = {
    command: "who-owns",
    ...(guest !== undefined && { guest }),
    ...(peer !== undefined && { peer: formatAddress(peer) }),
  } as const;
  const answer = (await callAgent(socket, request)) as WhoOwnsAnswer; // what an agent of this release answers to `who-owns`
  if (isJson) printJson(run, { ...answer, verdict: verdictOf(answer) });
  else run.output.write(`${renderOwnership(answer, selectionOf(options), isColoured(run))}\n`);
}
