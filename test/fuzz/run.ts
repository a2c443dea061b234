// npm run fuzz -- --minutes N
import { spawn } from "node:child_process";
import { copyFileSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { FuzzReport } from "./fuzz-process.js";
import { makeTarget, targetNames } from "./targets.js";

const USAGE = `npm run fuzz -- [options]
  --minutes N     for how long, all targets together (default 10)
  --target NAME   only this one; again for more: ${targetNames().join(", ")}
  --seed N        1 to 2^31-1 (default: by the clock)
  --jobs N        processes at one time (default 2)
  --keep          add inputs that ran something new to the corpus (test/fuzz/corpus)
  --json FILE     the result
Ends with 1 if something was found. The inputs that did it are in a folder that it names.`;

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "10" },
    target: { type: "string", multiple: true },
    seed: { type: "string", default: String(Date.now() % 2 ** 31 || 1) },
    jobs: { type: "string", default: "2" },
    keep: { type: "boolean", default: false },
    json: { type: "string" },
    help: { type: "boolean", default: false },
  },
});
const minutes = Number(values.minutes);
const jobs = Number(values.jobs);
const seed = Number(values.seed);
const names = (values.target ?? targetNames()).filter((name) => {
  if (!targetNames().includes(name)) throw new Error(`--target ${name}: known are ${targetNames().join(", ")}`);
  const isThere = makeTarget(name) !== undefined;
  if (!isThere) console.log(`${name}: skipped, this host has not what it reads with`);
  return isThere;
});
if (values.help) console.log(USAGE);
else if (!(minutes > 0) || !(jobs >= 1) || !(seed >= 1)) {
  console.error(USAGE);
  process.exitCode = 2;
} else process.exitCode = await run();

/** A target in a process of its own, to its end. */
function fuzzOne(name: string, findings: string, forMs: number): Promise<FuzzReport> {
  const corpus = fileURLToPath(new URL("../../fuzz/corpus", import.meta.url));
  const args = [
    fileURLToPath(new URL("./fuzz-process.js", import.meta.url)),
    name,
    corpus,
    findings,
    String(forMs),
    String(seed),
    values.keep ? "keep" : "",
  ];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  let [output, complaint] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => (output += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (complaint += text));
  const hung = setTimeout(() => child.kill("SIGKILL"), forMs + 60_000);
  return new Promise((resolve) => {
    child.on("close", (code, signal) => {
      clearTimeout(hung);
      if (code === 0) return resolve(JSON.parse(output) as FuzzReport);
      const file = join(findings, `${name}-last`);
      copyFileSync(join(findings, `${name}.last`), file); // after a length of 4 bytes, the input that ended it
      resolve({
        target: name,
        executions: 0,
        covered: 0,
        ofCharacters: 0,
        corpus: 0,
        findings: [{ file, what: `It ended with ${code ?? signal}: ${complaint.slice(-2000)}` }],
      });
    });
  });
}

async function run(): Promise<number> {
  const findings = mkdtempSync(join(tmpdir(), "precopy-fuzz-"));
  const forMs = (minutes * 60_000 * Math.min(jobs, names.length)) / names.length;
  const left = [...names];
  const reports: FuzzReport[] = [];
  const work = async (): Promise<void> => {
    for (let name = left.shift(); name !== undefined; name = left.shift()) {
      const report = await fuzzOne(name, findings, forMs);
      reports.push(report);
      const { target, executions, covered, ofCharacters, corpus, findings: found } = report;
      console.log(
        `${target}: ${executions} executions, ${covered} of ${ofCharacters} characters of its files run, ${corpus} inputs in the corpus, ${found.length} findings`,
      );
      for (const { file, what } of found) console.log(`  ${file}\n  ${what.split("\n").join("\n  ")}`);
    }
  };
  await Promise.all(Array.from({ length: jobs }, work));
  const executions = reports.reduce((sum, one) => sum + one.executions, 0);
  const found = reports.flatMap((one) => one.findings);
  console.log(
    `${executions} executions in ${minutes} minutes, seed ${seed}: ${found.length} findings${found.length > 0 ? ` in ${findings}` : ""}`,
  );
  if (values.json !== undefined)
    writeFileSync(values.json, `${JSON.stringify({ minutes, jobs, seed, executions, targets: reports }, null, 2)}\n`);
  return found.length > 0 ? 1 : 0;
}
