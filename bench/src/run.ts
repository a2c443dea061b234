import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { MigrationError, parseCount } from "@precopy/protocol";
import { compare, readResults } from "./compare.js";
import type { EntryResult } from "./compare.js";
import type { Bench, Figure, Suite } from "./define-bench.js";
import { entries } from "./entries/index.js";
import { listenForNoise, whyTooNoisy } from "./noise.js";
import type { Noise } from "./noise.js";
import { environment, keepPlots, keepResult } from "./report.js";
import { formatSpread, spreadOf } from "./spread.js";

const USAGE = `npm run bench -- [options]
  --suite table|full   some minutes, against the peers that are installed (default), or everything
  --entry NAME         only this entry, or if there is none those whose names begin so; again for more
  --pairs N            runs of each side (default 3, with --suite full 10)
  --compare OLD.json   what --json or --keep wrote before, to compare with
  --json FILE          all results in one file
  --keep               each entry's results in bench/results, with plots
  --noisy              measure even if the machine is busy, and say so in the results
  --list               name the entries; with --entry those that it means`;
const PAIRS: Readonly<Record<Suite, number>> = { table: 3, full: 10 };
const EXIT = { ok: 0, beyond: 1, usage: 2, noisy: 3 } as const;
/** How long a busy machine is waited for before each entry. */
const PATIENCE_MS = 60_000;
const RETRY_MS = 5000;

/** @throws {Error} for options that are unknown, or make no sense */
function readOptions(args: readonly string[]) {
  const { values } = parseArgs({
    args: [...args],
    options: {
      suite: { type: "string", default: "table" },
      entry: { type: "string", multiple: true },
      pairs: { type: "string" },
      compare: { type: "string" },
      json: { type: "string" },
      keep: { type: "boolean", default: false },
      noisy: { type: "boolean", default: false },
      list: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  const { suite, pairs } = values;
  if (suite !== "table" && suite !== "full") throw new Error(`--suite "${suite}" is neither table nor full`);
  return {
    ...values,
    suite,
    pairs: pairs === undefined ? PAIRS[suite] : parseCount(pairs),
    selected: choose(suite, values.entry),
    old: values.compare === undefined ? [] : readResults(values.compare),
  };
}
type Options = ReturnType<typeof readOptions>;

function choose(suite: Suite, wanted: readonly string[] | undefined): readonly Bench[] {
  if (wanted === undefined) return entries.filter((entry) => suite === "full" || entry.suite === suite);
  const unknown = wanted.find((prefix) => !entries.some(({ name }) => name.startsWith(prefix)));
  if (unknown !== undefined) throw new Error(`--entry "${unknown}": no entry begins so; --list names them`);
  const isOne = (one: string): boolean => entries.some(({ name }) => name === one);
  return entries.filter(({ name }) => wanted.some((one) => (isOne(one) ? name === one : name.startsWith(one))));
}

const isBeyond = ({ values: measured, target, better }: Figure): boolean => {
  const { median } = spreadOf(measured);
  return target !== undefined && (better === "lower" ? median > target : median < target);
};

/** One line of a figure: median, spread, and what it is held against. */
function lineOf(figure: Figure, old: Figure | undefined): string {
  const { name, unit, values: measured, target, better } = figure;
  const parts = [`${formatSpread(spreadOf(measured))} ${unit}, ${measured.length} ${measured.length === 1 ? "value" : "values"}`];
  if (measured.length >= 100) parts.push(`p99 ${spreadOf(measured).p99.toFixed(2)}`);
  if (target !== undefined) parts.push(`${better === "lower" ? "at most" : "at least"} ${target}: ${isBeyond(figure) ? "MISSED" : "met"}`);
  if (old !== undefined) parts.push(`was ${formatSpread(spreadOf(old.values))}: ${compare(old.values, measured, better)}`);
  return `  ${name}: ${parts.join("; ")}`;
}

/** Waits for a quiet machine, within reason. */
async function quiet(isNoisyAllowed: boolean): Promise<{ readonly noise: Noise; readonly reason: string | undefined }> {
  for (const until = performance.now() + PATIENCE_MS; ; await sleep(RETRY_MS)) {
    const noise = await listenForNoise();
    const reason = whyTooNoisy(noise);
    if (reason === undefined || isNoisyAllowed || performance.now() >= until) return { noise, reason };
  }
}

async function runAll({ suite, selected, pairs, old, json, keep, noisy: isNoisyAllowed }: Options): Promise<number> {
  const results: EntryResult[] = [];
  const failed: string[] = [];
  const beyond: string[] = [];
  const worse: string[] = [];
  const where = environment();
  console.log(`${selected.length} entries, ${pairs} pairs; ${JSON.stringify(where)}`);
  for (const { name, workload, measure } of selected) {
    const { noise, reason } = await quiet(isNoisyAllowed);
    if (reason !== undefined && !isNoisyAllowed) {
      console.error(
        `bench: too noisy to measure ${name}: ${reason}. Wait until the machine is quiet, or add --noisy to measure all the same.`,
      );
      return EXIT.noisy;
    }
    console.log(`\n${name}${reason === undefined ? "" : `  (NOISY: ${reason})`}`);
    const measured = await measure({ pairs, say: (line) => console.log(line) }).catch((error: unknown) => MigrationError.from(error));
    if (measured instanceof Error) {
      console.log(`  FAILED: ${measured.message}`);
      failed.push(name);
      continue;
    }
    if (typeof measured === "string") {
      console.log(`  not measured: ${measured}`);
      continue;
    }
    const { figures, runs, plots = [] } = measured;
    for (const figure of figures) {
      const before = old.find((entry) => entry.name === name)?.figures.find((one) => one.name === figure.name);
      console.log(lineOf(figure, before));
      if (isBeyond(figure)) beyond.push(`${name}: ${figure.name}`);
      if (before !== undefined && compare(before.values, figure.values, figure.better) === "worse") worse.push(`${name}: ${figure.name}`);
    }
    const result = {
      command: `npm run bench -- --entry ${name} --pairs ${pairs} --keep`,
      name,
      workload,
      noise: { ...noise, isTooNoisy: reason !== undefined },
      environment: where,
      figures: figures.map((figure) => ({ ...figure, ...spreadOf(figure.values) })),
      runs,
    };
    results.push(result);
    if (json !== undefined) writeFileSync(json, `${JSON.stringify({ suite, environment: where, entries: results }, null, 1)}\n`);
    if (keep) {
      keepResult(name, result);
      keepPlots(plots);
    }
  }
  if (failed.length > 0) console.log(`\n${failed.length} entries failed: ${failed.join(", ")}`);
  console.log(beyond.length === 0 ? "\nall targets met" : `\n${beyond.length} targets missed:\n  ${beyond.join("\n  ")}`);
  if (old.length > 0) console.log(worse.length === 0 ? "nothing got worse" : `${worse.length} figures got worse:\n  ${worse.join("\n  ")}`);
  return failed.length + beyond.length + worse.length === 0 ? EXIT.ok : EXIT.beyond;
}

try {
  const options = readOptions(process.argv.slice(2));
  if (options.help) console.log(USAGE);
  else if (options.list)
    for (const { name, suite } of options.entry === undefined ? entries : options.selected) console.log(`${suite.padEnd(6)} ${name}`);
  else process.exitCode = await runAll(options);
} catch (error) {
  console.error(`bench: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = EXIT.usage;
}
