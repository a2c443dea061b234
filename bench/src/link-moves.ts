import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { JsonChild } from "@precopy/lab";
import type { SweepRun } from "@precopy/lab";
import { MigrationError, isErrorCode } from "@precopy/protocol";
import type { MigrationParameters, MigrationReport, ProgressEvent } from "@precopy/protocol";
import { LabLink, formatLink } from "./links.js";
import type { LinkOptions, Side } from "./links.js";
import { PRECOPY } from "./migrations.js";
import { warmMemory } from "./warm-memory.js";

/** As long as other peers' guests dirty before they move. */
const SETTLE_MS = 300;

/** What each source agent boots. Sizes in bytes. */
export interface LinkGuest {
  readonly memory: number;
  /** At boot, from the start. */
  readonly filled: number;
  readonly fillKind: "random" | "text" | "sparse";
  /** The writer, by its name or as NAME=FILE; a guest of dirty rate 0 is idle. */
  readonly workload: string;
  /** Pages a second. */
  readonly dirtyRate: number;
  readonly workingSet: number;
  /** As --hot-fraction and --write-pattern take them; 0 and steady if left out. */
  readonly hotFraction?: number;
  readonly pattern?: "steady" | "bursty" | "phases" | "moving";
}

export interface MovePlan {
  readonly guest: LinkGuest;
  /** Guests, each with a source agent and a target agent of its own. */
  readonly count: number;
  /** In turn: each begins when the guest before it runs at its target. */
  readonly order: "together" | "in turn";
  readonly parameters: Partial<MigrationParameters>;
  /** A migration that takes longer is cancelled. */
  readonly limitMs: number;
  /** Each is planned right before it begins. */
  readonly isPlanned?: boolean;
}

/** What became of the guests of one plan. */
export interface Moves {
  /** From the first command until the last guest ran at its target, or the last migration had failed, ms. */
  readonly elapsedMs: number;
  /** The first command, by performance.now(). */
  readonly beganAt: number;
  /** One a guest. */
  readonly runs: readonly SweepRun[];
}

/** A link that is up, and what it is. */
export interface MadeLink {
  readonly link: LabLink;
  readonly options: LinkOptions;
  /** `1.00 Gbit/s, MTU 1500`. */
  readonly name: string;
}

/** Makes the links, and ends them whatever becomes of `use`. @returns the reason, in one line, if there can be none here */
export async function withLinks<T>(options: readonly LinkOptions[], use: (links: readonly MadeLink[]) => Promise<T>): Promise<T | string> {
  const reason = LabLink.whyNot();
  if (reason !== undefined) return reason;
  const links: MadeLink[] = [];
  try {
    for (const one of options) links.push({ link: await LabLink.make(one), options: one, name: formatLink(one) });
    return await use(links);
  } finally {
    for (const { link } of links) link.end();
  }
}

/** Moves guests from a to b, between fresh agents. @throws {Error} if an agent did not start, or ended before its time */
export async function moveGuests(link: LabLink, { guest, count, order, parameters, limitMs, isPlanned = false }: MovePlan): Promise<Moves> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-moves-"));
  const removeFolder = (): void => rmSync(folder, { recursive: true, force: true, maxRetries: 10 }); // what was just killed may still be writing
  process.once("exit", removeFolder); // a signal while a link lives ends this process at once
  const children: JsonChild[] = [];
  const socketOf = (name: string): string => join(folder, `${name}.sock`);
  const agent = (side: Side, role: string, name: string, ...rest: string[]): JsonChild => {
    const files = ["--socket", socketOf(name), "--state-dir", join(folder, name)];
    const listen = ["--listen", `${link.address(side)}:0`, "--insecure", "--log-level", "error"];
    const child = new JsonChild(
      name,
      link.command(side, [process.execPath, PRECOPY, role, "--name", name, ...files, ...listen, ...rest, "--json"]),
    );
    children.push(child);
    return child;
  };
  try {
    const guests = await Promise.all(
      Array.from({ length: count }, async (_, at) => {
        const [target, source] = [
          agent("b", "target", `b${at}`, ...(guest.workload.includes("=") ? ["--workload", guest.workload] : [])),
          agent("a", "source", `a${at}`, "--guest", `g${at}`, ...guestArguments(guest)),
        ];
        const { listen } = await target.expect("listening");
        await source.expect("running");
        return { socket: socketOf(`a${at}`), to: String(listen) };
      }),
    );
    await sleep(SETTLE_MS);
    warmMemory(2 * count * guest.filled);
    if (isPlanned) for (const { socket, to } of guests) await answerOf(socket, { command: "plan", to, parameters });
    const beganAt = performance.now();
    const moves: Move[] = [];
    for (const { socket, to } of guests) {
      const move = askMigrate(socket, to, parameters, limitMs);
      moves.push(move);
      if (order === "in turn") await move.over;
    }
    const overAt = await Promise.all(moves.map(({ over }) => over));
    return { beganAt, elapsedMs: Math.max(...overAt) - beganAt, runs: await Promise.all(moves.map(({ run }) => run)) };
  } finally {
    await Promise.all(children.map((child) => child.end()));
    process.off("exit", removeFolder);
    removeFolder();
  }
}

/** Moves one. */
export const moveGuest = async (
  link: LabLink,
  guest: LinkGuest,
  parameters: Partial<MigrationParameters>,
  limitMs: number,
): Promise<SweepRun> => {
  const [run] = (await moveGuests(link, { guest, count: 1, order: "together", parameters, limitMs })).runs;
  if (run === undefined) throw new Error("One guest is one run");
  return run;
};

