import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import type { JsonChild, JsonLine } from "@precopy/lab";
import { FaultProxy } from "../faults/proxy.js";
import { Lab, answersWithin, ask, untilPhase } from "./lab.js";
import type { AgentHandle } from "./lab.js";

let lab: Lab;
let link: FaultProxy | undefined;
beforeEach(async () => {
  lab = new Lab();
  await lab.startSwitch();
});
afterEach(async () => {
  await lab.end();
  link?.close();
  link = undefined;
});

/** Slow enough that a fault finds the first round under way. */
const SLOW = ["--max-bandwidth", "120Mbit"];
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function reportOf(migration: JsonChild): Promise<JsonLine> {
  const { report } = await migration.expect("done");
  assert.equal(await migration.exited, 0, migration.stderr);
  return report as JsonLine;
}

async function isRight(client: JsonChild): Promise<void> {
  client.write("finish");
  const report = await client.expect("report");
  assert.deepEqual([report["lost"], report["doubled"], report["staleEpochAnswers"], report["isVerified"]], [0, 0, 0, true]);
}

/** The conclusion of `precopy who-owns`. */
const ownerBy = async (agent: AgentHandle, ...args: string[]): Promise<unknown> =>
  ((await ask(agent, ...args)).json["verdict"] as { readonly owner: string }).owner;

/** Waits until `precopy status` at the agent tells of a guest that runs. */
async function runsAt(agent: AgentHandle, epoch: number): Promise<void> {
  for (let tries = 0; ; tries++) {
    const guest = await lab.guestAt(agent);
    if (guest?.phase === "running") return assert.equal(guest.epoch, epoch);
    assert.ok(tries < 60, `guest at ${agent.name}: ${JSON.stringify(guest)}`);
    await sleep(250);
  }
}

describe("nothing starts again from zero", () => {
  for (const { title, channel, losses, rejoins } of [
    { title: "a page channel that is cut is made again", channel: "pages", losses: 1, rejoins: 0 },
    { title: "a control channel that is cut is joined again", channel: "control", losses: 0, rejoins: 1 },
    { title: "a link that is cut altogether is made again", channel: "any", losses: 2, rejoins: 1 },
  ] as const)
    it(`${title}, and the migration completes, both images equal`, async () => {
      const source = await lab.source("a");
      const target = await lab.agent("target", "b");
      const client = await lab.client();
      link = await FaultProxy.to(target.listen);
      const migration = lab.migrate(source, link.address, SLOW);
      await untilPhase(migration, "active");
      await sleep(400);
      link.cut("rst", channel);
      const report = await reportOf(migration);
      assert.ok(Number(report["channel-losses"]) >= losses, `channels lost: ${String(report["channel-losses"])}`);
      assert.equal(report["control-rejoins"], rejoins);
      assert.equal(report["digest-equal"], true);
      assert.ok(Number(report["resent-bytes"]) < 16 * 2 ** 20, `${String(report["resent-bytes"])} B sent twice, of 32 MiB`);
      await isRight(client);
    });

  it("a link that refuses and drops everything for 3 s in the middle of a migration is no failure", async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b");
    const client = await lab.client();
    link = await FaultProxy.to(target.listen);
    const migration = lab.migrate(source, link.address, SLOW);
    await untilPhase(migration, "active");
    await sleep(400);
    link.refuse();
    link.cut("rst");
    await sleep(3000);
    await link.comeBack();
    const report = await reportOf(migration);
    assert.equal(report["digest-equal"], true);
    assert.equal(report["control-rejoins"], 1);
    await isRight(client);
  });
});

describe("a process that dies after PREPARED", () => {
  it("the source, with COMMIT written down and not sent: started anew it sends it, and the guest runs at the target", async () => {
    const source = await lab.source("a", [], "source.committing=kill");
    const target = await lab.agent("target", "b");
    const client = await lab.client();
    await lab.migrate(source, target.listen).exited;
    assert.equal((await lab.guestAt(target))?.phase, "prepared");
    assert.equal(await answersWithin(client, 500), 0, "nobody answers");
    const again = await lab.restart(source);
    await runsAt(target, 2);
    await isRight(client);
    assert.equal(await ownerBy(again, "who-owns", "--guest", "g"), "there");
  });

  it("the target, before it got COMMIT: started anew it knows that it never ran the guest, and the source takes it back", async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b", [], "target.commit=kill");
    const client = await lab.client();
    const migration = lab.migrate(source, target.listen);
    await untilPhase(migration, "in-doubt");
    await lab.restart(target);
    await migration.exited;
    assert.match(migration.stderr, /ERR_TAKEN_BACK/);
    await runsAt(source, 3);
    await isRight(client);
  });

  it("the target, as owner: its guest ended with it, and the source gives its copy up or runs it only by the operator's word", async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b", [], "target.owner=kill");
    const client = await lab.client();
    const migration = lab.migrate(source, target.listen);
    await untilPhase(migration, "in-doubt");
    const unreachable = await ask(source, "resolve", "--guest", "g", "--take-back");
    assert.deepEqual([unreachable.code, /ERR_NOT_FENCED/.test(unreachable.stderr)], [5, true], unreachable.stderr);
    await lab.restart(target);
    const refused = await ask(source, "resolve", "--guest", "g", "--take-back");
    assert.deepEqual([refused.code, /ERR_ROLLBACK/.test(refused.stderr)], [5, true], refused.stderr);
    const taken = await ask(source, "resolve", "--guest", "g", "--take-back", "--accept-rollback");
    assert.deepEqual([taken.code, taken.json["outcome"], taken.json["isRolledBack"]], [0, "taken-back", true], taken.stderr);
    await runsAt(source, 3);
    await isRight(client);
  });

  it("the source, before COMMIT was decided: the target's copy runs by the operator's word, and is called rolled back", async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b", [], "target.prepared=hold:1500");
    await lab.client();
    lab.migrate(source, target.listen);
    await target.child.expect("hold");
    source.child.kill("SIGKILL");
    await sleep(2000);
    assert.equal((await lab.guestAt(target))?.phase, "prepared");
    const unsafe = await ask(target, "resolve", "--guest", "g", "--take-back", "--accept-rollback");
    assert.deepEqual([unsafe.code, /ERR_NOT_FENCED/.test(unsafe.stderr)], [5, true], unsafe.stderr);
    await lab.restart(source);
    const silent = await ask(target, "resolve", "--guest", "g", "--take-back");
    assert.deepEqual([silent.code, /ERR_ROLLBACK/.test(silent.stderr)], [5, true], silent.stderr);
    const claimed = await ask(target, "resolve", "--guest", "g", "--take-back", "--accept-rollback");
    assert.deepEqual([claimed.code, claimed.json["outcome"], claimed.json["isRolledBack"]], [0, "claimed", true], claimed.stderr);
    assert.match(String(claimed.json["copyAt"]), /^\d{4}-\d\d-\d\dT/);
    await runsAt(target, 3);
  });
});

