import { MigrationError, formatAddress } from "@precopy/protocol";
import type { MigrationReport } from "@precopy/protocol";
import type { CancelOptions, MigrateOptions, StatusOptions } from "./args.js";
import { callAgent } from "./command-socket.js";
import { renderReport, renderStatus } from "./render.js";
import type { AgentStatus } from "./render.js";
import { isColoured, makeRenderer, printJson, writeReport } from "./run-context.js";
import type { RunContext } from "./run-context.js";

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
    const answer = await callAgent(options.socket, request, (event) => {
      renderer.show(event);
      if (event.type === "failed") kept = event.report;
    }).finally(() => {
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

/** `precopy status`. */
export async function runStatus({ socket, isJson }: StatusOptions, run: RunContext): Promise<void> {
  const status = (await callAgent(socket, { command: "status" })) as AgentStatus; // what an agent of this release answers to `status`
  if (isJson) printJson(run, status);
  else run.output.write(`${renderStatus(status)}\n`);
}

/** `precopy cancel`. Resolves when the guest runs at the source again. */
export async function runCancel({ socket }: CancelOptions): Promise<void> {
  await callAgent(socket, { command: "cancel" });
}