function guestArguments(guest: LinkGuest): string[] {
  const { memory, filled, fillKind, workload, dirtyRate, workingSet, hotFraction = 0, pattern = "steady" } = guest;
  const how = ["--hot-fraction", String(hotFraction), "--write-pattern", pattern];
  const writes = [...how, "--workload", workload, "--dirty-rate", String(dirtyRate), "--working-set", String(workingSet)];
  // A writer of rate 0 would write as fast as it can.
  return ["--memory", String(memory), "--fill", `${filled}:${fillKind}`, ...(dirtyRate === 0 ? ["--workload", "idle"] : writes)];
}

/** A migration that was asked for. */
interface Move {
  /** When its guest ran at the target, or there was an answer, by performance.now(). */
  readonly over: Promise<number>;
  /** Its answer, which comes after the audit. */
  readonly run: Promise<SweepRun>;
}

/** A line of an agent of this release (docs/wire-format.md, 9). */
type Line = { readonly event?: ProgressEvent; readonly ok?: unknown; readonly error?: { readonly code: string; readonly message: string } };

/** Asks the agent itself: as many `precopy migrate` would start one after the other, and for longer than some migrations take. */
function askMigrate(socketPath: string, to: string, parameters: Partial<MigrationParameters>, limitMs: number): Move {
  let arrived = (): void => {};
  const arrival = new Promise<number>((resolve) => {
    arrived = () => resolve(performance.now());
  });
  const limit = setTimeout(() => ask(socketPath, { command: "cancel" }), limitMs);
  const run = new Promise<SweepRun>((resolve, reject) => {
    let report: MigrationReport | null = null;
    const socket = ask(socketPath, { command: "migrate", to, parameters }, ({ event, error, ok }) => {
      if (event?.type === "phase" && event.phase === "completed") arrived();
      else if (event?.type === "failed") report = event.report ?? null;
      else if (error !== undefined)
        resolve({ report, error: { code: isErrorCode(error.code) ? error.code : "ERR_INTERNAL", message: error.message } });
      else if (ok !== undefined) resolve({ report: ok as MigrationReport, error: null }); // what an agent of this release answers to `migrate`
    });
    socket.on("close", () => reject(new Error(`The agent at ${socketPath} ended without an answer`)));
  }).finally(() => {
    clearTimeout(limit);
    arrived();
  });
  run.catch(() => {}); // who waits for it gets it
  return { over: arrival, run };
}

function ask(socketPath: string, request: object, onLine: (line: Line) => void = () => {}) {
  const socket = connect(socketPath, () => socket.write(`${JSON.stringify(request)}\n`));
  const lines = createInterface({ input: socket });
  for (const one of [socket, lines]) one.on("error", () => {}); // `close` follows
  lines.on("line", (text) => onLine(JSON.parse(text) as Line));
  return socket;
}

/** @throws {Error} what the agent answers with, if it is an error */
const answerOf = (socketPath: string, request: object): Promise<unknown> =>
  new Promise((resolve, reject) => {
    const socket = ask(socketPath, request, ({ error, ok }) => {
      if (error !== undefined) reject(new Error(`${error.code}: ${error.message}`));
      else if (ok !== undefined) resolve(ok);
    });
    socket.on("close", () => reject(new Error(`The agent at ${socketPath} ended without an answer`)));
  });

/** What is looked at of a migration that completed. */
export interface MoveFigures {
  readonly totalMs: number;
  /** By the source's clock. */
  readonly downtimeMs: number;
  readonly rounds: number;
  readonly sentBytes: number;
  /** Acknowledged in the round that sends everything; null if it was too short to tell. */
  readonly firstRoundBytesPerSecond: number | null;
  /** Pages a second, over all rounds but the first; null if there was one only. */
  readonly dirtyRate: number | null;
}

/**
 * @returns undefined if it did not converge, or not in time: the guest runs on at the source.
 * @throws {Error} if it failed for any other reason, or the image is not to be trusted
 */
export function figuresOf({ report, error }: SweepRun): MoveFigures | undefined {
  if (error?.code === "ERR_NOT_CONVERGING" || error?.code === "ERR_TIMEOUT" || error?.code === "ERR_CANCELLED") return undefined;
  if (error !== null) throw new MigrationError(error.code, error.message);
  if (report === null || report["digest-equal"] === false)
    throw new Error(`A migration that proves nothing: ${report?.verdict ?? "no report"}`);
  const { "query-migrate": query, clocks, iterations } = report;
  const need = (value: unknown, name: string): number => {
    if (typeof value !== "number") throw new Error(`The report has no ${name}: ${report.verdict}`);
    return value;
  };
  const bandwidth = iterations[0]?.["bandwidth-bytes-per-second"];
  const dirtyRates = iterations.map((round) => round["dirty-pages-per-second"]).filter((rate) => typeof rate === "number");
  return {
    totalMs: need(query["total-time"], "total-time"),
    downtimeMs: need(clocks["source-ms"], "source-ms"),
    rounds: iterations.length,
    sentBytes: need(query.ram?.transferred, "transferred"),
    firstRoundBytesPerSecond: typeof bandwidth === "number" ? bandwidth : null,
    dirtyRate: dirtyRates.length === 0 ? null : dirtyRates.reduce((sum, rate) => sum + rate, 0) / dirtyRates.length,
  };
}
