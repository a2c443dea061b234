import { spreadOf } from "./define-bench.js";
import { entries } from "./entries.js";
import { environment, keepResult } from "./report.js";
import { warmMemory } from "./warm-memory.js";

// `npm run bench -- [NAME...]`: every entry whose name contains one of these, all without any. Results go to bench/results.
const wanted = process.argv.slice(2);
let isBroken = false;
for (const { name, unit, better, workload, runs, promise, warmBytes, run } of entries) {
  if (wanted.length > 0 && !wanted.some((part) => name.includes(part))) continue;
  const values: number[] = [];
  for (let at = 0; at < runs; at++) {
    warmMemory(warmBytes);
    values.push(...(await run()).map((value) => Math.round(value * 100) / 100));
  }
  const spread = spreadOf(values);
  const isKept = promise === undefined || (better === "lower" ? spread.median <= promise.median : spread.median >= promise.median);
  isBroken ||= !isKept;
  const verdict = promise === undefined ? "" : ` promise ${promise.median}: ${isKept ? "kept" : "BROKEN"}`;
  console.log(
    `${name}: median ${spread.median} ${unit}, p99 ${spread.p99} (${spread.min} to ${spread.max}, ${values.length} runs)${verdict}`,
  );
  keepResult(name, {
    command: `npm run bench -- ${name}`,
    name,
    unit,
    workload,
    ...spread,
    runs: values,
    promise: promise?.median ?? null,
    environment: environment(),
  });
}
process.exitCode = isBroken ? 1 : 0;
