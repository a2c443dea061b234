import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { SwitchResult } from "@precopy/engine";
import { DEFAULT_PARAMETERS, MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { MigrationParameters, RoundProgress, SourcePhase } from "@precopy/protocol";
import { migrationReport, queryMigrate } from "./migration-report.js";
import type { ReportedMigration } from "./migration-report.js";

/** What QEMU answers to `query-migrate` (qapi/migration.json): no key of ours may be spelled otherwise. */
const QEMU_KEYS = ["status", "ram", "total-time", "expected-downtime", "downtime", "setup-time", "cpu-throttle-percentage", "error-desc"];
const QEMU_RAM_KEYS = [
  "transferred",
  "remaining",
  "total",
  "duplicate",
  "normal",
  "normal-bytes",
  "dirty-pages-rate",
  "mbps",
  "dirty-sync-count",
  "page-size",
  "multifd-bytes",
  "precopy-bytes",
  "downtime-bytes",
  "pages-per-second",
  "postcopy-requests",
  "postcopy-bytes",
];
const MEMORY_BYTES = 2 ** 30;
const FROM = { host: "10.0.0.1", port: 4646 };

const round = (number: number, given: Partial<RoundProgress> = {}): RoundProgress => ({
  round: number,
  startMs: number * 100,
  durationMs: 90.12345,
  collectMs: 1.00499,
  dirtyPages: 1000,
  remainingPages: 0,
  throttlePercent: 0,
  xbzrle: undefined,
  isReady: false,
  verdict: undefined,
  normalPages: 900,
  zeroPages: 100,
  bytes: 900 * PAGE_BYTES + 5000,
  bandwidthBytesPerSecond: 1e9 + 0.4,
  dirtyPagesPerSecond: 2000.6,
  expectedDowntimeMs: 12.3456,
  decision: "next round: would save 10.0 ms of pause",
  ...given,
});
const ROUNDS = [
  round(1, { normalPages: 200_000, zeroPages: 62_144, bytes: 200_000 * PAGE_BYTES + 70_000, dirtyPagesPerSecond: undefined }),
  round(2),
  round(3, { normalPages: 30, zeroPages: 2, bytes: 123_456, dirtyPagesPerSecond: undefined, bandwidthBytesPerSecond: undefined }),
];
const RESULT: SwitchResult = {
  breakdown: { pause: 0.5123, collect: 1.25, transfer: 2.5, prepare: 3.001, commit: 1.2 },
  downtimeMs: 8.4633,
  totalMs: 2000,
  setupMs: 33.337,
  downtimeBytes: 123_456,
  expectedDowntimeMs: 12.3456,
  missing: undefined,
};
const LOST = new MigrationError("ERR_PEER_DEAD", "Nothing heard from the peer for 5 s");

function migration(
  phase: SourcePhase,
  given: Partial<ReportedMigration> = {},
  parameters: Partial<MigrationParameters> = {},
): ReportedMigration {
  const region = { start: 0, bytes: MEMORY_BYTES };
  return {
    to: { host: "::1", port: 4647 },
    epoch: 8,
    phase,
    parameters: { ...DEFAULT_PARAMETERS, ...parameters },
    acceptedAtMs: performance.now() - 500,
    rounds: ROUNDS,
    guestGapMs: null,
    hostGapMs: null,
    afterwards: undefined,
    congestionControl: "cubic",
    channelLosses: 0,
    controlRejoins: 0,
    resentPages: 0,
    forecasts: [],
    audit: null,
    postcopy: null,
    isImageEqual: null,
    serving: undefined,
    guest: {
      epoch: 7,
      dirtyLog: "mmu",
      manifest: {
        id: "g1",
        memoryBytes: MEMORY_BYTES,
        vcpus: [{ workload: "idle", sha256: "0".repeat(64), options: {}, region }],
        devices: [],
      },
    },
    ...given,
  };
}
const audit = (mismatched: number): NonNullable<ReportedMigration["audit"]> => ({ pages: 200_000, mismatched, ms: 41.239 });

describe("query-migrate", () => {
  it("has no key that QEMU spells otherwise or does not have, whatever the migration's state", () => {
    const all = [
      queryMigrate(migration("setup", { rounds: [] }), undefined, undefined),
      queryMigrate(migration("active"), undefined, undefined),
      queryMigrate(migration("completed"), RESULT, undefined),
      queryMigrate(migration("failed"), undefined, LOST),
    ];
    for (const answer of all) {
      assert.deepEqual(
        Object.keys(answer).filter((key) => !QEMU_KEYS.includes(key)),
        [],
      );
      assert.deepEqual(Object.keys(answer.ram ?? {}), QEMU_RAM_KEYS);
    }
  });

  it("has expected-downtime while it runs and not at the end, downtime and setup-time at the end and not before, error-desc on failure only", () => {
    const keys = (answer: object): string[] => Object.keys(answer).sort();
    const always = ["ram", "status", "total-time"];
    assert.deepEqual(keys(queryMigrate(migration("setup", { rounds: [] }), undefined, undefined)), always);
    assert.deepEqual(keys(queryMigrate(migration("active"), undefined, undefined)), ["expected-downtime", ...always]);
    assert.deepEqual(keys(queryMigrate(migration("completed"), RESULT, undefined)), [
      "downtime",
      "ram",
      "setup-time",
      "status",
      "total-time",
    ]);
    assert.deepEqual(keys(queryMigrate(migration("failed"), undefined, LOST)), ["error-desc", ...always]);
    assert.equal(queryMigrate(migration("failed"), undefined, LOST)["error-desc"], LOST.message);
    assert.ok(
      !(
        "expected-downtime" in
        queryMigrate(migration("active", { rounds: [round(1, { expectedDowntimeMs: undefined })] }), undefined, undefined)
      ),
    );
  });

  it("holds no undefined value: what is absent is absent from the JSON and from the object alike", () => {
    for (const answer of [queryMigrate(migration("active"), undefined, undefined), queryMigrate(migration("completed"), RESULT, undefined)])
      assert.deepEqual(JSON.parse(JSON.stringify(answer)), answer);
  });

  it("calls each phase as QEMU does, where QEMU has a word for it", () => {
    const words: Record<SourcePhase, string> = {
      setup: "setup",
      active: "active",
      device: "device",
      committing: "device",
      "in-doubt": "in-doubt",
      "postcopy-active": "postcopy-active",
      "postcopy-paused": "postcopy-paused",
      completed: "completed",
      failed: "failed",
      cancelled: "cancelled",
      "taken-back": "taken-back",
      "given-up": "given-up",
      lost: "lost",
    };
    for (const phase of Object.keys(words) as SourcePhase[]) // exactly the phases: the type says so
      assert.equal(queryMigrate(migration(phase), undefined, undefined).status, words[phase]);
  });

  it("adds the rounds up, in pages and bytes, and what went before and in the pause make the whole", () => {
    const { ram } = queryMigrate(migration("completed"), RESULT, undefined);
    assert.ok(ram !== undefined);
    const bytes = 200_900 * PAGE_BYTES + 75_000 + 123_456;
    assert.deepEqual([ram.transferred, ram["multifd-bytes"], ram.total, ram["page-size"]], [bytes, bytes, MEMORY_BYTES, PAGE_BYTES]);
    assert.deepEqual([ram.normal, ram["normal-bytes"], ram.duplicate], [200_930, 200_930 * PAGE_BYTES, 62_246]);
    assert.deepEqual([ram["downtime-bytes"], ram["precopy-bytes"]], [123_456, bytes - 123_456]);
    assert.equal(ram["dirty-sync-count"], 3);
    assert.equal(ram["dirty-pages-rate"], 2001, "of the last round that measured it");
  });

  it("says while it runs what is left, in bytes, as of the last round", () => {
    const rounds = [round(1, { remainingPages: 500 }), round(2, { remainingPages: 30 })];
    assert.equal(queryMigrate(migration("active", { rounds }), undefined, undefined).ram?.remaining, 30 * PAGE_BYTES);
    assert.equal(queryMigrate(migration("completed"), RESULT, undefined).ram?.remaining, 0);
  });

  it("gives times in ms, mbps in Mbit/s and pages a second over the total time", () => {
    const answer = queryMigrate(migration("completed"), RESULT, undefined);
    assert.deepEqual([answer["total-time"], answer.downtime, answer["setup-time"]], [2000, 8.46, 33.34]);
    assert.equal(answer.ram?.mbps, Math.round(((answer.ram?.transferred ?? 0) * 8 * 100) / 2000 / 1000) / 100);
    assert.equal(answer.ram?.["pages-per-second"], 200_930 / 2);
  });

  it("counts from the command on while it runs, and is finite at its very start", () => {
    const answer = queryMigrate(migration("setup", { rounds: [], acceptedAtMs: performance.now() }), undefined, undefined);
    assert.ok((answer["total-time"] ?? -1) >= 0);
    for (const value of Object.values(answer.ram ?? {})) assert.ok(Number.isFinite(value));
    assert.ok((queryMigrate(migration("active"), undefined, undefined)["total-time"] ?? 0) >= 500);
  });
});

describe("a migration's report", () => {
  it("of a completed migration names both ends and the new owner's epoch, and its parts survive JSON", () => {
    const report = migrationReport(
      FROM,
      migration("completed", { audit: audit(0), guestGapMs: 9.8765, hostGapMs: 7.1249 }),
      RESULT,
      undefined,
    );
    assert.deepEqual([report.guest, report.from, report.to, report["owner-epoch"]], ["g1", "10.0.0.1:4646", "[::1]:4647", 8]);
    assert.deepEqual(report.clocks, { "source-ms": 8.46, "host-ms": 7.12, "guest-ms": 9.88, "client-ms": null });
    assert.deepEqual(report["downtime-breakdown"], { pause: 0.51, collect: 1.25, transfer: 2.5, prepare: 3, commit: 1.2 });
    assert.deepEqual(report.audit, { pages: 200_000, mismatched: 0, ms: 41.24 });
    assert.equal(report.error, null);
    assert.deepEqual(JSON.parse(JSON.stringify(report)), report);
  });

  it("lists every round with QEMU's kind of keys, and null where nothing was measured", () => {
    const { iterations } = migrationReport(FROM, migration("completed"), RESULT, undefined);
    assert.equal(iterations.length, 3);
    assert.deepEqual(iterations[1], {
      round: 2,
      "start-ms": 200,
      "duration-ms": 90.12,
      "collect-ms": 1,
      "dirty-pages": 1000,
      "normal-pages": 900,
      "zero-pages": 100,
      bytes: 900 * PAGE_BYTES + 5000,
      "bandwidth-bytes-per-second": 1e9,
      "dirty-pages-per-second": 2001,
      "throttle-percent": 0,
      "expected-downtime-ms": 12.35,
      decision: "next round: would save 10.0 ms of pause",
    });
    assert.deepEqual([iterations[2]?.["bandwidth-bytes-per-second"], iterations[2]?.["dirty-pages-per-second"]], [null, null]);
  });

  it("of a failed one keeps the old owner's epoch, has neither breakdown nor downtime, and says what to do", () => {
    const report = migrationReport(FROM, migration("failed"), undefined, LOST);
    assert.equal(report["owner-epoch"], 7);
    assert.equal(report["downtime-breakdown"], null);
    assert.deepEqual(report.clocks, { "source-ms": null, "host-ms": null, "guest-ms": null, "client-ms": null });
    assert.deepEqual(report.error, { code: LOST.code, message: LOST.message, remedy: LOST.remedy });
    assert.equal(report.verdict, `ERR_PEER_DEAD: ${LOST.message}`);
    assert.equal(report["digest-equal"], null);
  });

  it("calls the images equal only if the digest was on, the audit was on and the audit found nothing", () => {
    const equal = (given: Partial<ReportedMigration>, parameters: Partial<MigrationParameters> = {}): boolean | null =>
      migrationReport(FROM, migration("completed", given, parameters), RESULT, undefined)["digest-equal"];
    assert.equal(equal({ audit: audit(0) }), true);
    assert.equal(equal({ audit: audit(1) }), false);
    assert.equal(equal({ audit: null }), false, "an audit that did not run proves nothing");
    assert.equal(equal({ audit: audit(0) }, { isDigestOn: false }), null);
    assert.equal(equal({ audit: audit(0) }, { isAuditOn: false }), null);
  });

  it("says in its verdict how it went, and names the largest part of the pause", () => {
    const verdict = (given: Partial<ReportedMigration>, mode: MigrationParameters["mode"] = "precopy"): string =>
      migrationReport(FROM, migration("completed", given, { mode }), RESULT, undefined).verdict;
    assert.equal(verdict({}), "converged in 3 rounds; paused 8.5 ms, most of it prepare (3.0 ms)");
    assert.match(verdict({}, "stop-and-copy"), /^stopped and copied; paused 8\.5 ms/);
    assert.match(
      verdict({ afterwards: new MigrationError("ERR_SYSTEM_CALL", "fsync: EIO") }),
      /prepare \(3\.0 ms\); the clean-up failed: fsync: EIO$/,
    );
    assert.match(verdict({ audit: audit(4) }), /lost 4 of 200000 pages: do not trust/);
  });

  it("repeats the parameters as on the command line, with the dirty log and the congestion control that were used", () => {
    const { parameters } = migrationReport(
      FROM,
      migration("completed", {}, { multifdCompression: "lz4", downtimeLimitMs: 50 }),
      RESULT,
      undefined,
    );
    assert.deepEqual(
      [parameters["multifd-compression"], parameters["downtime-limit"], parameters["dirty-log"], parameters["congestion-control"]],
      ["lz4", 50, "mmu", "cubic"],
    );
  });
});
