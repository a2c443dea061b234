import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { isLeaseOver } from "@precopy/guest";
import type { Arbiter, OwnerRecord } from "@precopy/guest";
import { CLOCK_SKEW_MS, LEASE_MS, MigrationError } from "@precopy/protocol";
import fc from "fast-check";

/** One arbiter, with nothing in it. */
export interface ArbiterPlace {
  /** A client of its own, such as another agent has. @param now wall clock, ms since 1970. */
  connect(now: () => number): Arbiter;
  close(): void | Promise<void>;
}

/** What a call came to: its result, or the code of what it threw. */
type Outcome = OwnerRecord | undefined | string | { readonly isSwapped: boolean; readonly record: OwnerRecord | undefined };
const outcomeOf = (call: Promise<Outcome | void>): Promise<Outcome> =>
  call.then(
    (result) => result ?? undefined,
    (error: unknown) => MigrationError.from(error).code,
  );

/** One call, as data. */
interface Call {
  readonly name: "read" | "acquire" | "renew" | "compareAndSwap" | "release";
  readonly guest: string;
  readonly owner: string;
  readonly epoch: number;
  /** How far an epoch is raised by compareAndSwap. */
  readonly raise: number;
  /** That go by before the call. */
  readonly ms: number;
}
const calls = fc.array(
  fc.record({
    name: fc.constantFrom("read", "acquire", "renew", "compareAndSwap", "release"),
    guest: fc.constantFrom("g1", "g2"),
    owner: fc.constantFrom("a", "b", "c"),
    epoch: fc.integer({ min: 1, max: 6 }),
    raise: fc.integer({ min: 1, max: 2 }),
    ms: fc.constantFrom(0, 1, LEASE_MS / 2, LEASE_MS, LEASE_MS + CLOCK_SKEW_MS - 1, LEASE_MS + CLOCK_SKEW_MS),
  }),
  { minLength: 20, maxLength: 60 },
);

function make(arbiter: Arbiter, { name, guest, owner, epoch, raise }: Call): Promise<Outcome | void> {
  if (name === "read") return arbiter.read(guest);
  if (name === "compareAndSwap") return arbiter.compareAndSwap(guest, epoch, { owner, epoch: epoch + raise });
  return arbiter[name](guest, owner, epoch);
}

/** What the interface promises, with nothing but a map. */
class Model {
  readonly #records = new Map<string, OwnerRecord>();

  make({ name, guest, owner, epoch, raise }: Call, now: number): Outcome {
    const record = this.#records.get(guest);
    const isOurs = record?.owner === owner && record.epoch === epoch && record.leaseUntilMs > 0;
    const write = (next: number, leaseUntilMs = now + LEASE_MS): OwnerRecord => {
      const written = { guest, owner, epoch: next, leaseUntilMs };
      this.#records.set(guest, written);
      return written;
    };
    switch (name) {
      case "read":
        return record;
      case "acquire":
        return record === undefined || (isLeaseOver(record, now) && epoch > record.epoch) ? write(epoch) : "ERR_OWNED_ELSEWHERE";
      case "renew":
        return isOurs ? write(epoch) : "ERR_OWNED_ELSEWHERE";
      case "compareAndSwap":
        return record?.epoch === epoch ? { isSwapped: true, record: write(epoch + raise) } : { isSwapped: false, record };
      case "release":
        if (isOurs) write(epoch, 0);
        return undefined;
    }
  }
}

