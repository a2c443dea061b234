import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Worker } from "node:worker_threads";
import { once } from "node:events";
import { GuestClock, hostNowMs } from "./clock.js";

describe("GuestClock", () => {
  it("goes on from what it was set to, forwards", (context) => {
    const host = context.mock.method(process, "hrtime", () => [1000, 0]);
    const clock = new GuestClock();
    clock.set(250);
    assert.equal(clock.now(), 250);
    host.mock.mockImplementation(() => [1000, 1_500_000]);
    assert.equal(clock.now(), 251.5);
    host.mock.mockImplementation(() => [1002, 0]);
    assert.equal(clock.now(), 2250);
  });

  it("shows one time to everybody who holds its shared number", () => {
    const clock = new GuestClock();
    const same = new GuestClock(clock.share());
    clock.set(1e6);
    assert.ok(Math.abs(same.now() - clock.now()) < 1000);
    same.set(5);
    assert.ok(clock.now() < 1e6);
  });

  it("a hand-over leaves no gap and no jump back: set to the pause plus what has passed since, on another host's clock", (context) => {
    const host = context.mock.method(process, "hrtime", () => [50, 0]);
    const source = new GuestClock();
    source.set(0);
    host.mock.mockImplementation(() => [53, 0]);
    const pausedAt = source.now();
    host.mock.mockImplementation(() => [7, 0]); // a host that was started later
    const target = new GuestClock();
    target.set(pausedAt + 40);
    assert.equal(target.now(), 3040);
  });
});

it("hostNowMs never goes back, and has one origin in all threads", async () => {
  let last = hostNowMs();
  for (let turn = 0; turn < 10_000; turn++) {
    const now = hostNowMs();
    assert.ok(now >= last);
    last = now;
  }
  const before = hostNowMs();
  const code = "const [s, ns] = process.hrtime(); require('node:worker_threads').parentPort.postMessage(s * 1000 + ns / 1e6);";
  const [inThread]: number[] = await once(new Worker(code, { eval: true }), "message");
  assert.ok(inThread !== undefined && inThread >= before && inThread <= hostNowMs());
});
