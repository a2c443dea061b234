import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { JsonLine, LedgerClient } from "@precopy/lab";
import { isLinuxAvailable } from "@precopy/linux";
import { Lab, isRight, reportOf } from "./lab.js";
import type { AgentHandle } from "./lab.js";

const isRoot = process.getuid?.() === 0;

const ways = [
  { title: "mmu log, direct pump", args: ["--dirty-log", "auto"], mayChooseCongestionControl: isRoot && isLinuxAvailable },
  { title: "barrier log, portable pump", args: ["--dirty-log", "barrier", "--pump", "portable"], mayChooseCongestionControl: false },
] as const;

for (const { title, args, mayChooseCongestionControl } of ways)
  describe(`there and back again: ${title}`, () => {
    const lab = new Lab();
    let agents: [AgentHandle, AgentHandle];
    let client: LedgerClient;
    before(async () => {
      await lab.startSwitch();
      agents = [await lab.source("a", args), await lab.agent("target", "b", args)];
      client = await lab.client();
    });
    after(() => lab.end());

    it("A to B to A to B: every hand-over is proven, the epoch rises, and the guest ends at B", async () => {
      for (let hop = 0; hop < 3; hop++) {
        const [from, to] = hop % 2 === 0 ? agents : [agents[1], agents[0]];
        const report = await reportOf(lab.migrate(from, to.listen));
        assert.equal(report["digest-equal"], true);
        assert.equal(report["owner-epoch"], hop + 2);
        if (mayChooseCongestionControl) assert.equal((report["parameters"] as JsonLine)["congestion-control"], "cubic");
      }
      assert.equal(await lab.guestAt(agents[0]), null);
      assert.equal((await lab.guestAt(agents[1]))?.epoch, 4);
    });

    it("stop-and-copy with lz4 and four channels arrives as well", async () => {
      const report = await reportOf(
        lab.migrate(agents[1], agents[0].listen, ["--mode", "stop-and-copy", "--multifd-compression", "lz4", "--multifd-channels", "4"]),
      );
      assert.equal(report["digest-equal"], true);
      assert.equal((report["iterations"] as unknown[]).length, 1);
    });

    it("the client has lost no acknowledged request, none was applied twice, and no older owner answered", async () => {
      // On a quiet host the guest is there and back before it was asked so much.
      for (let left = 100; left > 0 && client.statistics().acknowledged <= 100; left--) await sleep(50);
      const { acknowledged } = client.statistics();
      assert.ok(acknowledged > 100, String(acknowledged));
      await isRight(client);
    });
  });

it("an agent is full with one guest: a second is refused with the reason, and runs on where it was", async () => {
  const lab = new Lab();
  try {
    const first = await lab.agent("source", "a", ["--workload", "idle", "--memory", "16MiB"]);
    const second = await lab.agent("source", "b", ["--workload", "idle", "--memory", "16MiB"]);
    const migration = lab.migrate(second, first.listen);
    const failed = await migration.expect("failed");
    assert.equal(failed["code"], "ERR_AGENT_FULL");
    assert.equal(await migration.exited, 5);
    assert.equal((await lab.guestAt(second))?.phase, "running");
  } finally {
    await lab.end();
  }
});
