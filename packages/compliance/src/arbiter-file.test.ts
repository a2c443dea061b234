import assert from "node:assert/strict";
import { fork } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { FileArbiter } from "@precopy/guest";
import { CLOCK_SKEW_MS, LEASE_MS } from "@precopy/protocol";
import { arbiterSuite } from "./arbiter-suite.js";

/** Versions that FileArbiter keeps; a process that others outrun by less is told exactly what became of its change. */
const KEPT = 64;
const START = Date.parse("2026-11-20T12:00:00.000Z");

/** This file is also an agent: it answers a list of epochs with those that it could follow, or changes the record for ever. */
type Order = { readonly epochs: readonly number[] } | "for ever";
const [, , task, folder = "", owner = ""] = process.argv;
if (task === "agent") {
  const arbiter = new FileArbiter(folder);
  process.on("disconnect", () => process.exit());
  process.on("message", (order: Order) => void carryOut(arbiter, order));
  process.send?.("ready");
} else describeAll();

async function carryOut(arbiter: FileArbiter, order: Order): Promise<void> {
  if (order !== "for ever") {
    const won: number[] = [];
    for (const epoch of order.epochs)
      if ((await arbiter.compareAndSwap("g1", epoch, { owner, epoch: epoch + 1 })).isSwapped) won.push(epoch);
    process.send?.({ won });
    return;
  }
  for (;;) {
    const { epoch = 0 } = (await arbiter.read("g1")) ?? {};
    const { isSwapped } = await arbiter.compareAndSwap("g1", epoch, { owner, epoch: epoch + 1 });
    if (isSwapped) await arbiter.release("g1", owner, epoch + 1);
    else await arbiter.acquire("g1", owner, epoch + 1).catch(() => {}); // somebody else has it: that is the point
  }
}

