import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { PAGE_BYTES, SEGMENT_BYTES } from "@precopy/protocol";
import fc from "fast-check";
import { GuestMemory, SegmentPool } from "./guest-memory.js";
import { PageHashes, allocateHashTable, joinDigests } from "./page-hashes.js";
import { pageKernels } from "./page-kernels.js";

/** Section 5 of docs/wire-format.md, word by word. */
function hashBySpecification(page: Uint8Array): bigint {
  const [K1, K2, K3, P] = [0x9e3779b97f4a7c15n, 0xc2b2ae3d27d4eb4fn, 0x165667b19e3779f9n, 0x9e3779b1n];
  const wrap = (value: bigint): bigint => BigInt.asUintN(64, value);
  const mix = (value: bigint): bigint => {
    let v = value ^ (value >> 33n);
    v = wrap(v * K2);
    v ^= v >> 29n;
    v = wrap(v * K3);
    return v ^ (v >> 32n);
  };
  const S = [
    ...[0x2d358dccaa6c78a5n, 0x8bb84b93962eacc9n, 0x4b33a62ed433d4a3n, 0x4d5a2da51de1aa47n],
    ...[0xa0761d6478bd642fn, 0xe7037ed1a0b428dbn, 0x90ed1765281c388cn, 0x589965cc75374cc3n],
  ];
  const k = [0x9fb21c651e98df25n, 0xd6e8feb86659fd93n];
  const o = [0x60ad7d5d9b8a7a8fn, 0x3c79ac492ba7b653n];
  const words = new BigUint64Array(page.slice().buffer);
  for (let at = 0; at < words.length; at += 8) {
    const w = words.subarray(at, at + 8);
    for (const i of [0, 1]) {
      const left = wrap((w[i]! ^ k[i]!) + w[4 + i]!);
      const right = wrap((w[2 + i]! ^ o[i]!) + w[6 + i]!);
      const products = [(left & 0xffff_ffffn) * (right & 0xffff_ffffn), (left >> 32n) * (right >> 32n)];
      for (const half of [0, 1]) S[4 + 2 * i + half]! += products[half]!;
    }
    for (let i = 0; i < 8; i++) S[i] = wrap(S[i]! + w[i]!);
    for (const [i, step] of [K1, K2].entries()) {
      k[i] = wrap(k[i]! + step);
      o[i] = wrap(o[i]! + step);
    }
    if (at % 128 === 120) for (let i = 0; i < 8; i++) S[i] = wrap((S[i]! ^ (S[i]! >> 47n) ^ k[i & 1]!) * P);
  }
  let all = mix(S[0]!) + K1;
  for (let i = 1; i < 8; i++) all = mix(wrap(all) ^ S[i]!) + (i < 7 ? K1 : 0n);
  return wrap(all) === 0n ? 1n : wrap(all);
}

const PAGES = 256;
const pool = new SegmentPool();
const newMemory = (): GuestMemory => GuestMemory.allocate(PAGES * PAGE_BYTES, pool);
/** xorshift32 over a page. */
function fillPage(page: Uint8Array, seed: number): void {
  let x = seed * 2 + 1;
  for (let at = 0; at < page.byteLength; at++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    page[at] = x;
  }
}

