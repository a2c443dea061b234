import { MigrationError, STRIPE_PAGES, STRIPE_WORDS, WORD_BLOCK, isEmptyBlock } from "@precopy/protocol";

const BLOCK_STRIPES = WORD_BLOCK / STRIPE_WORDS;

/** Called with each run of set pages. */
export type VisitPages = (firstPage: number, pages: number) => void;

function popcount(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** Visits the words of each block in which all of these have pages: most of what is joined in a pause is empty, and its loops are not compiled there. */
function forEachBlock(filled: readonly Bitmap[], visit: (from: number, end: number) => void): void {
  const length = Math.min(...filled.map(({ words }) => words.length));
  for (let at = 0; at < length; at += WORD_BLOCK)
    if (!filled.some(({ words }) => isEmptyBlock(words, at))) visit(at, Math.min(at + WORD_BLOCK, length));
}

/**
 * One bit a page: bit `p & 31` of word `p >>> 5` is page `p`. The words are shared memory, so a bitmap can be handed to a worker;
 * it has one user at a time, and whoever hands it over orders the accesses (a message does). Bits past the last page are zero.
 */
export class Bitmap {
  readonly pages: number;
  readonly words: Uint32Array;

  constructor(pages: number, words: Uint32Array = new Uint32Array(new SharedArrayBuffer(Math.ceil(pages / 32) * 4))) {
    if (words.length !== Math.ceil(pages / 32)) throw new MigrationError("ERR_INTERNAL", `${words.length} words for ${pages} pages`);
    this.pages = pages;
    this.words = words;
  }

  has(page: number): boolean {
    return ((this.words[page >>> 5] ?? 0) & (1 << (page & 31))) !== 0;
  }

  /** @throws {MigrationError} ERR_RUN_OUT_OF_RANGE, so that a wrong mark never vanishes silently. */
  setRun(firstPage: number, pages: number): void {
    const end = firstPage + pages;
    if (firstPage < 0 || pages < 1 || end > this.pages)
      throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `Run of ${pages} pages at ${firstPage}, bitmap of ${this.pages}`);
    const firstWord = firstPage >>> 5;
    const lastWord = (end - 1) >>> 5;
    const head = -1 << (firstPage & 31);
    const tail = -1 >>> (31 - ((end - 1) & 31));
    if (firstWord === lastWord) {
      this.words[firstWord]! |= head & tail;
      return;
    }
    this.words[firstWord]! |= head;
    this.words.fill(0xffffffff, firstWord + 1, lastWord);
    this.words[lastWord]! |= tail;
  }

  clear(): void {
    this.words.fill(0);
  }

  /** As `setRun`, while other threads change pages of the same words by this or by `clearRunShared`. */
  setRunShared(firstPage: number, pages: number): void {
    for (let page = firstPage; page < firstPage + pages; page++) Atomics.or(this.words, page >>> 5, 1 << (page & 31));
  }

  clearRunShared(firstPage: number, pages: number): void {
    for (let page = firstPage; page < firstPage + pages; page++) Atomics.and(this.words, page >>> 5, ~(1 << (page & 31)));
  }

  /** Takes pages of one word out, by their bits, while other threads do the same: each page is one's only. @returns the bits of those that were there */
  takeShared(word: number, bits: number): number {
    return Atomics.and(this.words, word, ~bits) & bits;
  }

  /** These become the other's pages. */
  copy(other: Bitmap): void {
    this.words.set(other.words);
  }

  /** Keeps only pages that the other has, too. */
  intersect(other: Bitmap): void {
    forEachBlock([this], (from, end) => {
      for (let at = from; at < end; at++) this.words[at]! &= other.words[at] ?? 0;
    });
  }

  /** Takes the other's pages out of these. */
  remove(other: Bitmap): void {
    forEachBlock([this, other], (from, end) => {
      for (let at = from; at < end; at++) this.words[at]! &= ~other.words[at]!;
    });
  }

  /** Adds the other's pages to these. */
  join(other: Bitmap): void {
    forEachBlock([other], (from, end) => {
      for (let at = from; at < end; at++) this.words[at]! |= other.words[at]!;
    });
  }

  /** Stripes there are, the last one perhaps shorter. */
  get stripes(): number {
    return Math.ceil(this.words.length / STRIPE_WORDS);
  }

  /** The first stripe from `stripe` on that may have pages, or `stripes`. Passes over long gaps quickly. */
  skipEmpty(stripe: number): number {
    let at = stripe;
    while (at % BLOCK_STRIPES === 0 && at < this.stripes && isEmptyBlock(this.words, at * STRIPE_WORDS)) at += BLOCK_STRIPES;
    return Math.min(at, this.stripes);
  }

  /** Pages set in one stripe, not counting those below `from`. */
  countStripe(stripe: number, from = 0): number {
    let pages = 0;
    const end = Math.min((stripe + 1) * STRIPE_WORDS, this.words.length);
    let at = Math.max(stripe * STRIPE_WORDS, Math.floor(from / 32));
    if (at < end && from > at * 32) pages = popcount(this.words[at++]! & (-1 << (from & 31)));
    for (; at < end; at++) if (this.words[at] !== 0) pages += popcount(this.words[at]!);
    return pages;
  }

  /** Pages set, `from` and above; with `lanes`, those of one lane. */
  count(lane = 0, lanes = 1, from = 0): number {
    let pages = 0;
    for (let stripe = this.skipEmpty(0); stripe < this.stripes; stripe = this.skipEmpty(stripe + 1))
      if (stripe % lanes === lane) pages += this.countStripe(stripe, from);
    return pages;
  }

  /** Visits the pages from `from` to before `end` in page order, but for those of stripes of which every page is set. */
  forEachUnfilled(from: number, end: number, visit: VisitPages): void {
    for (let first = from; first < end; ) {
      let stripe = Math.floor(first / STRIPE_PAGES);
      while (stripe * STRIPE_PAGES < end && !this.#isFilled(stripe)) stripe++;
      const last = Math.min(stripe * STRIPE_PAGES, end);
      if (last > first) visit(first, last - first);
      while (stripe * STRIPE_PAGES < end && this.#isFilled(stripe)) stripe++;
      first = stripe * STRIPE_PAGES;
    }
  }

  #isFilled(stripe: number): boolean {
    const end = (stripe + 1) * STRIPE_WORDS;
    for (let at = stripe * STRIPE_WORDS; at < end; at++) if (this.words[at] !== 0xffffffff) return false;
    return true;
  }

  /** Visits all runs in page order, cut at stripes. */
  forEachRun(visit: VisitPages): void {
    for (let stripe = this.skipEmpty(0); stripe < this.stripes; stripe = this.skipEmpty(stripe + 1)) this.forEachRunOfStripe(stripe, visit);
  }

  /** Visits the runs of one stripe in page order. */
  forEachRunOfStripe(stripe: number, visit: VisitPages): void {
    const { words } = this;
    const end = Math.min((stripe + 1) * STRIPE_WORDS, words.length);
    let first = -1; // of the run that is open
    for (let at = stripe * STRIPE_WORDS; at < end; at++) {
      const word = words[at]!;
      if (word === 0) {
        if (first >= 0) visit(first, at * 32 - first);
        first = -1;
      } else if (word === 0xffffffff) {
        if (first < 0) first = at * 32;
      } else {
        for (let bit = 0; bit < 32; bit++) {
          const isSet = ((word >>> bit) & 1) === 1;
          if (isSet && first < 0) first = at * 32 + bit;
          else if (!isSet && first >= 0) {
            visit(first, at * 32 + bit - first);
            first = -1;
          }
        }
      }
    }
    if (first >= 0) visit(first, end * 32 - first);
  }
}
