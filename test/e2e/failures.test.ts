import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import type { JsonChild } from "@precopy/lab";
import { Lab, isRight, reportOf, untilPhase } from "./lab.js";
import type { AgentHandle } from "./lab.js";

let lab: Lab;
beforeEach(async () => {
  lab = new Lab();
  await lab.startSwitch();
});
afterEach(() => lab.end());

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
      await lab.runsOnAt(source, client);
    });

  for (const phase of phases)
    it(`a link that falls silent without a FIN in ${phase.phase}`, async () => {
      const [source, target, client] = await start(phase);
      const link = await lab.link(target.listen);
      const migration = lab.migrate(source, link.address, phase.args);
      await phase.until(migration);
      link.fallSilent();
      const code = await migration.exited;
      assert.ok(code === 6 || code === 3, `exit code ${String(code)}: ${migration.stderr}`);
      assert.match(migration.stderr, /^precopy: ERR_(PEER_DEAD|UNREACHABLE|PREPARED_TIMEOUT): .*\n$/);
      await lab.runsOnAt(source, client);
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
    assert.equal((await reportOf(migration))["digest-equal"], true);
    await isRight(client);
  });
});
