import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import { whyNoMissingPages } from "@precopy/guest";
import { Lab, SLOW, isRight, untilPhase } from "./lab.js";

let lab: Lab;
beforeEach(async () => {
  lab = new Lab();
  await lab.startSwitch();
});
afterEach(() => lab.end());

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
    await lab.runsAt(target, 2);
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
    await lab.runsAt(target, 2);
    await isRight(client);
  });

  it("while the guest runs at the target and fetches its memory from there lets that end, and both agents can be ended after it", {
    skip: whyNoMissingPages() ?? false,
  }, async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b");
    const client = await lab.client();
    const migration = lab.migrate(source, target.listen, ["--mode", "postcopy", "--max-postcopy-bandwidth", "60Mbit"]);
    await untilPhase(migration, "postcopy-active");
    source.child.kill("SIGTERM");
    target.child.kill("SIGTERM");
    await target.child.expect("held");
    assert.equal(await source.child.exited, 0);
    assert.equal(await migration.exited, 0, migration.stderr);
    await lab.runsAt(target, 2);
    await isRight(client);
    target.child.kill("SIGTERM");
    assert.equal(await target.child.exited, 0);
  });
});