describe("page kernels", () => {
  const memory = newMemory();
  const [kernels] = pageKernels(memory);
  assert.ok(kernels !== undefined);
  const hashOf = (page: number): bigint => {
    const low = kernels.hashPage(page * PAGE_BYTES) >>> 0;
    return (BigInt(kernels.lastHigh() >>> 0) << 32n) | BigInt(low);
  };

  it("change nothing in guest memory when they are made, asked to hash or to look for zeros", () => {
    kernels.isZero(0);
    hashOf(0);
    kernels.renew(0, 0, 0, 0);
    assert.ok(memory.view(0, PAGES).every((byte) => byte === 0));
  });

  it("isZero holds for zeros and for no page with a single set bit, at every byte of the page", () => {
    const page = memory.view(1, 1);
    assert.equal(kernels.isZero(PAGE_BYTES), 1);
    for (let at = 0; at < PAGE_BYTES; at++) {
      page[at] = 1 << (at & 7);
      assert.equal(kernels.isZero(PAGE_BYTES), 0, `byte ${at}`);
      page[at] = 0;
    }
    assert.equal(kernels.isZero(PAGE_BYTES), 1);
  });

  it("isZero looks at its own page only", () => {
    memory.view(1, 1).fill(255);
    memory.view(3, 1).fill(255);
    assert.equal(kernels.isZero(2 * PAGE_BYTES), 1);
    memory.view(1, 3).fill(0);
  });

  it("the hash changes with every single bit, on a page of zeros and on a random one", () => {
    for (const seed of [0, 77]) {
      const page = memory.view(5, 1);
      if (seed === 0) page.fill(0);
      else fillPage(page, seed);
      const seen = new Set([hashOf(5)]);
      for (let bit = 0; bit < PAGE_BYTES * 8; bit += 13) {
        page[bit >>> 3]! ^= 1 << (bit & 7);
        seen.add(hashOf(5));
        page[bit >>> 3]! ^= 1 << (bit & 7);
      }
      assert.equal(seen.size, 1 + Math.ceil((PAGE_BYTES * 8) / 13), `seed ${seed}: two of these hash alike`);
    }
  });

  it("the hash changes if any two different 16-byte or 64-byte blocks change places", () => {
    const page = memory.view(6, 1);
    fillPage(page, 5);
    const before = hashOf(6);
    const swap = (bytes: number, a: number, b: number): void => {
      const kept = page.slice(a * bytes, (a + 1) * bytes);
      page.copyWithin(a * bytes, b * bytes, (b + 1) * bytes);
      page.set(kept, b * bytes);
    };
    fc.assert(
      fc.property(fc.constantFrom(16, 64, 1024), fc.nat(), fc.nat(), (bytes, first, second) => {
        const [a, b] = [first % (PAGE_BYTES / bytes), second % (PAGE_BYTES / bytes)];
        fc.pre(a !== b);
        swap(bytes, a, b);
        assert.notEqual(hashOf(6), before, `${bytes}-byte blocks ${a} and ${b}`);
        swap(bytes, a, b);
        assert.equal(hashOf(6), before);
      }),
      { numRuns: 500 },
    );
  });

  it("the hash is that of docs/wire-format.md, its examples included", () => {
    const page = memory.view(7, 1);
    for (let seed = 1; seed <= 50; seed++) {
      fillPage(page, seed);
      if (seed % 3 === 0) page.fill(0, seed * 64, seed * 70);
      assert.equal(hashOf(7), hashBySpecification(page), `seed ${seed}`);
    }
    const specification = readFileSync(new URL("../../../docs/wire-format.md", import.meta.url), "utf8");
    const examples: readonly (readonly [name: string, fill: (at: number) => number])[] = [
      ["page whose byte i is i mod 256", (at) => at % 256],
      ["page of zeros but for byte 0, a 1", (at) => (at === 0 ? 1 : 0)],
      ["page of zeros that was sent with bytes", () => 0],
    ];
    for (const [name, fill] of examples) {
      for (let at = 0; at < PAGE_BYTES; at++) page[at] = fill(at);
      assert.ok(
        new RegExp(`^${name}: +hash ${hashOf(7).toString(16).padStart(16, "0")}\\b`, "m").test(specification),
        `${name}: ${hashOf(7).toString(16)}`,
      );
    }
  });

  it("the hash changes if something moves from one word to another and the sum of all stays", () => {
    const page = memory.view(8, 1);
    const words = new BigUint64Array(page.buffer, page.byteOffset, PAGE_BYTES / 8);
    const word = fc.nat({ max: words.length - 1 });
    fc.assert(
      fc.property(fc.constantFrom(0, 1, 88), word, word, fc.bigInt({ min: 1n, max: 2n ** 64n - 1n }), (seed, from, to, amount) => {
        fc.pre(from !== to);
        if (seed < 2) words.fill(seed === 0 ? 0n : 1_000_000n);
        else fillPage(page, seed);
        const before = hashOf(8);
        words[from] = BigInt.asUintN(64, words[from]! - amount);
        words[to] = BigInt.asUintN(64, words[to]! + amount);
        assert.notEqual(hashOf(8), before, `${amount} from word ${from} to word ${to}`);
      }),
      { numRuns: 3000 },
    );
  });

  it("the hash is the same wherever the page lies, and never 0, which stands for the page of zeros", () => {
    fillPage(memory.view(10, 1), 9);
    memory.view(200, 1).set(memory.view(10, 1));
    assert.equal(hashOf(10), hashOf(200));
    memory.view(11, 1).fill(0);
    assert.notEqual(hashOf(11), 0n);
  });

  it("fillRandom fills exactly the bytes it was asked to, with bytes that repeat nowhere", () => {
    memory.view(20, 4).fill(0);
    kernels.fillRandom(21 * PAGE_BYTES, 2 * PAGE_BYTES, 12345n);
    assert.ok(memory.view(20, 1).every((byte) => byte === 0) && memory.view(23, 1).every((byte) => byte === 0));
    const words = new BigUint64Array(memory.view(21, 2).slice().buffer);
    assert.equal(new Set(words).size, words.length);
  });
});

