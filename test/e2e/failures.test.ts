import assert from "node:assert/strict";
import { after, afterEach, before, describe, it } from "node:test";
import { isRight, reportOf, untilPhase } from "./lab.js";
import { Pair } from "./pair.js";

/** Before COMMIT: how to bring a migration into each phase and keep it there. */
const phases = [
  { phase: "setup", sourceFault: "source.setup=hold:4000", targetFault: "", args: [], until: "setup" },
  { phase: "active", sourceFault: "", targetFault: "", args: ["--max-bandwidth", "60Mbit"], until: "active" },
  { phase: "device", sourceFault: "source.device=hold:300", targetFault: "", args: [], until: "device" },
  { phase: "prepared", sourceFault: "", targetFault: "target.prepared=hold:900", args: [], until: "device" },
] as const;

describe("before COMMIT a dead target leaves the guest running at the source, as the client confirms", () => {
  const pair = new Pair();
  before(() => pair.start());
  afterEach(() => pair.settle());
  after(() => pair.end());

  const setFaults = ({ sourceFault, targetFault }: (typeof phases)[number]): void => {
    pair.lab.setFault(pair.here, sourceFault);
    pair.lab.setFault(pair.there, targetFault);
  };

  for (const phase of phases)
    it(`SIGKILL of the target in ${phase.phase}`, async () => {
      setFaults(phase);
      const migration = pair.migrate(phase.args);
      await untilPhase(migration, phase.until);
      pair.there.child.kill("SIGKILL");
      const code = await migration.exited;
      assert.ok(code === 6 || code === 3, `exit code ${String(code)}: ${migration.stderr}`);
      assert.match(migration.stderr, /^precopy: ERR_(LINK_LOST|UNREACHABLE|PREPARED_TIMEOUT): .*\n$/);
      await pair.runsOnHere();
    });

  for (const phase of phases)
    it(`a link that falls silent without a FIN in ${phase.phase}`, async () => {
      setFaults(phase);
      const { link, migration } = await pair.migrateOverLink(phase.args);
      await untilPhase(migration, phase.until);
      link.fallSilent();
      const code = await migration.exited;
      assert.ok(code === 6 || code === 3, `exit code ${String(code)}: ${migration.stderr}`);
      assert.match(migration.stderr, /^precopy: ERR_(PEER_DEAD|UNREACHABLE|PREPARED_TIMEOUT): .*\n$/);
      await pair.runsOnHere();
      if (phase.phase !== "prepared") return;
      pair.there.child.kill("SIGKILL"); // a copy that is prepared waits for the source's word or an operator's, however long
      await pair.there.child.exited;
    });

  it("and the next attempt, to another target, misses no page", async () => {
    const failing = pair.migrate(["--max-bandwidth", "60Mbit"]);
    await untilPhase(failing, "active");
    pair.there.child.kill("SIGKILL");
    assert.equal(await failing.exited, 6);
    const other = await pair.lab.agent("target", "c");
    assert.equal((await reportOf(pair.lab.migrate(pair.here, other.listen)))["digest-equal"], true);
    await isRight(pair.client);
    await reportOf(pair.lab.migrate(other, pair.here.listen));
  });
});
