import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Lab, ask, isRight, ownerBy, reportOf, untilPhase } from "./lab.js";

let lab: Lab;
beforeEach(async () => {
  lab = new Lab();
  await lab.startSwitch();
});
afterEach(() => lab.end());

describe("the operator", () => {
  it("takes a guest back from a target that is prepared and has not got COMMIT: nothing is lost, and the target lets go", async () => {
    const source = await lab.source("a", [], "source.committing=hold:8000");
    const target = await lab.agent("target", "b");
    const client = await lab.client();
    const migration = lab.migrate(source, target.listen);
    await source.child.expect("hold");
    const taken = await ask(source, "resolve", "--guest", "g", "--take-back");
    assert.deepEqual([taken.code, taken.json["outcome"], taken.json["isRolledBack"]], [0, "taken-back", false], taken.stderr);
    assert.equal(await migration.exited, 6);
    assert.equal(await lab.guestAt(target), null);
    await lab.runsAt(source, 3);
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
      await lab.runsAt(source, 3);
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
      await lab.runsAt(source, 3);
      await isRight(client);
      const other = await lab.agent("target", "c");
      const alone = lab.migrate(source, other.listen);
      assert.equal((await alone.expect("failed"))["code"], "ERR_CAPABILITY", "a target that would not ask the arbiter");
    } finally {
      rmSync(at, { recursive: true });
    }
  });
});
