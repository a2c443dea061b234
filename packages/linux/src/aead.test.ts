import assert from "node:assert/strict";
import { createCipheriv, randomBytes } from "node:crypto";
import { describe, it } from "node:test";
import fc from "fast-check";
import { AEAD_NONCE_BYTES, AEAD_TAG_BYTES, Aead, hasAead } from "./aead.js";
import type { AeadName } from "./aead.js";
import { addressOf, isLinuxAvailable } from "./library.js";

const skip = isLinuxAvailable && hasAead() ? false : "no OpenSSL can be called here";
const AEADS: readonly (readonly [AeadName, number])[] = [
  ["aes-128-gcm", 16],
  ["aes-256-gcm", 32],
  ["chacha20-poly1305", 32],
];
/** Where it stays. */
const placed = (bytes: Uint8Array): { readonly bytes: Buffer; readonly at: number } => {
  const copy = Buffer.allocUnsafeSlow(bytes.byteLength + 1); // an empty one has no address
  copy.set(bytes);
  return { bytes: copy.subarray(0, bytes.byteLength), at: Number(addressOf(copy)) };
};

describe("Aead", { skip }, () => {
  for (const [name, keyBytes] of AEADS)
    it(`seals what Node's cipher seals, in whatever parts, and opens it; not if a bit was changed (${name})`, () => {
      const key = randomBytes(keyBytes);
      const [sealing, opening] = [new Aead(name, key, true), new Aead(name, key, false)];
      fc.assert(
        fc.property(
          fc.uint8Array({ minLength: AEAD_NONCE_BYTES, maxLength: AEAD_NONCE_BYTES }),
          fc.uint8Array({ minLength: 1, maxLength: 20 }),
          fc.uint8Array({ maxLength: 300 }),
          fc.nat(),
          fc.nat(),
          (nonce, associated, content, cut, bit) => {
            const cipher = createCipheriv(name as "aes-128-gcm", key, nonce, { authTagLength: AEAD_TAG_BYTES }).setAAD(associated);
            const expected = Buffer.concat([cipher.update(content), cipher.final(), cipher.getAuthTag()]);

            const [header, from, into] = [placed(associated), placed(content), placed(new Uint8Array(expected.byteLength))];
            const first = cut % (content.byteLength + 1);
            sealing.nonce.set(nonce);
            sealing.begin(header.at, associated.byteLength);
            sealing.update(into.at, from.at, first);
            sealing.update(into.at + first, from.at + first, content.byteLength - first);
            sealing.seal(into.at + content.byteLength);
            assert.deepEqual(into.bytes, expected);

            const isOpened = (): boolean => {
              opening.nonce.set(nonce);
              opening.begin(header.at, associated.byteLength);
              opening.update(from.at, into.at, first);
              opening.update(from.at + first, into.at + first, content.byteLength - first);
              return opening.isGenuine(into.at + content.byteLength);
            };
            from.bytes.fill(0);
            assert.ok(isOpened());
            assert.deepEqual(from.bytes, Buffer.from(content));
            const all = [header.bytes, into.bytes];
            const changed = all[bit % 2]!;
            changed[bit % changed.byteLength]! ^= 1 << (bit % 8);
            assert.ok(!isOpened());
          },
        ),
        { numRuns: 300 },
      );
      sealing.close();
      opening.close();
      opening.close(); // once is enough, and twice does no harm
    });

  it("does not take a key of another length for what it is", () => {
    assert.throws(() => new Aead("aes-256-gcm", randomBytes(16), true), { code: "ERR_INTERNAL" });
  });
});
