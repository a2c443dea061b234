import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { deflateRawSync, gzipSync } from "node:zlib";
import fc from "fast-check";
import { joinPiece, piecesOf } from "./bitmap-pieces.js";
import { WORD_BLOCK } from "./word-blocks.js";
import type { BitmapPiece } from "./bitmap-pieces.js";
import { BITMAP_PIECE_WORDS, CONTROL_MESSAGE_BYTES_MAX } from "./limits.js";

const wordsOf = (pages: number): Uint32Array => new Uint32Array(Math.ceil(pages / 32));
const deflated = (...words: readonly number[]): Uint8Array => deflateRawSync(Buffer.from(Uint32Array.from(words).buffer));
const refused = { code: "ERR_BAD_MESSAGE", name: "MigrationError" };
const set = (words: Uint32Array, page: number): void => void (words[page >>> 5]! |= 1 << (page & 31));
function join(pages: number, pieces: Iterable<BitmapPiece>, into = wordsOf(pages)): Uint32Array {
  for (const piece of pieces) joinPiece(into, pages, piece);
  return into;
}

/** As deepEqual, which takes a hundred times as long over so many words. */
const assertSame = (found: Uint32Array, words: Uint32Array): void =>
  assert.ok(Buffer.from(found.buffer).equals(Buffer.from(words.buffer)), "other words");

/** Sizes about the ends of words and pieces, with pages of any density. */
const bitmap = fc
  .oneof(
    fc.integer({ min: 1, max: 200 }),
    fc.integer({ min: -40, max: 40 }).map((more) => BITMAP_PIECE_WORDS * 32 + more),
    fc.integer({ min: 1, max: 3 * BITMAP_PIECE_WORDS * 32 }),
  )
  .chain((pages) =>
    fc.record({
      pages: fc.constant(pages),
      members: fc.array(fc.integer({ min: 0, max: pages - 1 }), { maxLength: 50 }),
      run: fc.tuple(fc.integer({ min: 0, max: pages - 1 }), fc.nat(100_000)),
    }),
  )
  .map(({ pages, members, run: [first, length] }) => {
    const words = wordsOf(pages);
    for (const page of [...members, pages - 1]) set(words, page);
    for (let page = first; page < Math.min(first + length, pages); page++) set(words, page);
    return { pages, words };
  });

