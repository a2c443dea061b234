import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { TokenBucket } from "./token-bucket.js";

/** A bucket on a clock that only `clock.ms` moves. */
function bucketAt(rate: number): { bucket: TokenBucket; clock: { ms: number } } {
  const clock = { ms: 5000 };
  const bucket = new TokenBucket(() => clock.ms);
  bucket.setRate(rate);
  return { bucket, clock };
}
const close = (actual: number, expected: number): void => assert.ok(Math.abs(actual - expected) < 1e-6, `${actual}, not ${expected}`);

describe("TokenBucket", () => {
  it("never waits while no rate was set", () => {
    const bucket = new TokenBucket(() => 0);
    for (let at = 0; at < 10; at++) assert.equal(bucket.take(2 ** 30), 0);
  });

  it("makes the sender wait as long as what it took takes at the rate", () => {
    const { bucket } = bucketAt(1_000_000);
    close(bucket.take(1000), 1);
    close(bucket.take(1000), 2); // without a wait in between the debts add up
  });

  it("asks for no wait once the time has passed, and for the rest of it before", () => {
    const { bucket, clock } = bucketAt(1_000_000);
    bucket.take(4000);
    clock.ms += 1;
    close(bucket.take(0), 3);
    clock.ms += 3;
    close(bucket.take(0), 0);
  });

  it("saves up no more than 10 ms, however long nobody sent", () => {
    const { bucket, clock } = bucketAt(1_000_000);
    clock.ms += 3_600_000;
    assert.equal(bucket.take(10_000), 0);
    close(bucket.take(1000), 1);
  });

  it("forgives what is owed, and forgets what was saved, when the rate is set", () => {
    const { bucket, clock } = bucketAt(1000);
    bucket.take(1_000_000);
    bucket.setRate(0);
    assert.equal(bucket.take(1_000_000), 0);
    clock.ms += 1000;
    bucket.setRate(1_000_000);
    close(bucket.take(2000), 2);
  });

  it("lets through what the rate allows and no more than 10 ms beyond, for every sequence of sends by a sender that waits", () =>
    fc.assert(
      fc.property(
        fc.integer({ min: 1000, max: 10 ** 10 }),
        fc.array(fc.tuple(fc.integer({ min: 0, max: 3_000_000 }), fc.double({ min: 0, max: 50, noNaN: true })), {
          minLength: 1,
          maxLength: 50,
        }),
        (rate, sends) => {
          const { bucket, clock } = bucketAt(rate);
          const started = clock.ms;
          let sent = 0;
          for (const [bytes, idleMs] of sends) {
            sent += bytes;
            clock.ms += bucket.take(bytes);
            assert.ok(sent <= ((clock.ms - started + 10) * rate) / 1000 + 1, `${sent} B in ${clock.ms - started} ms`);
            clock.ms += idleMs;
          }
        },
      ),
    ));

  it("does not slow a sender down below the rate: without pauses it ends exactly on time", () => {
    const { bucket, clock } = bucketAt(40_000_000);
    const started = clock.ms;
    for (let packet = 0; packet < 100; packet++) clock.ms += bucket.take(400_000);
    close(clock.ms - started, 1000);
  });
});
