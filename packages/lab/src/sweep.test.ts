import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import type { SweepPlan, SweepResult } from "./sweep.js";
import { runSweep, settingsOf } from "./sweep.js";

/**
 * Stands for `precopy`: remembers its command lines, and plays what the file `play` in its folder says for the number of channels: done, hang,
 * a code to fail with, or full:N, which is refused N times before it is done.
 */
const STAND_IN = `
import { appendFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
const [folder, command, ...rest] = process.argv.slice(2);
const say = (line) => console.log(JSON.stringify(line));
const of = (flag) => rest[rest.indexOf(flag) + 1];
appendFileSync(folder + "/calls", [command, ...rest].join(" ") + "\\n");
const fail = (code) => say({ type: "failed", phase: "setup", code, message: "so it is" });
if (command === "source") {
  if (existsSync(folder + "/no-boot")) {
    console.error("precopy: ERR_MEMORY: Guest of 2.00 GiB. Free memory on the target, or choose another one.");
    process.exit(5);
  }
  process.on("SIGTERM", () => process.exit(0));
  setInterval(() => {}, 1000);
  say({ type: "running" });
} else {
  const channels = of("--multifd-channels");
  const play = JSON.parse(readFileSync(folder + "/play", "utf8"));
  const [what, times] = play[channels].split(":");
  if (what === "full" && Number(times) > 0) {
    writeFileSync(folder + "/play", JSON.stringify({ ...play, [channels]: "full:" + (Number(times) - 1) }));
    fail("ERR_AGENT_FULL");
  } else if (what === "done" || what === "full") say({ type: "done", report: { "digest-equal": true, channels } });
  else if (what === "differ") say({ type: "done", report: { "digest-equal": false, verdict: "lost" } });
  else if (what === "hang") setInterval(() => {}, 1000);
  else if (what !== "crash") fail(what);
}
`;

/** A sweep over channels against a stand-in that plays what is said for each. */
function rig(context: TestContext, play: Readonly<Record<number, string>>, given: Partial<SweepPlan> = {}) {
  const folder = mkdtempSync(join(tmpdir(), "precopy-sweep-test-"));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  writeFileSync(join(folder, "precopy.mjs"), STAND_IN);
  writeFileSync(join(folder, "play"), JSON.stringify(play));
  const channels = Object.keys(play).map(Number);
  const results: SweepResult[] = [];
  const plan: SweepPlan = {
    command: [process.execPath, join(folder, "precopy.mjs"), folder],
    to: "far:4646",
    settings: settingsOf({ dirtyPagesPerSecond: [2000], channels, compressions: ["lz4"], congestionControls: ["auto"] }),
    repeats: 1,
    guestArguments: ["--memory", "1"],
    migrationArguments: ["--downtime-limit", "7"],
    targetWaitMs: 5000,
    prepare: undefined,
    signal: new AbortController().signal,
    ...given,
  };
  return {
    plan,
    folder,
    results,
    sweep: () => runSweep(plan, (result) => results.push(result)),
    calls: () => readFileSync(join(folder, "calls"), "utf8").trim().split("\n"),
    codes: () => results.map(({ setting, runs }) => [setting.channels, ...runs.map(({ error }) => error?.code ?? "done")]),
  };
}

it("settingsOf gives every combination once", () => {
  const settings = settingsOf({
    dirtyPagesPerSecond: [0, 1],
    channels: [1, 2, 4],
    compressions: ["none", "lz4"],
    congestionControls: ["auto", "bbr"],
  });
  assert.equal(settings.length, 24);
  assert.equal(new Set(settings.map((setting) => JSON.stringify(setting))).size, 24);
});