describe("pieces of a bitmap", () => {
  it("joined give the same bitmap, in any order, each once or twice, and leave what was sent as it was", () =>
    fc.assert(
      fc.property(bitmap, fc.boolean(), fc.boolean(), ({ pages, words }, isReversed, isTwice) => {
        const before = words.slice();
        const pieces = [...piecesOf(words)];
        const sent = [...(isReversed ? pieces.toReversed() : pieces), ...(isTwice ? pieces : [])];
        assertSame(join(pages, sent), words);
        assertSame(words, before);
      }),
      { numRuns: 60 },
    ));

  it("add to what is there, and take nothing away", () =>
    fc.assert(
      fc.property(bitmap, fc.array(fc.nat(), { maxLength: 20 }), ({ pages, words }, others) => {
        const into = wordsOf(pages);
        for (const page of others) set(into, page % pages);
        const expected = into.map((word, at) => word | words[at]!);
        assertSame(join(pages, piecesOf(words), into), expected);
      }),
      { numRuns: 60 },
    ));

  it("are none of an empty bitmap, and only those with a page of any other, each small enough for a message", () => {
    const pages = 4 * BITMAP_PIECE_WORDS * 32;
    const words = wordsOf(pages);
    assert.deepEqual([...piecesOf(words)], []);
    assert.deepEqual([...piecesOf(new Uint32Array(0))], []);
    set(words, 2 * BITMAP_PIECE_WORDS * 32 - 1);
    set(words, 3 * BITMAP_PIECE_WORDS * 32);
    assert.deepEqual(
      [...piecesOf(words)].map(({ first }) => first),
      [2 * BITMAP_PIECE_WORDS - WORD_BLOCK, 3 * BITMAP_PIECE_WORDS],
      "and of those only blocks from the first to the last with a page",
    );
    let x = 1; // xorshift32: words that cannot be deflated
    for (let at = 0; at < words.length; at++) {
      x ^= x << 13;
      x ^= x >>> 17;
      x ^= x << 5;
      words[at] = x;
    }
    const pieces = [...piecesOf(words)];
    assert.ok(pieces.length > 4, `${pieces.length} pieces: in parts where they are too dense`);
    for (const piece of pieces) assert.ok(piece.words.byteLength < CONTROL_MESSAGE_BYTES_MAX - 1000, `${piece.words.byteLength} B`);
    assertSame(join(pages, pieces), words);
  });

  it("of shared words are read as they are at that moment, which later changes do not touch", () => {
    const words = new Uint32Array(new SharedArrayBuffer(400));
    words[7] = 5;
    const pieces = [...piecesOf(words)];
    words.fill(0);
    assert.equal(join(3200, pieces)[7], 5);
  });

  it("that were cut short anywhere, or are no deflated words at all, are refused with ERR_BAD_MESSAGE, and nothing is joined", () => {
    const words = wordsOf(3200);
    for (let at = 0; at < words.length; at++) words[at] = at * 0x9e3779b1;
    const [piece] = [...piecesOf(words)];
    assert.ok(piece !== undefined);
    const into = wordsOf(3200);
    for (let bytes = 0; bytes < piece.words.byteLength; bytes++)
      assert.throws(() => joinPiece(into, 3200, { first: 0, words: piece.words.subarray(0, bytes) }), refused, `${bytes} B`);
    for (const bytes of [Buffer.alloc(100, 0xff), Buffer.from("not deflated"), gzipSync(Buffer.alloc(8)), Buffer.alloc(0)])
      assert.throws(() => joinPiece(into, 3200, { first: 0, words: bytes }), refused);
    assert.ok(into.every((word) => word === 0));
    joinPiece(into, 3200, piece);
    assertSame(into, words);
  });

  it("damaged in any bit are refused with ERR_BAD_MESSAGE or stay inside the bitmap; no other error leaves", () => {
    const pages = 3190;
    const words = wordsOf(pages);
    for (let page = 0; page < pages; page += 7) set(words, page);
    const [piece] = [...piecesOf(words)];
    assert.ok(piece !== undefined);
    for (let bit = 0; bit < piece.words.byteLength * 8; bit++) {
      const bad = Uint8Array.from(piece.words);
      bad[bit >>> 3]! ^= 1 << (bit & 7);
      const into = wordsOf(pages);
      try {
        joinPiece(into, pages, { first: 0, words: bad });
      } catch (error) {
        assert.equal(Reflect.get(Object(error), "code"), "ERR_BAD_MESSAGE", `bit ${bit}: ${String(error)}`);
        assert.ok(
          into.every((word) => word === 0),
          `bit ${bit}: half of it was joined`,
        );
      }
      assert.equal(into.at(-1)! >>> (pages % 32), 0, `bit ${bit}`);
    }
  });

  it("that are too long for where they stand are refused, and what would inflate to much more is not inflated", () => {
    const pages = 100 * 32;
    const into = wordsOf(pages);
    for (const [first, count] of [
      [0, 101],
      [99, 2],
      [1, 100],
      [100, 1],
      [101, 1],
      [2 ** 31, 1],
      [2 ** 32 - 1, 1],
      [0, BITMAP_PIECE_WORDS + 1],
    ] as const)
      assert.throws(
        () => joinPiece(into, pages, { first, words: deflateRawSync(Buffer.from(new Uint32Array(count).fill(1).buffer)) }),
        refused,
        `${count} at ${first}`,
      );
    const large = wordsOf(4 * BITMAP_PIECE_WORDS * 32);
    const long = deflateRawSync(Buffer.alloc((BITMAP_PIECE_WORDS + 1) * 4, 1));
    assert.throws(
      () => joinPiece(large, large.length * 32, { first: 0, words: long }),
      refused,
      "there is room, but a piece is not that long",
    );
    const bomb = deflateRawSync(Buffer.alloc(128 * 2 ** 20), { level: 1 });
    assert.ok(bomb.byteLength < CONTROL_MESSAGE_BYTES_MAX, "it fits into a message");
    const before = process.memoryUsage.rss();
    const started = performance.now();
    assert.throws(() => joinPiece(large, large.length * 32, { first: 0, words: bomb }), refused);
    assert.ok(process.memoryUsage.rss() - before < 32 * 2 ** 20 && performance.now() - started < 1000);
    assert.ok(into.every((word) => word === 0) && large.every((word) => word === 0));
  });

  it("that begin nowhere in the bitmap are refused, be they empty or not", () => {
    for (const pages of [3200, 3190, 1])
      for (const first of [Math.ceil(pages / 32), Math.ceil(pages / 32) + 1, 2 ** 31, 2 ** 32, Number.MAX_SAFE_INTEGER])
        for (const count of [0, 1]) {
          const into = wordsOf(pages);
          const piece = { first, words: deflated(...Array<number>(count).fill(1)) };
          assert.throws(() => joinPiece(into, pages, piece), refused, `${count} words at ${first}, of ${pages} pages`);
          assert.deepEqual(Object.keys(into).length, into.length);
        }
  });

  it("that hold no whole words, or none, are refused", () => {
    const into = wordsOf(3200);
    for (const bytes of [0, 1, 2, 3, 5, 399])
      assert.throws(() => joinPiece(into, 3200, { first: 0, words: deflateRawSync(Buffer.alloc(bytes, 1)) }), refused, `${bytes} B`);
    assert.ok(into.every((word) => word === 0));
  });

  it("that name a page behind the last are refused, for every number of pages in a word and every such bit; the last page itself is not", () => {
    for (let pages = 65; pages <= 96; pages++) {
      for (let bit = pages % 32; bit < 32 && pages % 32 !== 0; bit++) {
        const into = wordsOf(pages);
        for (const piece of [
          { first: 2, words: deflated(2 ** bit) },
          { first: 0, words: deflated(0, 0, 2 ** bit) },
        ])
          assert.throws(() => joinPiece(into, pages, piece), refused, `bit ${bit} of ${pages} pages`);
        assert.deepEqual([...into], [0, 0, 0]);
      }
      const last = 2 ** ((pages - 1) % 32);
      assert.deepEqual([...join(pages, [{ first: 2, words: deflated(last) }])], [0, 0, last]);
      assert.deepEqual([...join(pages, [{ first: 0, words: deflated(0xffffffff, 0xffffffff) }])], [0xffffffff, 0xffffffff, 0]);
    }
  });
});
