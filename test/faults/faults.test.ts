import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { it } from "node:test";
import { fileURLToPath } from "node:url";
import { whyNoMissingPages } from "@precopy/guest";
import { leaveNoOrphan } from "../orphans.js";
import { readResults } from "./campaign.js";

const RUN = fileURLToPath(new URL("run.js", import.meta.url));

/** Runs a campaign as a person does. Without coverage: an agent that is killed leaves none, and the others are slower for it. */
function campaign(
  args: readonly string[],
  environment: Record<string, string> = {},
): Promise<{ readonly code: number | null; readonly output: string }> {
  const { NODE_V8_COVERAGE: _coverage, ...env } = process.env;
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [RUN, ...args], { stdio: ["ignore", "pipe", "inherit"], env: { ...env, ...environment } });
    const isOver = leaveNoOrphan({ kill: () => child.kill("SIGTERM") }); // it has agents to end
    let output = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
    child.on("close", (code) => {
      isOver();
      resolve({ code, output });
    });
  });
}

for (const { what, args, count, skip } of [
  { what: "migrations", args: ["--seed", "2931"], count: 8, skip: false },
  { what: "migrations by post-copy", args: ["--postcopy", "--seed", "1"], count: 4, skip: whyNoMissingPages() ?? false },
])
  it(`${count} ${what} with faults in all their parts lose nothing, double nothing, and leave nothing stuck`, { skip }, async () => {
    const { code, output } = await campaign(["--count", String(count), "--jobs", "2", ...args]);
    const last = new RegExp(`^${count} cases, 0 lost, 0 doubled, \\d+ in doubt \\(longest \\d+ ms\\)$`);
    assert.match(output.trimEnd().split("\n").at(-1) ?? "", last, output);
    assert.equal(code, 0, output);
  });

it("a campaign that was interrupted goes on where it was, and its results are kept", async () => {
  const folder = mkdtempSync(join(tmpdir(), "precopy-campaign-test-"));
  try {
    const file = join(folder, "results.jsonl");
    const forced = ["--fault", "source.device=hold:20", "--seed", "7", "--jobs", "1"];
    assert.equal((await campaign(["--count", "1", ...forced, "--json", file])).code, 0);
    const { code, output } = await campaign(["--count", "2", ...forced, "--resume", file]);
    assert.equal(code, 0, output);
    assert.match(output, /^source.device hold +2 +2 /m, "both cases are in the table");
    assert.deepEqual(
      readResults(file).map(({ outcome, struck }) => [outcome, struck]),
      Array.from({ length: 2 }, () => ["moved", ["source.device=hold:20"]]),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
});

it("a campaign with agents that lose pages fails, keeps their logs and says how to run the case again", async () => {
  const folder = mkdtempSync(join(tmpdir(), "precopy-campaign-test-"));
  try {
    const args = ["--count", "1", "--seed", "7", "--jobs", "1", "--fault", "source.device=hold:20", "--logs", folder];
    const { code, output } = await campaign(args, { PRECOPY_FORGET_DIRTY: "20" });
    assert.equal(code, 1, output);
    assert.match(output, /^WRONG: .*(not verified|ERR_DIGEST_MISMATCH|ERR_VERIFICATION)/m);
    const [, seed = ""] = /again: npm run test:faults -- --only (\d+) --fault "source\.device=hold:20"/.exec(output) ?? [];
    const logs = ["a", "b"].map((agent) => readFileSync(join(folder, `seed-${seed}`, `${agent}.log`), "utf8"));
    assert.match(logs.join(""), /"phase":"device"/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
