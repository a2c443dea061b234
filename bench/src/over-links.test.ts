import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import type { ChildProcessByStdio } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { LabLink } from "./links.js";

/** With a folder of its own for everything that it leaves in one. */
function overLinks(context: TestContext, ...args: string[]) {
  const folder = mkdtempSync(join(tmpdir(), "precopy-test-"));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  const child: ChildProcessByStdio<null, Readable, Readable> = spawn(
    process.execPath,
    [fileURLToPath(new URL("over-links.js", import.meta.url)), "--quick", ...args],
    { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, TMPDIR: folder } },
  );
  const said = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const)
    child[name].setEncoding("utf8").on("data", (text: string) => {
      said[name] += text;
    });
  /** Files in the folder, and namespaces. */
  const left = (): string[] => [
    ...readdirSync(folder),
    ...execFileSync("ip", ["netns", "list"], { encoding: "utf8" })
      .split("\n")
      .filter((line) => line.startsWith(`precopy-${child.pid}-`)),
  ];
  return { child, said, left, ended: once(child, "close") };
}

describe("over-links", { skip: LabLink.whyNot() ?? false }, () => {
  it("runs the bench's sweep over each link, and leaves nothing behind", async (context) => {
    const { said, left, ended } = overLinks(context, "--rates", "1Gbit,none", "--downtime-limit", "5s", "--fill", "8MiB");
    assert.deepEqual(await ended, [0, null], said.stderr);
    assert.equal(said.stderr, "");
    assert.match(said.stdout, /^1\.00 Gbit\/s, MTU 1500\n.*^ +2k +2 none +auto .* 1\/1$.*^unshaped, MTU 1500\n.*^ +2k +2 none .* 1\/1$/ms);
    assert.deepEqual(left(), []);
  });

  it("ends at the first link if the bench refuses what it is told", async (context) => {
    const { said, left, ended } = overLinks(context, "--rates", "1Gbit,none", "--channels", "0");
    assert.deepEqual(await ended, [2, null]);
    assert.match(said.stderr, /ERR_PARAMETER: --channels/);
    assert.doesNotMatch(said.stdout, /unshaped/);
    assert.deepEqual(left(), []);
  });

  it("goes at once when it is interrupted, with all that it started", async (context) => {
    const { child, said, left, ended } = overLinks(context, "--repeats", "1000");
    while (!said.stdout.includes("bandwidth")) await once(child.stdout, "data");
    assert.notDeepEqual(left(), []);
    child.kill("SIGINT");
    assert.deepEqual(await ended, [130, null]);
    assert.deepEqual(left(), []);
  });
});
