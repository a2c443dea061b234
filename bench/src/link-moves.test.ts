import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { SweepRun } from "@precopy/lab";
import type { MigrationReport } from "@precopy/protocol";
import { figuresOf, moveGuest, moveGuests, withLinks } from "./link-moves.js";
import type { LinkGuest } from "./link-moves.js";
import { LabLink } from "./links.js";
import type { LinkOptions } from "./links.js";

const REPORT = {
  "query-migrate": { status: "completed", "total-time": 100, ram: { transferred: 4096 } },
  clocks: { "source-ms": 3, "guest-ms": null, "client-ms": null },
  iterations: [
    { "bandwidth-bytes-per-second": 1e8, "dirty-pages-per-second": null },
    { "bandwidth-bytes-per-second": 2e8, "dirty-pages-per-second": 1000 },
    { "bandwidth-bytes-per-second": null, "dirty-pages-per-second": 3000 },
  ],
  "digest-equal": true,
  verdict: "as it was",
} as unknown as MigrationReport; // as much of one as is read
const run = (given: object, error: SweepRun["error"] = null): SweepRun => ({ report: { ...REPORT, ...given }, error });

describe("figures of a move", () => {
  it("are those of the report; the bandwidth is the first round's, the dirty rate that of the others", () => {
    assert.deepEqual(figuresOf(run({})), {
      ...{ totalMs: 100, downtimeMs: 3, rounds: 3, sentBytes: 4096 },
      ...{ firstRoundBytesPerSecond: 1e8, dirtyRate: 2000 },
    });
    const short = figuresOf(run({ iterations: [{ "bandwidth-bytes-per-second": null, "dirty-pages-per-second": null }] }));
    assert.deepEqual([short?.firstRoundBytesPerSecond, short?.dirtyRate], [null, null]);
  });

  it("are none if it did not converge, or not in time", () => {
    for (const code of ["ERR_NOT_CONVERGING", "ERR_CANCELLED"] as const)
      assert.equal(figuresOf(run({}, { code, message: "too much" })), undefined);
  });

  it("are not taken of a move that failed, of an image that is not to be trusted, or out of a report without them", () => {
    assert.throws(() => figuresOf(run({}, { code: "ERR_LINK_LOST", message: "cut" })), { code: "ERR_LINK_LOST", message: "cut" });
    assert.throws(() => figuresOf(run({ "digest-equal": false, verdict: "lost a page" })), /lost a page/);
    assert.throws(() => figuresOf(run({ clocks: {} })), /no source-ms/);
  });

  it("are taken of a report that nobody hashed", () => assert.equal(figuresOf(run({ "digest-equal": null }))?.totalMs, 100));
});

const link = (rate: number | undefined): LinkOptions => ({ rate, mtu: 1500, congestionControl: undefined });
const GUEST: LinkGuest = {
  ...{ memory: 2 ** 26, filled: 2 ** 24, fillKind: "text" },
  ...{ workload: "random-writer", dirtyRate: 1000, workingSet: 2 ** 20 },
};
/** A busy machine makes every estimate long, and nothing here is about convergence. */
const PATIENT = { downtimeLimitMs: 5000 };

describe("moving guests over a link", { skip: LabLink.whyNot() ?? false }, () => {
  for (const order of ["together", "in turn"] as const)
    it(`moves as many as asked for, ${order}, and says when the last one had moved`, async () => {
      const moves = await withLinks([link(undefined)], ([made]) =>
        moveGuests(made!.link, { guest: GUEST, count: 2, order, parameters: { ...PATIENT, multifdCompression: "lz4" }, limitMs: 60_000 }),
      );
      assert.ok(typeof moves !== "string");
      const totals = moves.runs.map((one) => figuresOf(one)?.totalMs ?? Number.NaN);
      assert.equal(totals.length, 2);
      const least = order === "together" ? Math.max(...totals) : totals.reduce((sum, ms) => sum + ms, 0);
      assert.ok(moves.elapsedMs >= least, `${moves.elapsedMs} ms for ${totals.join(" and ")}`);
      assert.deepEqual(
        moves.runs.map(({ report }) => report?.parameters["multifd-compression"]),
        ["lz4", "lz4"],
      );
    });

  it("cancels one that takes longer than it may, which is an outcome and no failure", async () => {
    const moved = await withLinks([link(1e7)], ([made]) => moveGuest(made!.link, { ...GUEST, fillKind: "random" }, {}, 1000));
    assert.ok(typeof moved !== "string");
    assert.equal(moved.error?.code, "ERR_CANCELLED");
    assert.equal(figuresOf(moved), undefined);
  });
});
