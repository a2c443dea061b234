import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { describe, it } from "node:test";
import { ChannelKey, KeyRing, isSameText } from "./channel-key.js";
import type { ChannelUse } from "./channel-key.js";

const secret = Buffer.alloc(32, 7);
const session = randomUUID();
const use = (given: Partial<ChannelUse> = {}): ChannelUse => ({ kind: "pages", session, channel: 2, generation: 3, ...given });

describe("KeyRing", () => {
  it("lets in whoever knows the secret, once for each generation, and later generations after it", () => {
    const [key, ring] = [new ChannelKey(secret), new KeyRing(secret)];
    ring.use(use(), key.keyFor(use()));
    for (const generation of [1, 2, 3])
      assert.throws(() => ring.use(use({ generation }), key.keyFor(use({ generation }))), { code: "ERR_KEY_REPLAYED" });
    ring.use(use({ generation: 4 }), key.keyFor(use({ generation: 4 })));
    // Each channel has its own.
    for (const one of [use({ channel: 1 }), use({ kind: "faults", channel: 0, generation: 1 })]) ring.use(one, key.keyFor(one));
  });

  it("refuses the key of anything else", () => {
    const ring = new KeyRing(secret);
    const others = [use({ kind: "faults" }), use({ session: randomUUID() }), use({ channel: 3 }), use({ generation: 4 })];
    const keys = others.map((one) => new ChannelKey(secret).keyFor(one));
    for (const key of [...keys, new ChannelKey(ChannelKey.fresh()).keyFor(use()), "", "0".repeat(64), "ü"])
      assert.throws(() => ring.use(use(), key), { code: "ERR_CHANNEL_KEY" });
    ring.use(use(), new ChannelKey(secret).keyFor(use())); // those were not it
  });
});

describe("ChannelKey", () => {
  it("is an HMAC-SHA-256 with these very bytes", () =>
    assert.equal(
      new ChannelKey(Buffer.alloc(32)).keyFor({
        kind: "pages",
        session: "00000000-0000-4000-8000-000000000000",
        channel: 1,
        generation: 2,
      }),
      "076e335b8b8d3c8d8dfa90aabe4b50aec0b6a53d75cc3aaadda27df30c1a614c",
    ));
});

it("isSameText compares whole texts", () => {
  assert.ok(isSameText("abc", "abc"));
  for (const other of ["", "ab", "abcd", "abd", "äbc"]) assert.ok(!isSameText("abc", other));
});
