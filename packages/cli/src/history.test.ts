import assert from "node:assert/strict";
import { appendFileSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import type { MigrationReport } from "@precopy/protocol";
import { History, historyEntry, readHistory } from "./history.js";
import type { HistoryEntry } from "./history.js";

const folder = mkdtempSync(join(tmpdir(), "precopy-history-test-"));
after(() => rmSync(folder, { recursive: true }));
let folders = 0;
const fresh = (): string => mkdtempSync(join(folder, String(++folders)));

const entry = (to: string, send: number, given: Partial<HistoryEntry> = {}): HistoryEntry => ({
  at: "2026-11-22T05:00:00.000Z",
  guest: "g",
  to,
  status: "completed",
  code: null,
  forecasts: [],
  outcome: { "total-ms": 500, "downtime-ms": 7, "downtime-parts": { pause: 1, collect: 1, send, commit: 2 }, bytes: 2 ** 20 },
  handover: { send, commit: 2 },
  ...given,
});

describe("History", () => {
  it("is empty before the first migration, and then gives each back, oldest first", () => {
    const dir = fresh();
    assert.deepEqual(readHistory(dir), []);
    const all = [entry("a:1", 1), entry("b:1", 2, { status: "failed", code: "ERR_CANCELLED", outcome: null, handover: null })];
    for (const one of all) new History(dir).add(one);
    assert.deepEqual(readHistory(dir), all);
    assert.equal(statSync(join(dir, "history.jsonl")).mode & 0o777, 0o600);
  });

  it("passes over a line that was cut short, and over what it does not know", () => {
    const dir = fresh();
    new History(dir).add(entry("a:1", 1));
    appendFileSync(join(dir, "history.jsonl"), '{"at":"2026\n[]\n{"at":1}\n');
    new History(dir).add(entry("a:1", 2));
    assert.deepEqual(
      readHistory(dir).map(({ handover }) => handover?.send),
      [1, 2],
    );
  });

  it("knows what the last five hand-overs to a target took, by their median, and of others nothing", () => {
    const dir = fresh();
    const history = new History(dir);
    assert.equal(history.handoverCosts("a:1"), undefined);
    for (const send of [100, 100, 5, 3, 4, 9, 1]) history.add(entry("a:1", send));
    history.add(entry("a:1", 0, { handover: null }));
    for (const one of [history, new History(dir)]) assert.deepEqual(one.handoverCosts("a:1"), { send: 4, commit: 2 });
    assert.equal(history.handoverCosts("b:1"), undefined);
  });

  it("forgets the older half when it has grown too long", () => {
    const dir = fresh();
    const history = new History(dir);
    const line = `${JSON.stringify(entry("old:1", 1))}\n`;
    appendFileSync(join(dir, "history.jsonl"), line.repeat(Math.ceil((4 * 2 ** 20) / line.length)));
    history.add(entry("new:1", 1));
    assert.ok(readFileSync(join(dir, "history.jsonl")).byteLength < 2.1 * 2 ** 20);
    assert.equal(readHistory(dir).at(-1)?.to, "new:1");
  });

  it("says with ERR_SYSTEM_CALL that it cannot be written", () => {
    assert.throws(() => new History(join(folder, "nowhere")).add(entry("a:1", 1)), { code: "ERR_SYSTEM_CALL" });
  });
});

describe("historyEntry", () => {
  const report = {
    guest: "g",
    to: "b:1",
    "query-migrate": { status: "completed", ram: { "downtime-bytes": 1_000_000 } },
    iterations: [{ "bandwidth-bytes-per-second": 500_000_000 }, { "bandwidth-bytes-per-second": null }],
    forecasts: [],
    outcome: { "total-ms": 500, "downtime-ms": 8, "downtime-parts": { pause: 1, collect: 1, send: 4.5, commit: 1.5 }, bytes: 5 },
    error: null,
  } as unknown as MigrationReport; // what is read of one

  it("keeps what the hand-over took apart from sending its pages", () => {
    const { at, handover, code } = historyEntry(report, new Date("2026-11-22T05:00:00Z"));
    assert.deepEqual([at, handover, code], ["2026-11-22T05:00:00.000Z", { send: 2.5, commit: 1.5 }, null]);
  });

  it("keeps why a migration did not complete", () => {
    const error = { code: "ERR_PEER_DEAD", message: "", remedy: "" };
    const { handover, code, outcome } = historyEntry({ ...report, outcome: null, error });
    assert.deepEqual([handover, code, outcome], [null, "ERR_PEER_DEAD", null]);
  });
});
