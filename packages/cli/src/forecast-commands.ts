import { formatAddress } from "@precopy/protocol";
import type { DirtyRate, MigrationPlanReport } from "@precopy/protocol";
import type { DirtyRateOptions, HistoryOptions, PlanOptions } from "./migrate-args.js";
import { callAgent } from "./command-socket.js";
import { readHistory } from "./history.js";
import { renderDirtyRate, renderHistory, renderPlan } from "./render-forecast.js";
import { isColoured, printJson } from "./run-context.js";
import type { RunContext } from "./run-context.js";

/** `precopy plan`. @throws {MigrationError} what a migration would be refused with; ERR_BUSY */
export async function runPlan({ socket, to, guest, parameters, isJson }: PlanOptions, run: RunContext): Promise<void> {
  const request = { command: "plan", to: formatAddress(to), parameters, ...(guest !== undefined && { guest }) } as const;
  const plan = (await callAgent(socket, request)) as MigrationPlanReport; // what an agent of this release answers to `plan`
  if (isJson) printJson(run, plan);
  else run.output.write(`${renderPlan(plan, isColoured(run))}\n`);
}

/** `precopy dirty-rate`. @throws {MigrationError} ERR_BUSY, ERR_NO_GUEST */
export async function runDirtyRate({ socket, guest, isJson }: DirtyRateOptions, run: RunContext): Promise<void> {
  const rate = (await callAgent(socket, { command: "dirty-rate", ...(guest !== undefined && { guest }) })) as DirtyRate; // as above
  if (isJson) printJson(run, rate);
  else run.output.write(`${renderDirtyRate(rate)}\n`);
}

/** `precopy history`. */
export function runHistory({ stateDir, last, isJson }: HistoryOptions, run: RunContext): void {
  const entries = readHistory(stateDir).slice(-last);
  if (isJson) for (const entry of entries) printJson(run, entry);
  else run.output.write(`${renderHistory(entries)}\n`);
}
