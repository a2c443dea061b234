import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { BLOCK_PAGES, MigrationError, PACKET_PAGES_MAX, PACKET_PAYLOAD_BYTES_MAX, PAGE_BYTES } from "@precopy/protocol";
import { BlockReader, LENGTH_BYTES, encodeBlock } from "@precopy/protocol/page-codec";
import type { BlockCodec } from "@precopy/protocol/page-codec";

/** xorshift32: pages from a seed that fast-check prints. */
function fillRandom(bytes: Uint8Array, seed: number): void {
  let x = seed | 1;
  for (let at = 0; at < bytes.byteLength; at++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    bytes[at] = x;
  }
}
const KINDS = ["random", "zero", "text", "mixed"] as const;
type Kind = (typeof KINDS)[number];
function makePages(kind: Kind, pages: number, seed: number): Buffer {
  const bytes = Buffer.alloc(pages * PAGE_BYTES);
  for (let page = 0; page < pages; page++) {
    const own = kind === "mixed" ? KINDS[(page + seed) % 3] : kind;
    const at = bytes.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
    if (own === "random") fillRandom(at, (seed * 1000 + page) * 2);
    else if (own === "text") at.fill(`line ${seed} of page ${page}: the quick brown fox jumps over the lazy dog\n`);
  }
  return bytes;
}
const kinds = fc.constantFrom(...KINDS);
const seeds = fc.integer({ min: 1, max: 2 ** 30 });

