import { writeFileSync } from "node:fs";
import type { Writable } from "node:stream";
import { MigrationError } from "@precopy/protocol";
import { Renderer, mayColour, rendererKind } from "./render.js";

/** @param count signals so far, this one included. False holds the end back until the next one. */
export type MayStop = (count: number) => boolean;

/**
 * Counts SIGINT and SIGTERM, which mean the same. The first one aborts `signal`, which asks for an orderly end; one more after that insists.
 * A command that has something to lose may hold the end back.
 */
export class StopSwitch {
  readonly #stopping = new AbortController();
  readonly #insist: () => void;
  #mayStop: MayStop | undefined;
  #count = 0;

  /** @param insist ends the process here and now. */
  constructor(insist: () => void) {
    this.#insist = insist;
  }

  get signal(): AbortSignal {
    return this.#stopping.signal;
  }

  /** Every signal asks `mayStop` until one is let through; the guard set last counts. Returns how to take it away. */
  guard(mayStop: MayStop): () => void {
    this.#mayStop = mayStop;
    return () => {
      if (this.#mayStop === mayStop) this.#mayStop = undefined;
    };
  }

  /** A signal came. */
  request(): void {
    this.#count++;
    if (this.signal.aborted) this.#insist();
    else if (this.#mayStop?.(this.#count) ?? true) this.stop();
  }

  /** The end, whatever a guard says; not an insistence if it has begun already. */
  stop(): void {
    this.#stopping.abort();
  }
}

/** What a command gets from its process, and nothing else of it. */
export interface RunContext {
  /** Aborted when the user wants an end. */
  readonly signal: AbortSignal;
  /** The switch behind `signal`, for a command that holds the end back, or ends by itself. */
  readonly stopping: Pick<StopSwitch, "guard" | "stop">;
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
