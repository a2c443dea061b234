import { writeSync } from "node:fs";
import { CommanderError } from "@commander-js/extra-typings";
import { EXIT_WATCHDOG_MS, MigrationError } from "@precopy/protocol";
import { buildProgram } from "./args.js";
import { exitCodeOf, formatError } from "./exit-code.js";
import { StopSwitch } from "./run-context.js";
import type { RunContext } from "./run-context.js";

const stopping = new StopSwitch(() => process.kill(process.pid, "SIGKILL"));
// A demo ends its agents one by one, each of which may take seconds on a busy host; who will not wait signals once more.
stopping.signal.addEventListener("abort", () => watch(10 * EXIT_WATCHDOG_MS), { once: true });
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => stopping.request());
// A reader that has enough (`| head`) is no mistake of ours.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  stopping.stop();
});

/** Ends the process if a thread still hangs after everything was released: process.exit would wait for it for ever. */
function watch(ms: number): void {
  setTimeout(() => process.kill(process.pid, "SIGKILL"), ms).unref();
}

function fail(thrown: unknown): void {
  const error = MigrationError.from(thrown);
  writeSync(2, `${formatError(error)}\n`);
  process.exitCode = exitCodeOf(error.code);
}

const run: RunContext = {
  signal: stopping.signal,
  stopping,
  output: process.stdout,
  environment: process.env,
  command: [process.execPath, process.argv[1] ?? ""],
};
// Only what a command needs is loaded: all of it takes half a second, which is too long for `precopy status`.
const agentCommands = () => import("./agent-commands.js");
const migrateCommands = () => import("./migrate-commands.js");
const forecastCommands = () => import("./forecast-commands.js");
const labCommands = () => import("./lab-commands.js");
const certsCommand = () => import("./certs-command.js");
const finish = (code: number): void => {
  process.exitCode = code;
};

try {
  await buildProgram({
    source: async (options) => finish(await (await agentCommands()).runSource(options, run)),
    target: async (options) => finish(await (await agentCommands()).runTarget(options, run)),
    migrate: async (options) => (await migrateCommands()).runMigrate(options, run),
    plan: async (options) => (await forecastCommands()).runPlan(options, run),
    dirtyRate: async (options) => (await forecastCommands()).runDirtyRate(options, run),
    history: async (options) => (await forecastCommands()).runHistory(options, run),
    status: async (options) => (await migrateCommands()).runStatus(options, run),
    cancel: async (options) => (await migrateCommands()).runCancel(options),
    postcopy: async (options) => (await migrateCommands()).runPostcopy(options),
    set: async (options) => (await migrateCommands()).runSet(options),
    resolve: async (options) => (await migrateCommands()).runResolve(options, run),
    whoOwns: async (options) => (await migrateCommands()).runWhoOwns(options, run),
    switch: async (options) => (await labCommands()).runSwitch(options, run),
    client: async (options) => (await labCommands()).runClient(options, run),
    demo: async (options) => (await labCommands()).runDemoCommand(options, run),
    bench: async (options) => (await import("./bench-command.js")).runBench(options, run),
    certsInit: async (options) => (await certsCommand()).runCertsInit(options, run),
    certsIssue: async (options) => (await certsCommand()).runCertsIssue(options, run),
  }).parseAsync();
} catch (thrown) {
  if (thrown instanceof CommanderError)
    process.exitCode = thrown.exitCode; // it has said why
  else fail(thrown);
}
watch(2 * EXIT_WATCHDOG_MS);
// Standard input may still be open, and nothing else is left.
process.stdin.destroy();
