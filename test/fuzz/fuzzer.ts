import { createHash } from "node:crypto";
import { mutate } from "./mutate.js";
import type { Random } from "./mutate.js";
import { SourceCoverage } from "./source-coverage.js";
import type { FuzzTarget } from "./fuzz-target.js";

/** Between two looks at what ran: a look takes as long as some hundred inputs. */
const BATCH = 256;
const INPUT_MS_MAX = 1000;

export interface FuzzResult {
  executions: number;
  /** Characters of the target's files that were run. */
  covered: number;
  /** Of so many. */
  ofCharacters: number;
  /** Inputs that ran something new, the first ones included; each with what it added in mind. */
  readonly corpus: Buffer[];
  readonly findings: { readonly input: Buffer; readonly what: string }[];
}

export const nameOf = (input: Buffer): string => createHash("sha256").update(input).digest("hex").slice(0, 16);

/** xorshift32: the same inputs for the same seed. */
export function randomOf(seed: number): Random {
  let state = seed | 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/**
 * Feeds a target with changed inputs, keeps those that run something that none ran before, and changes them on.
 * @param first inputs to begin with, beside the target's own. @param before told of each input before it is read: it may be the last one
 * @param enough ends it after so many findings
 */
export async function fuzz(
  target: FuzzTarget,
  first: readonly Buffer[],
  forMs: number,
  seed: number,
  before: (input: Buffer) => void = () => {},
  enough = Infinity,
): Promise<FuzzResult> {
  const coverage = new SourceCoverage(target.covers);
  const random = randomOf(seed);
  const result: FuzzResult = { executions: 0, covered: 0, ofCharacters: 0, corpus: [], findings: [] };
  const seen = new Set<string>();

  const attempt = async (input: Buffer): Promise<[what: string | undefined, ms: number]> => {
    const started = performance.now();
    let what: string | undefined;
    try {
      await target.read(Buffer.from(input)); // it may change it
    } catch (thrown) {
      what = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
    }
    return [what, performance.now() - started];
  };

  const read = async (input: Buffer): Promise<void> => {
    before(input);
    let [what, ms] = await attempt(input);
    if (what === undefined && ms > INPUT_MS_MAX) {
      const before = process.cpuUsage();
      [what, ms] = await attempt(input);
      const { user, system } = process.cpuUsage(before); // a busy machine, or one that stood still, makes anything slow
      if (what === undefined && user + system > INPUT_MS_MAX * 1000) what = `It took ${ms.toFixed(0)} ms`;
    }
    result.executions++;
    if (what === undefined) return;
    const place = what.split("\n").slice(0, 3).join("\n");
    if (seen.has(place)) return; // once for each place where it breaks
    seen.add(place);
    result.findings.push({ input, what });
  };
  const readAlone = async (input: Buffer): Promise<void> => {
    await read(input);
    if (coverage.look(true)) result.corpus.push(input);
  };

  try {
    coverage.look(true); // what ran while it was loaded
    for (const input of [...target.seeds(), ...first]) await readAlone(input);
    if (result.corpus.length === 0) result.corpus.push(Buffer.alloc(0));
    const until = performance.now() + forMs;
    while (performance.now() < until && result.findings.length < enough) {
      const batch = Array.from({ length: BATCH }, () => {
        // The latest ones have been changed the least.
        const last = result.corpus.length;
        const pick = random(3) === 0 ? Math.max(0, last - 1 - random(Math.min(last, 16))) : random(last);
        return mutate(result.corpus[pick]!, result.corpus[random(last)]!, target.words, random);
      });
      for (const input of batch) await read(input);
      if (coverage.look(false)) for (const input of batch) await readAlone(input);
    }
    result.covered = coverage.characters;
    result.ofCharacters = coverage.ofCharacters;
    return result;
  } finally {
    coverage.end();
    await target.end?.();
  }
}
