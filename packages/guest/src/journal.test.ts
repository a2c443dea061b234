import assert from "node:assert/strict";
import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { Journal } from "./journal.js";

async function withFolder(use: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-journal-"));
  try {
    await use(join(folder, "journal"));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
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
      const journal = new Journal(folder);
      journal.record("g1", 4, "owner");
      assert.match(readFileSync(join(folder, "g1.journal"), "utf8"), /"epoch":4,"decision":"owner"}\n$/);
      journal.close();
    }));

  it("leaves out a last line cut short by a crash at any byte, and keeps every line before it", () =>
    withFolder((folder) => {
      const journal = new Journal(folder);
      journal.record("g1", 1, "booted");
      journal.record("g1", 2, "offered");
      const file = join(folder, "g1.journal");
      journal.close();
      const whole = readFileSync(file);
      const lineBytes = whole.byteLength / 2;
      for (let length = whole.byteLength - 2; length >= Math.floor(lineBytes); length--) {
        truncateSync(file, length);
        assert.equal(said(new Journal(folder)), "1 booted", `${length} bytes`);
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

  it("does not take a file that it cannot read for a guest it never met", () =>
    withFolder((folder) => {
      const journal = new Journal(folder);
      mkdirSync(join(folder, "g1.journal"));
      assert.throws(() => journal.latestEpoch("g1"), { code: "EISDIR" });
    }));

  it("makes its folder and files readable for their owner only", () =>
    withFolder((folder) => {
      const journal = new Journal(folder);
      journal.record("g1", 1, "booted");
      journal.close();
      assert.equal(statSync(folder).mode & 0o077, 0);
      assert.equal(statSync(join(folder, "g1.journal")).mode & 0o077, 0);
    }));

  it("is the same folder again for a second agent's start, with what is there", () =>
    withFolder((folder) => {
      mkdirSync(folder);
      writeFileSync(join(folder, "g1.journal"), '{"at":"2026-01-01T00:00:00.000Z","epoch":5,"decision":"owner"}\n');
      assert.equal(new Journal(folder).latestEpoch("g1"), 5);
    }));

  it("sync of a guest without entries resolves", () => withFolder((folder) => new Journal(folder).sync("nobody")));
});