describe("runSweep", () => {
  it("gives each run a fresh guest in an agent of its own, and says what is swept", async (context) => {
    const { sweep, calls, codes } = rig(context, { 3: "done" }, { repeats: 2 });
    await sweep();
    assert.deepEqual(codes(), [[3, "done", "done"]]);
    const guests = calls().flatMap((call) => /--guest (\S+)/.exec(call)?.[1] ?? []);
    assert.equal(new Set(guests).size, 2);
    assert.match(calls()[0] ?? "", /^source .*--workload random-writer --dirty-rate 2000 --memory 1 --json$/);
    assert.match(
      calls()[1] ?? "",
      /^migrate far:4646 .*--downtime-limit 7 --multifd-channels 3 --multifd-compression lz4 --congestion-control auto --json$/,
    );
  });

  it("boots a guest that writes nothing for a dirty rate of 0, which a random-writer takes for as fast as it can", async (context) => {
    const { plan, sweep, calls } = rig(context, { 1: "done" });
    const [setting] = plan.settings;
    assert.ok(setting !== undefined);
    Object.assign(plan, { settings: [{ ...setting, dirtyPagesPerSecond: 0 }] });
    await sweep();
    assert.match(calls()[0] ?? "", /--workload idle --memory/);
  });

  it("goes on after a run that failed, crashed, or moved an image that is not to be trusted", async (context) => {
    const { sweep, results, codes } = rig(context, { 1: "ERR_NOT_CONVERGING", 2: "crash", 3: "differ", 4: "done" });
    await sweep();
    assert.deepEqual(codes(), [
      [1, "ERR_NOT_CONVERGING"],
      [2, "ERR_INTERNAL"],
      [3, "ERR_VERIFICATION"],
      [4, "done"],
    ]);
    assert.equal(results[2]?.runs[0]?.error?.message, "lost");
  });

  it("tells why a guest could not be booted, without the remedy that the command line adds", async (context) => {
    const { folder, sweep, results } = rig(context, { 1: "done" });
    writeFileSync(join(folder, "no-boot"), "");
    await sweep();
    assert.deepEqual(results[0]?.runs, [{ report: null, error: { code: "ERR_MEMORY", message: "Guest of 2.00 GiB." } }]);
  });

  it("tries again while the target is full, with the same guest", async (context) => {
    const { sweep, calls, codes } = rig(context, { 1: "full:2" });
    await sweep();
    assert.deepEqual(codes(), [[1, "done"]]);
    assert.deepEqual(
      calls().map((call) => call.split(" ", 1)[0]),
      ["source", "migrate", "migrate", "migrate"],
    );
  });

  it("prepares each migration when its guest runs, and says with what it could not", async (context) => {
    const { plan, folder, sweep, calls } = rig(context, { 1: "done" }, { repeats: 2 });
    Object.assign(plan, { prepare: `echo prepare >> ${folder}/calls` });
    await sweep();
    const run = ["source", "prepare", "migrate"];
    assert.deepEqual(
      calls().map((call) => call.split(" ", 1)[0]),
      [...run, ...run],
    );
    Object.assign(plan, { prepare: "echo no such thing >&2; exit 3" });
    await assert.rejects(sweep(), { code: "ERR_PARAMETER", message: /^--prepare ".*" ended with 3: no such thing$/ });
  });

  it("ends when the target stays full, says how to start it, and keeps what there is", async (context) => {
    const { sweep, codes } = rig(context, { 1: "done", 2: "full:99", 3: "done" }, { targetWaitMs: 1 });
    await assert.rejects(sweep(), { code: "ERR_AGENT_FULL", message: /still holds a guest after .*--discard-after 2s/ });
    assert.deepEqual(codes(), [[1, "done"]]);
  });

  it("is interrupted in the middle of a run: the runs before it are told, and its processes are gone", async (context) => {
    const abort = new AbortController();
    const { plan, sweep, calls, codes, folder } = rig(context, { 1: "done", 2: "hang" }, { signal: abort.signal });
    const sweeping = sweep();
    const isHanging = (): boolean => existsSync(join(folder, "calls")) && calls().some((call) => call.includes("--multifd-channels 2"));
    while (!isHanging()) await new Promise((resolve) => setTimeout(resolve, 20));
    abort.abort();
    await assert.rejects(sweeping, { code: "ERR_CANCELLED" });
    assert.deepEqual(codes(), [[1, "done"]]);
    assert.equal(plan.settings.length, 2);
  });
});
