import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DEFAULT_PARAMETERS } from "@precopy/protocol";
import fc from "fast-check";
import { TYPICAL_COSTS, simulate } from "./simulator.js";
import type { ModelGuest, ModelLink } from "./simulator.js";
import { randomWriter, sequentialWriter } from "./writer-models.js";

const GIB_PAGES = 2 ** 18;
const GBIT: ModelLink = { bytesPerSecond: 117_000_000, roundTripMs: 0.3 };
const PAGES_PER_SECOND = GBIT.bytesPerSecond / TYPICAL_COSTS.wireBytesPerPage;
/** 1 GiB with data, all of it written at random at so many times the page rate of the link. */
const writer = (ofLink: number): ModelGuest => ({
  pages: 2 * GIB_PAGES,
  populatedPages: GIB_PAGES,
  vcpus: [randomWriter(ofLink * PAGES_PER_SECOND, GIB_PAGES)],
});

describe("simulate", () => {
  it("an idle guest takes what its bytes take on the link, and pauses for the fixed parts", async () => {
    const { failure, totalMs, downtimeMs, bytes, lostShare } = await simulate(writer(0), GBIT);
    assert.equal(failure, undefined);
    assert.equal(bytes, GIB_PAGES * TYPICAL_COSTS.wireBytesPerPage);
    assert.ok(Math.abs(totalMs - (bytes / GBIT.bytesPerSecond) * 1000) < 20, `${totalMs} ms`);
    assert.ok(downtimeMs < 10, `${downtimeMs} ms`);
    assert.equal(lostShare, 0);
  });

  it("a guest that dirties a quarter of what the link carries converges, each round a quarter of the one before", async () => {
    const { failure, rounds } = await simulate(writer(0.25), GBIT);
    assert.equal(failure, undefined);
    const [first, second, third] = rounds;
    assert.ok(Math.abs((second?.dirtyPages ?? 0) / (first?.dirtyPages ?? 1) - (1 - Math.exp(-0.25))) < 0.01);
    assert.ok(Math.abs((third?.dirtyPages ?? 0) / (second?.dirtyPages ?? 1) - 0.25) < 0.03);
  });

  it("one that writes page after page leaves exactly its share of every round, so at nine tenths of the link the migration takes ten times as long", async () => {
    const guest = { ...writer(0), vcpus: [sequentialWriter(0.9 * PAGES_PER_SECOND, GIB_PAGES)] };
    const [busy, idle] = [await simulate(guest, GBIT), await simulate(writer(0), GBIT)];
    assert.equal(busy.failure, undefined);
    assert.ok(Math.abs((busy.rounds[3]?.dirtyPages ?? 0) / (busy.rounds[2]?.dirtyPages ?? 1) - 0.9) < 0.01);
    assert.ok(busy.totalMs > 8.5 * idle.totalMs && busy.totalMs < 10 * idle.totalMs, `${busy.totalMs} and ${idle.totalMs} ms`);
  });

  it("a guest that outruns the link does not converge if nothing may be withheld, and says what it dirties", async () => {
    const { failure } = await simulate(writer(4), GBIT);
    assert.equal(failure?.code, "ERR_NOT_CONVERGING");
    assert.match(failure.message, /dirtying .* sending 9\d\d Mbit\/s/);
  });

  it("hybrid ends whatever the guest does, within a pass and a half of the link, and the guest waits meanwhile", async () => {
    const { failure, totalMs, downtimeMs, fetched, lostShare } = await simulate(writer(4), GBIT, { mode: "hybrid" });
    const passMs = (GIB_PAGES / PAGES_PER_SECOND) * 1000;
    assert.equal(failure, undefined);
    assert.ok(totalMs < 2 * passMs, `${totalMs} of ${passMs} ms`);
    assert.ok(downtimeMs < 10 && lostShare === 0);
    assert.ok(fetched !== undefined && fetched.blockedMs > 0 && fetched.blockedMs < fetched.ms);
  });

  it("postcopy sends every page once, and takes what its bytes take", async () => {
    const { bytes, totalMs, rounds } = await simulate(writer(4), GBIT, { mode: "postcopy" });
    assert.equal(rounds.length, 0);
    assert.equal(bytes, GIB_PAGES * TYPICAL_COSTS.wireBytesPerPage);
    assert.ok(Math.abs(totalMs - (bytes / GBIT.bytesPerSecond) * 1000) < 20, `${totalMs} ms`);
  });

  it("hybrid with a guest that can be followed is plain pre-copy", async () => {
    const { failure, ...hybrid } = await simulate(writer(0.25), GBIT, { mode: "hybrid" });
    assert.deepEqual([hybrid.fetched, hybrid.totalMs], [undefined, (await simulate(writer(0.25), GBIT)).totalMs]);
    assert.equal(failure, undefined);
  });

  it("it converges with auto-converge, and with sdps in less time and with less of the guest's time withheld in all", async () => {
    const steps = await simulate(writer(4), GBIT, { throttle: "auto-converge" });
    const sdps = await simulate(writer(4), GBIT, { throttle: "sdps" });
    assert.equal(steps.failure, undefined);
    assert.equal(sdps.failure, undefined);
    assert.ok(sdps.totalMs < steps.totalMs, `${sdps.totalMs} and ${steps.totalMs} ms`);
    const lostMs = ({ totalMs, lostShare }: typeof sdps): number => totalMs * lostShare;
    assert.ok(lostMs(sdps) < lostMs(steps), `${lostMs(sdps)} and ${lostMs(steps)} ms of the guest's time`);
    assert.ok(sdps.downtimeMs <= DEFAULT_PARAMETERS.downtimeLimitMs && steps.downtimeMs <= DEFAULT_PARAMETERS.downtimeLimitMs);
  });

  it("sdps withholds nothing from a guest that dirties less than its share, and holds one that dirties more at half of that", async () => {
    assert.equal((await simulate(writer(0.4), GBIT, { throttle: "sdps" })).lostShare, 0);
    const { rounds } = await simulate(writer(2), GBIT, { throttle: "sdps" });
    for (const { round, dirtyPages, remainingPages, durationMs } of rounds)
      if (durationMs > 2000) assert.ok(remainingPages < 0.35 * dirtyPages, `round ${round} left ${remainingPages} of ${dirtyPages}`);
  });

  it("a fixed limit holds each vCPU under it, and the quiet one is left alone", async () => {
    const guest = writer(2);
    const vcpus = [...guest.vcpus, randomWriter(100, 1000)];
    const limited = { throttle: "dirty-limit", vcpuDirtyLimitBytesPerSecond: 20_000_000 } as const;
    const { failure, rounds } = await simulate({ ...guest, vcpus }, GBIT, limited);
    assert.equal(failure, undefined);
    const [, second] = rounds; // the first has its beginning, when nothing was known
    assert.ok((second?.dirtyPagesPerSecond ?? Infinity) * 4096 < 30_000_000, `${second?.dirtyPagesPerSecond} pages/s`);
  });

  it("a time limit cancels, or forces the switch after the round under way", async () => {
    const cancelled = await simulate(writer(4), GBIT, { timeoutMs: 15_000 });
    assert.equal(cancelled.failure?.code, "ERR_TIMEOUT");
    const forced = await simulate(writer(4), GBIT, { timeoutMs: 15_000, timeoutAction: "force" });
    assert.equal(forced.failure, undefined);
    assert.ok(forced.downtimeMs > 1000, "the pause takes what it takes");
  });

  it("many times the link is many times faster where the writer does not fight it, and more than that where it does", async () => {
    const ratio = async (pagesPerSecond: number): Promise<number> => {
      const guest = { ...writer(0), vcpus: [randomWriter(pagesPerSecond, GIB_PAGES)] };
      const slow = await simulate(guest, GBIT, { throttle: "sdps", throttleTriggerThresholdPercent: 90 });
      const fast = await simulate(guest, { ...GBIT, bytesPerSecond: 4 * GBIT.bytesPerSecond }, { throttle: "sdps" });
      return slow.totalMs / fast.totalMs;
    };
    assert.ok(Math.abs((await ratio(0)) - 4) < 0.2);
    assert.ok((await ratio(0.9 * PAGES_PER_SECOND)) > 10);
  });

  it("everything that may be throttled with sdps ends, within the downtime limit", async () => {
    const guests = fc.record({
      ofLink: fc.double({ min: 0, max: 8, noNaN: true }),
      workingSet: fc.double({ min: 0.001, max: 1, noNaN: true }),
      vcpus: fc.integer({ min: 1, max: 4 }),
      bytesPerSecond: fc.double({ min: 1e7, max: 1e10, noNaN: true }),
      downtimeLimitMs: fc.integer({ min: 50, max: 2000 }),
    });
    await fc.assert(
      fc.asyncProperty(guests, async ({ ofLink, workingSet, vcpus, bytesPerSecond, downtimeLimitMs }) => {
        const workingSetPages = Math.max(1, Math.floor((workingSet * GIB_PAGES) / vcpus));
        const pagesPerSecond = (ofLink * bytesPerSecond) / TYPICAL_COSTS.wireBytesPerPage / vcpus;
        const guest: ModelGuest = {
          pages: 2 * GIB_PAGES,
          populatedPages: GIB_PAGES,
          vcpus: Array.from({ length: vcpus }, () => randomWriter(pagesPerSecond, workingSetPages)),
        };
        const { failure, downtimeMs } = await simulate(guest, { bytesPerSecond, roundTripMs: 0.3 }, { throttle: "sdps", downtimeLimitMs });
        assert.equal(failure, undefined, failure?.message);
        assert.ok(downtimeMs <= downtimeLimitMs * 1.1, `${downtimeMs} ms, allowed ${downtimeLimitMs}`);
      }),
      { numRuns: 200 },
    );
  });

  it("refuses a model that cannot be", async () => {
    await assert.rejects(simulate(writer(1), { bytesPerSecond: 0, roundTripMs: 0 }), { code: "ERR_PARAMETER" });
    await assert.rejects(simulate({ ...writer(1), populatedPages: 3 * GIB_PAGES }, GBIT), { code: "ERR_PARAMETER" });
  });
});
