import assert from "node:assert/strict";
import { after, afterEach, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { SLOW, isRight, reportOf, untilPhase } from "./lab.js";
import { Pair } from "./pair.js";

describe("nothing starts again from zero", () => {
  const pair = new Pair();
  before(() => pair.start());
  afterEach(() => pair.settle());
  after(() => pair.end());

  /** A migration in its first round, over a link that can be cut. */
  async function underWay() {
    const under = await pair.migrateOverLink(SLOW);
    await untilPhase(under.migration, "active");
    await sleep(400);
    return under;
  }

  for (const { title, channel, losses, rejoins } of [
    { title: "a page channel that is cut is made again", channel: "pages", losses: 1, rejoins: 0 },
    { title: "a control channel that is cut is joined again", channel: "control", losses: 0, rejoins: 1 },
    { title: "a link that is cut altogether is made again", channel: "any", losses: 2, rejoins: 1 },
  ] as const)
    it(`${title}, and the migration completes, both images equal`, async () => {
      const { link, migration } = await underWay();
      link.cut("rst", channel);
      const report = await reportOf(migration);
      assert.ok(Number(report["channel-losses"]) >= losses, `channels lost: ${String(report["channel-losses"])}`);
      assert.equal(report["control-rejoins"], rejoins);
      assert.equal(report["digest-equal"], true);
      assert.ok(Number(report["resent-bytes"]) < 16 * 2 ** 20, `${String(report["resent-bytes"])} B sent twice, of 32 MiB`);
      await isRight(pair.client);
    });

  it("a link that refuses and drops everything for 3 s in the middle of a migration is no failure", async () => {
    const { link, migration } = await underWay();
    link.refuse();
    link.cut("rst");
    await sleep(3000);
    await link.comeBack();
    const report = await reportOf(migration);
    assert.equal(report["digest-equal"], true);
    assert.equal(report["control-rejoins"], 1);
    await isRight(pair.client);
  });
});