describe("PageHashes", () => {
  /** One step of a guest and whoever hashes it. */
  const steps = fc.array(fc.tuple(fc.integer({ min: 0, max: PAGES - 1 }), fc.integer({ min: 0, max: 20 })), {
    minLength: 1,
    maxLength: 60,
  });
  const apply = (memory: GuestMemory, hashes: PageHashes, page: number, seed: number): void => {
    if (seed === 0) {
      memory.view(page, 1).fill(0);
      hashes.forget(page);
    } else {
      fillPage(memory.view(page, 1), seed);
      hashes.renew(page, 1);
    }
  };
  /** The digest from nothing, of every page that is not zero. */
  const recomputed = (memory: GuestMemory, order: (pages: number[]) => number[] = (pages) => pages): bigint => {
    const fresh = new PageHashes(memory, allocateHashTable(memory.pages));
    for (const page of order(Array.from({ length: memory.pages }, (_, at) => at))) if (!fresh.isZeroPage(page)) fresh.renew(page, 1);
    return fresh.digest();
  };

  const memory = newMemory();
  it("keeps the digest that hashing the whole image anew gives, in any order, after any renewals and zero pages", () =>
    fc.assert(
      fc.property(steps, (all) => {
        memory.view(0, PAGES).fill(0);
        const hashes = new PageHashes(memory, allocateHashTable(PAGES));
        for (const [page, seed] of all) apply(memory, hashes, page, seed);
        assert.equal(hashes.digest(), recomputed(memory));
        assert.equal(
          hashes.digest(),
          recomputed(memory, (pages) => pages.reverse()),
        );
      }),
      { numRuns: 50 },
    ));

  it("is 0 for an image of zeros, and 0 again once all pages are zero again", () => {
    memory.view(0, PAGES).fill(0);
    const hashes = new PageHashes(memory, allocateHashTable(PAGES));
    assert.equal(hashes.digest(), 0n);
    for (const page of [0, 7, 255]) apply(memory, hashes, page, page + 1);
    assert.notEqual(hashes.digest(), 0n);
    for (const page of [7, 255, 0, 0]) apply(memory, hashes, page, 0);
    assert.equal(hashes.digest(), 0n);
  });

  it("tells two images apart that differ in one bit, or in the places of two pages", () => {
    memory.view(0, PAGES).fill(0);
    for (const page of [3, 4]) fillPage(memory.view(page, 1), page);
    const before = recomputed(memory);
    memory.view(3, 1)[100]! ^= 1;
    assert.notEqual(recomputed(memory), before);
    memory.view(3, 1)[100]! ^= 1;
    const kept = memory.view(3, 1).slice();
    memory.view(3, 1).set(memory.view(4, 1));
    memory.view(4, 1).set(kept);
    assert.notEqual(recomputed(memory), before);
  });

  it("has shares that add up: channels that each hash their own pages into one table give the digest of all", () =>
    fc.assert(
      fc.property(steps, fc.integer({ min: 1, max: 4 }), (all, channels) => {
        memory.view(0, PAGES).fill(0);
        const table = allocateHashTable(PAGES);
        const shares = Array.from({ length: channels }, () => new PageHashes(memory, table));
        for (const [page, seed] of all) apply(memory, shares[page % channels]!, page, seed);
        const whole = joinDigests(shares.map((share) => share.digest()));
        assert.equal(whole, joinDigests([recomputed(memory)]));
        assert.equal(whole, joinDigests(shares.map((share) => share.digest()).reverse()));
        assert.match(whole, /^[0-9a-f]{16}$/);
      }),
      { numRuns: 50 },
    ));

  it("matches() holds for what was hashed and not for any later change, zero pages included", () => {
    memory.view(0, PAGES).fill(0);
    const hashes = new PageHashes(memory, allocateHashTable(PAGES));
    assert.equal(hashes.matches(9), true, "never hashed and zero");
    memory.view(9, 1)[4095] = 1;
    assert.equal(hashes.matches(9), false, "never hashed and not zero");
    hashes.renew(9, 1);
    assert.equal(hashes.matches(9), true);
    memory.view(9, 1)[0] = 1;
    assert.equal(hashes.matches(9), false);
    memory.view(9, 1).fill(0);
    assert.equal(hashes.matches(9), false, "hashed with data and zero now");
    hashes.forget(9);
    assert.equal(hashes.matches(9), true);
    assert.equal(hashes.digest(), 0n);
  });

  it("digestOfTable() is what the instances that renewed the hashes make it together, in whatever order and however many they are", () =>
    fc.assert(
      fc.property(steps, fc.integer({ min: 1, max: 4 }), (all, channels) => {
        memory.view(0, PAGES).fill(0);
        const table = allocateHashTable(PAGES);
        const shares = Array.from({ length: channels }, () => new PageHashes(memory, table));
        for (const [page, seed] of all) apply(memory, shares[page % channels]!, page, seed);
        const sum = shares.reduce((digest, share) => BigInt.asUintN(64, digest + share.digest()), 0n);
        for (const asked of [shares[0]!, new PageHashes(memory, table)]) assert.equal(asked.digestOfTable(), sum);
        assert.equal(new PageHashes(memory, table).digestOfTable(), recomputed(memory));
        if (channels === 1) assert.equal(shares[0]?.digest(), sum, "it changed the instance that was asked");
      }),
      { numRuns: 50 },
    ));

  it("digestOfTable() believes the table alone: another hash, another page's, or none gives another digest; and it leaves the table as it is", () => {
    for (let page = 0; page < PAGES; page++) fillPage(memory.view(page, 1), page);
    const table = allocateHashTable(PAGES);
    const hashes = new PageHashes(memory, table);
    assert.equal(hashes.digestOfTable(), 0n);
    hashes.renew(0, PAGES);
    const before = hashes.digestOfTable();
    memory.view(0, PAGES).fill(0);
    const kept = table.slice();
    assert.equal(hashes.digestOfTable(), before, "the memory was asked");
    assert.deepEqual(table, kept);
    const changed = (change: () => void): bigint => {
      change();
      const digest = hashes.digestOfTable();
      table.set(kept);
      return digest;
    };
    const changes = [
      () => void (table[0]! ^= 1),
      () => void (table[2 * PAGES - 1]! ^= 0x80000000),
      () => table.fill(0, 2 * 7, 2 * 8),
      () => table.set(kept.subarray(2 * 3, 2 * 4), 2 * 4),
      () => table.set([kept[2]!, kept[3]!, kept[0]!, kept[1]!]),
    ];
    const digests = changes.map(changed);
    assert.equal(new Set([before, ...digests]).size, changes.length + 1);
    assert.equal(hashes.digestOfTable(), before);
  });

  it("digestOfTable() is the digest of a guest of several segments, too", () => {
    const large = GuestMemory.allocate(SEGMENT_BYTES + 2 ** 20, pool);
    const table = allocateHashTable(large.pages);
    const hashes = new PageHashes(large, table);
    for (const page of [0, 1, SEGMENT_BYTES / PAGE_BYTES - 1, SEGMENT_BYTES / PAGE_BYTES, large.pages - 1]) {
      fillPage(large.view(page, 1), 5); // the same contents: only the pages' numbers tell them apart
      hashes.renew(page, 1);
    }
    assert.notEqual(hashes.digest(), 0n);
    assert.equal(hashes.digestOfTable(), hashes.digest());
  });

  it("refuses a table of another size with ERR_INTERNAL and a page outside with ERR_RUN_OUT_OF_RANGE", () => {
    assert.throws(() => new PageHashes(memory, allocateHashTable(PAGES + 1)), { code: "ERR_INTERNAL" });
    const hashes = new PageHashes(memory, allocateHashTable(PAGES));
    assert.throws(() => hashes.renew(2 ** 20, 1), { code: "ERR_RUN_OUT_OF_RANGE" });
  });
});

it("joinDigests gives 16 digits and wraps at 64 bits", () => {
  assert.equal(joinDigests([]), "0000000000000000");
  assert.equal(joinDigests([2n ** 64n - 1n, 2n]), "0000000000000001");
});
