import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { PAGE_BYTES } from "./limits.js";
import { DeltaReader, applyDelta } from "./xbzrle.js";

const page = (): Uint8Array => new Uint8Array(PAGE_BYTES).fill(7);
const refused = { code: "ERR_BLOCK_CORRUPT" };

describe("applyDelta", () => {
  it("leaves, replaces, leaves, replaces, and leaves the rest", () => {
    const bytes = page();
    applyDelta(bytes, Uint8Array.of(2, 1, 0xaa, 0x80, 1, 2, 0xbb, 0xcc)); // 2 stay, 1 changes, 128 stay, 2 change
    const expected = page();
    expected[2] = 0xaa;
    expected.set([0xbb, 0xcc], 131);
    assert.deepEqual(bytes, expected);
  });

  it("an empty one changes nothing, and one may end with the page", () => {
    const bytes = page();
    applyDelta(bytes, new Uint8Array());
    assert.deepEqual(bytes, page());
    applyDelta(bytes, Uint8Array.of(0xff, 31, 1, 9)); // 4095 stay
    assert.equal(bytes.at(-1), 9);
  });

  it("refuses what would go past the page or the delta, an empty stretch, and a length of three bytes or padded", () => {
    for (const delta of [
      [0x80, 32, 1, 9],
      [0, 2, 9],
      [0, 0, 0, 0],
      [0],
      [0x80],
      [0, 0x81],
      [0x80, 0x80, 1, 1, 9],
      [0x81, 0, 1, 9],
      [0xff, 31, 2, 9, 9],
    ])
      assert.throws(() => applyDelta(page(), Uint8Array.from(delta)), refused, delta.join(" "));
  });

  it("touches nothing outside the page, and ends, whatever it is given", () =>
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: PAGE_BYTES }), (delta) => {
        const around = new Uint8Array(3 * PAGE_BYTES).fill(7);
        try {
          applyDelta(around.subarray(PAGE_BYTES, 2 * PAGE_BYTES), delta);
        } catch (error) {
          assert.equal((error as { code?: string }).code, "ERR_BLOCK_CORRUPT");
        }
        assert.deepEqual(around.subarray(0, PAGE_BYTES), page());
        assert.deepEqual(around.subarray(2 * PAGE_BYTES), page());
      }),
    ));
});

describe("DeltaReader", () => {
  it("brings page after page up to date: a delta, one as it was, one whole", () => {
    const whole = Buffer.alloc(PAGE_BYTES, 3);
    const head = (bytes: number): Buffer => Buffer.from([bytes & 255, bytes >> 8]);
    const payload = Buffer.concat([head(3), Buffer.of(0, 1, 9), head(0), head(PAGE_BYTES), whole]);
    const reader = new DeltaReader(payload);
    const pages = [page(), page(), page()];
    for (const one of pages) reader.apply(one);
    reader.end();
    assert.deepEqual([pages[0]?.[0], pages[0]?.[1], pages[1], pages[2]], [9, 7, page(), new Uint8Array(whole)]);
  });

  it("refuses a length past the payload or a page, a page too few, and a page too many", () => {
    for (const payload of [[1], [5, 0, 1], [1, 16]]) assert.throws(() => new DeltaReader(Buffer.from(payload)).apply(page()), refused);
    assert.throws(() => new DeltaReader(Buffer.alloc(0)).apply(page()), refused);
    assert.throws(() => new DeltaReader(Buffer.of(0, 0)).end(), refused);
  });
});
