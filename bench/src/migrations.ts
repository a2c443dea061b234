import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { MigrationReport } from "@precopy/protocol";

export const PRECOPY = fileURLToPath(new URL("../../packages/cli/bin/precopy.js", import.meta.url));

/** Runs `precopy demo` and returns its reports. @throws {Error} unless the demo verified everything. */
export async function demo(args: readonly string[]): Promise<MigrationReport[]> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-bench-"));
  const file = join(folder, "reports.json");
  try {
    let stderr = "";
    const code = await new Promise<number | null>((resolve) => {
      const child = spawn(process.execPath, [PRECOPY, "demo", "--report", file, ...args], { stdio: ["ignore", "ignore", "pipe"] });
      child.stderr.setEncoding("utf8").on("data", (text: string) => {
        stderr += text;
      });
      child.on("close", resolve);
    });
    if (code !== 0) throw new Error(`precopy demo ${args.join(" ")}: exit ${String(code)}: ${stderr.trim()}`);
    return JSON.parse(readFileSync(file, "utf8")) as MigrationReport[]; // what the demo of this release writes
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The figure of each of `repeats` pre-copy migrations, back and forth in one demo. */
export async function figures(
  args: readonly string[],
  repeats: number,
  figure: (report: MigrationReport) => number | null | undefined,
): Promise<number[]> {
  const reports = await demo(["--modes", "precopy", "--repeats", String(repeats), ...args]);
  return reports.map((report) => {
    const value = figure(report);
    if (typeof value !== "number") throw new Error("The report has no such figure");
    return value;
  });
}
