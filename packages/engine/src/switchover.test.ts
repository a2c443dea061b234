import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Bitmap } from "@precopy/guest";
import { MigrationError } from "@precopy/protocol";
import { FakePorts, STATE } from "./fake-ports.js";
import { pauseAndPrepare } from "./switchover.js";

const PAGES = 64;

function bitmapOf(...pages: readonly number[]): Bitmap {
  const bitmap = new Bitmap(PAGES);
  for (const page of pages) bitmap.setRun(page, 1);
  return bitmap;
}

describe("pauseAndPrepare", () => {
  it("pauses before it collects, collects before it sends, and sends the last pages and the state before it asks for PREPARED", async () => {
    const ports = new FakePorts();
    ports.finds = [[3]];
    await pauseAndPrepare(bitmapOf(), 4, true, ports);
    assert.deepEqual(ports.calls, ["pause", "collect [3]", "sendLast 4 [3]", "tell", "prepare"]);
  });

  it("with stop-and-copy the dirty log starts, and nothing is collected, after the pause: a write before it cannot be missed", async () => {
    const ports = new FakePorts();
    ports.finds = [[0, 1, 63]];
    await pauseAndPrepare(bitmapOf(), 1, false, ports);
    assert.deepEqual(ports.calls, ["pause", "start [0,1,63]", "sendLast 1 [0,1,63]", "tell", "prepare"]);
  });

  it("joins what was left with what the last collection finds, so that a page in both travels once", async () => {
    const ports = new FakePorts();
    ports.finds = [[2, 5]];
    const { lastPages } = await pauseAndPrepare(bitmapOf(1, 2), 9, true, ports);
    assert.ok(ports.calls.includes("sendLast 9 [1,2,5]"), ports.calls.join("; "));
    assert.equal(lastPages, 3);
  });

  it("gives the target the state taken at the pause, and the round that it belongs to", async () => {
    const ports = new FakePorts();
    await pauseAndPrepare(bitmapOf(1), 7, true, ports);
    assert.deepEqual(ports.told, [{ round: 7, guest: STATE }]);
  });

  it("sends no last round when nothing is left to send: the target waits for the round before, which it has acknowledged", async () => {
    const ports = new FakePorts();
    ports.finds = [[]];
    const { last, lastPages } = await pauseAndPrepare(bitmapOf(), 4, true, ports);
    assert.deepEqual(ports.calls, ["pause", "collect []", "tell", "prepare"]);
    assert.deepEqual(ports.told, [{ round: 3, guest: STATE }]);
    assert.deepEqual([lastPages, last.normalPages, last.zeroPages, last.bytes], [0, 0, 0, 0]);
  });

  it("measures each part by itself, and the parts add up to the time from the question to PREPARED", async () => {
    const ports = new FakePorts();
    ports.costMs = { pause: 1, collect: 2, sendLast: 4, prepare: 8 };
    const { breakdown, pausedAtMs, preparedAtMs } = await pauseAndPrepare(bitmapOf(1), 2, true, ports);
    assert.deepEqual(breakdown, { pause: 1, collect: 2, transfer: 4, prepare: 8 });
    assert.deepEqual([pausedAtMs, preparedAtMs], [1000, 1015]);
  });

  it("does not ask for PREPARED when the state cannot be told, and rejects with the reason", async () => {
    const ports = new FakePorts();
    const handover = {
      ...ports.handover,
      tell: () => {
        throw new MigrationError("ERR_BAD_MESSAGE", "too large");
      },
    };
    const { dirty, link, guest, clock } = ports;
    await assert.rejects(pauseAndPrepare(bitmapOf(1), 2, true, { dirty, link, guest, handover, clock }), { code: "ERR_BAD_MESSAGE" });
    assert.ok(!ports.calls.includes("prepare"));
  });

  it("stops at the first port that throws, and asks none after it", async () => {
    const order = ["pause", "collect", "sendLast", "prepare"] as const;
    for (const [at, call] of order.entries()) {
      const ports = new FakePorts();
      ports.during = (asked) => {
        if (asked === call) throw new MigrationError("ERR_LINK_LOST", call);
      };
      await assert.rejects(pauseAndPrepare(bitmapOf(1), 2, true, ports), { code: "ERR_LINK_LOST" });
      assert.deepEqual(
        ports.calls.map((line) => line.split(" ")[0]).filter((one) => one !== "tell"), // it goes beside sendLast
        order.slice(0, at + 1),
      );
    }
  });
});
