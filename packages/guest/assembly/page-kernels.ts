// Kernels that run in place on one segment of guest memory (AssemblyScript, built to dist/page-kernels.wasm).
// They only read guest memory; what they keep between calls are this instance's globals.
// A segment may have all 4 GiB, and then the end of its last page is address 0: ends are compared by `!=`, never by `<`.

const PAGE: usize = 4096;

/** 1 if the 4 KiB at `at` are all zero. Reads 256 bytes between two tests, so a page that starts with data costs almost nothing. */
export function isZero(at: usize): i32 {
  const end = at + PAGE;
  while (at != end) {
    let any = v128.load(at);
    any = v128.or(any, v128.load(at, 16));
    any = v128.or(any, v128.load(at, 32));
    any = v128.or(any, v128.load(at, 48));
    any = v128.or(any, v128.load(at, 64));
    any = v128.or(any, v128.load(at, 80));
    any = v128.or(any, v128.load(at, 96));
    any = v128.or(any, v128.load(at, 112));
    any = v128.or(any, v128.load(at, 128));
    any = v128.or(any, v128.load(at, 144));
    any = v128.or(any, v128.load(at, 160));
    any = v128.or(any, v128.load(at, 176));
    any = v128.or(any, v128.load(at, 192));
    any = v128.or(any, v128.load(at, 208));
    any = v128.or(any, v128.load(at, 224));
    any = v128.or(any, v128.load(at, 240));
    if (v128.any_true(any)) return 0;
    at += 256;
  }
  return 1;
}

/** How many of `pages` from `at` on are all zero, up to the first that is not. */
export function leadingZeroPages(at: usize, pages: i32): i32 {
  let count = 0;
  for (; count < pages && isZero(at) == 1; count++) at += PAGE;
  return count;
}
/** How many of `pages` from `at` on hold something, up to the first that does not. */
export function leadingDataPages(at: usize, pages: i32): i32 {
  let count = 0;
  for (; count < pages && isZero(at) == 0; count++) at += PAGE;
  return count;
}

const K1: u64 = 0x9e3779b97f4a7c15;
const K2: u64 = 0xc2b2ae3d27d4eb4f;
const K3: u64 = 0x165667b19e3779f9;

@inline function mix(value: u64): u64 {
  value ^= value >> 33;
  value *= K2;
  value ^= value >> 29;
  value *= K3;
  return value ^ (value >> 32);
}

@inline function scramble(sum: v128, key: v128): v128 {
  const folded = v128.xor(v128.xor(sum, i64x2.shr_u(sum, 47)), key);
  const low = i64x2.extmul_low_i32x4_u(
    i8x16.shuffle(folded, folded, 0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11), i32x4.splat(0x9e3779b1));
  const high = i64x2.extmul_low_i32x4_u(
    i8x16.shuffle(folded, folded, 4, 5, 6, 7, 12, 13, 14, 15, 4, 5, 6, 7, 12, 13, 14, 15), i32x4.splat(0x9e3779b1));
  return i64x2.add(low, i64x2.shl(high, 32));
}

/**
 * 64-bit hash of the 4 KiB at `at`; finds accidents, not adversaries. Every word is added to a sum of its own place, so a change of one shows there;
 * products of sums that are keyed anew with every 64 bytes tell in which order they came. Halves of different vectors are multiplied, because
 * those of one would have to be shuffled first, and vector instructions are what limits this.
 */
function hash(at: usize): u64 {
  let a = i64x2(0x2d358dccaa6c78a5, 0x8bb84b93962eacc9), b = i64x2(0x4b33a62ed433d4a3, 0x4d5a2da51de1aa47);
  let c = i64x2(0xa0761d6478bd642f, 0xe7037ed1a0b428db), d = i64x2(0x90ed1765281c388c, 0x589965cc75374cc3);
  let key = i64x2(0x9fb21c651e98df25, 0xd6e8feb86659fd93), other = i64x2(0x60ad7d5d9b8a7a8f, 0x3c79ac492ba7b653);
  const step = i64x2(0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f);
  const end = at + PAGE;
  while (at != end) {
    const block = at + 1024;
    while (at != block) {
      const p = v128.load(at), q = v128.load(at, 16), r = v128.load(at, 32), s = v128.load(at, 48);
      const left = i64x2.add(v128.xor(p, key), r), right = i64x2.add(v128.xor(q, other), s);
      a = i64x2.add(a, p);
      b = i64x2.add(b, q);
      c = i64x2.add(i64x2.add(c, r), i64x2.extmul_low_i32x4_u(left, right));
      d = i64x2.add(i64x2.add(d, s), i64x2.extmul_high_i32x4_u(left, right));
      key = i64x2.add(key, step);
      other = i64x2.add(other, step);
      at += 64;
    }
    a = scramble(a, key);
    b = scramble(b, key);
    c = scramble(c, key);
    d = scramble(d, key);
  }
  let all = mix(i64x2.extract_lane(a, 0)) + K1;
  all = mix(all ^ i64x2.extract_lane(a, 1)) + K1;
  all = mix(all ^ i64x2.extract_lane(b, 0)) + K1;
  all = mix(all ^ i64x2.extract_lane(b, 1)) + K1;
  all = mix(all ^ i64x2.extract_lane(c, 0)) + K1;
  all = mix(all ^ i64x2.extract_lane(c, 1)) + K1;
  all = mix(all ^ i64x2.extract_lane(d, 0)) + K1;
  all = mix(all ^ i64x2.extract_lane(d, 1));
  return all == 0 ? 1 : all; // zero is the hash of the zero page, and of no other
}

@inline function contribution(page: u32, pageHash: u64): u64 {
  return pageHash == 0 ? 0 : mix(pageHash ^ ((<u64>page + 1) * K1));
}

/** This instance's share of the image digest. */
let digest: u64 = 0;
let last: u64 = 0;

export function digestLow(): u32 {
  return <u32>digest;
}
export function digestHigh(): u32 {
  return <u32>(digest >> 32);
}
/** High half of the hash that `renew` or `hashPage` returned last. */
export function lastHigh(): u32 {
  return <u32>(last >> 32);
}
/** Hashes the page at `at`, and replaces the contribution of its old hash to this instance's digest. Returns the low half. */
export function renew(at: usize, page: u32, oldLow: u32, oldHigh: u32): u32 {
  last = hash(at);
  digest += contribution(page, last) - contribution(page, (<u64>oldHigh << 32) | <u64>oldLow);
  return <u32>last;
}
/** Takes the contribution of a page that became zero out of this instance's digest. */
export function forget(page: u32, oldLow: u32, oldHigh: u32): void {
  digest -= contribution(page, (<u64>oldHigh << 32) | <u64>oldLow);
}
/** Low half of the hash of the page at `at`; the digest stays. */
export function hashPage(at: usize): u32 {
  last = hash(at);
  return <u32>last;
}

/** Fills `bytes` (a multiple of 16) from `at` with the xorshift sequence of `seed`: data that no compressor shortens. */
export function fillRandom(at: usize, bytes: usize, seed: u64): void {
  let x = seed | 1;
  const end = at + bytes;
  while (at != end) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    store<u64>(at, x);
    store<u64>(at, x * K1, 8);
    at += 16;
  }
}
