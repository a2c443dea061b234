import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES, applyDelta } from "@precopy/protocol";
import fc from "fast-check";
import { PageDeltas } from "./page-deltas.js";

const MOST = PAGE_BYTES - 1;

/** A page of `seed`, with some bytes changed. */
const changes = fc.array(fc.record({ at: fc.nat(PAGE_BYTES - 1), bytes: fc.uint8Array({ minLength: 1, maxLength: 70 }) }), {
  maxLength: 12,
});
const pageOf = (seed: number): Uint8Array =>
  Uint8Array.from({ length: PAGE_BYTES }, (_, at) => (Math.imul(at + seed, 2654435761) >>> 24) & 0xff);
function changed(page: Uint8Array, list: readonly { readonly at: number; readonly bytes: Uint8Array }[]): Uint8Array {
  const copy = page.slice();
  for (const { at, bytes } of list) copy.set(bytes.subarray(0, PAGE_BYTES - at), at);
  return copy;
}

describe("PageDeltas", () => {
  it("the delta applied to the version before gives the version now, whatever changed", () =>
    fc.assert(
      fc.property(fc.nat(1000), fc.array(changes, { minLength: 1, maxLength: 4 }), (seed, versions) => {
        const deltas = new PageDeltas(8 * PAGE_BYTES);
        let version = pageOf(seed);
        assert.equal(deltas.encode(3, version, MOST).kind, "miss");
        const there = version.slice();
        for (const list of versions) {
          version = changed(version, list);
          const { kind, bytes } = deltas.encode(3, version, MOST);
          if (kind === "hit") applyDelta(there, bytes);
          else there.set(bytes);
          assert.deepEqual(there, version);
        }
      }),
    ));

  it("is no longer than what changed and four bytes for each stretch", () => {
    const deltas = new PageDeltas(PAGE_BYTES);
    const before = new Uint8Array(PAGE_BYTES);
    deltas.encode(0, before, MOST);
    const now = changed(before, [
      { at: 0, bytes: new Uint8Array(3).fill(1) },
      { at: 4090, bytes: new Uint8Array(6).fill(2) },
    ]);
    assert.deepEqual(Buffer.from(deltas.encode(0, now, MOST).bytes), Buffer.from([0, 3, 1, 1, 1, 0xf7, 31, 6, 2, 2, 2, 2, 2, 2]));
  });

  it("says nothing of a page that is as it was", () => {
    const deltas = new PageDeltas(PAGE_BYTES);
    deltas.encode(0, pageOf(1), MOST);
    const { kind, bytes } = deltas.encode(0, pageOf(1), MOST);
    assert.deepEqual([kind, bytes.byteLength], ["hit", 0]);
  });

  it("gives the page itself where the delta would be longer than it may", () => {
    const deltas = new PageDeltas(PAGE_BYTES);
    deltas.encode(0, pageOf(1), MOST);
    const other = pageOf(99);
    const { kind, bytes } = deltas.encode(0, other, MOST);
    assert.equal(kind, "overflow");
    assert.deepEqual(bytes, other);
    assert.equal(deltas.encode(0, other, MOST).kind, "hit", "it is what was sent last");
  });

  it("has a page's version until another page takes its place, or it is forgotten", () => {
    const deltas = new PageDeltas(4 * PAGE_BYTES);
    deltas.encode(1, pageOf(1), MOST);
    deltas.encode(5, pageOf(5), MOST); // the same place
    assert.equal(deltas.encode(1, pageOf(1), MOST).kind, "miss");
    deltas.forget(1);
    assert.equal(deltas.encode(1, pageOf(1), MOST).kind, "miss");
    deltas.forget(5);
    assert.equal(deltas.encode(1, pageOf(1), MOST).kind, "hit", "forgetting another changes nothing");
  });
});
