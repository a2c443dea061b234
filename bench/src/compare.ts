import { readFileSync } from "node:fs";
import { spreadOf } from "./spread.js";
import type { Figure } from "./define-bench.js";

/** What `--json` and bench/results hold of an entry. */
export interface EntryResult {
  readonly name: string;
  readonly figures: readonly Figure[];
}

export type Verdict = "better" | "worse" | "no difference shown";

/** Of one or two runs nobody knows how far the next one would have been. */
const RUNS_MIN = 3;

/** A difference is shown only if each median lies outside of all that the other side saw. */
export function compare(old: readonly number[], now: readonly number[], better: Figure["better"]): Verdict {
  const [before, after] = [spreadOf(old), spreadOf(now)];
  const isOutside = (median: number, { min, max }: { readonly min: number; readonly max: number }): boolean => median < min || median > max;
  if (Math.min(old.length, now.length) < RUNS_MIN) return "no difference shown";
  if (!isOutside(after.median, before) || !isOutside(before.median, after)) return "no difference shown";
  return after.median < before.median === (better === "lower") ? "better" : "worse";
}

/** Reads a file that `--json` or `--keep` wrote. @throws {Error} if it is none */
export function readResults(file: string): readonly EntryResult[] {
  const content: unknown = JSON.parse(readFileSync(file, "utf8"));
  const entries = isObject(content) && Array.isArray(content["entries"]) ? (content["entries"] as unknown[]) : [content];
  return entries.map((entry) => {
    if (!isObject(entry) || typeof entry["name"] !== "string" || !Array.isArray(entry["figures"]) || !entry["figures"].every(isFigure))
      throw new Error(`${file} was not written by --json or --keep of this bench`);
    return { name: entry["name"], figures: entry["figures"] };
  });
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;

const isFigure = (value: unknown): value is Figure =>
  isObject(value) &&
  typeof value["name"] === "string" &&
  Array.isArray(value["values"]) &&
  value["values"].length > 0 &&
  value["values"].every((one) => typeof one === "number");