/** What every arbiter promises. @param open makes one with nothing in it. */
export function arbiterSuite(name: string, open: () => ArbiterPlace | Promise<ArbiterPlace>): void {
  const START = Date.parse("2026-11-20T12:00:00.000Z");
  interface Fleet {
    readonly a: Arbiter;
    readonly b: Arbiter;
    readonly connect: () => Arbiter;
    /** Lets time go by for all of them. */
    readonly wait: (ms: number) => void;
  }
  async function withFleet(use: (fleet: Fleet) => Promise<void>): Promise<void> {
    let clock = START;
    const place = await open();
    const connect = (): Arbiter => place.connect(() => clock);
    try {
      await use({ a: connect(), b: connect(), connect, wait: (ms) => void (clock += ms) });
    } finally {
      await place.close();
    }
  }
  const record = (owner: string, epoch: number, leaseUntilMs = START + LEASE_MS): OwnerRecord => ({
    guest: "g1",
    owner,
    epoch,
    leaseUntilMs,
  });
  const isOwnedElsewhere = { code: "ERR_OWNED_ELSEWHERE" };

  describe(`arbiter: ${name}`, () => {
    it("knows nobody of a guest that nobody ever owned, and does nothing for it but acquire", () =>
      withFleet(async ({ a }) => {
        assert.equal(await a.read("g1"), undefined);
        assert.deepEqual(await a.compareAndSwap("g1", 1, { owner: "a", epoch: 2 }), { isSwapped: false, record: undefined });
        await assert.rejects(a.renew("g1", "a", 1), { ...isOwnedElsewhere, message: "Guest g1 has no owner" });
        await a.release("g1", "a", 1);
        assert.equal(await a.read("g1"), undefined);
      }));

    it("tells every agent the same owner, epoch and end of the lease, and keeps guests apart", () =>
      withFleet(async ({ a, b }) => {
        assert.deepEqual(await a.acquire("g1", "a", 7), record("a", 7));
        assert.deepEqual(await b.acquire("g2", "b", 1), { ...record("b", 1), guest: "g2" });
        for (const arbiter of [a, b]) assert.deepEqual(await arbiter.read("g1"), record("a", 7));
      }));

    it("gives a guest to nobody else within its lease and the clocks' skew, not to its own owner either, and says who has it until when", () =>
      withFleet(async ({ a, b, wait }) => {
        await a.acquire("g1", "a", 7);
        const message = "Guest g1 is owned by a at epoch 7 until 2026-11-20T12:00:15.000Z";
        for (const ms of [0, LEASE_MS, CLOCK_SKEW_MS - 1]) {
          wait(ms);
          await assert.rejects(b.acquire("g1", "b", 8), { ...isOwnedElsewhere, message });
          await assert.rejects(b.acquire("g1", "a", 8), { ...isOwnedElsewhere, message });
        }
        wait(1);
        const until = START + 2 * LEASE_MS + CLOCK_SKEW_MS;
        assert.deepEqual(await b.acquire("g1", "b", 8), record("b", 8, until));
      }));

    it("gives a guest away only at an epoch above the last one", () =>
      withFleet(async ({ a, b, wait }) => {
        await a.acquire("g1", "a", 7);
        wait(LEASE_MS + CLOCK_SKEW_MS);
        for (const epoch of [1, 6, 7]) await assert.rejects(b.acquire("g1", "b", epoch), isOwnedElsewhere);
        assert.deepEqual(await a.read("g1"), record("a", 7));
        await b.acquire("g1", "b", 8);
      }));

    it("renews a lease from now, also one that is over, as long as nobody followed", () =>
      withFleet(async ({ a, b, wait }) => {
        await a.acquire("g1", "a", 7);
        for (const ms of [3000, 10 * LEASE_MS]) {
          wait(ms);
          const renewed = await a.renew("g1", "a", 7);
          await assert.rejects(b.acquire("g1", "b", 8), isOwnedElsewhere);
          assert.deepEqual(await b.read("g1"), renewed);
        }
        assert.deepEqual(await a.read("g1"), record("a", 7, START + 3000 + 11 * LEASE_MS));
      }));

    it("renews nothing for an owner that somebody followed, by acquiring or swapping, nor at another epoch", () =>
      withFleet(async ({ a, b, wait }) => {
        await a.acquire("g1", "a", 7);
        for (const epoch of [6, 8]) await assert.rejects(a.renew("g1", "a", epoch), isOwnedElsewhere);
        wait(LEASE_MS + CLOCK_SKEW_MS);
        await b.acquire("g1", "b", 8);
        await assert.rejects(a.renew("g1", "a", 7), isOwnedElsewhere);
        await b.compareAndSwap("g1", 8, { owner: "b", epoch: 10 });
        await assert.rejects(b.renew("g1", "b", 8), isOwnedElsewhere);
        await b.renew("g1", "b", 10);
      }));

    it("swaps from the epoch expected and from no other, whoever has the guest and whatever the lease, and says what stands", () =>
      withFleet(async ({ a, b, wait }) => {
        await a.acquire("g1", "a", 7);
        for (const epoch of [6, 8])
          assert.deepEqual(await b.compareAndSwap("g1", epoch, { owner: "b", epoch: 9 }), { isSwapped: false, record: record("a", 7) });
        assert.deepEqual(await b.compareAndSwap("g1", 7, { owner: "b", epoch: 8 }), { isSwapped: true, record: record("b", 8) });
        assert.deepEqual(await a.compareAndSwap("g1", 7, { owner: "a", epoch: 9 }), { isSwapped: false, record: record("b", 8) });
        wait(10 * LEASE_MS);
        const until = START + 11 * LEASE_MS;
        assert.deepEqual(await a.compareAndSwap("g1", 8, { owner: "a", epoch: 9 }), { isSwapped: true, record: record("a", 9, until) });
      }));

    it("shows a swap made again that the first one was served", () =>
      withFleet(async ({ a }) => {
        await a.acquire("g1", "a", 7);
        const next = { owner: "b", epoch: 8 };
        assert.equal((await a.compareAndSwap("g1", 7, next)).isSwapped, true);
        assert.deepEqual(await a.compareAndSwap("g1", 7, next), { isSwapped: false, record: record("b", 8) });
      }));

    it("lets go at once and keeps the epoch; a renewal that comes late does not take the guest again", () =>
      withFleet(async ({ a, b }) => {
        await a.acquire("g1", "a", 7);
        await b.release("g1", "b", 7);
        await b.release("g1", "a", 6);
        assert.deepEqual(await a.read("g1"), record("a", 7));
        await a.release("g1", "a", 7);
        await a.release("g1", "a", 7);
        assert.deepEqual(await a.read("g1"), record("a", 7, 0));
        await assert.rejects(a.renew("g1", "a", 7), { ...isOwnedElsewhere, message: "Guest g1 was let go by a at epoch 7" });
        await assert.rejects(b.acquire("g1", "b", 7), isOwnedElsewhere);
        await b.acquire("g1", "b", 8);
      }));

    it("takes no owner and no epoch that cannot be written down, and no step back", () =>
      withFleet(async ({ a }) => {
        const isMistake = { code: "ERR_INTERNAL" };
        for (const owner of ["", "a b", "a\n", "ä", "x".repeat(129)]) await assert.rejects(a.acquire("g1", owner, 1), isMistake);
        for (const epoch of [0, -1, 1.5, 2 ** 32, Number.NaN]) await assert.rejects(a.acquire("g1", "a", epoch), isMistake);
        assert.equal(await a.read("g1"), undefined);
        const owner = "~!/..%\\\"'x".padEnd(128, "y");
        assert.deepEqual(await a.acquire("g1", owner, 2 ** 32 - 2), record(owner, 2 ** 32 - 2));
        for (const epoch of [1, 2 ** 32 - 2]) await assert.rejects(a.compareAndSwap("g1", 2 ** 32 - 2, { owner: "b", epoch }), isMistake);
        assert.deepEqual(await a.read("g1"), record(owner, 2 ** 32 - 2));
      }));

    it("makes one owner of all who acquire a guest at the same time, and one successor of all who swap from the same epoch", () =>
      withFleet(async ({ connect }) => {
        const agents = Array.from({ length: 8 }, (_, at) => ({ owner: `agent-${at}`, arbiter: connect() }));
        const won = async (tries: readonly Promise<boolean>[]): Promise<number[]> =>
          (await Promise.all(tries)).flatMap((isWon, at) => (isWon ? [at] : []));
        const first = await won(
          agents.map(({ owner, arbiter }) => outcomeOf(arbiter.acquire("g1", owner, 1)).then((outcome) => typeof outcome === "object")),
        );
        assert.equal(first.length, 1);
        assert.equal((await agents[0]?.arbiter.read("g1"))?.owner, `agent-${first[0]}`);
        for (let epoch = 1; epoch <= 50; epoch++) {
          const next = epoch + 1;
          const swapped = await won(
            agents.map(async ({ owner, arbiter }) => (await arbiter.compareAndSwap("g1", epoch, { owner, epoch: next })).isSwapped),
          );
          assert.equal(swapped.length, 1, `epoch ${next}`);
          const { owner, epoch: stands } = (await agents[0]?.arbiter.read("g1")) ?? assert.fail();
          assert.deepEqual([owner, stands], [`agent-${swapped[0]}`, next]);
        }
      }));

    it("lets a renewal that comes late succeed, or a take-over, and never both", () =>
      withFleet(async ({ a, b, wait }) => {
        let owner = "a";
        await a.acquire("g1", owner, 1);
        for (let epoch = 1; epoch <= 100; epoch++) {
          wait(LEASE_MS + CLOCK_SKEW_MS);
          const other = owner === "a" ? "b" : "a";
          const [renewed, acquired] = await Promise.all([
            outcomeOf(a.renew("g1", owner, epoch)),
            outcomeOf(b.acquire("g1", other, epoch + 1)),
          ]);
          assert.equal([renewed, acquired].filter((outcome) => outcome === "ERR_OWNED_ELSEWHERE").length, 1, `epoch ${epoch}`);
          if (renewed === "ERR_OWNED_ELSEWHERE") owner = other;
          else await b.compareAndSwap("g1", epoch, { owner, epoch: epoch + 1 });
        }
      }));

    it("does what the interface says over any series of calls and times", () =>
      fc.assert(
        fc.asyncProperty(calls, (series) =>
          withFleet(async ({ a, b, wait }) => {
            const model = new Model();
            let clock = START;
            for (const [at, call] of series.entries()) {
              wait(call.ms);
              clock += call.ms;
              const expected = model.make(call, clock);
              assert.deepEqual(await outcomeOf(make(at % 2 === 0 ? a : b, call)), expected, `${at}: ${JSON.stringify(call)}`);
            }
          }),
        ),
        { numRuns: 60 },
      ));
  });
}
