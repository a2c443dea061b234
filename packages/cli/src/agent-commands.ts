import { MigrationError, formatAddress, parseAddress } from "@precopy/protocol";
import { greetAgent } from "@precopy/transport";
import { pino } from "pino";
import { Agent } from "./agent.js";
import type { AgentOptions, SourceOptions, TargetOptions } from "./agent-args.js";
import { CommandSocket } from "./command-socket.js";
import { exitCodeOf, formatError } from "./exit-code.js";
import { loadSecurity } from "./load-security.js";
import { renderReport } from "./render.js";
import { isColoured, makeRenderer, printJson, untilStopped, writeReport } from "./run-context.js";
import type { RunContext } from "./run-context.js";

/** @param guest undefined: whichever is here. @throws {MigrationError} ERR_NO_GUEST */
function requireGuest(agent: Agent, guest: string | undefined): void {
  if (guest !== undefined && guest !== agent.guestId) throw new MigrationError("ERR_NO_GUEST", `Guest ${guest} is not here`);
}

/** Starts agent and command socket, runs `body`, and ends both whichever way it ends. */
async function withAgent(options: AgentOptions, run: RunContext, body: (agent: Agent) => Promise<number>): Promise<number> {
  const log = pino({ level: options.logLevel, base: { agent: options.name } }, pino.destination({ dest: 2, sync: true }));
  const agent = await Agent.start(options, log);
  let commands: CommandSocket | undefined;
  let release = (): void => {};
  let code = 0;
  let isLeftInDoubt = false;
  try {
    commands = await CommandSocket.listen(options.socket, {
      migrate: (request, onEvent) => {
        requireGuest(agent, request.guest);
        return agent.migrate(parseAddress(request.to), request.parameters, onEvent);
      },
      plan: (request) => {
        requireGuest(agent, request.guest);
        return agent.plan(parseAddress(request.to), request.parameters);
      },
      dirtyRate: (guest) => {
        requireGuest(agent, guest);
        return agent.dirtyRate();
      },
      status: () => agent.status(),
      cancel: () => agent.cancel(),
      startPostcopy: () => agent.startPostcopy(),
      recoverPostcopy: () => agent.recoverPostcopy(),
      set: (changes) => agent.set(changes),
      resolve: (request) => agent.resolve(request),
      whoOwns: (guest, peer) => agent.whoOwns(guest, peer),
    });
    release = run.stopping.guard((count) => mayEnd(agent, options, run, count));
    if (options.isJson)
      printJson(run, { type: "listening", listen: formatAddress(agent.address), socket: options.socket, pid: process.pid });
    else run.output.write(`precopy listens on ${formatAddress(agent.address)}; commands: ${options.socket}\n`);
    code = await body(agent);
  } finally {
    release();
    await commands?.close();
    isLeftInDoubt = await agent.close();
  }
  return isLeftInDoubt ? exitCodeOf("ERR_IN_DOUBT") : code; // a guest in doubt is nobody's to forget
}

/**
 * A guest would end with its agent, so the first signal does not end an agent that has one: a migration in progress is waited for, one to
 * --evacuate-to is begun, and if the guest leaves so does the agent. The second signal insists.
 */
function mayEnd(agent: Agent, options: AgentOptions, run: RunContext, count: number): boolean {
  const { guestId } = agent;
  if (guestId === undefined || count > 1) return true;
  const say = (error: MigrationError): void => {
    if (options.isJson) printJson(run, { type: "held", guest: guestId, code: error.code, message: error.message });
    process.stderr.write(`${formatError(error)}\n`);
  };
  const held = (what: string): MigrationError =>
    new MigrationError("ERR_GUEST_HELD", `${what}, and guest ${guestId} would end with this agent`);
  const endIfLeft = (): void => {
    if (agent.guestId === undefined) run.stopping.stop();
    else say(held("It did not leave"));
  };
  if (agent.isMigrating) {
    say(held("A migration is in progress"));
    void agent.migrationEnded().then(endIfLeft);
  } else if (options.evacuateTo !== undefined) {
    const to = options.evacuateTo;
    if (options.isJson) printJson(run, { type: "evacuating", guest: guestId, to: formatAddress(to) });
    else process.stderr.write(`precopy: moving guest ${guestId} to ${formatAddress(to)} before the end; signal again to insist\n`);
    agent
      .migrate(to, {}, () => {})
      .catch((error: unknown) => process.stderr.write(`${formatError(MigrationError.from(error))}\n`))
      .finally(endIfLeft);
  } else say(held("Nowhere to move it was given"));
  return false;
}

/** `precopy target`. Resolves with the exit code when the user wants an end. */
export function runTarget(options: TargetOptions, run: RunContext): Promise<number> {
  return withAgent(options, run, async () => {
    await untilStopped(run.signal);
    return 0;
  });
}

/**
 * `precopy source`. With --migrate-to it ends when the guest has left; if that fails the guest runs on here until the user wants an end,
 * and the exit code tells of the failure. A target that is not there is found out before the guest is booted.
 */
export async function runSource(options: SourceOptions, run: RunContext): Promise<number> {
  if (options.migrateTo !== undefined) await greetAgent(options.migrateTo, loadSecurity(options.security));
  return withAgent(options, run, async (agent) => {
    await agent.boot(options.guest, options);
    if (options.isJson) printJson(run, { type: "running", guest: options.guest });
    else run.output.write(`guest ${options.guest} runs\n`);
    const code = options.migrateTo === undefined ? undefined : await migrateAway(agent, options, run);
    if (code !== 0) await untilStopped(run.signal);
    return code ?? 0;
  });
}

async function migrateAway(agent: Agent, options: SourceOptions, run: RunContext): Promise<number> {
  const stopped = untilStopped(run.signal);
  await Promise.race([stopped, new Promise((resolve) => setTimeout(resolve, options.afterMs))]);
  if (run.signal.aborted || options.migrateTo === undefined) return 0;
  const renderer = makeRenderer(run, options.isJson);
  const migrating = agent.migrate(options.migrateTo, options.parameters, (event) => renderer.show(event));
  // Told to end while it migrates: leave the rest to the agent's own end, which cancels what may be cancelled.
  const outcome = await Promise.race([
    migrating.then(
      () => undefined,
      (error: unknown) => MigrationError.from(error),
    ),
    stopped.then(() => new MigrationError("ERR_CANCELLED", "Interrupted")),
  ]);
  renderer.close();
  const { report } = agent;
  if (report !== undefined && options.report !== undefined) writeReport(options.report, report);
  if (outcome !== undefined) {
    process.stderr.write(`${formatError(outcome)}\n`);
    if (agent.guestId !== undefined && !run.signal.aborted)
      process.stderr.write(`precopy: guest ${agent.guestId} runs on here; Ctrl-C ends it\n`);
    return exitCodeOf(outcome.code);
  }
  if (report !== undefined && !options.isJson) run.output.write(`${renderReport(report, isColoured(run))}\n`);
  return report !== undefined && report["digest-equal"] === false ? exitCodeOf("ERR_VERIFICATION") : 0;
}