function describeAll(): void {
  async function withFolder(use: (folder: string) => void | Promise<void>): Promise<void> {
    const folder = mkdtempSync(join(tmpdir(), "precopy-arbiter-"));
    try {
      await use(folder);
    } finally {
      rmSync(folder, { recursive: true });
    }
  }
  const versions = (folder: string): number[] =>
    readdirSync(join(folder, "g1"))
      .map(Number)
      .sort((a, b) => a - b);

  async function startAgent(folder: string, owner: string): Promise<ChildProcess> {
    const { NODE_TEST_CONTEXT: _, ...env } = process.env; // it is no test
    const child = fork(fileURLToPath(import.meta.url), ["agent", folder, owner], { env, stdio: ["ignore", "ignore", "inherit", "ipc"] });
    await once(child, "message");
    return child;
  }
  async function kill(child: ChildProcess): Promise<void> {
    const exited = once(child, "exit");
    child.kill("SIGKILL");
    await exited;
  }

  arbiterSuite("folder", () => {
    const folder = mkdtempSync(join(tmpdir(), "precopy-arbiter-"));
    return { connect: (now) => new FileArbiter(folder, { now }), close: () => rmSync(folder, { recursive: true }) };
  });

  describe("processes that share a folder", () => {
    it("follow each of 1,600 epochs exactly once, racing for all of them", () =>
      withFolder(async (folder) => {
        await new FileArbiter(folder).acquire("g1", "nobody", 1);
        const agents = await Promise.all(["a", "b", "c", "d"].map((owner) => startAgent(folder, owner)));
        const winners = new Set<number>();
        for (let first = 1; first <= 1600; first += KEPT / 2) {
          const epochs = Array.from({ length: KEPT / 2 }, (_, at) => first + at);
          const answers = agents.map((agent) => once(agent, "message") as Promise<[{ won: number[] }]>); // what carryOut sends
          for (const agent of agents) agent.send({ epochs } satisfies Order);
          const won = (await Promise.all(answers)).map(([answer]) => answer.won);
          assert.deepEqual(
            won.flat().sort((a, b) => a - b),
            epochs,
          );
          for (const [at, epochs] of won.entries()) if (epochs.length > 0) winners.add(at);
        }
        assert.ok(winners.size > 1, "one process came first every time, so this shows no race");
        await Promise.all(agents.map(kill));
      }));

    it("go on when any of them is killed at any moment, and never see the epoch go back", () =>
      withFolder(async (folder) => {
        const arbiter = new FileArbiter(folder);
        await arbiter.acquire("g1", "nobody", 1);
        const agents = await Promise.all(["a", "b", "c", "d", "e", "f"].map((owner) => startAgent(folder, owner)));
        for (const agent of agents) agent.send("for ever" satisfies Order);
        let latest = 1;
        const look = async (): Promise<number> => {
          const { epoch } = (await arbiter.read("g1")) ?? assert.fail();
          assert.ok(epoch >= latest, `epoch ${epoch} after ${latest}`);
          return (latest = epoch);
        };
        for (const agent of agents) {
          const before = latest;
          while ((await look()) < before + 20) await setTimeout(Math.random() * 10); // those that are left go on
          await kill(agent);
        }
        const epoch = await look();
        assert.equal((await arbiter.compareAndSwap("g1", epoch, { owner: "x", epoch: epoch + 1 })).isSwapped, true);
        assert.ok(versions(folder).length <= KEPT + agents.length, `${versions(folder).length} versions`);
      }));
  });

  describe("the folder of an arbiter", () => {
    const nonce = (n: number): string => String(n).padStart(12, "0");
    const textOf = (n: number, epoch = n, owner = "other"): string => `${epoch} ${START + LEASE_MS} ${nonce(n)} ${nonce(n - 1)} ${owner}`;
    const plant = (folder: string, n: number, text: string): void => symlinkSync(text, join(folder, "g1", String(n)));
    /** Has others replace the record so often, as FileArbiter does it, between two steps of a process. Each time at the next epoch. */
    const outrun = (folder: string, times: number, epochOf: (n: number) => number = (n) => n): void => {
      mkdirSync(join(folder, "g1"), { recursive: true });
      let last = versions(folder).at(-1);
      if (last === undefined) plant(folder, (last = 0), `0 0 ${nonce(0)} ${nonce(0)} nobody`);
      for (let n = last + 1; n <= last + times; n++) {
        plant(folder, n, textOf(n, epochOf(n)));
        for (const old of versions(folder)) if (old <= n - KEPT) unlinkSync(join(folder, "g1", String(old)));
      }
    };
    /** An agent that stands still once, between looking at the record and following it. */
    const standStill = (folder: string, meanwhile: () => void): FileArbiter => {
      let isDone = false;
      const now = (): number => {
        if (!isDone) meanwhile();
        isDone = true;
        return START;
      };
      return new FileArbiter(folder, { now });
    };

    it("holds a bounded number of versions after 1,000 moves, and the one that stands is a readable line", () =>
      withFolder(async (folder) => {
        const arbiter = new FileArbiter(folder, { now: () => START });
        await arbiter.acquire("g1", "a", 1);
        for (let epoch = 1; epoch < 1000; epoch++) await arbiter.compareAndSwap("g1", epoch, { owner: "b", epoch: epoch + 1 });
        assert.deepEqual(
          versions(folder),
          Array.from({ length: KEPT }, (_, at) => 1000 - KEPT + 1 + at),
        );
        assert.match(readlinkSync(join(folder, "g1", "1000")), new RegExp(`^1000 ${START + LEASE_MS} [0-9a-f]{12} [0-9a-f]{12} b$`));
      }));

    for (const times of [1, KEPT - 1, KEPT, KEPT + 1, 3 * KEPT])
      it(`tells a process that stood still while ${times} others came first that it lost, and its link never counts`, () =>
        withFolder(async (folder) => {
          outrun(folder, 10);
          const slow = standStill(folder, () => outrun(folder, times));
          const { isSwapped, record } = await slow.compareAndSwap("g1", 10, { owner: "slow", epoch: 11 });
          assert.equal(isSwapped, false);
          assert.deepEqual([record?.owner, record?.epoch], ["other", 10 + times]);
          assert.equal((await new FileArbiter(folder).read("g1"))?.epoch, 10 + times);
          // Its own name was used and removed: the link could be made, so the test can fail. Later changes remove it.
          assert.equal(versions(folder).includes(11) && versions(folder).length > KEPT, times > KEPT);
          for (let epoch = 10 + times; epoch < 12 + times; epoch++)
            await slow.compareAndSwap("g1", epoch, { owner: "b", epoch: epoch + 1 });
          assert.ok(versions(folder).length <= KEPT);
        }));

    it("tells it so too when another one that stood still left its link where the version was that it followed", () =>
      withFolder(async (folder) => {
        outrun(folder, 10);
        const slow = standStill(folder, () => {
          outrun(folder, 2 * KEPT);
          plant(folder, 10, `10 ${START + LEASE_MS} ffffffffffff ${nonce(9)} slower`);
        });
        const { isSwapped, record } = await slow.compareAndSwap("g1", 10, { owner: "slow", epoch: 11 });
        assert.deepEqual([isSwapped, record?.epoch], [false, 10 + 2 * KEPT]);
      }));

    it("tells it so too when the guest had no owner before", () =>
      withFolder(async (folder) => {
        for (const times of [1, 3 * KEPT]) {
          const slow = standStill(folder, () => outrun(folder, times));
          await assert.rejects(slow.acquire("g1", "slow", 1), { code: "ERR_OWNED_ELSEWHERE" });
          rmSync(join(folder, "g1"), { recursive: true });
        }
      }));

    it("swaps for a process that stood still while the owner only renewed its lease", () =>
      withFolder(async (folder) => {
        for (const times of [1, 3 * KEPT]) {
          outrun(folder, 10, () => 5);
          const slow = standStill(folder, () => outrun(folder, times, () => 5));
          const { isSwapped, record } = await slow.compareAndSwap("g1", 5, { owner: "slow", epoch: 6 });
          assert.deepEqual([isSwapped, record?.owner, record?.epoch], [true, "slow", 6]);
          assert.deepEqual(await new FileArbiter(folder).read("g1"), record);
          rmSync(join(folder, "g1"), { recursive: true });
        }
      }));

    it("is sound wherever a process ended: while it made the folder, or removed old versions", () =>
      withFolder(async (folder) => {
        const arbiter = new FileArbiter(folder, { now: () => START + LEASE_MS + CLOCK_SKEW_MS });
        outrun(folder, 0); // a folder with version 0 in it
        assert.equal(await arbiter.read("g1"), undefined);
        await arbiter.acquire("g1", "a", 1);
        rmSync(join(folder, "g1"), { recursive: true });
        mkdirSync(join(folder, ".g1.0011223344"));
        await arbiter.acquire("g1", "a", 1);
        rmSync(join(folder, "g1"), { recursive: true });
        outrun(folder, KEPT);
        for (const old of [1, 2, 3]) unlinkSync(join(folder, "g1", String(old)));
        assert.equal((await arbiter.read("g1"))?.epoch, KEPT);
        await arbiter.acquire("g1", "a", KEPT + 1);
      }));

    it("removes what is left over little by little, so that no change takes long", () =>
      withFolder(async (folder) => {
        mkdirSync(join(folder, "g1"));
        for (let n = 1; n <= 200; n++) plant(folder, n, textOf(n));
        const arbiter = new FileArbiter(folder);
        for (let epoch = 200; versions(folder).length > KEPT; epoch++) {
          const before = versions(folder);
          assert.ok((await arbiter.compareAndSwap("g1", epoch, { owner: "b", epoch: epoch + 1 })).isSwapped);
          const removed = before.filter((n) => !versions(folder).includes(n));
          assert.ok(removed.length >= 1 && removed.length <= 8);
          assert.deepEqual(removed, before.slice(0, removed.length), "from the bottom");
        }
      }));

    it("may hold anything else, which counts for nothing", () =>
      withFolder(async (folder) => {
        const arbiter = new FileArbiter(folder);
        await arbiter.acquire("g1", "a", 1);
        for (const name of ["00", "01", "-2", "2.5", "1e3", "0x10", "9".repeat(16), "notes", "7~", " 8"])
          writeFileSync(join(folder, "g1", name), "");
        assert.equal((await arbiter.read("g1"))?.epoch, 1);
        assert.equal((await arbiter.compareAndSwap("g1", 1, { owner: "b", epoch: 2 })).isSwapped, true);
      }));

    it("that holds a damaged record is refused with ERR_ARBITER by every call, and nothing is written", () =>
      withFolder(async (folder) => {
        const arbiter = new FileArbiter(folder);
        await arbiter.acquire("g1", "a", 1);
        const follows = readlinkSync(join(folder, "g1", "1")).split(" ")[2] ?? "";
        const nonces = `0123456789ab ${follows}`;
        const damaged = [
          ...[
            "x",
            " ",
            "1",
            "{}",
            "../../g2/1",
            "x".repeat(1000),
            `2 0 ${nonces}`,
            `2 0 ${nonces} `,
            `2 0 ${nonces} a b`,
            `2 0 ${nonces} a\n`,
          ],
          ...["0", "-2", "2.5", "1e3", "0x2", "", 2 ** 32, 10 ** 10].map((epoch) => `${epoch} 0 ${nonces} a`),
          ...["-5", "", "x", 9e15, "9".repeat(17)].map((leaseUntilMs) => `2 ${leaseUntilMs} ${nonces} a`),
          ...["x".repeat(129), "\u00e4"].map((owner) => `2 0 ${nonces} ${owner}`),
          ...[`2 0 ${follows} a`, `2 0 ${nonces}0 a`, `2 0 ${nonces.toUpperCase()} a`, `2 0 0123456789ab ${nonce(5)} a`], // the last follows nothing here
        ];
        for (const text of damaged) {
          plant(folder, 2, text);
          for (const call of [
            () => arbiter.read("g1"),
            () => arbiter.acquire("g1", "b", 9),
            () => arbiter.renew("g1", "a", 1),
            () => arbiter.release("g1", "a", 1),
            () => arbiter.compareAndSwap("g1", 1, { owner: "b", epoch: 2 }),
          ])
            await assert.rejects(call, { code: "ERR_ARBITER" }, text);
          unlinkSync(join(folder, "g1", "2"));
        }
        plant(folder, 2, `2 0 ${nonces} a`);
        assert.equal((await arbiter.read("g1"))?.epoch, 2, "nothing else is wrong with them");
        unlinkSync(join(folder, "g1", "2"));
        for (const make of [(path: string) => writeFileSync(path, ""), (path: string) => mkdirSync(path)]) {
          make(join(folder, "g1", "2"));
          await assert.rejects(arbiter.read("g1"), { code: "ERR_ARBITER" });
          rmSync(join(folder, "g1", "2"), { recursive: true });
        }
        for (const n of [4, 10 ** 15 - 1]) {
          plant(folder, n, `2 0 ${nonces} a`);
          await assert.rejects(arbiter.read("g1"), { code: "ERR_ARBITER" }, `version ${n} follows nothing`);
          unlinkSync(join(folder, "g1", String(n)));
        }
        assert.deepEqual(versions(folder), [0, 1]);
      }));

    it("that is missing, or no folder, is refused with ERR_ARBITER and the cause, and is not made", () =>
      withFolder(async (folder) => {
        writeFileSync(join(folder, "file"), "");
        for (const [name, code] of [
          ["missing", "ENOENT"],
          ["file", "ENOTDIR"],
        ] as const) {
          const arbiter = new FileArbiter(join(folder, name));
          const isBroken = (error: Error): boolean =>
            "code" in error && error.code === "ERR_ARBITER" && Reflect.get(Object(error.cause), "code") === code;
          await assert.rejects(arbiter.read("g1"), isBroken);
          await assert.rejects(arbiter.acquire("g1", "a", 1), isBroken);
        }
        assert.deepEqual(readdirSync(folder), ["file"]);
      }));
  });
}
