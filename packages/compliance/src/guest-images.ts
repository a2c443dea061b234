import assert from "node:assert/strict";
import { Bitmap, pageKernels } from "@precopy/guest";
import type { GuestMemory } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";

export function fillRandom(memory: GuestMemory, first: number, pages: number, seed: number): void {
  pageKernels(memory)[0]?.fillRandom(memory.offsetOf(first), pages * PAGE_BYTES, BigInt(seed + 1) * 0x9e3779b97f4a7c15n);
}

/** Every 16 pages something else: random, text-like, written with zeros, and two kinds of never touched. */
export function fillMixed(memory: GuestMemory): void {
  for (let first = 0; first < memory.pages; first += 16) {
    const kind = (first / 16) % 5;
    if (kind === 0) fillRandom(memory, first, 16, first);
    else if (kind === 1)
      memory.view(first, 16).set(Buffer.from(`page ${first}: it was a dark and stormy night, `.repeat(2000)).subarray(0, 16 * PAGE_BYTES));
    else if (kind === 2) memory.view(first, 16).fill(0);
  }
  fillRandom(memory, memory.pages - 1, 1, 7); // the last page there is
}

export function allPages(memory: GuestMemory): Bitmap {
  const bitmap = new Bitmap(memory.pages);
  bitmap.setRun(0, memory.pages);
  return bitmap;
}

export function assertEqualImages(one: GuestMemory, other: GuestMemory, when: string): void {
  if (Buffer.compare(one.view(0, one.pages), other.view(0, other.pages)) === 0) return;
  for (let page = 0; page < one.pages; page++)
    assert.equal(Buffer.compare(one.view(page, 1), other.view(page, 1)), 0, `page ${page} differs ${when}`);
}

/** xorshift32: a sequence of numbers from 0 to 2^32-1 that is the same every time. */
export function randomNumbers(seed: number): () => number {
  let x = seed | 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}
