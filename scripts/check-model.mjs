// Checks docs/model/handover.pml with spin: what must hold holds, every seeded mistake is found, and random runs of the model are runs of the
// real reducers too. Needs spin, gcc and a built packages/protocol; some minutes on two cores, one with `--small`.
// `--keep` writes docs/model/results.json.
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { SOURCE_EVENTS, SOURCE_PHASES, TARGET_EVENTS, TARGET_PHASES, recoverSource, stepSource, stepTarget } from "@precopy/protocol";
import { replay } from "./replay-trace.mjs";

const MODEL = fileURLToPath(new URL("../docs/model/handover.pml", import.meta.url));
const RESULTS = fileURLToPath(new URL("../docs/model/results.json", import.meta.url));
const RANDOM_RUN_STEPS = 3000;
/** pan takes up to 1 GiB each. */
const AT_ONCE = 2;
const OUTPUT_BYTES_MAX = 2 ** 26;

const isSmall = process.argv.includes("--small");
const RANDOM_RUNS = isSmall ? 150 : 400;
/** With `--small` epochs go to 4 at most: a fifth of the states. */
const epochs = (define) => (isSmall ? [...define.filter((one) => !one.startsWith("EPOCH_MAX")), "EPOCH_MAX=4"] : define);
const holds = (name, ...define) => ({
  name: isSmall ? `${name.replace(/, epochs to \d/, "")}, epochs to 4` : name,
  define: epochs(define),
  isLive: define.includes("LIVE"),
  mistake: undefined,
});
/** A step too rare for the random runs, which the reducers must agree with. */
const shows = (name, ...define) => ({ name, define: [name, ...define], isLive: false, mistake: { finds: "unseen", isReducers: false } });
/** `isReducers`: a transition, an effect or an order is wrong, so the reducers must differ from the trace. In the others the agent or a person is. */
const mistake = (name, finds, isReducers, ...define) => ({
  name,
  define: [`BUG_${name}`, ...define],
  isLive: define.includes("LIVE"),
  mistake: { finds, isReducers },
});
const CONFIGURATIONS = [
  holds("processes crash, epochs to 6", "EPOCH_MAX=6"),
  holds("hosts crash", "HOST_CRASH"),
  holds("arbiter", "ARBITER"),
  holds("arbiter, hosts crash", "ARBITER", "HOST_CRASH"),
  holds("liveness", "LIVE"),
  holds("liveness, hosts crash, epochs to 4", "LIVE", "HOST_CRASH", "EPOCH_MAX=4"),
  holds("liveness, arbiter, epochs to 4", "LIVE", "ARBITER", "EPOCH_MAX=4"),
  holds("post-copy", "SPLIT"),
  holds("post-copy, hosts crash, epochs to 4", "SPLIT", "HOST_CRASH", "EPOCH_MAX=4"),
  holds("post-copy, arbiter, hosts crash, epochs to 4", "SPLIT", "ARBITER", "HOST_CRASH", "EPOCH_MAX=4"),
  holds("post-copy, liveness, epochs to 4", "SPLIT", "LIVE", "EPOCH_MAX=4"),
  holds("post-copy, liveness, hosts crash, epochs to 4", "SPLIT", "LIVE", "HOST_CRASH", "EPOCH_MAX=4"),
  holds("post-copy, liveness, arbiter, epochs to 4", "SPLIT", "LIVE", "ARBITER", "EPOCH_MAX=4"),
  shows("SHOW_COMMIT_AFTER_CLAIM"),
  shows("SHOW_REFUSAL_BEFORE_DOUBT"),
  shows("SHOW_FENCED_IN_POSTCOPY", "SPLIT"),
  shows("SHOW_STARVED", "SPLIT"),
  mistake("RUN_BEFORE_COMMIT", "oneOwner", true),
  mistake("TIMER_RESUMES", "oneOwner", true),
  mistake("CLAIM_UNFENCED", "oneOwner", false),
  mistake("BOOT_UNSEEN", "oneOwner", false),
  mistake("ABORT_KEEPS_EPOCH", "stillOwner", true),
  mistake("EPOCH_NOT_RAISED", "epochGrows", true),
  mistake("EPOCH_NOT_CHECKED", "epochGrows", false),
  mistake("GONE_IS_REFUSAL", "noSilentRollback", false),
  mistake("OWNER_AFTER_RUN", "noSilentRollback", true),
  mistake("UNKNOWN_IS_REFUSAL", "noSilentRollback", false, "HOST_CRASH"),
  mistake("PREPARED_OF_ANY_BOOT", "noSilentRollback", true, "HOST_CRASH"),
  mistake("TARGET_SKIPS_ARBITER", "noSilentRollback", false, "ARBITER"),
  mistake("JOURNAL_AFTER_SEND", "doubtRemembered", true),
  mistake("FREE_AFTER_COMMIT", "imageKept", true),
  mistake("FREE_AT_ACTIVE", "imageKept", true, "SPLIT"),
  mistake("WHOLE_STARVED", "imageKept", false, "SPLIT"),
  mistake("HALF_CLAIMED", "wholeGuest", false, "SPLIT"),
  mistake("HALF_COMMITTED", "wholeGuest", false, "SPLIT"),
  mistake("NEVER_ASKS", "cycle", false, "LIVE"),
  mistake("COMMIT_ONCE", "cycle", false, "LIVE"),
  mistake("NEVER_RESUMES", "cycle", false, "LIVE", "SPLIT"),
  mistake("NOBODY_HELPS", "cycle", false, "LIVE"),
];

