import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { whyNoMissingPages } from "@precopy/guest";
import type { JsonLine } from "@precopy/lab";
import { Lab, answersWithin, ask, isRight, postcopyOf, precopy, reportOf, untilPhase, untilSaid } from "./lab.js";
import { Pair } from "./pair.js";

const skip = whyNoMissingPages() ?? false;

const ways = [
  { title: "mmu log, direct pump", args: ["--dirty-log", "auto"] },
  { title: "barrier log, portable pump", args: ["--dirty-log", "barrier", "--pump", "portable"] },
] as const;

for (const { title, args } of ways)
  describe(`post-copy: ${title}`, { skip }, () => {
    const pair = new Pair(args);
    before(() => pair.start());
    afterEach(() => pair.settle());
    after(() => pair.end());

    it("the guest runs at the target at once, fetches its memory from there, and both images are equal", async () => {
      const { here, there, client } = pair;
      const report = await reportOf(pair.migrate(["--mode", "postcopy"]));
      assert.equal(report["digest-equal"], true);
      const { requests, "pushed-pages": pushed } = postcopyOf(report);
      assert.ok(pushed > 4000 && requests + pushed >= 8192, `${requests} asked for, ${pushed} pushed`);
      assert.equal((await pair.lab.guestAt(there))?.phase, "running");
      assert.equal(await pair.lab.guestAt(here), null);
      // And it is as good a guest as any: it can be moved on.
      assert.equal((await reportOf(pair.lab.migrate(there, here.listen)))["digest-equal"], true);
      await isRight(client);
    });
  });

describe("post-copy of other guests", { skip }, () => {
  let lab: Lab;
  beforeEach(() => {
    lab = new Lab();
  });
  afterEach(() => lab.end());

  it("with zeros, text and lz4 and four channels arrives as well", async () => {
    const source = await lab.agent("source", "a", [
      "--guest",
      "g",
      "--workload",
      "random-writer",
      "--memory",
      "96MiB",
      "--fill",
      "48MiB:text",
    ]);
    const target = await lab.agent("target", "b");
    const more = ["--mode", "postcopy", "--multifd-compression", "lz4", "--multifd-channels", "4"];
    assert.equal((await reportOf(lab.migrate(source, target.listen, more)))["digest-equal"], true);
  });

  it("two vCPUs over three segments, one of them WebAssembly of one's own that writes past the accessor, arrive as well", async (context) => {
    const workload = `rule30=${fileURLToPath(new URL("../../../examples/wasm-rule30.js", import.meta.url))}`;
    const guest = [
      "--guest",
      "g",
      "--workload",
      "random-writer",
      "--workload",
      workload,
      "--memory",
      "9GiB",
      "--fill",
      "32MiB",
      "--working-set",
      "4MiB",
    ];
    const source = await lab.agent("source", "a", guest);
    const target = await lab.agent("target", "b", ["--workload", workload]);
    const migration = lab.migrate(source, target.listen, ["--mode", "postcopy"]);
    const first = await Promise.race([migration.expect("started"), migration.expect("failed")]);
    if (first["code"] === "ERR_UNTRACKED_WRITES") return context.skip("the mmu dirty log does not work here");
    assert.equal((await reportOf(migration))["digest-equal"], true);
    await untilSaid(target, /^rule 30: goes on after row \d+, history in order$/m);
  });
});

describe("post-copy", { skip }, () => {
  const pair = new Pair();
  before(() => pair.start());
  afterEach(() => pair.settle());
  after(() => pair.end());

  it("hybrid sends rounds while they lead somewhere, and then goes to post-copy: what it sent is not sent again", async () => {
    const report = await reportOf(pair.migrate(["--mode", "hybrid", "--max-bandwidth", "100Mbit", "--downtime-limit", "1"]));
    assert.equal(report["digest-equal"], true);
    assert.ok((report["iterations"] as unknown[]).length >= 2);
    const { requests, "pushed-pages": pushed } = postcopyOf(report);
    assert.ok(requests + pushed < 8000, `${requests} asked for, ${pushed} pushed, of 8192 that were sent before`);
    await isRight(pair.client);
  });

  it("hybrid of a guest that can be followed is plain pre-copy: proven before COMMIT, audited after it, and nothing is fetched", async () => {
    const report = await reportOf(pair.migrate(["--mode", "hybrid"]));
    assert.equal(report["digest-equal"], true);
    assert.equal(report["postcopy"], null);
    assert.equal((report["audit"] as JsonLine)["mismatched"], 0);
  });

  for (const { title, begin, args } of [
    { title: "precopy postcopy", begin: true, args: [] },
    { title: "--timeout-action postcopy", begin: false, args: ["--timeout", "800ms", "--timeout-action", "postcopy"] },
  ])
    it(`${title} ends a migration in its first round by letting the guest run at the target`, async () => {
      const migration = pair.migrate(["--mode", "hybrid", "--max-bandwidth", "80Mbit", ...args]);
      await untilPhase(migration, "active");
      if (begin) assert.equal((await precopy(["postcopy", "--socket", pair.here.socket])).code, 0);
      const report = await reportOf(migration);
      assert.equal(report["digest-equal"], true);
      assert.notEqual(report["postcopy"], null);
    });

  it("precopy postcopy is refused where the mode does not allow it, and the migration goes on", async () => {
    const migration = pair.migrate(["--max-bandwidth", "60Mbit"]);
    await untilPhase(migration, "active");
    const refused = await precopy(["postcopy", "--socket", pair.here.socket]);
    assert.equal(refused.code, 5);
    assert.match(refused.stderr, /^precopy: ERR_NO_MIGRATION: This migration cannot come to post-copy: its mode is not hybrid/);
    assert.equal((await reportOf(migration))["postcopy"], null);
  });

  it("while it fetches, both agents say so, the guest cannot be moved on, and what is asked for arrives", async () => {
    const { here: source, there: target, client } = pair;
    const { migration } = await pair.fetching("25Mbit");
    assert.ok((await answersWithin(client, 700)) > 10, "the guest answers");
    const guestThere = async () =>
      (await ask(target, "status")).json["guest"] as { readonly phase: string; readonly "missing-pages": number };
    let guest = await guestThere();
    // What is pushed comes in packets, the first of which takes a second at this pace.
    for (let left = 20; left > 0 && guest["missing-pages"] >= 8192; left--) guest = await guestThere();
    assert.equal(guest.phase, "postcopy-active");
    assert.ok(guest["missing-pages"] > 100 && guest["missing-pages"] < 8192, String(guest["missing-pages"]));
    assert.equal(((await ask(source, "status")).json["query-migrate"] as JsonLine)["status"], "postcopy-active");
    const refused = pair.lab.migrate(target, source.listen);
    assert.equal((await refused.expect("failed"))["code"], "ERR_BUSY");
    assert.equal((await precopy(["cancel", "--socket", pair.here.socket])).code, 5, "it is too late");
    assert.equal((await reportOf(migration))["digest-equal"], true);
    await isRight(pair.client);
  });
});
