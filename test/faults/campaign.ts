import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { faultKind, faultText, parseFault } from "./fault-case.js";
import type { FaultCase, Name } from "./fault-case.js";
import { FaultLab, other } from "./fault-lab.js";
import { CaseRun, migrateUnhurried } from "./run-case.js";
import type { CaseResult, Outcome } from "./run-case.js";

const PROGRESS_EVERY = 25;

export interface CampaignOptions {
  /** Labs side by side. */
  readonly jobs: number;
  /** Gets a line for each result. */
  readonly resultsFile: string | undefined;
  /** For the logs of cases that went wrong. */
  readonly logFolder: string;
  /** How to run a case again. */
  replay(one: FaultCase): string;
  say(line: string): void;
}

/** Cases in their order, but each lab takes next what suits it as it stands. */
class Queue {
  readonly #cases: FaultCase[];

  constructor(cases: readonly FaultCase[]) {
    this.#cases = [...cases];
  }

  take(lab: FaultLab | undefined): FaultCase | undefined {
    const fits = [
      (one: FaultCase): boolean => one.flavour === lab?.flavour && (lab.home === undefined || one.from === lab.home),
      (one: FaultCase): boolean => one.flavour === lab?.flavour,
      (): boolean => true,
    ];
    for (const fit of fits) {
      const at = this.#cases.findIndex(fit);
      if (at >= 0) return this.#cases.splice(at, 1)[0];
    }
    return undefined;
  }
}

/** One lab's life: case after case, each with the guest where it wants it. */
class Worker {
  readonly #options: CampaignOptions;
  #lab: FaultLab | undefined;

  constructor(options: CampaignOptions) {
    this.#options = options;
  }

