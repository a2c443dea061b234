import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import type { JsonChild } from "@precopy/lab";
import { FaultProxy } from "../faults/proxy.js";
import { Lab, answersWithin, precopy, untilPhase } from "./lab.js";
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

/** Before COMMIT: how to bring a migration into each phase and keep it there. */
const phases = [
  {
    phase: "setup",
    sourceFault: "source.setup=hold:4000",
    targetFault: undefined,
    args: [],
    until: (child: JsonChild) => untilPhase(child, "setup"),
  },
  {
    phase: "active",
    sourceFault: undefined,
    targetFault: undefined,
    args: ["--max-bandwidth", "60Mbit"],
    until: (child: JsonChild) => untilPhase(child, "active"),
  },
  {
    phase: "device",
    sourceFault: "source.device=hold:300",
    targetFault: undefined,
    args: [],
    until: (child: JsonChild) => untilPhase(child, "device"),
  },
  {
    phase: "prepared",
    sourceFault: undefined,
    targetFault: "target.prepared=hold:900",
    args: [],
    until: (child: JsonChild) => untilPhase(child, "device"),
  },
] as const;

async function start({ sourceFault, targetFault }: (typeof phases)[number]): Promise<[AgentHandle, AgentHandle, JsonChild]> {
  const source = await lab.source("a", [], sourceFault);
  const target = await lab.agent("target", "b", [], targetFault);
  return [source, target, await lab.client()];
}

async function runsOnAtSource(source: AgentHandle, client: JsonChild): Promise<void> {
  assert.ok((await answersWithin(client, 300)) > 100, "the guest answers the client");
  const guest = await lab.guestAt(source);
  assert.deepEqual([guest?.phase, guest?.epoch], ["running", 1]);
  client.write("finish");
  const report = await client.expect("report");
  assert.equal(report["isVerified"], true);
}

describe("before COMMIT a dead target leaves the guest running at the source, as the client confirms", () => {
  for (const phase of phases)
    it(`SIGKILL of the target in ${phase.phase}`, async () => {
      const [source, target, client] = await start(phase);
      const migration = lab.migrate(source, target.listen, phase.args);
      await phase.until(migration);
      target.child.kill("SIGKILL");
      const code = await migration.exited;
      assert.ok(code === 6 || code === 3, `exit code ${String(code)}: ${migration.stderr}`);
      assert.match(migration.stderr, /^precopy: ERR_(LINK_LOST|UNREACHABLE|PREPARED_TIMEOUT): .*\n$/);
      await runsOnAtSource(source, client);
    });

  for (const phase of phases)
    it(`a link that falls silent without a FIN in ${phase.phase}`, async () => {
      const [source, target, client] = await start(phase);
      link = await FaultProxy.to(target.listen);
      const migration = lab.migrate(source, link.address, phase.args);
      await phase.until(migration);
      link.fallSilent();
      const code = await migration.exited;
      assert.ok(code === 6 || code === 3, `exit code ${String(code)}: ${migration.stderr}`);
      assert.match(migration.stderr, /^precopy: ERR_(PEER_DEAD|UNREACHABLE|PREPARED_TIMEOUT): .*\n$/);
      await runsOnAtSource(source, client);
    });

  it("and the next attempt, to another target, misses no page", async () => {
    const source = await lab.source("a");
    const first = await lab.agent("target", "b");
    const second = await lab.agent("target", "c");
    const client = await lab.client();
    const failing = lab.migrate(source, first.listen, ["--max-bandwidth", "60Mbit"]);
    await untilPhase(failing, "active");
    first.child.kill("SIGKILL");
    assert.equal(await failing.exited, 6);
    const migration = lab.migrate(source, second.listen);
    const { report } = (await migration.expect("done")) as unknown as { report: Record<string, unknown> };
    assert.equal(report["digest-equal"], true);
    client.write("finish");
    assert.equal((await client.expect("report"))["isVerified"], true);
  });
});

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
    client.kill("SIGKILL");
  });

  it("a link that falls silent and comes back ends the doubt by itself: the guest runs at the target, nothing lost", async () => {
    const source = await lab.source("a");
    const target = await lab.agent("target", "b", [], "target.commit=hold:700");
    const client = await lab.client();
    link = await FaultProxy.to(target.listen);
    const migration = lab.migrate(source, link.address);
    await target.child.expect("hold");
    link.fallSilent();
    await untilPhase(migration, "in-doubt");
    await link.comeBack();
    await untilPhase(migration, "completed");
    assert.equal(await migration.exited, 0);
    client.write("finish");
    const report = await client.expect("report");
    assert.deepEqual([report["lost"], report["doubled"], report["staleEpochAnswers"]], [0, 0, 0]);
  });
});

describe("cancel", () => {
  for (const { phase, fault, args } of [
    { phase: "setup", fault: "source.setup=hold:1500", args: [] },
    { phase: "active", fault: undefined, args: ["--max-bandwidth", "60Mbit"] },
    { phase: "device", fault: "source.device=hold:500", args: [] },
  ] as const)
    it(`in ${phase} the guest runs on at the source and the target is free again`, async () => {
      const source = await lab.source("a", [], fault);
      const target = await lab.agent("target", "b");
      const client = await lab.client();
      const migration = lab.migrate(source, target.listen, args);
      await untilPhase(migration, phase);
      assert.equal((await precopy(["cancel", "--socket", source.socket])).code, 0);
      assert.equal(await migration.exited, 8);
      await runsOnAtSource(source, client);
    });
});
