import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { deriveMildCase } from "./fault-case.js";
import type { Name } from "./fault-case.js";
import { FaultLab } from "./fault-lab.js";
import { footprintOf, growthOf } from "./footprint.js";
import type { Footprint } from "./footprint.js";
import { seedOf } from "./random.js";
import { CaseRun } from "./run-case.js";
import type { CaseResult } from "./run-case.js";

// npm run soak -- --minutes N [--seed S] [--barrier] [--keep]: one guest, two agents, migrations back and forth under faults that both survive.
// Every case ends with a migration without faults. --keep writes bench/results/soak.json.
const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "10" },
    seed: { type: "string", default: "1" },
    barrier: { type: "boolean", default: false },
    keep: { type: "boolean", default: false },
  },
});
const minutes = Number(values.minutes);
const flavour = values.barrier ? "barrier" : "mmu";
const GUEST = [
  ...["--workload", "ledger,random-writer"],
  ...["--memory", "128MiB"],
  ...["--fill", "48MiB"],
  ...["--working-set", "4MiB"],
  ...["--dirty-rate", "3000"],
];
const SAMPLE_EVERY_MS = 6000;
/** Connections take a moment to end behind a migration. */
const QUIET_MS = 1500;

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** By agent, each sample taken while the agent has no guest. */
const samples: Record<Name, Footprint[]> = { a: [], b: [] };
const results: CaseResult[] = [];
const show = ({ residentMiB, descriptors, threads }: Footprint): string => `${residentMiB} MiB, ${descriptors} fds, ${threads} threads`;

async function sample(lab: FaultLab): Promise<void> {
  await sleep(QUIET_MS);
  for (const name of ["a", "b"] as const) if (lab.home !== name) samples[name].push(footprintOf(lab.sides[name].process?.pid ?? 0));
}

function sayMinute(startedMs: number): void {
  const failed = results.filter(({ answer }) => answer !== "ok").length;
  const minute = Math.round((performance.now() - startedMs) / 60_000);
  const sides = (["a", "b"] as const).flatMap((name) => {
    const last = samples[name].at(-1);
    return last === undefined ? [] : [`${name}: ${show(last)}`];
  });
  console.log(`${minute} min: ${2 * results.length} migrations, ${failed} failed as they should; ${sides.join("; ")}`);
}

/** Until the time is up, or something is wrong. */
async function soak(lab: FaultLab): Promise<void> {
  await lab.boot("a", GUEST);
  const startedMs = performance.now();
  let minuteMs = startedMs;
  let sampleMs = startedMs;
  for (let at = 0; performance.now() - startedMs < minutes * 60_000; at++) {
    const result = await new CaseRun(lab, deriveMildCase(seedOf(Number(values.seed), at), flavour, lab.home ?? "a")).run();
    results.push(result);
    if (result.wrong.length > 0) return;
    if (performance.now() - sampleMs >= SAMPLE_EVERY_MS) {
      await sample(lab);
      sampleMs = performance.now();
    }
    if (performance.now() - minuteMs >= 60_000) {
      sayMinute(startedMs);
      minuteMs = performance.now();
    }
  }
}

function countOf(texts: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const text of texts) counts[text] = (counts[text] ?? 0) + 1;
  return counts;
}

function environment(): Record<string, unknown> {
  const revision = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" }).trim();
  return {
    date: new Date().toISOString().slice(0, 10),
    revision,
    node: process.version,
    cpu: cpus()[0]?.model,
    cores: availableParallelism(),
  };
}

const lab = await FaultLab.open(flavour);
try {
  await soak(lab);
  const client = await lab.client.finish({ timeoutMs: 10_000 });
  const { issued, acknowledged, lost, doubled, staleEpochAnswers, isVerified } = client;
  const wrong = results.flatMap((result) => result.wrong.map((what) => `seed ${result.seed}, ${result.faults.join("; ")}: ${what}`));
  const growth = { a: growthOf(samples.a), b: growthOf(samples.b) };
  const grown = Object.entries(growth).flatMap(([name, one]) => one.grown.map((what) => `${name}: ${what}`));
  const summary = {
    minutes,
    flavour,
    migrations: 2 * results.length,
    answers: countOf(results.map(({ answer }) => answer)),
    client: { issued, acknowledged, lost, doubled, staleEpochAnswers, isVerified },
    wrong,
    grown,
    growth,
    samples: samples.a.length + samples.b.length,
  };
  console.log(JSON.stringify(summary, null, 2));
  const isWrong = !isVerified || wrong.length > 0 || grown.length > 0;
  if (isWrong) {
    const folder = mkdtempSync(join(tmpdir(), "precopy-soak-logs-"));
    lab.keepLogs(folder);
    console.log(`logs: ${folder}`);
  }
  if (values.keep) {
    const folder = fileURLToPath(new URL("../../../bench/results/", import.meta.url));
    mkdirSync(folder, { recursive: true });
    writeFileSync(
      join(folder, "soak.json"),
      `${JSON.stringify({ command: `npm run soak -- --minutes ${minutes} --seed ${values.seed}`, ...summary, environment: environment() }, null, 2)}\n`,
    );
  }
  console.log(
    isWrong ? "soak: WRONG" : `soak: ${2 * results.length} migrations in ${minutes} min, nothing lost, nothing doubled, nothing grown`,
  );
  process.exitCode = isWrong ? 1 : 0;
} finally {
  await lab.close();
}
