import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PacketKind, PageEncoding, STRIPE_PAGES, laneOfPage } from "@precopy/protocol";
import type { PacketHeader } from "@precopy/protocol";
import fc from "fast-check";
import { LaneProgress } from "./lane-progress.js";
import { LaneTable, bitsOfLanes } from "./lane-table.js";

const LANES = 4;
const PAGES = 10 * STRIPE_PAGES + 77;
const header = (fields: Partial<PacketHeader> = {}): PacketHeader => ({
  kind: PacketKind.Pages,
  encoding: PageEncoding.Raw,
  round: 3,
  sequence: 0,
  dataRuns: 0,
  zeroRuns: 0,
  payloadBytes: 0,
  lanes: 0,
  ...fields,
});
const flush = (lanes: readonly number[], round = 3): PacketHeader => header({ kind: PacketKind.Flush, lanes: bitsOfLanes(lanes), round });
const stored = (table: LaneTable): { round: number; page: number }[] => Array.from({ length: LANES }, (_, lane) => table.storedAt(lane));
const NOTHING = { round: 0, page: 0 };

describe("LaneProgress", () => {
  it("lets a channel bring runs of one stripe of the lanes that it carries at that moment, and no others", () => {
    const table = LaneTable.allocate(LANES);
    const { bounds } = new LaneProgress(table, 1, PAGES);
    assert.equal(bounds.pages, PAGES);
    fc.assert(
      fc.property(fc.nat(PAGES - 1), fc.integer({ min: 1, max: 2 * STRIPE_PAGES }), fc.nat(LANES - 1), (first, pages, carrier) => {
        const lane = laneOfPage(first, LANES);
        table.move(lane, carrier);
        const isOneStripe = Math.floor(first / STRIPE_PAGES) === Math.floor((first + pages - 1) / STRIPE_PAGES);
        assert.equal(bounds.mayCarry(first, pages), isOneStripe && carrier === 1);
      }),
    );
  });

  it("says that pages are stored when their packet has ended, not before: the last page of each lane it had, of its round", () => {
    const table = LaneTable.allocate(LANES);
    const progress = new LaneProgress(table, 0, PAGES);
    progress.begin(header());
    for (const [first, end] of [
      [2 * STRIPE_PAGES, 2 * STRIPE_PAGES + 9],
      [STRIPE_PAGES + 5, STRIPE_PAGES + 6],
      [5 * STRIPE_PAGES + 3, 6 * STRIPE_PAGES], // the same lane as the one before, further on
      [STRIPE_PAGES + 7, STRIPE_PAGES + 8], // and back: zero runs come after data
    ] as const)
      progress.reach(first, end);
    assert.deepEqual(stored(table), [NOTHING, NOTHING, NOTHING, NOTHING]);
    progress.end(header());
    assert.deepEqual(stored(table), [NOTHING, { round: 3, page: 6 * STRIPE_PAGES }, { round: 3, page: 2 * STRIPE_PAGES + 9 }, NOTHING]);
  });

  it("keeps nothing of one packet for the next: an empty one moves no lane, and a later round may stand at an earlier page", () => {
    const table = LaneTable.allocate(LANES);
    const progress = new LaneProgress(table, 0, PAGES);
    progress.reach(0, 400);
    progress.end(header());
    progress.begin(header({ round: 4 }));
    progress.end(header({ round: 4 }));
    assert.deepEqual(table.storedAt(0), { round: 3, page: 400 });
    progress.reach(0, 7);
    progress.end(header({ round: 4 }));
    assert.deepEqual(table.storedAt(0), { round: 4, page: 7 });
  });

  it("ends a round at a FLUSH for the lanes it names, and for no others", () => {
    const table = LaneTable.allocate(LANES);
    for (const lane of [0, 1, 2]) table.move(lane, 2);
    const progress = new LaneProgress(table, 2, PAGES);
    progress.begin(flush([0, 2]));
    assert.deepEqual(stored(table), [NOTHING, NOTHING, NOTHING, NOTHING], "it has begun only");
    progress.end(flush([0, 2]));
    const whole = { round: 3, page: PAGES };
    assert.deepEqual(stored(table), [whole, NOTHING, whole, NOTHING]);
  });

  it("refuses a FLUSH with a lane that another channel carries, or that there is not, with ERR_RUN_OUT_OF_RANGE; pages are the bounds' to refuse", () => {
    const table = LaneTable.allocate(LANES);
    table.move(3, 1);
    const progress = new LaneProgress(table, 1, PAGES);
    for (const lanes of [[0], [1, 2], [1, 4], [15]])
      assert.throws(() => progress.begin(flush(lanes)), { code: "ERR_RUN_OUT_OF_RANGE" }, `lanes ${lanes.join()}`);
    for (const lanes of [[], [1], [3], [1, 3]]) assert.doesNotThrow(() => progress.begin(flush(lanes)));
    table.move(3, 0);
    assert.throws(() => progress.begin(flush([1, 3])), { code: "ERR_RUN_OUT_OF_RANGE" }, "it was moved away");
    assert.doesNotThrow(() => progress.begin(header()));
    assert.deepEqual(stored(table), [NOTHING, NOTHING, NOTHING, NOTHING]);
  });
});
