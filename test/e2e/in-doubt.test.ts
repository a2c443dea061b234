import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Lab, answersWithin, ask, isRight, ownerBy, precopy, untilPhase } from "./lab.js";

let lab: Lab;
beforeEach(async () => {
  lab = new Lab();
  await lab.startSwitch();
});
afterEach(() => lab.end());

describe("between COMMIT and ACTIVE", () => {
  it("a killed target leaves the source in doubt: it says so, does not run the guest, and refuses to cancel", async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b", [], "target.commit=hold:60000");
    const client = await lab.client();
    const migration = lab.migrate(source, target.listen);
    await target.child.expect("hold");
    target.child.kill("SIGKILL");
    await untilPhase(migration, "in-doubt");
    assert.equal((await lab.guestAt(source))?.phase, "in-doubt");
    assert.equal(await answersWithin(client, 1500), 0, "nobody answers: the guest runs nowhere");
    const cancel = await precopy(["cancel", "--socket", source.socket]);
    assert.equal(cancel.code, 5);
    assert.match(cancel.stderr, /^precopy: ERR_CANCEL_TOO_LATE: /);
    source.child.kill("SIGTERM");
    await source.child.expect("held");
    assert.equal((await lab.guestAt(source))?.phase, "in-doubt", "the first signal does not end what may be the only copy");
    source.child.kill("SIGTERM");
    assert.equal(await source.child.exited, 9, "told twice it ends, with an exit code of its own");
  });

  it("a link that falls silent and comes back ends the doubt by itself: the guest runs at the target, nothing lost", async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b", [], "target.commit=hold:700");
    const client = await lab.client();
    const link = await lab.link(target.listen);
    const migration = lab.migrate(source, link.address);
    await target.child.expect("hold");
    link.fallSilent();
    await untilPhase(migration, "in-doubt");
    await link.comeBack();
    await untilPhase(migration, "completed");
    assert.equal(await migration.exited, 0);
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
    await lab.runsAt(target, 2);
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
    await lab.runsAt(source, 3);
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
    await lab.runsAt(source, 3);
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
    await lab.runsAt(target, 3);
  });
});
