import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus, release, totalmem } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import type { Plot } from "./define-bench.js";

/** Where and with what a figure was taken. */
export function environment(): Record<string, unknown> {
  let revision = "unknown";
  try {
    revision = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    revision = "not a checkout"; // a figure without a revision is still a figure, and says so
  }
  return {
    date: new Date().toISOString().slice(0, 10),
    revision,
    node: process.version,
    kernel: release(),
    cpu: cpus()[0]?.model ?? "unknown",
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    link: "loopback",
  };
}

const pathOf = (file: string): string => fileURLToPath(new URL(`../results/${file}`, import.meta.url));

/** Of an entry. */
export const resultFile = (name: string): string => pathOf(`${name}.json`);

function keep(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

/** Writes `bench/results/NAME.json`. */
export const keepResult = (name: string, result: unknown): void => keep(resultFile(name), `${JSON.stringify(result, null, 1)}\n`);

/** Writes `bench/results/plots/NAME.svg`. */
export function keepPlots(plots: readonly Plot[]): void {
  for (const { name, svg } of plots) keep(pathOf(`plots/${name}.svg`), svg);
}
