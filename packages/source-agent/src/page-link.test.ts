import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { Bitmap, joinDigests } from "@precopy/guest";
import { CHANNEL_LOSSES_MAX, CHANNEL_RETRIES, MigrationError, REJOIN_AGAIN_MS, REJOIN_GRACE_MS, STRIPE_PAGES } from "@precopy/protocol";
import { LaneTable } from "@precopy/transport";
import type { LanePoint, LaneStart, PageChannel, RoundSent, SendPosition } from "@precopy/transport";
import { PageLink } from "./page-link.js";

const PAGES = 8 * STRIPE_PAGES;
const CUT = new MigrationError("ERR_LINK_LOST", "the cable was cut");
const UNREACHABLE = new MigrationError("ERR_UNREACHABLE", "nobody answers there");
const REFUSED = new MigrationError("ERR_STALE_GENERATION", "no such channel");
const OVER = new MigrationError("ERR_CANCELLED", "the operator had enough");

/** All that can happen without a timer has happened. */
async function settle(): Promise<void> {
  for (let turn = 0; turn < 4; turn++) await new Promise((resolve) => setImmediate(resolve));
}
const bitmap = (...runs: readonly (readonly [page: number, pages: number])[]): Bitmap => {
  const pages = new Bitmap(PAGES);
  for (const [page, count] of runs) pages.setRun(page, count);
  return pages;
};
const whole = bitmap([0, PAGES]);
/** "waits", "done", or the code it was rejected with. */
function follow(promise: Promise<unknown>): { state: string } {
  const followed = { state: "waits" };
  promise.then(
    () => (followed.state = "done"),
    (error: unknown) => (followed.state = MigrationError.from(error).code),
  );
  return followed;
}
/** Something that a test lets happen. */
function gate(): { readonly opened: Promise<void>; readonly open: () => void } {
  let open = (): void => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}
function permutations<T>(all: readonly T[]): T[][] {
  if (all.length === 0) return [[]];
  return all.flatMap((first, at) => permutations(all.toSpliced(at, 1)).map((rest) => [first, ...rest]));
}

interface Order {
  readonly round: number;
  readonly pacing: number;
  readonly from: readonly LaneStart[];
}

/** One life of a page channel, whose thread says and does what the test wants. */
class FakeChannel {
  readonly name: string;
  readonly orders: Order[] = [];
  readonly #answers: ((sent: RoundSent) => void)[] = [];
  onFailure: (error: MigrationError) => void = () => {};
  digest: bigint | undefined = 0n;
  position: SendPosition | undefined;
  congestionControl: string | undefined;
  isEnded = false;

  constructor(channel: number, generation: number) {
    this.name = `${channel}/${generation}`;
  }

  sendRound(round: number, _words: Uint32Array, pacing: number, from: readonly LaneStart[]): Promise<RoundSent> {
    this.orders.push({ round, pacing, from });
    return new Promise((resolve) => this.#answers.push(resolve));
  }

  /** Its thread answers the oldest order. */
  async sent(packets: number, given: Partial<RoundSent> = {}): Promise<void> {
    this.#answers.shift()?.({ normalPages: 0, zeroPages: 0, bytes: 0, digest: 0n, xbzrle: undefined, link: undefined, ...given, packets });
    await settle();
  }

  async end(): Promise<void> {
    this.isEnded = true;
  }

  /** As a link uses one: these members and no others. */
  get asChannel(): PageChannel {
    return this as unknown as PageChannel;
  }
}

/** A link whose ports do what a test says; by default every channel opens and the target holds nothing. */
class Rig {
  readonly lanes: LaneTable;
  readonly link: PageLink;
  /** Every life that was opened, in order. */
  readonly lives: FakeChannel[] = [];
  /** "open 0/2", "carry 1 to 0", "ended 0/1", in order. */
  readonly calls: string[] = [];
  readonly events: string[] = [];
  readonly failures: MigrationError[] = [];
  readonly signals: AbortSignal[] = [];
  stored: readonly LanePoint[] = [];
  onOpen: (channel: number, generation: number) => Promise<void> = async () => {};
  onCarry: (lane: number, channel: number) => Promise<LanePoint> = async (lane) => ({ lane, round: 0, page: 0 });
  ready: () => Promise<void> = async () => {};
  pings = 0;

