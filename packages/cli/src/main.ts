import { writeSync } from "node:fs";
import { CommanderError } from "@commander-js/extra-typings";
import { EXIT_WATCHDOG_MS, MigrationError } from "@precopy/protocol";
import { runSource, runTarget } from "./agent-commands.js";
import { buildProgram } from "./args.js";
import { runBench } from "./bench-command.js";
import { exitCodeOf, formatError } from "./exit-code.js";
import { runClient, runDemoCommand, runSwitch } from "./lab-commands.js";
import { runDirtyRate, runHistory, runPlan } from "./forecast-commands.js";
import { runCancel, runMigrate, runPostcopy, runResolve, runSet, runStatus, runWhoOwns } from "./migrate-commands.js";
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
const finish = (code: number): void => {
  process.exitCode = code;
};

try {
  await buildProgram({
    source: async (options) => finish(await runSource(options, run)),
    target: async (options) => finish(await runTarget(options, run)),
    migrate: (options) => runMigrate(options, run),
    plan: (options) => runPlan(options, run),
    dirtyRate: (options) => runDirtyRate(options, run),
    history: async (options) => runHistory(options, run),
    status: (options) => runStatus(options, run),
    cancel: (options) => runCancel(options),
    postcopy: (options) => runPostcopy(options),
    set: (options) => runSet(options),
    resolve: (options) => runResolve(options, run),
    whoOwns: (options) => runWhoOwns(options, run),
    switch: (options) => runSwitch(options, run),
    client: (options) => runClient(options, run),
    demo: (options) => runDemoCommand(options, run),
    bench: (options) => runBench(options, run),
  }).parseAsync();
} catch (thrown) {
  if (thrown instanceof CommanderError)
    process.exitCode = thrown.exitCode; // it has said why
  else fail(thrown);
}
watch(2 * EXIT_WATCHDOG_MS);
// Standard input may still be open, and nothing else is left.
process.stdin.destroy();
