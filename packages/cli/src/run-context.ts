import { writeFileSync } from "node:fs";
import type { Writable } from "node:stream";
import { MigrationError } from "@precopy/protocol";
import { Renderer, mayColour, rendererKind } from "./render.js";

/** What a command gets from its process, and nothing else of it. */
export interface RunContext {
  /** Aborted when the user wants an end. */
  readonly signal: AbortSignal;
  readonly output: Writable & { readonly isTTY?: boolean };
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** How to start this very program: node and its entry. */
  readonly command: readonly string[];
}

export const isColoured = ({ output, environment }: RunContext): boolean => mayColour(output, environment["NO_COLOR"]);

export const makeRenderer = (run: RunContext, isJson: boolean): Renderer =>
  new Renderer(rendererKind(run.output, isJson), run.output, isColoured(run));

/** Resolves when the user wants an end. */
export const untilStopped = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });

/** One line for a program to read. */
export const printJson = (run: RunContext, value: unknown): void => {
  run.output.write(`${JSON.stringify(value)}\n`);
};

/** @throws {MigrationError} ERR_PARAMETER if the file cannot be written. */
export function writeReport(file: string, report: unknown): void {
  try {
    writeFileSync(file, `${JSON.stringify(report, null, 2)}\n`);
  } catch (cause) {
    throw new MigrationError("ERR_PARAMETER", `Cannot write the report ${file}`, { cause });
  }
}
