import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import type { Arbiter, Guest } from "@precopy/guest";
import { LEASE_MS, LEASE_RENEW_MS, MigrationError } from "@precopy/protocol";
import { Lease } from "./lease.js";

const ELSEWHERE = new MigrationError("ERR_OWNED_ELSEWHERE", "owned by somebody else");
const BROKEN = new MigrationError("ERR_ARBITER", "no such folder");

/** A guest that knows only whether it is held. */
class FakeGuest {
  readonly manifest: { readonly id: string };
  epoch = 3;
  isHeld = false;

  constructor(id: string) {
    this.manifest = { id };
  }

  async hold(): Promise<void> {
    this.isHeld = true;
  }

  release(): void {
    this.isHeld = false;
  }

  /** As a lease uses one: these members and no others. */
  get asGuest(): Guest {
    return this as unknown as Guest;
  }
}

async function settle(): Promise<void> {
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** A lease whose time passes only as the test says, on a guest that is here at first. */
function leased(context: TestContext) {
  let nowMs = 5000;
  context.mock.timers.enable({ apis: ["setInterval"] });
  context.mock.method(performance, "now", () => nowMs);
  const guest = new FakeGuest("g1");
  const renewals: { readonly of: string; readonly at: number }[] = [];
  const told: string[] = [];
  const rig = {
    guest,
    renewals,
    told,
    owned: guest as FakeGuest | undefined,
    /** What the arbiter does with a renewal. */
    renew: async (): Promise<void> => {},
    now: () => nowMs,
    /** In steps of 100 ms, which a look at the lease may lie between. */
    pass: async (ms: number): Promise<void> => {
      for (const end = nowMs + ms; nowMs < end; ) {
        nowMs += 100;
        context.mock.timers.tick(100);
        await settle();
      }
    },
    /** How long it takes from now until the guest stands still. */
    untilHeld: async (): Promise<number> => {
      const began = nowMs;
      while (!guest.isHeld && nowMs - began < 10 * LEASE_MS) await rig.pass(100);
      return nowMs - began;
    },
  };
  const arbiter: Pick<Arbiter, "renew"> = {
    renew: async (id, owner, epoch) => {
      renewals.push({ of: `${id} ${owner} ${epoch}`, at: nowMs });
      await rig.renew();
      return { guest: id, owner, epoch, leaseUntilMs: 0 };
    },
  };
  const lease = new Lease({
    arbiter: arbiter as Arbiter, // a lease is only ever renewed by it
    owner: "here",
    owned: () => rig.owned?.asGuest,
    onHeld: ({ manifest }, { code }) => told.push(`${manifest.id} held ${code}`),
    onReleased: ({ manifest }) => told.push(`${manifest.id} released`),
  });
  context.after(() => lease.end());
  return { ...rig, rig, lease };
}
const hanging = (): Promise<void> => new Promise(() => {});

describe("a lease", () => {
  it("is renewed every LEASE_RENEW_MS in this owner's name at the guest's epoch, and the guest is let alone", async (context) => {
    const { pass, renewals, guest, told, now } = leased(context);
    const began = now();
    await pass(LEASE_RENEW_MS);
    guest.epoch = 4;
    await pass(9 * LEASE_RENEW_MS);
    assert.deepEqual(
      renewals,
      Array.from({ length: 10 }, (_, nth) => ({ of: `g1 here ${nth === 0 ? 3 : 4}`, at: began + (nth + 1) * LEASE_RENEW_MS })),
    );
    assert.deepEqual([guest.isHeld, told], [false, []]);
  });

  it("is left alone, and so is the guest, while nothing is owned, and once it has ended", async (context) => {
    const { pass, rig, renewals, guest, lease } = leased(context);
    rig.owned = undefined;
    await pass(3 * LEASE_MS);
    rig.owned = guest;
    lease.end();
    await pass(3 * LEASE_MS);
    assert.deepEqual([renewals, guest.isHeld], [[], false]);
  });

  for (const [how, renew] of [
    ["hang", hanging],
    ["fail", async (): Promise<void> => Promise.reject(BROKEN)],
  ] as const) {
    it(`whose renewals ${how} holds the guest a renewal's time or more before it ends, counted from when the last one was asked for`, async (context) => {
      const { pass, rig, renewals, untilHeld, now, told } = leased(context);
      await pass(3 * LEASE_RENEW_MS);
      let answer = (): void => {};
      rig.renew = () =>
        new Promise((resolve) => {
          answer = resolve;
        });
      await pass(LEASE_RENEW_MS);
      const { at = 0 } = renewals.at(-1) ?? {};
      await pass(LEASE_RENEW_MS + 1000); // it took long, and succeeded
      answer();
      rig.renew = renew;
      await untilHeld();
      assert.ok(now() - at <= LEASE_MS - LEASE_RENEW_MS, `${now() - at} ms after it was asked for`);
      assert.ok(now() - at > LEASE_RENEW_MS, "one that fails is no reason yet");
      assert.deepEqual(told, ["g1 held ERR_ARBITER"]);
    });

    it(`of a guest that came between two looks, and whose renewals ${how} from the first, ends after the guest is held`, async (context) => {
      for (const earlier of [100, LEASE_RENEW_MS / 2, LEASE_RENEW_MS]) {
        const { pass, rig, guest, untilHeld, lease } = leased(context);
        rig.owned = undefined;
        rig.renew = renew;
        await pass(2 * LEASE_RENEW_MS - earlier);
        rig.owned = guest; // its lease began at this moment
        const heldAfter = await untilHeld();
        assert.ok(heldAfter <= LEASE_MS - LEASE_RENEW_MS, `${heldAfter} ms, ${earlier} ms before the next look`);
        lease.end();
        context.mock.timers.reset();
        context.mock.restoreAll();
      }
    });
  }

  it("has one renewal under way at a time", async (context) => {
    const { pass, rig, renewals } = leased(context);
    rig.renew = hanging;
    await pass(LEASE_MS);
    assert.equal(renewals.length, 1);
  });

  it("that somebody else has holds the guest at once", async (context) => {
    const { pass, rig, guest, told } = leased(context);
    rig.renew = async () => Promise.reject(ELSEWHERE);
    await pass(LEASE_RENEW_MS);
    assert.deepEqual([guest.isHeld, told], [true, ["g1 held ERR_OWNED_ELSEWHERE"]]);
  });

  it("lets the guest go on when a renewal succeeds again; holding and letting go are told once each", async (context) => {
    const { pass, rig, guest, told } = leased(context);
    rig.renew = async () => Promise.reject(BROKEN);
    await pass(2 * LEASE_MS);
    assert.equal(guest.isHeld, true);
    rig.renew = async () => {};
    await pass(2 * LEASE_MS);
    assert.deepEqual([guest.isHeld, told], [false, ["g1 held ERR_ARBITER", "g1 released"]]);
  });

  it("that is lost a second time holds the guest a second time", async (context) => {
    const { pass, rig, guest, told } = leased(context);
    for (const renew of [async () => Promise.reject(ELSEWHERE), async () => {}, async () => Promise.reject(ELSEWHERE)]) {
      rig.renew = renew;
      await pass(LEASE_RENEW_MS);
    }
    assert.deepEqual([guest.isHeld, told.length], [true, 3]);
  });

  it("does not hold a guest whose hand-over was decided while the renewal was under way, nor the one that came after it", async (context) => {
    for (const next of [undefined, new FakeGuest("g2")]) {
      const { pass, rig, guest, told, lease } = leased(context);
      let refuse = (): void => {};
      rig.renew = () =>
        new Promise((_, reject) => {
          refuse = () => reject(ELSEWHERE);
        });
      await pass(LEASE_RENEW_MS);
      rig.owned = next;
      refuse();
      await settle();
      assert.deepEqual([guest.isHeld, next?.isHeld ?? false, told], [false, false, []]);
      lease.end();
      context.mock.timers.reset();
      context.mock.restoreAll();
    }
  });

  it("that was renewed so long ago that it may be over does not let the guest go on, though the answer comes only now", async (context) => {
    const { pass, rig, guest, untilHeld } = leased(context);
    let answer = (): void => {};
    rig.renew = () =>
      new Promise((resolve) => {
        answer = resolve;
      });
    await untilHeld();
    await pass(LEASE_MS); // the arbiter renewed it when it was asked, and by now somebody else may have acquired the guest
    answer();
    await settle();
    assert.equal(guest.isHeld, true);
  });
});