describe("the operator", () => {
  it("takes a guest back from a target that is prepared and has not got COMMIT: nothing is lost, and the target lets go", async () => {
    const source = await lab.source("a", [], "source.committing=hold:4000");
    const target = await lab.agent("target", "b");
    const client = await lab.client();
    const migration = lab.migrate(source, target.listen);
    await source.child.expect("hold");
    const taken = await ask(source, "resolve", "--guest", "g", "--take-back");
    assert.deepEqual([taken.code, taken.json["outcome"], taken.json["isRolledBack"]], [0, "taken-back", false], taken.stderr);
    assert.equal(await migration.exited, 6);
    assert.equal(await lab.guestAt(target), null);
    await runsAt(source, 3);
    await isRight(client);
  });

  it("asked on both sides, who-owns says the same", async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b");
    assert.equal(await ownerBy(source, "who-owns"), "here");
    await reportOf(lab.migrate(source, target.listen));
    assert.equal(await ownerBy(target, "who-owns"), "here");
    assert.equal(await ownerBy(source, "who-owns", "--guest", "g"), "there");
  });
});

describe("SIGTERM", () => {
  it("at an agent with a guest is refused once, and the second one ends it", async () => {
    const source = await lab.source("a");
    source.child.kill("SIGTERM");
    const held = await source.child.expect("held");
    assert.equal(held["code"], "ERR_GUEST_HELD");
    assert.equal((await lab.guestAt(source))?.phase, "running");
    source.child.kill("SIGTERM");
    assert.equal(await source.child.exited, 0);
  });

  it("with --evacuate-to moves the guest there first, and the agent ends", async () => {
    const target = await lab.agent("target", "b");
    const source = await lab.source("a", ["--evacuate-to", target.listen]);
    const client = await lab.client();
    source.child.kill("SIGTERM");
    assert.equal(await source.child.exited, 0);
    await runsAt(target, 2);
    await isRight(client);
  });

  it("during a migration lets it complete, and the agent ends without the guest", async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b");
    const client = await lab.client();
    const migration = lab.migrate(source, target.listen, SLOW);
    await untilPhase(migration, "active");
    source.child.kill("SIGTERM");
    assert.equal(await source.child.exited, 0);
    await runsAt(target, 2);
    await isRight(client);
  });
});

describe("an arbiter that both agents see", () => {
  const folder = (): string => mkdtempSync(join(tmpdir(), "precopy-arbiter-"));

  it("ends a doubt without the target: whoever asked it first owns the guest", async () => {
    const at = folder();
    try {
      const source = await lab.source("a", ["--arbiter", at]);
      const target = await lab.agent("target", "b", ["--arbiter", at], "target.commit=kill");
      const client = await lab.client();
      const migration = lab.migrate(source, target.listen);
      await untilPhase(migration, "in-doubt");
      assert.equal(await migration.exited, 6, "taken back");
      await runsAt(source, 3);
      await isRight(client);
    } finally {
      rmSync(at, { recursive: true });
    }
  });

  it("lets the guest move there and back again, each owner by the arbiter's book", async () => {
    const at = folder();
    try {
      const source = await lab.source("a", ["--arbiter", at]);
      const target = await lab.agent("target", "b", ["--arbiter", at]);
      const client = await lab.client();
      await reportOf(lab.migrate(source, target.listen));
      await reportOf(lab.migrate(target, source.listen));
      await runsAt(source, 3);
      await isRight(client);
      const other = await lab.agent("target", "c");
      const alone = lab.migrate(source, other.listen);
      assert.equal((await alone.expect("failed"))["code"], "ERR_CAPABILITY", "a target that would not ask the arbiter");
    } finally {
      rmSync(at, { recursive: true });
    }
  });
});
