import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { TestContext } from "node:test";
import { hasAead, isLinuxAvailable } from "@precopy/linux";
import { Lab, ask, precopy, reportOf } from "./lab.js";

/** A busy machine makes every estimate long, and nothing here is about convergence. */
const PATIENT = ["--downtime-limit", "5s"];
const SMALL = ["--memory", "64MiB", "--fill", "16MiB", "--workload", "idle"];

function folderOf(context: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "precopy-bench-test-"));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function labOf(context: TestContext): Lab {
  const lab = new Lab();
  context.after(() => lab.end());
  return lab;
}

it("target --discard-after ends a guest that came, says so in one line, and admits the next", async (context) => {
  const lab = labOf(context);
  const target = await lab.agent("target", "b", ["--discard-after", "500ms"]);
  for (const id of ["one", "two"]) {
    const source = await lab.agent("source", id, ["--guest", id, ...SMALL]);
    await reportOf(lab.migrate(source, target.listen, PATIENT));
    for (let tries = 0; (await lab.guestAt(target)) !== null; tries++) {
      assert.ok(tries < 40, "it is discarded");
      await sleep(250);
    }
    const { json } = await ask(target, "who-owns", "--guest", id);
    assert.equal((json["here"] as Record<string, unknown>)["standing"], "gone");
    assert.match(String((json["verdict"] as Record<string, unknown>)["owner"]), /^nobody$/, JSON.stringify(json));
    await source.child.end();
  }
  const said = target.child.stderr.split("\n").filter((line) => line.includes("the guest is discarded"));
  assert.equal(said.length, 2, target.child.stderr);
});

it("bench --quick moves a guest to a target that discards it, and prints and keeps what it took", async (context) => {
  const lab = labOf(context);
  const folder = folderOf(context);
  const target = await lab.agent("target", "b", ["--discard-after", "500ms"]);
  const [report, plots] = [join(folder, "r.json"), join(folder, "plots")];
  const outcome = await precopy([
    "bench",
    "--to",
    target.listen,
    "--quick",
    "--repeats",
    "2",
    ...PATIENT,
    "--report",
    report,
    "--plots",
    plots,
  ]);
  assert.equal(outcome.code, 0, outcome.stderr);
  if (isLinuxAvailable && hasAead())
    assert.match(outcome.stdout, /^in clear; TLS would take \d\.\d\d s of processor more a GiB, both ends together$/m);
  assert.match(outcome.stdout, /^ +2k +2 none +auto .* 2\/2$/m);
  assert.match(outcome.stdout, /^best: 2k\/s +2 ch, none, auto: total /m);
  for (const line of outcome.stdout.split("\n")) assert.ok(line.length <= 80 || line.startsWith("wrote "), `fits a terminal: ${line}`);
  const { results } = JSON.parse(readFileSync(report, "utf8")) as {
    results: { runs: { error: null; report: Record<string, unknown> }[] }[];
  };
  assert.deepEqual(
    results.map(({ runs }) => runs.map((run) => run.report["digest-equal"])),
    [[true, true]],
  );
  assert.deepEqual(readdirSync(plots).sort(), ["downtime.svg", "total-time.svg"]);
});

it("bench against a target that keeps its guests says how to start one that does not, after the run that it filled", async (context) => {
  const lab = labOf(context);
  const target = await lab.agent("target", "b");
  const outcome = await precopy(["bench", "--to", target.listen, "--quick", "--dirty-rates", "0,2k", "--target-wait", "1s", ...PATIENT]);
  assert.equal(outcome.code, 5);
  assert.match(outcome.stdout, /^ +0 +2 none .* 1\/1$/m);
  assert.match(outcome.stderr, /^precopy: ERR_AGENT_FULL: .*start it with `precopy target --discard-after 2s`/);
});

it("a congestion control that the kernel does not have fails the migration before the first page; one that it has is used", {
  skip: process.platform !== "linux",
}, async (context) => {
  const lab = labOf(context);
  const target = await lab.agent("target", "b");
  const source = await lab.agent("source", "a", ["--guest", "g", ...SMALL]);
  const migration = lab.migrate(source, target.listen, ["--congestion-control", "no_such_thing"]);
  const failed = await migration.expect("failed");
  assert.equal(failed["code"], "ERR_CAPABILITY");
  assert.match(String(failed["message"]), /net\.ipv4\.tcp_allowed_congestion_control/);
  assert.equal(await migration.exited, 5);
  assert.equal(await lab.guestAt(target), null);
  await lab.runsAt(source, 1);
  const report = await reportOf(lab.migrate(source, target.listen, ["--congestion-control", "reno", ...PATIENT]));
  assert.equal((report["parameters"] as Record<string, unknown>)["congestion-control"], "reno");
});