const call = promisify(execFile);
/** What a program prints, whatever its exit status. */
async function run(program, args, cwd) {
  try {
    return (await call(program, args, { cwd, maxBuffer: OUTPUT_BYTES_MAX })).stdout;
  } catch (error) {
    if (error.code === "ENOENT") throw new Error(`${program} is missing: apt-get install spin gcc`, { cause: error });
    return `${error.stdout}\n${error.stderr}`;
  }
}
const secondsSince = (startedAt) => Math.round((performance.now() - startedAt) / 100) / 10;
/** Of the last line of `times`: 1m2.34s of the user's for the children, then the system's. */
const processorSeconds = (printed) => {
  const [, minutes, seconds] = /(\d+)m([\d.]+)s \S+\s*$/.exec(printed) ?? [];
  return Math.round((Number(minutes) * 60 + Number(seconds)) * 10) / 10;
};
const defines = (names) => names.map((name) => `-D${name}`);
const traceOf = (printed) => printed.split("\n").flatMap((line) => (line.includes("TRACE ") ? [line.trim().slice("TRACE ".length)] : []));

const nameOf = (who, phase, event, next) => `${who} ${phase} ${event}: ${next}`;

/** Where the reducers differ from a trace. */
function differenceOf(trace, onStep) {
  try {
    replay(trace, onStep);
    return undefined;
  } catch (error) {
    return error.message;
  }
}

