import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import type { JsonChild, JsonLine } from "@precopy/lab";
import { Lab, precopy, reportOf, untilPhase } from "./lab.js";
import type { AgentHandle } from "./lab.js";

/** Four times what the link carries, over more than a pause of 300 ms can send. */
const OUTRUNNING = [
  ...["--guest", "g", "--workload", "random-writer", "--memory", "64MiB", "--fill", "16MiB", "--working-set", "12MiB"],
  ...["--dirty-rate", "20k"],
];
const LINK = ["--max-bandwidth", "160Mbit", "--downtime-limit", "300"];

const iterations = (report: JsonLine): JsonLine[] => report["iterations"] as JsonLine[];
const throttled = (report: JsonLine): number[] => iterations(report).map((round) => Number(round["throttle-percent"]));
/** Why its last round but one was the last with the guest running. */
const switched = (report: JsonLine): string => String(iterations(report).at(-2)?.["decision"]);
const AS_EXPECTED = /^switch over: expected /;

for (const { title, args, skip } of [
  { title: "mmu log, direct pump", args: ["--dirty-log", "auto"], skip: false },
  {
    title: "barrier log, portable pump",
    args: ["--dirty-log", "barrier", "--pump", "portable"],
    skip: "neither log nor pump make a difference",
  },
] as const)
  describe(`a guest that dirties four times what the link carries: ${title}`, () => {
    const lab = new Lab();
    let [here, there]: AgentHandle[] = [];
    before(async () => {
      [here, there] = [await lab.agent("source", "a", [...OUTRUNNING, ...args]), await lab.agent("target", "b", args)];
    });
    after(() => lab.end());

    const migrate = (...parameters: string[]): JsonChild => lab.migrate(here!, there!.listen, parameters); // both were started
    /** The guest arrives, proven; the next test moves it back. */
    async function arrives(migration: JsonChild): Promise<JsonLine> {
      const report = await reportOf(migration);
      assert.equal(report["digest-equal"], true);
      [here, there] = [there, here];
      return report;
    }
    async function fails(code: string, migration: JsonChild): Promise<void> {
      assert.equal((await migration.expect("failed"))["code"], code);
      assert.equal(await migration.exited, 7);
      await lab.runsAt(here!, 1);
    }
    const set = async (...parameters: string[]): Promise<void> => {
      const { code, stderr } = await precopy(["set", "--socket", here!.socket, ...parameters]);
      assert.equal(code, 0, stderr);
    };

    it("does not converge if nothing may be withheld, and runs on at the source", { skip }, () =>
      fails("ERR_NOT_CONVERGING", migrate(...LINK)),
    );

    it("is given up when its time is up, and runs on at the source", { skip }, () =>
      fails("ERR_TIMEOUT", migrate(...LINK, "--timeout", "2s")),
    );

    it("is moved with --throttle sdps, with hot pages waiting and compression as it comes", async () => {
      const report = await arrives(migrate(...LINK, "--throttle", "sdps", "--hold-back", "on", "--multifd-compression", "auto"));
      assert.ok(Math.max(...throttled(report)) > 50, throttled(report).join(", "));
      assert.match(switched(report), AS_EXPECTED);
    });

    it("is moved with --throttle auto-converge, in steps", async () => {
      const steps = ["--cpu-throttle-initial", "60", "--cpu-throttle-increment", "39"];
      const report = await arrives(migrate(...LINK, "--throttle", "auto-converge", ...steps));
      assert.ok(throttled(report)[0] === 0 && throttled(report).some((percent) => percent > 90), throttled(report).join(", "));
      assert.match(switched(report), AS_EXPECTED);
    });

    it("is moved with --xbzrle on, and nothing withheld: of each page it writes 64 bytes", async () => {
      const report = await arrives(migrate(...LINK, "--xbzrle", "on"));
      const { "xbzrle-cache": cache } = report["query-migrate"] as { readonly "xbzrle-cache": Record<string, number> };
      assert.ok(cache["pages"]! > 1000 && cache["encoding-rate"]! > 5, JSON.stringify(cache));
      assert.equal(Math.max(...throttled(report)), 0);
      assert.match(switched(report), AS_EXPECTED);
    });

    it("is moved when it is throttled in flight, by `precopy set`", { skip }, async () => {
      const migration = migrate("--max-bandwidth", "20Mbit"); // its first rounds take seconds each: it is not given up before it is throttled
      await untilPhase(migration, "active");
      await set("--throttle", "sdps", ...LINK);
      const report = await arrives(migration);
      assert.equal((report["parameters"] as JsonLine)["throttle"], "sdps");
      assert.ok(Math.max(...throttled(report)) > 50, throttled(report).join(", "));
    });

    it("is moved when the cap is lifted in the middle of a round: the rest of it is sent at once", async () => {
      const migration = migrate("--max-bandwidth", "1Mbit"); // the first round alone would take two minutes, longer than it is waited for
      await untilPhase(migration, "active");
      await set("--max-bandwidth", "0");
      await arrives(migration);
    });

    it("is moved when its time is up and the switch is forced, with the pause that it takes", { skip }, async () => {
      const report = await arrives(migrate(...LINK, "--timeout", "1500ms", "--timeout-action", "force"));
      assert.match(switched(report), /^switch over: time is up/);
    });

    it("waits with --pause-before-switchover, the guest running, until `precopy continue`", { skip }, async () => {
      const migration = migrate("--pause-before-switchover", "on");
      while ((await migration.expect("round"))["isReady"] !== true) continue;
      const { stdout } = await precopy(["status", "--socket", here!.socket, "--json"]);
      const { guest, "query-migrate": query } = JSON.parse(stdout);
      assert.deepEqual([guest.phase, query.status], ["migrating", "pre-switchover"]);
      const { code, stderr } = await precopy(["continue", "--socket", here!.socket]);
      assert.equal(code, 0, stderr);
      assert.match(switched(await arrives(migration)), AS_EXPECTED);
    });

    it("`precopy set` without a migration in progress is refused", { skip }, async () => {
      const { code, stderr } = await precopy(["set", "--socket", here!.socket, "--downtime-limit", "20"]);
      assert.equal(code, 5);
      assert.match(stderr, /ERR_NO_MIGRATION/);
    });
  });