/** What every pair of implementations of one compression must do: one's blocks are the other's, and a hostile payload is refused. */
export function pageCodecSuite(name: string, encoder: BlockCodec, decoder: BlockCodec): void {
  /** Pages as one block, made in the middle of a payload. */
  function blockOf(pages: Uint8Array): Buffer {
    const payload = Buffer.alloc(10 + LENGTH_BYTES + pages.byteLength + 10, 0xee);
    const bytes = encodeBlock(Buffer.from(pages), payload, 10, encoder);
    assert.ok(
      [...payload.subarray(0, 10), ...payload.subarray(-10)].every((byte) => byte === 0xee),
      "nothing else is written",
    );
    return payload.subarray(10, 10 + bytes);
  }

  const encode = (pages: Buffer): Buffer => {
    const blocks: Uint8Array[] = [];
    for (let at = 0; at < pages.byteLength; at += BLOCK_PAGES * PAGE_BYTES)
      blocks.push(blockOf(pages.subarray(at, at + BLOCK_PAGES * PAGE_BYTES)));
    return Buffer.concat(blocks);
  };
  function decode(payload: Buffer, pages: number): Buffer {
    const reader = new BlockReader(Buffer.from(payload), pages, decoder);
    const blocks: Uint8Array[] = [];
    for (let block = reader.next(); block !== undefined; block = reader.next()) blocks.push(Buffer.from(block)); // it is good until the next
    return Buffer.concat(blocks);
  }
  /** Decodes to exactly that many pages, or refuses with ERR_BLOCK_CORRUPT; everything else fails the test. Returns what it was. */
  function decodesOrRefuses(payload: Buffer, pages: number): "decoded" | "refused" {
    try {
      assert.equal(decode(payload, pages).byteLength, pages * PAGE_BYTES);
      return "decoded";
    } catch (error) {
      if (!(error instanceof MigrationError)) throw error;
      assert.equal(error.code, "ERR_BLOCK_CORRUPT");
      return "refused";
    }
  }

  describe(`page codec, ${name}`, () => {
    it("gives back every page as it was: random, zero, text and mixed, 1 to 512 pages", () =>
      fc.assert(
        fc.property(kinds, fc.integer({ min: 1, max: PACKET_PAGES_MAX }), seeds, (kind, pages, seed) => {
          const bytes = makePages(kind, pages, seed);
          const payload = encode(bytes);
          assert.ok(payload.byteLength <= PACKET_PAYLOAD_BYTES_MAX);
          assert.ok(decode(payload, pages).equals(bytes));
        }),
        { numRuns: 40 },
      ));

    it("gives back every page count around a block's end", () => {
      for (const pages of [1, 2, BLOCK_PAGES - 1, BLOCK_PAGES, BLOCK_PAGES + 1, 2 * BLOCK_PAGES, PACKET_PAGES_MAX - 1, PACKET_PAGES_MAX])
        for (const kind of KINDS)
          assert.ok(decode(encode(makePages(kind, pages, 1)), pages).equals(makePages(kind, pages, 1)), `${pages} ${kind} pages`);
    });

    it("stores random pages as they are, 4 bytes longer, and shortens text and zeros", () => {
      assert.equal(blockOf(makePages("random", 16, 3)).byteLength, 16 * PAGE_BYTES + 4);
      assert.ok(blockOf(makePages("text", 16, 3)).byteLength < 16 * PAGE_BYTES * 0.2);
      assert.ok(blockOf(makePages("zero", 16, 3)).byteLength < 1000);
    });

    it("has nothing to say for no pages and no bytes, and refuses bytes for no pages", () => {
      assert.equal(new BlockReader(Buffer.alloc(0), 0, decoder).next(), undefined);
      assert.throws(() => new BlockReader(Buffer.alloc(1), 0, decoder).next(), { code: "ERR_BLOCK_CORRUPT" });
    });
  });

  describe(`a hostile payload, ${name},`, () => {
    it("that is truncated anywhere, or has bytes after its end, is refused", () => {
      const payload = encode(makePages("mixed", 20, 5));
      for (let length = 0; length < payload.byteLength; length += length < 100 ? 1 : 97)
        assert.equal(decodesOrRefuses(payload.subarray(0, length), 20), "refused", `${length} of ${payload.byteLength} bytes`);
      assert.equal(decodesOrRefuses(Buffer.concat([payload, Buffer.alloc(1)]), 20), "refused");
    });

    it("for another number of pages is refused", () => {
      for (const kind of KINDS)
        for (const pages of [1, 16, 17, 19, 21, 32, 512])
          assert.equal(decodesOrRefuses(encode(makePages(kind, 20, 5)), pages), "refused", `${kind}, ${pages}`);
    });

    it("whose block says any other length than its own never gives a result of another length", () => {
      const payload = encode(makePages("text", 2, 5));
      for (const length of [
        0,
        1,
        2,
        payload.byteLength - 5,
        payload.byteLength - 3,
        8191,
        8192,
        8193,
        0x7fffffff,
        0x80000000,
        0xffffffff,
      ]) {
        const lying = Buffer.from(payload);
        lying.writeUInt32LE(length, 0);
        decodesOrRefuses(lying, 2);
      }
    });

    it("mutated in any way decodes to exactly its pages or is refused with ERR_BLOCK_CORRUPT", () => {
      const seen = { decoded: 0, refused: 0 };
      const mutations = fc.array(
        fc.tuple(
          fc.constantFrom("set", "delete", "insert", "repeat"),
          fc.nat(),
          fc.integer({ min: 0, max: 255 }),
          fc.integer({ min: 1, max: 64 }),
        ),
        { minLength: 1, maxLength: 6 },
      );
      fc.assert(
        fc.property(kinds, fc.integer({ min: 1, max: 40 }), seeds, mutations, (kind, pages, seed, changes) => {
          let payload = encode(makePages(kind, pages, seed));
          for (const [how, where, value, length] of changes) {
            const at = payload.byteLength === 0 ? 0 : where % payload.byteLength;
            const before = payload.subarray(0, at);
            if (how === "set" && payload.byteLength > 0) payload[at] = value;
            else if (how === "delete") payload = Buffer.concat([before, payload.subarray(at + length)]);
            else if (how === "insert") payload = Buffer.concat([before, Buffer.alloc(length, value), payload.subarray(at)]);
            else if (how === "repeat") payload = Buffer.concat([payload.subarray(0, at + length), payload.subarray(at)]);
          }
          seen[decodesOrRefuses(payload, pages)]++;
        }),
        { numRuns: 1500 },
      );
      assert.ok(seen.refused > 100, `only ${seen.refused} mutations were refused`);
      assert.ok(seen.decoded > 10, `only ${seen.decoded} mutations still decoded`);
    });

    it("made of garbage behind a believable length decodes to exactly its pages or is refused", () =>
      fc.assert(
        fc.property(fc.uint8Array({ minLength: 1, maxLength: 300 }), fc.integer({ min: 1, max: 16 }), (garbage, pages) => {
          const payload = Buffer.alloc(4 + garbage.byteLength);
          payload.writeUInt32LE(garbage.byteLength, 0);
          payload.set(garbage, 4);
          decodesOrRefuses(payload, pages);
        }),
        { numRuns: 2000 },
      ));

    it("that would decode to gigabytes is refused with no more memory than one block", () => {
      const bomb = Buffer.alloc(65_000, 0xff); // a literal length of 255 + 255 + ...
      bomb.set([0x1f, 0x41, 1, 0], 4); // one literal, then a match of 255 + 255 + ... bytes at distance 1: 16 MB from 64 KB
      bomb.writeUInt32LE(bomb.byteLength - 4, 0);
      const before = process.resourceUsage().maxRSS;
      for (let turn = 0; turn < 50; turn++) assert.equal(decodesOrRefuses(bomb, 16), "refused");
      const grownKib = process.resourceUsage().maxRSS - before;
      assert.ok(grownKib < 64 * 2 ** 10, `grew by ${grownKib} KiB`);
    });
  });
}
