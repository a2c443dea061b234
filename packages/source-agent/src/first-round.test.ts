import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Bitmap, MemoryService } from "@precopy/guest";
import type { RoundProgress } from "@precopy/protocol";
import { FirstRound } from "./first-round.js";

const PAGES = 10_000;
const KNOWN = { pauseMs: 0.4, resumeMs: 0.3, roundTripMs: 0.5, handover: { send: 3, commit: 2 }, channels: 2 };
/** 200 ms for 1000 pages, from 50 ms on. */
const ROUND = {
  ...{ round: 1, startMs: 50, durationMs: 200, collectMs: 4, dirtyPages: 1200, normalPages: 1000, zeroPages: 200, bytes: 4_100_000 },
  ...{ remainingPages: 400 },
} as RoundProgress; // what is read of one

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Two pages dirtied each ms. */
function memory(startedAt: number): { service: MemoryService; looks: () => number } {
  let looks = 0;
  const service = {
    peek: async (into: Bitmap) => {
      looks++;
      into.setRun(0, Math.max(1, Math.floor(2 * (performance.now() - startedAt))));
      return 0.1;
    },
  } as unknown as MemoryService;
  return { service, looks: () => looks };
}

describe("FirstRound", () => {
  it("looks at the armed log while the round is sent, and knows how the guest wrote", async () => {
    const { service } = memory(performance.now());
    const first = new FirstRound(service, PAGES);
    first.begin(4);
    await sleep(160); // after the looks at 30 and at 100 ms
    first.end();
    const { guest, link, costs } = first.measured(ROUND, PAGES, KNOWN);
    assert.deepEqual([guest.populatedPages, guest.zeroPages, costs.setupMs, costs.listMs], [1000, 200, 46, 4]);
    assert.ok(Math.abs(link.bytesPerSecond - 4_100_000 / 0.1995) < 1);
    const [vcpu] = guest.vcpus;
    assert.ok(Math.abs(vcpu!.distinctPages(200) - 400) < 10, "what was dirty when it ended");
    for (const ms of [15, 30, 50, 100, 150]) {
      const pages = vcpu!.distinctPages(ms);
      assert.ok(pages > 1.2 * ms && pages < 2.8 * ms + 10, `${pages} pages in ${ms} ms`);
    }
    assert.deepEqual([costs.prepareMs, costs.commitMs], [2.5, 1.7]);
  });

  it("looks no more when the round is over, and knows one point of the curve if it was over at once", async () => {
    const { service, looks } = memory(performance.now());
    const first = new FirstRound(service, PAGES);
    first.begin(4);
    first.end();
    await sleep(80);
    assert.equal(looks(), 0);
    const [vcpu] = first.measured(ROUND, PAGES, KNOWN).guest.vcpus;
    assert.equal(vcpu!.distinctPages(100), 200);
  });

  it("takes the time of a round that found zeros only for what looking takes", () => {
    const first = new FirstRound(memory(0).service, PAGES);
    const zeros = { ...ROUND, normalPages: 0, zeroPages: 1000, bytes: 100, remainingPages: 0 };
    assert.equal(first.measured(zeros, PAGES, KNOWN).costs.zeroPageMs, 0.1);
  });
});