/** Two at a time, each in a folder of its own: spin and pan leave files where they run. */
async function inFolders(list, work) {
  const open = list.entries();
  const results = [];
  const worker = async () => {
    for (const [at, one] of open) results[at] = await work(one, mkdtempSync(join(root, "run-")));
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return results;
}

async function check({ name, define, isLive, mistake }, folder, onStep) {
  const generated = await run("spin", [...defines(define), "-a", MODEL], folder);
  // Breadth first finds the shortest trace of a mistake; cycles are looked for depth first.
  const search = isLive ? [] : ["-DSAFETY", "-DNOFAIR", ...(mistake === undefined ? [] : ["-DBFS"])];
  const compiled = await run("gcc", [mistake === undefined ? (isSmall ? "-O1" : "-O2") : "-O0", ...search, "-o", "pan", "pan.c"], folder);
  if (!existsSync(join(folder, "pan"))) return { name, isGood: false, found: "nothing", said: `${generated}\n${compiled}` };
  const options = ["-m100000", mistake === undefined ? "-w24" : "-w20", ...(isLive ? ["-a", "-f"] : [])];
  const printed = await run("sh", ["-c", './pan "$@"; times', "pan", ...options], folder); // and the processor time that it took
  const number = (pattern) => Number(pattern.exec(printed)?.[1] ?? 0);
  const found = printed.includes("acceptance cycle (") ? "cycle" : (/assertion violated (\w+)/.exec(printed)?.[1] ?? "nothing");
  const isComplete = printed.includes("errors: 0") && !/not completed|too small|out of memory/.test(printed);
  const trace = found === "nothing" ? [] : traceOf(await run("spin", [...defines(define), "-k", "handover.pml.trail", MODEL], folder));
  const differs = differenceOf(trace, onStep);
  return {
    name,
    states: number(/(\d+) states, stored/),
    depth: number(/depth reached (\d+)/),
    seconds: processorSeconds(printed),
    found,
    isGood:
      mistake === undefined ? isComplete && found === "nothing" : found === mistake.finds && (differs !== undefined) === mistake.isReducers,
    said: `${found === "nothing" ? printed : trace.join("\n")}\nreducers: ${differs ?? "agree"}`,
  };
}

/** Every step that the tables of the reducers allow, and where it leads. */
function allowedSteps() {
  const found = new Set();
  const look = (who, step, from, events) => {
    for (const event of events) {
      try {
        const { state, effects } = step(from, event);
        if (state !== from || effects.length > 0) found.add(nameOf(who, from.phase, event, state.phase));
      } catch {
        // a mistake of ours, which a right model never makes
      }
    }
  };
  const image = { epoch: 2, epochBefore: 1, hasImage: true };
  const sources = SOURCE_PHASES.flatMap((phase) => [false, true].map((isSplit) => ({ ...image, phase, isSplit })));
  for (const from of [...sources, recoverSource(2)]) look("source", stepSource, from, SOURCE_EVENTS);
  for (const phase of TARGET_PHASES) look("target", stepTarget, { phase, epoch: 2 }, TARGET_EVENTS);
  return [...found];
}

/** Runs the model at random and the reducers after it. */
async function replayRandomRuns(onStep) {
  const startedAt = performance.now();
  const kinds = [["HOST_CRASH"], ["ARBITER"], ["ARBITER", "HOST_CRASH"]].map((kind) => ["SPLIT", ...kind]);
  const failures = [];
  let lines = 0;
  const seeds = Array.from({ length: RANDOM_RUNS }, (_, at) => at + 1);
  await inFolders(seeds, async (seed, folder) => {
    const options = [...defines(["TRACES", ...kinds[seed % kinds.length]]), `-n${seed}`, `-u${RANDOM_RUN_STEPS}`];
    const trace = traceOf(await run("spin", [...options, MODEL], folder));
    lines += trace.length;
    const differs = differenceOf(trace, onStep);
    if (differs !== undefined) failures.push(`spin ${options.join(" ")}: ${differs}`);
  });
  return { runs: RANDOM_RUNS, lines, failures, seconds: secondsSince(startedAt) };
}

const root = mkdtempSync(join(tmpdir(), "precopy-model-"));
try {
  const startedAt = performance.now();
  const seen = new Set();
  const onStep = (who, phase, event, next) => seen.add(nameOf(who, phase, event, next));
  const checks = await inFolders(CONFIGURATIONS, (one, folder) => check(one, folder, onStep));
  const random = await replayRandomRuns(onStep);
  const steps = allowedSteps();
  const unseen = steps.filter((step) => !seen.has(step));
  console.table(
    checks.map(({ name, states, depth, seconds, found, isGood }) => ({
      configuration: name,
      states,
      depth,
      seconds,
      found,
      result: isGood ? "as it must be" : "WRONG",
    })),
  );
  console.log(`${random.runs} random runs, ${random.lines} lines, replayed on the reducers in ${random.seconds} s`);
  console.log(`steps that the reducers allow: ${steps.length}, not seen: ${unseen.join(", ") || "none"}`);
  console.log(`${secondsSince(startedAt)} s in all`);
  const wrong = [
    ...checks.filter(({ isGood }) => !isGood).map(({ name, said }) => `${name}\n${said}`),
    ...random.failures.slice(0, 3),
    ...unseen.map((step) => `never seen in a trace: ${step}`),
  ];
  if (process.argv.includes("--keep")) {
    const kept = checks.map(({ name, states, depth, seconds, found }) => ({ name, states, depth, seconds, found }));
    writeFileSync(
      RESULTS,
      `${JSON.stringify({ checks: kept, random: { runs: random.runs, lines: random.lines, seconds: random.seconds } }, undefined, 2)}\n`,
    );
  }
  if (wrong.length > 0) console.error(`\n${wrong.join("\n\n")}`);
  process.exitCode = wrong.length > 0 ? 1 : 0;
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  rmSync(root, { recursive: true });
}