  constructor(lanes: number, maxBandwidth = 0) {
    this.lanes = LaneTable.allocate(lanes);
    this.link = new PageLink(this.lanes, maxBandwidth, {
      open: async (channel, generation, signal) => {
        const endings = this.lives.filter(({ isEnded }) => isEnded).map(({ name }) => `ended ${name}`);
        this.calls.push(...endings.filter((ending) => !this.calls.includes(ending)), `open ${channel}/${generation}`);
        this.signals.push(signal);
        await this.onOpen(channel, generation);
        const life = new FakeChannel(channel, generation);
        this.lives.push(life);
        return { channel: life.asChannel, stored: this.stored };
      },
      carry: (lane, channel) => {
        this.calls.push(`carry ${lane} to ${channel}`);
        return this.onCarry(lane, channel);
      },
      ready: () => this.ready(),
      ping: () => this.pings++,
      roundTripMs: () => 0.1,
      fail: (error) => {
        this.failures.push(error);
        void this.link.stop(error); // as a migration does
      },
      onEvent: ({ what, channel, code }) => this.events.push(`${what} ${channel} ${code}`),
    });
  }

  static async open(lanes: number, maxBandwidth = 0): Promise<Rig> {
    const rig = new Rig(lanes, maxBandwidth);
    await rig.link.open();
    rig.calls.length = 0;
    return rig;
  }

  life(name: string): FakeChannel {
    return this.lives.find((life) => life.name === name) ?? assert.fail(`${name} was never opened; ${this.calls.join(", ")}`);
  }

  async flushed(channel: number, generation: number, packets: number): Promise<void> {
    this.link.onFlushed({ channel, generation, round: 1, packets });
    await settle();
  }

