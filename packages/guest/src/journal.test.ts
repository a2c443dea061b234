import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { bootId, isLinuxAvailable } from "@precopy/linux";
import type { Decision, JournalEntry } from "@precopy/protocol";
import fc from "fast-check";
import { Journal } from "./journal.js";
import type { JournalHost } from "./journal.js";

async function withFolder(use: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-journal-"));
  try {
    await use(join(folder, "journal"));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
/** A host with locks that says it was started as `boot`; a journal here stands for a process of its own. */
const hostOf = (boot: string | undefined): JournalHost => ({ bootId: () => boot, tryLockFile: () => ({ release() {} }) });
const lockless = (boot: string): JournalHost => ({ bootId: () => boot, tryLockFile: () => undefined });
const line = (entry: Partial<JournalEntry> & Record<string, unknown>): string =>
  `${JSON.stringify({ at: "2026-01-01T00:00:00.000Z", epoch: 1, decision: "booted", ...entry })}\n`;
const said = (journal: Journal, guest = "g1"): string =>
  journal
    .read(guest)
    .map(({ epoch, decision }) => `${epoch} ${decision}`)
    .join(", ");

describe("Journal", () => {
  it("reads back what was recorded, oldest first, in this process and in the next", () =>
    withFolder(async (folder) => {
      const journal = new Journal(folder);
      journal.record("g1", 1, "booted");
      journal.record("g1", 2, "offered");
      journal.record("g2", 7, "prepared");
      await journal.sync("g1");
      assert.equal(said(journal), "1 booted, 2 offered");
      journal.close();
      const next = new Journal(folder);
      next.record("g1", 2, "committed");
      assert.equal(said(next), "1 booted, 2 offered, 2 committed");
      assert.equal(said(next, "g2"), "7 prepared");
      for (const { at } of next.read("g1")) assert.ok(Math.abs(Date.now() - Date.parse(at)) < 60_000);
      next.close();
    }));

  it("knows the highest epoch, not the last one, and 0 for a guest it never met", () =>
    withFolder((folder) => {
      const journal = new Journal(folder);
      assert.equal(journal.latestEpoch("g1"), 0);
      for (const epoch of [1, 9, 3]) journal.record("g1", epoch, "offered");
      assert.equal(journal.latestEpoch("g1"), 9);
      assert.equal(journal.latestEpoch("g"), 0);
      journal.close();
    }));

  it("has a decision in the file when record() returns, without close or sync", () =>
    withFolder((folder) => {
      const journal = new Journal(folder, hostOf(undefined));
      journal.record("g1", 4, "owner");
      assert.match(readFileSync(join(folder, "g1.journal"), "utf8"), /"epoch":4,"decision":"owner"}\n$/);
      journal.close();
    }));

  it("writes the attempt's peer and session, and this start of the host, and leaves out what there is not", () =>
    withFolder((folder) => {
      const journal = new Journal(folder, hostOf("b1"));
      journal.record("g1", 2, "offered", { peer: "h2:4646", session: "s1" });
      journal.record("g1", 2, "aborted");
      const [offered, aborted] = journal.read("g1");
      assert.deepEqual({ ...offered, at: "" }, { at: "", epoch: 2, decision: "offered", peer: "h2:4646", session: "s1", boot: "b1" });
      assert.deepEqual({ ...aborted, at: "" }, { at: "", epoch: 2, decision: "aborted", boot: "b1" });
      journal.close();
      const real = new Journal(folder);
      real.record("g2", 1, "booted");
      assert.equal(real.read("g2")[0]?.boot, bootId());
      real.close();
    }));

  it("leaves out a last line cut short by a crash at any byte, then and after the next decision, and keeps every other", () =>
    withFolder((folder) => {
      const file = join(folder, "g1.journal");
      const journal = new Journal(folder, hostOf("b1"));
      journal.record("g1", 1, "booted");
      journal.record("g1", 2, "offered");
      journal.close();
      const whole = readFileSync(file);
      for (let length = whole.indexOf("\n") + 1; length < whole.byteLength; length++) {
        writeFileSync(file, whole);
        truncateSync(file, length);
        const next = new Journal(folder, hostOf("b1"));
        assert.equal(said(next), "1 booted", `${length} bytes`);
        next.record("g1", 3, "owner");
        assert.equal(said(next), "1 booted, 3 owner", `${length} bytes`);
        next.close();
      }
    }));

  it("does not lose the decision recorded after a cut line", () =>
    withFolder((folder) => {
      const first = new Journal(folder);
      first.record("g1", 1, "booted");
      first.close();
      appendFileSync(join(folder, "g1.journal"), '{"at":"2026-01-01T00:00:00.000Z","epo');
      const next = new Journal(folder);
      next.record("g1", 2, "offered");
      next.record("g1", 2, "committed");
      assert.equal(said(next), "1 booted, 2 offered, 2 committed");
      assert.equal(next.latestEpoch("g1"), 2);
      next.close();
    }));

  it("leaves out every line that is no entry, and keeps those around it", () =>
    withFolder((folder) => {
      const damaged = [
        ...["", "null", "7", '"booted"', "[]", "{}", "{", "\0\0\0", "[1,2,3]", "\u{feff}", "{}{}"].map((text) => `${text}\n`),
        ...[0, -1, 1.5, 2 ** 32, 1e300, "1", null, [1]].map((epoch) => line({ epoch: epoch as number })),
        ...["", "Booted", "constructor", "__proto__", null, 1, ["booted"]].map((decision) => line({ decision: decision as Decision })),
        ...["", "yesterday", null, 5, "2026".repeat(100)].map((at) => line({ at: at as string })),
        ...[null, 5, {}, "x".repeat(301)].map((peer) => line({ peer: peer as string })),
        ...[null, 5, {}, "x".repeat(65)].flatMap((text) => [line({ session: text as string }), line({ boot: text as string })]),
      ];
      const journal = new Journal(folder);
      writeFileSync(join(folder, "g1.journal"), line({}) + damaged.map((text, at) => text + line({ epoch: at + 2 })).join(""));
      assert.deepEqual(
        journal.read("g1").map(({ epoch }) => epoch),
        Array.from({ length: damaged.length + 1 }, (_, at) => at + 1),
      );
      journal.close();
    }));

  it("reads any bytes without throwing, and gives well-formed entries only", () =>
    withFolder((folder) => {
      const journal = new Journal(folder);
      const bytes = fc.oneof(
        fc.uint8Array({ maxLength: 300 }),
        fc.array(fc.json()).map((lines) => Buffer.from(lines.map((text) => `${text}\n`).join(""))),
        fc
          .record({ at: fc.anything(), epoch: fc.anything(), decision: fc.anything() })
          .map((entry) => Buffer.from(`${fc.stringify(entry)}\n`)),
      );
      fc.assert(
        fc.property(bytes, (content) => {
          writeFileSync(join(folder, "g1.journal"), content);
          for (const { epoch } of journal.read("g1")) assert.ok(Number.isInteger(epoch) && epoch >= 1);
          assert.ok(journal.latestEpoch("g1") >= 0);
          journal.standing("g1");
        }),
      );
      journal.close();
    }));

  it("does not take a file that it cannot read for a guest it never met", () =>
    withFolder((folder) => {
      const journal = new Journal(folder);
      mkdirSync(join(folder, "g1.journal"));
      assert.throws(() => journal.latestEpoch("g1"), { code: "EISDIR" });
      journal.close();
    }));

  it("makes its folder and files readable for their owner only", () =>
    withFolder((folder) => {
      const journal = new Journal(folder);
      journal.record("g1", 1, "booted");
      journal.close();
      assert.equal(statSync(folder).mode & 0o077, 0);
      assert.equal(statSync(join(folder, "g1.journal")).mode & 0o077, 0);
    }));

  it("reads what a release without boot, peer and session wrote", () =>
    withFolder((folder) => {
      mkdirSync(folder);
      writeFileSync(join(folder, "g1.journal"), '{"at":"2026-01-01T00:00:00.000Z","epoch":5,"decision":"owner"}\n');
      const journal = new Journal(folder);
      assert.equal(journal.latestEpoch("g1"), 5);
      journal.close();
    }));

  it("sync of a guest without entries resolves", () =>
    withFolder(async (folder) => {
      const journal = new Journal(folder);
      await journal.sync("nobody");
      journal.close();
    }));

  it("lists the guests that have a journal here, and nothing else that lies about", () =>
    withFolder((folder) => {
      const journal = new Journal(folder);
      for (const guest of ["g2", "g1", "a.b-c_d"]) journal.record(guest, 1, "booted");
      for (const name of ["notes.txt", ".journal", "-x.journal", "g3.journal.bak", `${"x".repeat(65)}.journal`])
        writeFileSync(join(folder, name), line({}));
      mkdirSync(join(folder, "g4.journal"));
      assert.deepEqual(journal.guests(), ["a.b-c_d", "g1", "g2"]);
      journal.close();
    }));

  it("tells one attempt's entries from the others'", () =>
    withFolder((folder) => {
      const journal = new Journal(folder, hostOf("b1"));
      for (const [epoch, decision] of [
        [1, "booted"],
        [2, "offered"],
        [3, "offered"],
        [2, "aborted"],
      ] as const)
        journal.record("g1", epoch, decision);
      assert.deepEqual(
        journal.entriesAt("g1", 2).map(({ decision }) => decision),
        ["offered", "aborted"],
      );
      assert.deepEqual(journal.entriesAt("g1", 4), []);
      assert.deepEqual(journal.entriesAt("g2", 2), []);
      journal.close();
    }));
});

describe("the journal of a prepared guest", () => {
  const prepare = (folder: string, host: JournalHost): void => {
    const journal = new Journal(folder, host);
    journal.record("g1", 4, "prepared", { peer: "h1:4646", session: "s4" });
    journal.close();
  };

  it("refuses it after its process ended, under the same start of the host; settle() writes that down, once, for any later start", () =>
    withFolder((folder) => {
      prepare(folder, hostOf("b1"));
      const next = new Journal(folder, hostOf("b1"));
      assert.equal(next.standing("g1").standing, "refused");
      assert.deepEqual(next.settle(), [{ guest: "g1", epoch: 4 }]);
      assert.deepEqual(next.settle(), []);
      assert.equal(said(next), "4 prepared, 4 refused");
      const { at: _, ...refused } = next.read("g1")[1] ?? assert.fail();
      assert.deepEqual(refused, { epoch: 4, decision: "refused", peer: "h1:4646", session: "s4", boot: "b1" });
      next.close();
      assert.equal(new Journal(folder, hostOf("b2")).standing("g1").standing, "refused");
    }));

  it("says unknown after the host was started anew, or has no name for its starts: `owner` may be lost", () =>
    withFolder((folder) => {
      prepare(folder, hostOf("b1"));
      for (const host of [hostOf("b2"), hostOf(undefined)]) {
        const next = new Journal(folder, host);
        assert.equal(next.standing("g1").standing, "unknown");
        assert.deepEqual(next.settle(), []);
        assert.equal(said(next), "4 prepared");
        next.close();
      }
    }));

  it("says unknown without the folder's lock, because another process may hold the guest; settle() then writes nothing", () =>
    withFolder((folder) => {
      prepare(folder, hostOf("b1"));
      const next = new Journal(folder, lockless("b1"));
      assert.equal(next.standing("g1").standing, "unknown");
      assert.deepEqual(next.settle(), []);
      assert.equal(said(next), "4 prepared");
      next.close();
      const closed = new Journal(folder, hostOf("b1"));
      closed.close();
      assert.equal(closed.standing("g1").standing, "unknown", "a closed journal has no lock either");
    }));

  it("keeps settle() off a guest that this process prepared, and off every guest that is not only prepared", () =>
    withFolder((folder) => {
      const before = new Journal(folder, hostOf("b1"));
      for (const decision of ["owner", "refused", "committed", "completed", "booted"] as const) {
        before.record(decision, 2, "prepared");
        before.record(decision, 3, decision);
      }
      before.close();
      const journal = new Journal(folder, hostOf("b1"));
      journal.record("g1", 4, "prepared");
      assert.deepEqual(journal.settle(), []);
      journal.close();
    }));
});

describe("a guest's departure", () => {
  const CASES: readonly (readonly [string, string | undefined])[] = [
    ["", undefined],
    ["1 booted", undefined],
    ["1 booted, 2 offered, 2 aborted", undefined],
    ["1 booted, 2 offered, 2 committed", "2 committed"],
    ["1 booted, 2 offered, 2 committed, 2 completed", "2 completed"],
    ["2 completed, 3 prepared", "2 completed"],
    ["2 completed, 3 prepared, 3 refused, 4 prepared, 4 refused", "2 completed"],
    ["2 committed, 3 prepared, 3 refused", "2 committed"],
    ["2 completed, 3 prepared, 3 owner", undefined],
    ["2 completed, 3 prepared, 4 claimed", undefined],
    ["2 committed, 3 taken-back", undefined],
    ["2 committed, 2 lost", undefined],
    ["2 committed, 2 given-up", undefined],
    ["4 prepared, 4 refused", undefined],
  ];
  for (const [lines, expected] of CASES)
    it(`after ${lines === "" ? "nothing" : lines}: ${expected ?? "none"}`, () =>
      withFolder((folder) => {
        const journal = new Journal(folder, hostOf("b1"));
        for (const text of lines === "" ? [] : lines.split(", ")) {
          const [epoch = "", decision = ""] = text.split(" ");
          journal.record("g1", Number(epoch), decision as Decision);
        }
        const left = journal.departure("g1");
        assert.equal(left === undefined ? undefined : `${left.epoch} ${left.decision}`, expected);
        journal.close();
      }));
});

describe("a journal's folder", {
  skip: isLinuxAvailable && bootId() !== undefined ? false : "no locks here, or no name for a start of the host",
}, () => {
  it("is refused to a second journal of this process with ERR_STATE_DIR_IN_USE until the first one is closed; another folder is not", () =>
    withFolder((folder) => {
      const first = new Journal(folder);
      assert.throws(() => new Journal(folder), { code: "ERR_STATE_DIR_IN_USE", message: `Another agent keeps its journal in ${folder}` });
      const other = new Journal(`${folder}-2`);
      for (const journal of [first, other]) journal.record("g1", 1, "booted");
      first.close();
      assert.throws(() => first.record("g1", 2, "offered"), { code: "ERR_SHUTTING_DOWN" });
      const second = new Journal(folder);
      assert.equal(said(second), "1 booted");
      for (const journal of [second, other]) journal.close();
    }));

  it("is refused while another process has it, and free when that one was killed in the middle of a hand-over", () =>
    withFolder(async (folder) => {
      const code = `
        const { Journal } = await import(${JSON.stringify(new URL("./journal.js", import.meta.url))});
        new Journal(${JSON.stringify(folder)}).record("g1", 4, "prepared");
        process.stdout.write("prepared");
        setInterval(() => {}, 1000);`;
      const child = spawn(process.execPath, ["--input-type=module", "--eval", code], { stdio: ["ignore", "pipe", "inherit"] });
      await once(child.stdout, "data");
      assert.throws(() => new Journal(folder), { code: "ERR_STATE_DIR_IN_USE" });
      const exited = once(child, "exit");
      child.kill("SIGKILL");
      await exited;
      const journal = new Journal(folder);
      assert.deepEqual(journal.settle(), [{ guest: "g1", epoch: 4 }]);
      assert.equal(said(journal), "4 prepared, 4 refused");
      journal.close();
    }));
});
