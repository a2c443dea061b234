import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Worker } from "node:worker_threads";
import { CHANNELS_MAX, laneOfPage } from "@precopy/protocol";
import fc from "fast-check";
import { LaneTable } from "./lane-table.js";

describe("LaneTable", () => {
  it("begins with lane i on channel i, and nothing stored", () => {
    for (let lanes = 1; lanes <= CHANNELS_MAX; lanes++) {
      const table = LaneTable.allocate(lanes);
      assert.equal(table.lanes, lanes);
      for (let lane = 0; lane < lanes; lane++) {
        assert.equal(table.carrierOf(lane), lane);
        assert.deepEqual(table.lanesOf(lane), [lane]);
        assert.deepEqual(table.storedAt(lane), { round: 0, page: 0 });
      }
    }
  });

  it("knows after any moves one carrier for each lane, and lists each lane once, in order, at its carrier", () =>
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(4), fc.nat(4)), { maxLength: 20 }), (moves) => {
        const table = LaneTable.allocate(5);
        const model = [0, 1, 2, 3, 4];
        for (const [lane, channel] of moves) {
          table.move(lane, channel);
          model[lane] = channel;
        }
        for (let channel = 0; channel < 5; channel++)
          assert.deepEqual(
            table.lanesOf(channel),
            [0, 1, 2, 3, 4].filter((lane) => model[lane] === channel),
          );
      }),
    ));

  it("keeps round and page of each lane apart, up to the largest there are", () => {
    const table = LaneTable.allocate(CHANNELS_MAX);
    for (let lane = 0; lane < CHANNELS_MAX; lane++) table.markStored(lane, 2 ** 32 - 1 - lane, 2 ** 32 - lane);
    for (let lane = 0; lane < CHANNELS_MAX; lane++)
      assert.deepEqual(table.storedAt(lane), { round: 2 ** 32 - 1 - lane, page: 2 ** 32 - lane });
  });

  it("gives pages the lanes that the wire gives them", () => {
    const table = LaneTable.allocate(3);
    for (const page of [0, 511, 512, 1535, 1536, 2 ** 32 - 1]) assert.equal(table.laneOf(page), laneOfPage(page, 3));
  });

  it("is one table for all who share it, on other threads, too", async () => {
    const table = LaneTable.allocate(4);
    new LaneTable(table.share()).move(3, 1);
    assert.deepEqual(table.lanesOf(1), [1, 3]);
    const code = `
      const { workerData, parentPort } = require("node:worker_threads");
      import(workerData.module).then(({ LaneTable }) => {
        const table = new LaneTable(workerData.lanes);
        table.markStored(2, 7, 1234);
        parentPort.postMessage(table.lanesOf(1));
      });`;
    const worker = new Worker(code, {
      eval: true,
      workerData: { module: new URL("./lane-table.js", import.meta.url).href, lanes: table.share() },
    });
    const seen = await new Promise((resolve, reject) => {
      worker.once("message", resolve).once("error", reject);
    });
    assert.deepEqual(seen, [1, 3]);
    assert.deepEqual(table.storedAt(2), { round: 7, page: 1234 });
    await worker.terminate();
  });

  it("refuses a lane or a channel that there is not with ERR_RUN_OUT_OF_RANGE, and changes nothing", () => {
    const table = LaneTable.allocate(2);
    for (const bad of [-1, 2, 0.5, Number.NaN, 2 ** 32]) {
      assert.throws(() => table.move(bad, 0), { code: "ERR_RUN_OUT_OF_RANGE" });
      assert.throws(() => table.move(0, bad), { code: "ERR_RUN_OUT_OF_RANGE" });
      assert.throws(() => table.storedAt(bad), { code: "ERR_RUN_OUT_OF_RANGE" });
      assert.throws(() => table.markStored(bad, 1, 1), { code: "ERR_RUN_OUT_OF_RANGE" });
    }
    assert.deepEqual([table.lanesOf(0), table.lanesOf(1)], [[0], [1]]);
  });
});
