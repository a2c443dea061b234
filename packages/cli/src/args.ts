import { Command, CommanderError } from "@commander-js/extra-typings";
import type { OutputConfiguration } from "@commander-js/extra-typings";
import { addSource, addTarget } from "./agent-args.js";
import type { AgentActions } from "./agent-args.js";
import { addBench } from "./bench-args.js";
import type { BenchActions } from "./bench-args.js";
import { addCerts } from "./certs-args.js";
import type { CertsActions } from "./certs-args.js";
import { oneLine } from "./exit-code.js";
import { addDemo, addNetwork } from "./lab-args.js";
import type { LabActions } from "./lab-args.js";
import { addForecasts, addMigrate, addOwnership } from "./migrate-args.js";
import type { MigrateActions } from "./migrate-args.js";
import { RELEASE } from "./release.js";

/** What each command does; the options are checked and complete. */
export type Actions = AgentActions & MigrateActions & LabActions & BenchActions & CertsActions;

const EXAMPLES = `
Examples:
  precopy demo
      Boots a guest, moves it in both modes between two agents here, compares.
  precopy target --listen 0.0.0.0:4646 --insecure
      On one host: waits for a guest.
  precopy source --workload ledger,random-writer --migrate-to other-host:4646
      On another: boots a guest of two vCPUs and moves it while it runs.
`;

/**
 * The `precopy` command; `parseAsync` runs one action. Never ends the process: --help and --version reject with a CommanderError of
 * `exitCode` 0, unknown commands and flags with one of 2 after one line on stderr, and a bad value with a MigrationError.
 * @param output where help and usage errors go, for tests; default the process's own streams.
 */
export function buildProgram(actions: Actions, output: OutputConfiguration = {}): Command {
  const program = new Command("precopy")
    .description("Moves a running guest from one Node process to another, over TCP, with a pause of milliseconds.")
    .version(RELEASE, "--version", "print the release")
    .addHelpText("after", EXAMPLES)
    .configureOutput({ ...output, outputError: (text, write) => write(`precopy: ${oneLine(text.replace(/^error: /, ""))}\n`) })
    .exitOverride((error) => {
      throw new CommanderError(error.exitCode === 0 ? 0 : 2, error.code, error.message);
    });
  addSource(program, actions);
  addTarget(program, actions);
  addMigrate(program, actions);
  addForecasts(program, actions);
  addOwnership(program, actions);
  addNetwork(program, actions);
  addDemo(program, actions);
  addBench(program, actions);
  addCerts(program, actions);
  return program;
}
