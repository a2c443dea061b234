import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus, release, totalmem } from "node:os";
import { fileURLToPath } from "node:url";

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

/** Writes `bench/results/NAME.json`. */
export function keepResult(name: string, result: unknown): void {
  const folder = fileURLToPath(new URL("../results/", import.meta.url));
  mkdirSync(folder, { recursive: true });
  writeFileSync(`${folder}${name}.json`, `${JSON.stringify(result, null, 2)}\n`);
}