  /** The link's end of this life finds out that it is dead. */
  async cut(name: string, error = CUT): Promise<void> {
    this.life(name).onFailure(error);
    await settle();
  }
}

/** From here on only `pass` lets time pass, REJOIN_AGAIN_MS after REJOIN_AGAIN_MS. */
function fakeTime(context: TestContext): { readonly pass: (ms: number) => Promise<void> } {
  let nowMs = 1000;
  context.mock.timers.enable({ apis: ["setTimeout"] });
  context.mock.method(performance, "now", () => nowMs);
  return {
    pass: async (ms) => {
      for (let left = ms; left > 0; left -= REJOIN_AGAIN_MS) {
        nowMs += Math.min(left, REJOIN_AGAIN_MS);
        context.mock.timers.tick(Math.min(left, REJOIN_AGAIN_MS));
        await settle();
      }
    },
  };
}

describe("a round", () => {
  it("ends with the last of what is sent and what is acknowledged of every lane, in each of the 24 orders, and never before", async () => {
    for (const order of permutations(["sent 0", "stored 0", "sent 1", "stored 1"])) {
      const rig = await Rig.open(2);
      const round = follow(rig.link.sendRound(1, whole));
      for (const event of order) {
        await settle();
        assert.equal(round.state, "waits", `before ${event} of ${order.join(", ")}`);
        const channel = Number(event.at(-1));
        if (event.startsWith("sent")) await rig.life(`${channel}/1`).sent(3);
        else await rig.flushed(channel, 1, 3);
      }
      assert.equal(round.state, "done", order.join(", "));
    }
  });

  it("is not over while one packet that was sent is not stored, and what is stored is never taken back", async () => {
    const rig = await Rig.open(1);
    const round = follow(rig.link.sendRound(1, whole));
    await rig.life("0/1").sent(3);
    await rig.flushed(0, 1, 2);
    assert.equal(round.state, "waits");
    await rig.flushed(0, 1, 3);
    assert.equal(round.state, "done");
    const next = follow(rig.link.sendRound(2, whole));
    await rig.flushed(0, 1, 6);
    await rig.flushed(0, 1, 4); // late
    await rig.life("0/1").sent(6);
    assert.equal(next.state, "done");
  });

  it("is told with the sum of what its channels sent, and not before control messages get through", async () => {
    const rig = await Rig.open(2);
    const control = gate();
    rig.ready = () => control.opened;
    const sending = rig.link.sendRound(1, whole);
    const round = follow(sending);
    for (const channel of [0, 1]) {
      await rig.life(`${channel}/1`).sent(1, { normalPages: 10, zeroPages: channel, bytes: 1000 });
      await rig.flushed(channel, 1, 1);
    }
    assert.equal(round.state, "waits");
    control.open();
    const { normalPages, zeroPages, bytes } = await sending;
    assert.deepEqual([normalPages, zeroPages, bytes], [20, 1, 2000]);
    assert.equal(rig.pings, 1, "each round asks for the round trip anew");
  });

  it("that is the last ends when it is sent, and lastStored when it is acknowledged", async () => {
    const rig = await Rig.open(2);
    const last = follow(rig.link.sendLast(3, whole));
    const stored = follow(rig.link.lastStored());
    await rig.life("0/1").sent(1);
    assert.equal(last.state, "waits");
    await rig.life("1/1").sent(1);
    assert.deepEqual([last.state, stored.state], ["done", "waits"]);
    await rig.flushed(0, 1, 1);
    assert.equal(stored.state, "waits");
    await rig.flushed(1, 1, 1);
    assert.equal(stored.state, "done");
    assert.equal(rig.pings, 0, "in a pause nobody asks");
  });

  it("shares max-bandwidth by the pages that each lane has, so that the shares make up the whole", async () => {
    const rig = await Rig.open(2, 1_000_000);
    void rig.link.sendRound(1, bitmap([0, 300], [STRIPE_PAGES, 100]));
    assert.deepEqual(
      ["0/1", "1/1"].map((name) => rig.life(name).orders[0]?.pacing),
      [750_000, 250_000],
    );
  });

  it("gives a lane without pages an eighth of an equal share, or it would be slow when it has some; and equal shares if no lane has any", async () => {
    const rig = await Rig.open(2, 1_000_000);
    void rig.link.sendRound(1, bitmap([0, 300]));
    void rig.link.sendRound(2, bitmap());
    assert.deepEqual(
      ["0/1", "1/1"].map((name) => rig.life(name).orders.map(({ pacing }) => pacing)),
      [
        [941_177, 500_000],
        [58_824, 500_000],
      ],
    );
  });

  it("has no limit where none was set, and the last round never has one", async () => {
    const [free, limited] = [await Rig.open(1), await Rig.open(1, 1_000_000)];
    void free.link.sendRound(1, whole);
    void limited.link.sendLast(1, whole);
    assert.deepEqual([free.life("0/1").orders[0]?.pacing, limited.life("0/1").orders[0]?.pacing], [0, 0]);
  });
});

describe("rounds of post-copy", () => {
  it("follow one another without waiting, and each is done when it was sent and acknowledged itself", async () => {
    const rig = await Rig.open(2);
    const rounds = [7, 8].map((round) => follow(rig.link.pushRound(round, whole)));
    for (const name of ["0/1", "1/1"]) {
      assert.deepEqual(
        rig.life(name).orders.map(({ round }) => round),
        [7, 8],
      );
      await rig.life(name).sent(4);
    }
    await rig.flushed(0, 1, 4);
    await rig.flushed(1, 1, 3);
    assert.deepEqual([rounds[0]?.state, rounds[1]?.state], ["waits", "waits"]);
    await rig.flushed(1, 1, 4);
    assert.deepEqual([rounds[0]?.state, rounds[1]?.state], ["done", "waits"]);
    for (const name of ["0/1", "1/1"]) await rig.life(name).sent(9);
    for (const channel of [0, 1]) await rig.flushed(channel, 1, 9);
    assert.equal(rounds[1]?.state, "done");
    assert.equal(rig.pings, 0);
  });

  it("tell what the link is like by what every channel's present life sent last", async () => {
    const rig = await Rig.open(2);
    assert.equal(rig.link.state, undefined);
    void rig.link.pushRound(1, whole).catch(() => {});
    await rig.life("0/1").sent(1, { link: { busyMs: 10, peerLimitedMs: 2, queueMs: 0.5 } });
    await rig.life("1/1").sent(1, { link: { busyMs: 30, peerLimitedMs: 0, queueMs: 4 } });
    assert.deepEqual(rig.link.state, { busyMs: 20, peerLimitedMs: 1, queueMs: 4 });
    await rig.cut("1/1");
    assert.deepEqual(rig.link.state, { busyMs: 10, peerLimitedMs: 2, queueMs: 0.5 }, "channel 1 was made again");
    await rig.link.stop(OVER);
  });

  it("wait for nothing more of an earlier one that a channel had when it died: only the latest is sent again", async () => {
    const rig = await Rig.open(2);
    const rounds = [7, 8].map((round) => follow(rig.link.pushRound(round, whole)));
    await rig.life("0/1").sent(4);
    await rig.life("1/1").sent(4);
    await rig.flushed(0, 1, 4);
    rig.stored = [{ lane: 1, round: 7, page: 700 }];
    await rig.cut("1/1");
    assert.deepEqual([rounds[0]?.state, rounds[1]?.state], ["done", "waits"]);
    assert.deepEqual(rig.life("1/2").orders, [{ round: 8, pacing: 0, from: [{ lane: 1, page: 0 }] }]);
  });

  it("that begin while a channel is made again take its part of the one before over, and nobody waits for that for ever", async () => {
    const rig = await Rig.open(2);
    const channel = gate();
    rig.onOpen = () => channel.opened;
    const earlier = follow(rig.link.pushRound(7, whole));
    await rig.cut("1/1");
    await rig.life("0/1").sent(4);
    await rig.flushed(0, 1, 4);
    assert.equal(earlier.state, "waits");
    const latest = follow(rig.link.pushRound(8, whole));
    await settle();
    assert.equal(earlier.state, "done");
    channel.open();
    await settle();
    assert.deepEqual(rig.life("1/2").orders, [{ round: 8, pacing: 0, from: [{ lane: 1, page: 0 }] }]);
    assert.equal(latest.state, "waits");
  });
});

describe("opening", () => {
  it("fails with the first channel's error if not one can be had", async () => {
    const rig = new Rig(2);
    rig.onOpen = async (channel) => Promise.reject(channel === 0 ? REFUSED : UNREACHABLE);
    await assert.rejects(rig.link.open(), (error) => error === REFUSED);
    assert.deepEqual(rig.failures, []);
  });

  it("goes on with those that can be had, and makes the others again", async () => {
    const rig = new Rig(2);
    rig.onOpen = async (channel, generation) => (channel === 1 && generation === 1 ? Promise.reject(UNREACHABLE) : undefined);
    await rig.link.open();
    await settle();
    assert.deepEqual(rig.calls, ["open 0/1", "open 1/1", "open 1/2"]);
    assert.deepEqual(rig.events, ["channel-lost 1 ERR_UNREACHABLE", "channel-made-again 1 null"]);
    void rig.link.sendRound(1, whole);
    assert.equal(rig.life("1/2").orders.length, 1);
  });

  it("a `lost` that comes while it opens is not forgotten", async () => {
    const rig = new Rig(1);
    rig.onOpen = async (channel, generation) => {
      if (generation === 1) rig.link.onLost({ channel, generation, code: "ERR_LINK_LOST", message: "" });
    };
    await rig.link.open();
    await settle();
    assert.deepEqual(rig.calls, ["open 0/1", "ended 0/1", "open 0/2"]);
  });
});

describe("a channel that dies", () => {
  it("is made again one generation later when its old end has ended, and sends the lane from where the target says that it stands", async () => {
    const rig = await Rig.open(2);
    const round = follow(rig.link.sendRound(1, whole));
    await rig.life("0/1").sent(4);
    await rig.flushed(0, 1, 4);
    rig.stored = [{ lane: 1, round: 1, page: 700 }];
    await rig.cut("1/1");
    assert.deepEqual(rig.calls, ["ended 1/1", "open 1/2"]);
    assert.deepEqual(rig.life("1/2").orders, [{ round: 1, pacing: 0, from: [{ lane: 1, page: 700 }] }]);
    await rig.life("1/2").sent(1);
    await rig.flushed(1, 2, 1);
    assert.equal(round.state, "done");
    assert.deepEqual(rig.events, ["channel-lost 1 ERR_LINK_LOST", "channel-made-again 1 null"]);
    assert.deepEqual([rig.link.losses, rig.failures.length], [1, 0]);
  });

  it("begins at page 0 with a lane of which the target holds nothing, or an earlier round's pages", async () => {
    for (const stored of [[], [{ lane: 0, round: 1, page: 700 }], [{ lane: 1, round: 2, page: 700 }]]) {
      const rig = await Rig.open(1);
      void rig.link.sendRound(2, whole);
      rig.stored = stored;
      await rig.cut("0/1");
      assert.deepEqual(rig.life("0/2").orders[0]?.from, [{ lane: 0, page: 0 }]);
    }
  });

  it("sends nothing of a lane that was acknowledged, and all of one that was only sent", async () => {
    const rig = await Rig.open(2);
    const round = follow(rig.link.sendRound(1, whole));
    for (const name of ["0/1", "1/1"]) await rig.life(name).sent(4);
    await rig.flushed(0, 1, 4);
    await rig.cut("0/1");
    await rig.cut("1/1");
    assert.deepEqual(rig.life("0/2").orders, []);
    assert.deepEqual(rig.life("1/2").orders[0]?.from, [{ lane: 1, page: 0 }]);
    assert.equal(round.state, "waits");
  });

  it("between two rounds sends the whole next one", async () => {
    const rig = await Rig.open(1);
    await rig.cut("0/1");
    assert.deepEqual(rig.life("0/2").orders, []);
    void rig.link.sendRound(1, whole);
    assert.deepEqual(rig.life("0/2").orders[0]?.from, [{ lane: 0, page: 0 }]);
  });

  it("holds its lane of a round that begins before it is made again, and sends it then", async () => {
    const rig = await Rig.open(1);
    const channel = gate();
    rig.onOpen = () => channel.opened;
    await rig.cut("0/1");
    const last = follow(rig.link.sendLast(1, whole));
    await settle();
    assert.equal(last.state, "waits");
    channel.open();
    await settle();
    assert.equal(rig.life("0/2").orders.length, 1);
    await rig.life("0/2").sent(1);
    assert.equal(last.state, "done");
  });

  it("leaves acknowledgements and answers behind that count for nothing in its next life", async () => {
    const rig = await Rig.open(1);
    const round = follow(rig.link.sendRound(1, whole));
    await rig.flushed(0, 1, 100); // and its thread has not said yet what it sent
    await rig.cut("0/1");
    await rig.flushed(0, 1, 101);
    await rig.life("0/1").sent(1);
    await rig.life("0/2").sent(2);
    assert.equal(round.state, "waits");
    await rig.flushed(0, 2, 2);
    assert.equal(round.state, "done", "and those of its own life do");
  });

  it("is lost once, whether our end notices first, or the target's, or both; and what is told of a former life is no loss", async () => {
    const rig = await Rig.open(2);
    const lost = (channel: number, generation: number): void =>
      rig.link.onLost({ channel, generation, code: "ERR_PACKET_CHECKSUM", message: "" });
    rig.life("0/1").onFailure(CUT);
    lost(0, 1);
    lost(1, 1);
    rig.life("1/1").onFailure(CUT);
    await settle();
    lost(1, 1);
    rig.life("1/1").onFailure(CUT);
    lost(7, 1);
    await settle();
    assert.deepEqual(
      rig.events.filter((event) => event.startsWith("channel-lost")),
      ["channel-lost 0 ERR_LINK_LOST", "channel-lost 1 ERR_PACKET_CHECKSUM"],
    );
    assert.equal(rig.link.losses, 2);
    assert.deepEqual(rig.calls.filter((call) => call.startsWith("open")).toSorted(), ["open 0/2", "open 1/2"]);
  });

  it("and whose next life is lost at the target while it opens here is made once more", async () => {
    const rig = await Rig.open(1);
    void rig.link.sendRound(1, whole);
    rig.onOpen = async (channel, generation) => {
      if (generation === 2) rig.link.onLost({ channel, generation, code: "ERR_LINK_LOST", message: "" });
    };
    await rig.cut("0/1");
    assert.deepEqual(rig.calls, ["ended 0/1", "open 0/2", "ended 0/2", "open 0/3"]);
    assert.deepEqual(rig.life("0/2").orders, []);
    assert.equal(rig.life("0/3").orders.length, 1);
  });

  it("with all others, because nothing is heard of the target, is made again with them", async () => {
    const rig = await Rig.open(2);
    rig.link.suspectAll(new MigrationError("ERR_PEER_DEAD", "silence"));
    await settle();
    assert.deepEqual(rig.calls.filter((call) => call.startsWith("open")).toSorted(), ["open 0/2", "open 1/2"]);
    assert.ok(rig.life("0/1").isEnded && rig.life("1/1").isEnded);
  });

  it("leaves its share in the image digest: the sum over all lives, whatever their order", async () => {
    const rig = await Rig.open(2);
    const shares = [0xffff_ffff_ffff_fff0n, 0x123n, 0x456n, 0x789n];
    void rig.link.sendRound(1, whole);
    await rig.life("0/1").sent(1, { digest: 0x111n }); // as of its last round, and its final share is another
    await rig.life("1/1").sent(1, { digest: shares[1]! });
    assert.equal(rig.link.digest(true), joinDigests([0x111n, shares[1]!]));
    rig.life("0/1").digest = shares[0];
    await rig.cut("0/1");
    await rig.life("0/2").sent(1, { digest: 0x222n });
    rig.life("0/2").digest = shares[2];
    await rig.cut("0/2");
    await rig.life("0/3").sent(1, { digest: shares[3]! });
    assert.equal(rig.link.digest(true), joinDigests(shares));
    assert.equal(rig.link.digest(false), null);
  });

  it("costs the pages between where the target stands and how far it had come: those of its lane that the round has", async () => {
    const rig = await Rig.open(2);
    // Lane 0 has stripes 0, 2, 4 and so on: of these pages 100 to 199 and 1024 to 1123, and none of lane 1's.
    void rig.link.sendRound(1, bitmap([100, 100], [STRIPE_PAGES, 50], [2 * STRIPE_PAGES, 200]));
    rig.stored = [{ lane: 0, round: 1, page: 150 }];
    rig.life("0/1").position = { round: 1, page: 2 * STRIPE_PAGES + 100, normalPages: 190, zeroPages: 10, bytes: 800_000 };
    await rig.cut("0/1");
    assert.equal(rig.link.resentPages, 50 + 100);
    rig.life("0/2").position = { round: 1, page: 2 * STRIPE_PAGES, normalPages: 0, zeroPages: 0, bytes: 0 };
    rig.stored = [{ lane: 0, round: 1, page: 2 * STRIPE_PAGES }];
    await rig.cut("0/2");
    assert.equal(rig.link.resentPages, 150, "nothing that was not stored had been sent");
  });

  it("adds what it sent of an unfinished round to the round's bytes, and what it had told before is not counted twice", async () => {
    const rig = await Rig.open(2);
    const sending = rig.link.sendRound(1, whole);
    await rig.life("0/1").sent(1, { normalPages: 7, bytes: 700 });
    for (const name of ["0/1", "1/1"]) rig.life(name).position = { round: 1, page: 7, normalPages: 7, zeroPages: 1, bytes: 700 };
    await rig.flushed(0, 1, 1);
    await rig.cut("0/1");
    await rig.cut("1/1");
    await rig.life("1/2").sent(1, { normalPages: 100, bytes: 10_000 });
    await rig.flushed(1, 2, 1);
    const { normalPages, zeroPages, bytes } = await sending;
    assert.deepEqual([normalPages, zeroPages, bytes], [114, 1, 11_400]);
  });
});

describe("a channel that cannot be made again", () => {
  const neverAgain =
    (...channels: readonly number[]) =>
    async (channel: number): Promise<void> =>
      channels.includes(channel) ? Promise.reject(UNREACHABLE) : undefined;

  it(`has its lanes carried after ${CHANNEL_RETRIES} failures and not before, by the living channel with the fewest, from where the target stands`, async (context) => {
    const time = fakeTime(context);
    const rig = await Rig.open(4, 4_000_000);
    void rig.link.sendRound(1, whole);
    rig.onOpen = neverAgain(0, 2);
    rig.onCarry = async (lane) => ({ lane, round: 1, page: 600 });
    await rig.cut("0/1");
    await time.pass((CHANNEL_RETRIES - 2) * REJOIN_AGAIN_MS);
    assert.deepEqual(rig.calls, ["ended 0/1", "open 0/2", "open 0/3"]);
    await time.pass(REJOIN_AGAIN_MS);
    assert.deepEqual(rig.calls.splice(0), ["ended 0/1", "open 0/2", "open 0/3", "open 0/4", "carry 0 to 1"]);
    await rig.cut("2/1");
    await time.pass((CHANNEL_RETRIES - 1) * REJOIN_AGAIN_MS);
    assert.equal(rig.calls.at(-1), "carry 2 to 3", "channel 1 carries two already");
    assert.deepEqual([rig.lanes.lanesOf(0), rig.lanes.lanesOf(1), rig.lanes.lanesOf(3)], [[], [0, 1], [2, 3]]);
    assert.deepEqual(rig.life("1/1").orders[1], { round: 1, pacing: 1_000_000, from: [{ lane: 0, page: 600 }] });
    await time.pass(REJOIN_GRACE_MS);
    assert.deepEqual(rig.failures, [], "fewer channels are no failure");
  });

  it(`is made again if the ${CHANNEL_RETRIES}rd try succeeds, and nothing is carried`, async (context) => {
    const time = fakeTime(context);
    const rig = await Rig.open(2);
    rig.onOpen = async (_, generation) => (generation < 1 + CHANNEL_RETRIES ? Promise.reject(UNREACHABLE) : undefined);
    await rig.cut("0/1");
    await time.pass(REJOIN_GRACE_MS);
    assert.equal(rig.calls.at(-1), `open 0/${1 + CHANNEL_RETRIES}`);
    assert.deepEqual(rig.lanes.lanesOf(0), [0]);
  });

  it("has its lane asked for again until the target answers, and is not opened any more: the target may have heard", async (context) => {
    const time = fakeTime(context);
    const rig = await Rig.open(2);
    rig.onOpen = neverAgain(0);
    let asked = 0;
    rig.onCarry = async (lane) =>
      ++asked < 4 ? Promise.reject(new MigrationError("ERR_PEER_DEAD", "no answer")) : { lane, round: 0, page: 0 };
    await rig.cut("0/1");
    await time.pass((CHANNEL_RETRIES - 1) * REJOIN_AGAIN_MS);
    rig.onOpen = async () => {}; // it could be had again
    await time.pass(2 * REJOIN_AGAIN_MS);
    assert.deepEqual(rig.lanes.lanesOf(0), [0], "not before the answer");
    await time.pass(REJOIN_GRACE_MS);
    assert.deepEqual(rig.calls.slice(1 + CHANNEL_RETRIES), Array(4).fill("carry 0 to 1"));
    assert.deepEqual([rig.lanes.lanesOf(0), rig.lanes.lanesOf(1), rig.failures], [[], [0, 1], []]);
  });

  it("has the round wait until its heir has sent, and the target stored, both lanes", async (context) => {
    const time = fakeTime(context);
    const rig = await Rig.open(2);
    const round = follow(rig.link.sendRound(1, whole));
    rig.onOpen = neverAgain(0);
    await rig.cut("0/1");
    await time.pass((CHANNEL_RETRIES - 1) * REJOIN_AGAIN_MS);
    await rig.life("1/1").sent(5);
    await rig.flushed(1, 1, 5);
    assert.equal(round.state, "waits");
    await rig.flushed(1, 1, 9);
    assert.equal(round.state, "waits", "stored, and not yet told as sent");
    await rig.life("1/1").sent(9);
    assert.equal(round.state, "done");
  });

  it("leaves an heir that, made again, sends only those of its lanes that are not acknowledged", async (context) => {
    const time = fakeTime(context);
    const rig = await Rig.open(2);
    void rig.link.sendRound(1, whole);
    rig.onOpen = neverAgain(0);
    await rig.cut("0/1");
    await time.pass((CHANNEL_RETRIES - 1) * REJOIN_AGAIN_MS);
    await rig.life("1/1").sent(5);
    await rig.flushed(1, 1, 5);
    rig.stored = [
      { lane: 0, round: 1, page: 900 },
      { lane: 1, round: 1, page: PAGES },
    ];
    await rig.cut("1/1");
    assert.deepEqual(rig.life("1/2").orders[0]?.from, [{ lane: 0, page: 900 }]);
  });

  it("whose heir dies before the target has answered is carried by the heir's next life", async (context) => {
    const time = fakeTime(context);
    const rig = await Rig.open(2);
    void rig.link.sendRound(1, whole);
    let answer = (): void => {};
    rig.onCarry = (lane) =>
      new Promise((resolve) => {
        answer = () => resolve({ lane, round: 0, page: 0 });
      });
    rig.onOpen = neverAgain(0, 1);
    await rig.cut("0/1");
    await time.pass((CHANNEL_RETRIES - 1) * REJOIN_AGAIN_MS);
    await rig.cut("1/1");
    answer();
    await settle();
    rig.onOpen = async () => {};
    await time.pass(REJOIN_AGAIN_MS);
    assert.deepEqual(
      rig.life("1/3").orders.flatMap(({ from }) => from.map(({ lane }) => lane)),
      [0, 1],
    );
  });

  it("whose heir's own lanes were given away before the target has answered is carried by somebody all the same", async (context) => {
    const time = fakeTime(context);
    const rig = await Rig.open(3);
    void rig.link.sendRound(1, whole);
    let answer = (): void => {};
    rig.onCarry = (lane, channel) =>
      new Promise((resolve) => {
        const carried = (): void => resolve({ lane, round: 0, page: 0 });
        if (channel === 1) answer = carried;
        else carried();
      });
    rig.onOpen = neverAgain(0, 1);
    await rig.cut("0/1");
    await time.pass((CHANNEL_RETRIES - 1) * REJOIN_AGAIN_MS);
    assert.equal(rig.calls.at(-1), "carry 0 to 1");
    await rig.cut("1/1");
    await time.pass((CHANNEL_RETRIES - 1) * REJOIN_AGAIN_MS);
    assert.equal(rig.calls.at(-1), "carry 1 to 2");
    answer();
    await time.pass(REJOIN_GRACE_MS);
    assert.deepEqual(rig.lanes.lanesOf(2), [0, 1, 2], "channel 2 is the only one that lives");
  });
});

describe("when no channel lives", () => {
  const attempt = async (context: TestContext, refusal: MigrationError) => {
    const time = fakeTime(context);
    const rig = await Rig.open(2);
    const round = follow(rig.link.sendRound(1, whole));
    rig.onOpen = async () => Promise.reject(refusal);
    await rig.cut("0/1");
    await rig.cut("1/1");
    await time.pass(REJOIN_GRACE_MS - REJOIN_AGAIN_MS);
    assert.deepEqual([rig.failures, round.state], [[], "waits"], "a moment before its time is over");
    return { rig, time, round };
  };

  it(`it is tried for REJOIN_GRACE_MS, and then fails once, with why the channel died if the target was out of reach`, async (context) => {
    const { rig, time, round } = await attempt(context, UNREACHABLE);
    await time.pass(REJOIN_AGAIN_MS);
    assert.deepEqual(rig.failures, [CUT]);
    assert.equal(round.state, CUT.code);
    await time.pass(REJOIN_GRACE_MS);
    assert.equal(rig.failures.length, 1);
  });

  it("it fails with what the target says if that is no silence", async (context) => {
    const { rig, time } = await attempt(context, REFUSED);
    await time.pass(REJOIN_AGAIN_MS);
    assert.deepEqual(rig.failures, [REFUSED]);
  });

  it("nothing is carried, and it goes on if the target is back in the last moment", async (context) => {
    const { rig, time } = await attempt(context, UNREACHABLE);
    rig.onOpen = async () => {};
    await time.pass(REJOIN_GRACE_MS);
    assert.deepEqual(
      [rig.failures, rig.calls.filter((call) => call.startsWith("carry")), rig.events.slice(2).toSorted()],
      [[], [], ["channel-made-again 0 null", "channel-made-again 1 null"]],
    );
  });

  it("it fails at once if control messages never get through again, and opens nothing before they do", async () => {
    const rig = await Rig.open(1);
    let die = (): void => {};
    rig.ready = () =>
      new Promise((_, reject) => {
        die = () => reject(new MigrationError("ERR_PEER_DEAD", "silence"));
      });
    await rig.cut("0/1");
    assert.deepEqual(rig.calls, []);
    die();
    await settle();
    assert.deepEqual(
      rig.failures.map(({ code }) => code),
      ["ERR_PEER_DEAD"],
    );
  });
});

describe("a peer that breaks every channel", () => {
  it(`fails the migration with the loss after the first ${CHANNEL_LOSSES_MAX}, and not before`, async () => {
    const rig = await Rig.open(1);
    for (let generation = 1; generation <= CHANNEL_LOSSES_MAX; generation++) await rig.cut(`0/${generation}`);
    assert.deepEqual(rig.failures, []);
    const last = new MigrationError("ERR_PACKET_CHECKSUM", "once too often");
    await rig.cut(`0/${CHANNEL_LOSSES_MAX + 1}`, last);
    assert.deepEqual(rig.failures, [last]);
    assert.equal(rig.lives.length, CHANNEL_LOSSES_MAX + 1);
  });

  it("leaves no channel behind when it has stopped: the last one lost may still run here", async () => {
    const rig = await Rig.open(1);
    for (let generation = 1; generation <= CHANNEL_LOSSES_MAX; generation++) await rig.cut(`0/${generation}`);
    rig.link.onLost({ channel: 0, generation: CHANNEL_LOSSES_MAX + 1, code: "ERR_LINK_LOST", message: "" });
    await rig.link.stop(OVER);
    assert.deepEqual(
      rig.lives.filter(({ isEnded }) => !isEnded).map(({ name }) => name),
      [],
    );
  });
});

describe("stop", () => {
  it("ends every channel, and whatever waits rejects with the first reason given", async () => {
    const rig = await Rig.open(2);
    const round = rig.link.sendRound(1, whole);
    const stored = rig.link.lastStored();
    await rig.link.stop(OVER);
    await rig.link.stop(CUT);
    assert.ok(rig.lives.every(({ isEnded }) => isEnded));
    for (const waiting of [round, stored, rig.link.sendLast(2, whole)]) await assert.rejects(waiting, (error) => error === OVER);
  });

  it("ends, too, what is just being made again, resolves only then, and tells the one who connects", async () => {
    const rig = await Rig.open(1);
    const channel = gate();
    rig.onOpen = () => channel.opened;
    await rig.cut("0/1");
    const stopped = follow(rig.link.stop(OVER));
    await settle();
    assert.deepEqual([stopped.state, rig.signals.at(-1)?.reason], ["waits", OVER]);
    channel.open();
    await settle();
    assert.ok(rig.life("0/2").isEnded);
    assert.equal(stopped.state, "done");
    assert.deepEqual(rig.events, ["channel-lost 0 ERR_LINK_LOST"]);
  });

  it("ends, too, what is just being opened for the first time", async () => {
    const rig = new Rig(1);
    const channel = gate();
    rig.onOpen = () => channel.opened;
    const opening = follow(rig.link.open());
    await settle();
    const stopped = rig.link.stop(OVER);
    channel.open();
    await stopped;
    await settle();
    assert.notEqual(opening.state, "waits");
    assert.ok(rig.life("0/1").isEnded);
  });

  it("leaves a loss that comes later without consequence, and nobody tries again", async (context) => {
    const time = fakeTime(context);
    const rig = await Rig.open(2);
    rig.onOpen = async () => Promise.reject(UNREACHABLE);
    await rig.cut("0/1");
    const stopped = follow(rig.link.stop(OVER));
    await rig.cut("1/1");
    await time.pass(REJOIN_GRACE_MS);
    assert.equal(stopped.state, "done");
    assert.deepEqual([rig.link.losses, rig.failures, rig.calls], [1, [], ["ended 0/1", "open 0/2"]]);
  });
});