  async run(queue: Queue, onResult: (result: CaseResult) => void): Promise<void> {
    try {
      for (let next = queue.take(this.#lab); next !== undefined; next = queue.take(this.#lab)) onResult(await this.#runCase(next));
    } finally {
      await this.#lab?.close();
    }
  }

  async #runCase(one: FaultCase): Promise<CaseResult> {
    const startedMs = performance.now();
    try {
      const lab = await this.#ready(one);
      const result = await new CaseRun(lab, one).run();
      if (result.wrong.length > 0) this.#keep(lab, one, result.wrong);
      return result;
    } catch (error) {
      const wrong = [`no lab for it: ${error instanceof Error ? error.message : String(error)}`];
      if (this.#lab !== undefined) this.#keep(this.#lab, one, wrong);
      await this.#lab?.close();
      this.#lab = undefined;
      const faults = one.faults.map(faultText);
      return {
        seed: one.seed,
        faults,
        struck: [],
        outcome: "WRONG",
        answer: "none",
        lost: 0,
        doubled: 0,
        wrong,
        ms: performance.now() - startedMs,
      };
    }
  }

  /** A lab of the case's flavour with its guest where the case begins. */
  async #ready({ flavour, from }: FaultCase): Promise<FaultLab> {
    if (this.#lab !== undefined && this.#lab.flavour !== flavour) {
      await this.#lab.close();
      this.#lab = undefined;
    }
    const lab = (this.#lab ??= await FaultLab.open(flavour));
    if (lab.home === undefined) await lab.boot(from);
    else if (lab.home !== from) await this.#move(lab, lab.home);
    return lab;
  }

  async #move(lab: FaultLab, home: Name): Promise<void> {
    await migrateUnhurried(lab.sides[home], lab.sides[other(home)]);
    lab.home = other(home);
  }

  #keep(lab: FaultLab, one: FaultCase, wrong: readonly string[]): void {
    const folder = join(this.#options.logFolder, `seed-${one.seed}`);
    lab.keepLogs(folder);
    this.#options.say(`WRONG: ${wrong.join("; ")}`);
    this.#options.say(`  ${one.faults.map(faultText).join("; ")}`);
    this.#options.say(`  again: ${this.#options.replay(one)}   logs: ${folder}`);
  }
}

/** @returns the results of all cases, in the order in which they ended. */
export async function runCampaign(cases: readonly FaultCase[], options: CampaignOptions): Promise<CaseResult[]> {
  const startedMs = performance.now();
  const queue = new Queue(cases);
  const results: CaseResult[] = [];
  const onResult = (result: CaseResult): void => {
    results.push(result);
    if (options.resultsFile !== undefined) appendFileSync(options.resultsFile, `${JSON.stringify(result)}\n`);
    if (results.length % PROGRESS_EVERY !== 0) return;
    const perHour = Math.round((results.length / (performance.now() - startedMs)) * 3.6e6);
    options.say(`${summaryLine(results)}; of ${cases.length}, ${perHour} an hour`);
  };
  const workers = Array.from({ length: Math.min(options.jobs, cases.length) }, () => new Worker(options));
  await Promise.all(workers.map((worker) => worker.run(queue, onResult)));
  return results;
}

/** The results that an earlier campaign has left in a file. */
export const readResults = (file: string): CaseResult[] =>
  existsSync(file)
    ? readFileSync(file, "utf8")
        .split("\n")
        .flatMap((line) => (line.endsWith("}") ? [JSON.parse(line) as CaseResult] : [])) // written by `runCampaign`; the last may be cut short
    : [];

const sum = (numbers: readonly number[]): number => numbers.reduce((total, one) => total + one, 0);

/** `N cases, L lost, D doubled, I in doubt (longest M ms)`: the longest of those that ended, by themselves or by an operator. */
export function summaryLine(results: readonly CaseResult[]): string {
  const doubts = results.flatMap(({ doubtMs }) => (doubtMs === undefined ? [] : [doubtMs]));
  const ended = results.flatMap(({ doubtMs, doubtEndedBy }) => (doubtMs === undefined || doubtEndedBy === "nobody" ? [] : [doubtMs]));
  const lost = sum(results.map((one) => one.lost));
  const doubled = sum(results.map((one) => one.doubled));
  return `${results.length} cases, ${lost} lost, ${doubled} doubled, ${doubts.length} in doubt (longest ${Math.max(0, ...ended)} ms)`;
}

const OUTCOMES: readonly (readonly [Outcome, string])[] = [
  ["moved", "moved"],
  ["stayed", "stayed"],
  ["cancelled", "cancel"],
  ["taken back", "t.back"],
  ["claimed by its operator", "claim"],
  ["rolled back by its operator", "r.back"],
  ["ended with its host", "ended"],
  ["in doubt to the end", "doubt"],
  ["WRONG", "WRONG"],
];

/** A row for each kind of fault that came to act, a column for each outcome. A case counts in each of its rows. */
export function renderTable(results: readonly CaseResult[]): string {
  const rows = new Map<string, CaseResult[]>();
  const add = (kind: string, result: CaseResult): void => void rows.set(kind, [...(rows.get(kind) ?? []), result]);
  for (const result of results) {
    const kinds = new Set(result.struck.map((text) => faultKind(parseFault(text))));
    for (const kind of kinds) add(kind, result);
    if (kinds.size === 0) add("no fault came to act", result);
  }
  const line = (name: string, cells: readonly string[]): string => `${name.padEnd(24)}${cells.map((cell) => cell.padStart(7)).join("")}`;
  const count = (name: string, those: readonly CaseResult[]): string =>
    line(name, [
      String(those.length),
      ...OUTCOMES.map(([outcome]) => String(those.filter((one) => one.outcome === outcome).length || ".")),
    ]);
  const doubts = results.filter(({ doubtMs }) => doubtMs !== undefined);
  const by = (whom: CaseResult["doubtEndedBy"]): number => doubts.filter(({ doubtEndedBy }) => doubtEndedBy === whom).length;
  return [
    line("fault", ["cases", ...OUTCOMES.map(([, title]) => title)]),
    ...[...rows].toSorted(([one], [another]) => one.localeCompare(another)).map(([kind, those]) => count(kind, those)),
    count("all", results),
    `doubts ended: ${by("itself")} by themselves, ${by("operator")} by an operator, ${by("nobody")} never, with a host that died`,
  ].join("\n");
}
