import { appendFileSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as z from "zod";
import { MigrationError } from "@precopy/protocol";
import type { MigrationReport } from "@precopy/protocol";
import type { HandoverCosts } from "@precopy/source-agent";

/** Beyond this the older half goes: some thousand migrations. */
const BYTES_MAX = 4 * 2 ** 20;
/** So many of the last hand-overs to a target say what the next one takes. */
const RECENT = 5;

const range = z.object({ low: z.number(), expected: z.number(), high: z.number() });
const parts = z.object({ pause: z.number(), collect: z.number(), send: z.number(), commit: z.number() });
const forecast = z.object({
  by: z.enum(["plan", "first-round"]),
  ends: z.boolean(),
  failure: z.string(),
  "total-ms": range,
  "downtime-ms": range,
  "downtime-parts": parts,
  bytes: range,
  rounds: z.number(),
  "lost-percent": z.number(),
  "blocked-ms": range.default({ low: 0, expected: 0, high: 0 }), // lines from before post-copy
});
const entry = z.object({
  at: z.string(),
  guest: z.string(),
  to: z.string(),
  /** QEMU's word. */
  status: z.string(),
  /** Of what ended it; null if it completed. */
  code: z.string().nullable(),
  forecasts: z.array(forecast),
  outcome: z.object({ "total-ms": z.number(), "downtime-ms": z.number(), "downtime-parts": parts, bytes: z.number() }).nullable(),
  /** What the hand-over took apart from sending its pages; null if it did not complete. */
  handover: z.object({ send: z.number(), commit: z.number() }).nullable(),
});
export type HistoryEntry = z.infer<typeof entry>;

/** What is kept of a migration. */
export function historyEntry(report: MigrationReport, at = new Date()): HistoryEntry {
  const { outcome, forecasts, guest, to, error } = report;
  return {
    at: at.toISOString(),
    guest,
    to,
    status: report["query-migrate"].status,
    code: error?.code ?? null,
    forecasts: [...forecasts],
    outcome,
    handover:
      outcome === null
        ? null
        : { send: Math.max(0, outcome["downtime-parts"].send - lastSendingMs(report)), commit: outcome["downtime-parts"].commit },
  };
}

/** What the last pages took on the wire, by the bandwidth that was known. */
function lastSendingMs({ iterations, "query-migrate": { ram } }: MigrationReport): number {
  const known = iterations.findLast((round) => typeof round["bandwidth-bytes-per-second"] === "number")?.["bandwidth-bytes-per-second"];
  return typeof known === "number" && known > 0 ? ((ram?.["downtime-bytes"] ?? 0) / known) * 1000 : 0;
}

const fileIn = (stateDir: string): string => join(stateDir, "history.jsonl");

/** All that is kept in an agent's folder, oldest first. What is damaged is passed over. */
export function readHistory(stateDir: string): HistoryEntry[] {
  let text: string;
  try {
    text = readFileSync(fileIn(stateDir), "utf8");
  } catch {
    return []; // nothing was migrated from here yet
  }
  return text.split("\n").flatMap((line) => {
    try {
      return [entry.parse(JSON.parse(line))];
    } catch {
      return []; // cut short, or of a release to come
    }
  });
}

/** One JSON line a migration, in the agent's folder, which is its own while it runs (docs/adr/0020). */
export class History {
  readonly #stateDir: string;
  /** Of each target the last hand-overs; read once, since nobody waits for a file in the middle of a migration. */
  readonly #recent = new Map<string, HandoverCosts[]>();

  /** @param stateDir the agent's. */
  constructor(stateDir: string) {
    this.#stateDir = stateDir;
    for (const one of readHistory(stateDir)) this.#note(one);
  }

  /** @throws {MigrationError} ERR_SYSTEM_CALL; the migration is over by then, and no worse for it. */
  add(added: HistoryEntry): void {
    this.#note(added);
    const file = fileIn(this.#stateDir);
    try {
      appendFileSync(file, `${JSON.stringify(added)}\n`, { mode: 0o600 });
      if (statSync(file).size > BYTES_MAX) this.#halve(file);
    } catch (cause) {
      throw new MigrationError("ERR_SYSTEM_CALL", `Cannot write ${file}`, { cause });
    }
  }

  #note({ to, handover }: HistoryEntry): void {
    if (handover !== null) this.#recent.set(to, [...(this.#recent.get(to) ?? []), handover].slice(-RECENT));
  }

  #halve(file: string): void {
    const all = readHistory(this.#stateDir);
    const kept = all.slice(all.length / 2).map((one) => `${JSON.stringify(one)}\n`);
    writeFileSync(`${file}.new`, kept.join(""), { mode: 0o600 });
    renameSync(`${file}.new`, file);
  }

  /** The median of the last hand-overs to this target; undefined if there were none. */
  handoverCosts(to: string): HandoverCosts | undefined {
    const recent = this.#recent.get(to);
    if (recent === undefined) return undefined;
    const median = (of: (costs: HandoverCosts) => number): number =>
      recent.map(of).toSorted((one, other) => one - other)[Math.floor(recent.length / 2)]!; // there is one at least
    return { send: median(({ send }) => send), commit: median(({ commit }) => commit) };
  }
}
