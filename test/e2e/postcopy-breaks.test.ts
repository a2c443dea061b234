import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { whyNoMissingPages } from "@precopy/guest";
import type { JsonLine } from "@precopy/lab";
import { ask, isRight, postcopyOf, precopy, reportOf, untilPhase } from "./lab.js";
import { Pair } from "./pair.js";

const skip = whyNoMissingPages() ?? false;

describe("a link that breaks in post-copy", { skip }, () => {
  const pair = new Pair();
  before(() => pair.start());
  afterEach(() => pair.settle());
  after(() => pair.end());

  for (const channel of ["faults", "control", "pages", "any"] as const)
    it(`${channel}: is made again, the guest goes on, and nothing is wrong`, async () => {
      const { link, migration } = await pair.fetching();
      await sleep(300);
      link.cut("rst", channel);
      const report = await reportOf(migration);
      assert.equal(report["digest-equal"], true);
      if (channel !== "pages") assert.ok(postcopyOf(report).pauses >= 1); // a page channel alone is mended as in pre-copy
      await isRight(pair.client);
    });

  it("for seconds: the guest waits wherever it misses a page, both sides say so, and precopy postcopy-recover goes on at once", async () => {
    const { here: source, there: target } = pair;
    const { link, migration } = await pair.fetching();
    link.refuse();
    link.cut("rst");
    await untilPhase(migration, "postcopy-paused");
    await sleep(1500);
    assert.match(String(((await ask(source, "status")).json["query-migrate"] as JsonLine)["status"]), /^postcopy-(paused|recover)$/);
    assert.equal((await pair.lab.guestAt(target))?.phase, "postcopy-paused");
    await link.comeBack();
    await precopy(["postcopy-recover", "--socket", source.socket]);
    assert.equal((await reportOf(migration))["digest-equal"], true);
    await isRight(pair.client);
  });
});

describe("an agent that dies in post-copy", { skip }, () => {
  const pair = new Pair();
  beforeEach(() => pair.start());
  afterEach(() => pair.end());

  it("the source: what was missing is nowhere, so the guest is lost, and nobody calls that a success", async () => {
    const { lab, here: source, there: target } = pair;
    const { migration } = await pair.fetching();
    source.child.kill("SIGKILL");
    await migration.exited;
    await lab.restart(source);
    for (let tries = 0; (await lab.guestAt(target)) !== null; tries++) {
      assert.ok(tries < 40, "the target has learnt that the rest will never come");
      await sleep(250);
    }
    const { json } = await ask(target, "who-owns", "--guest", "g");
    assert.equal((json["verdict"] as JsonLine)["owner"], "nobody");
  });

  it("the target: the guest ended with it; the source keeps the image of the pause, and runs it if its operator accepts the roll-back", async () => {
    const { lab, here: source, there: target } = pair;
    const { migration } = await pair.fetching();
    target.child.kill("SIGKILL");
    await untilPhase(migration, "postcopy-paused");
    await lab.restart(target);
    const taken = ["resolve", "--guest", "g", "--take-back", "--socket", source.socket];
    const refused = await precopy(taken);
    assert.match(refused.stderr, /^precopy: ERR_ROLLBACK: /);
    assert.equal((await precopy([...taken, "--accept-rollback"])).code, 0);
    assert.equal(await migration.exited, 6);
    await lab.runsAt(source, 3);
  });
});
