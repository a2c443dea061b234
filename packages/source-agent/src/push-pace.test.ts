import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES, STRIPE_PAGES } from "@precopy/protocol";
import { PushPace } from "./push-pace.js";

const LINK = 117e6;
const MS = 25;
const ONE_SECOND = 1000 / MS;

interface Carried {
  /** Bytes/s that it carries at most. */
  readonly rate?: number;
  /** Of round trips while what is sent fills it. */
  readonly queueMs?: number;
  /** Of the time in which it is full: that something is on its way, and that the peer has no room for it. */
  readonly busyShare?: number;
  readonly peerShare?: number;
  /** Round trips are that much longer whatever is sent. */
  readonly alwaysMs?: number;
}

/** Stretch after stretch over a link of which a test says what it carries. */
class Rig {
  readonly pace: PushPace;
  #nowMs = 1000;
  #busyMs = 0;
  #peerLimitedMs = 0;

  constructor(maxBandwidth = 0) {
    this.pace = new PushPace(maxBandwidth);
  }

  /** @returns of each stretch, at how many bytes/s it was pushed. */
  push(stretches: number, { rate = LINK, queueMs = 4, busyShare = 1, peerShare = 0, alwaysMs = 0.05 }: Carried = {}): number[] {
    return Array.from({ length: stretches }, () => {
      const cap = this.pace.bandwidth;
      const isFull = cap === 0 || cap >= rate;
      const carried = isFull ? rate : cap;
      const beganAt = this.#nowMs - MS; // it waited behind the one ahead of it
      this.#nowMs += MS;
      if (isFull) this.#peerLimitedMs += peerShare * MS;
      this.#busyMs += (isFull ? busyShare : cap / rate) * MS;
      const bytes = (carried * MS) / 1000;
      const link = { busyMs: this.#busyMs, peerLimitedMs: this.#peerLimitedMs, queueMs: Math.max(isFull ? queueMs : 0, alwaysMs) };
      this.pace.stored({ pages: bytes / PAGE_BYTES, bytes, beganAt, storedAt: this.#nowMs, link });
      return carried;
    });
  }
}
const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;

describe("PushPace", () => {
  it("leaves a tenth of a link free that pushing would fill, and looks once a second what it carries", () => {
    const rig = new Rig();
    const pushed = rig.push(5 * ONE_SECOND).map((rate) => rate / LINK);
    assert.deepEqual([...new Set(pushed.map((share) => Number(share.toFixed(3))))], [1, 0.9]);
    const full = pushed.filter((share) => share > 0.95).length;
    assert.ok(full >= 4 * 4 && full <= 4 * 5 + 1, `${full} of ${pushed.length} stretches filled it`);
  });

  it("holds nothing back where a processor at either end limits, however long round trips become", () => {
    const rig = new Rig();
    for (const rate of [2e9, 3e8, 9e8, 1e8]) {
      rig.push(ONE_SECOND / 2, { rate, peerShare: 0.65, alwaysMs: 5 });
      rig.push(ONE_SECOND / 2, { rate, busyShare: 0.8, alwaysMs: 5 });
    }
    assert.equal(rig.pace.bandwidth, 0);
  });

  it("holds nothing back where no queue fills, and where nobody can tell", () => {
    const rig = new Rig();
    rig.push(ONE_SECOND, { queueMs: 1.4 });
    assert.equal(rig.pace.bandwidth, 0);
    const blind = new PushPace(0);
    for (let at = 1; at < ONE_SECOND; at++)
      blind.stored({ pages: 1000, bytes: 4e6, beganAt: MS * (at - 1), storedAt: MS * at, link: undefined });
    assert.equal(blind.bandwidth, 0);
  });

  it("what a busy processor made of round trips in three stretches is not believed", () => {
    const rig = new Rig();
    for (let times = 0; times < 10; times++) {
      rig.push(3);
      assert.equal(rig.pace.bandwidth, 0);
      rig.push(1, { queueMs: 0 });
    }
  });

  it("does not become slower and slower where round trips stay long", () => {
    const rig = new Rig();
    const pushed = rig.push(10 * ONE_SECOND, { alwaysMs: 5 });
    assert.ok(mean(pushed) > 0.89 * LINK, `${mean(pushed)} bytes/s`);
  });

  it("follows a link that becomes slower, and one that becomes faster", () => {
    const rig = new Rig();
    rig.push(ONE_SECOND);
    rig.push(ONE_SECOND / 2, { rate: LINK / 4 });
    assert.ok(rig.pace.bandwidth > 0 && rig.pace.bandwidth < LINK / 4, "within half a second");
    rig.push(2 * ONE_SECOND, { rate: 2 * LINK });
    assert.ok(rig.pace.bandwidth > 1.7 * LINK, `${rig.pace.bandwidth} bytes/s of ${2 * LINK}`);
  });

  it("a channel that was made again, whose counters began anew, says nothing", () => {
    const pace = new PushPace(0);
    for (let at = 1; at < ONE_SECOND; at++)
      pace.stored({ pages: 1, bytes: 4e6, beganAt: 0, storedAt: MS * at, link: { busyMs: 1e6 - at, peerLimitedMs: 0, queueMs: 9 } });
    assert.equal(pace.bandwidth, 0);
  });

  it("the operator's limit holds, and so does what is less", () => {
    const low = new Rig(LINK / 2);
    low.push(ONE_SECOND);
    assert.equal(low.pace.bandwidth, LINK / 2);
    const high = new Rig(2 * LINK);
    assert.equal(high.pace.bandwidth, 2 * LINK);
    high.push(ONE_SECOND / 2);
    assert.equal(Math.round(high.pace.bandwidth), 0.9 * LINK);
  });

  it("a stretch takes about 25 ms of the link, or a round trip; a stripe for each channel at least, and 64 MiB at most", () => {
    const rig = new Rig();
    assert.equal(rig.pace.room(2, 0.1), 2 * STRIPE_PAGES);
    rig.push(20, { queueMs: 0 });
    const perMs = LINK / 1000 / PAGE_BYTES;
    assert.ok(Math.abs(rig.pace.room(1, 0.1) / (25 * perMs) - 1) < 0.01);
    assert.ok(Math.abs(rig.pace.room(1, 100) / (100 * perMs) - 1) < 0.01);
    assert.equal(rig.pace.room(2, 10_000), (64 * 2 ** 20) / PAGE_BYTES);
    assert.ok(Math.abs(rig.pace.around / (0.05 * perMs) - 1) < 0.01);
  });
});
