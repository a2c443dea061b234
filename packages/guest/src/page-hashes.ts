import { MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { GuestMemory } from "./guest-memory.js";
import { pageKernels } from "./page-kernels.js";
import type { PageKernels } from "./page-kernels.js";

/** Pages that fit into a core's own cache and leave room there: 256 KiB. */
export const SLICE_PAGES = 64;

/** Two words a page: low and high half of its hash; zero is the zero page's. Shared, so that every channel writes its own stripes. */
export type HashTable = Uint32Array;

export const allocateHashTable = (pages: number): HashTable => new Uint32Array(new SharedArrayBuffer(pages * 8));

/**
 * A 64-bit hash a page, renewed whenever the page is sent or stored, and their sum over the image: the digest. Each channel keeps the
 * share of its own stripes; shares add up, in any order. It proves the transport and finds accidents, not adversaries.
 */
export class PageHashes {
  readonly #memory: GuestMemory;
  readonly #kernels: readonly PageKernels[];
  readonly #table: HashTable;

  constructor(memory: GuestMemory, table: HashTable) {
    if (table.length !== memory.pages * 2) throw new MigrationError("ERR_INTERNAL", "Hash table of another size");
    this.#memory = memory;
    this.#kernels = pageKernels(memory);
    this.#table = table;
  }

  isZeroPage(page: number): boolean {
    return this.#kernelsOf(page).isZero(this.#memory.offsetOf(page)) === 1;
  }

  /**
   * Of pages of one segment, right after they were copied from or to: 0.3 us each while they are in the processor's cache, three times that when
   * they come from memory. So not more than SLICE_PAGES at once.
   */
  renew(firstPage: number, pages: number): void {
    const table = this.#table;
    const kernels = this.#kernelsOf(firstPage);
    for (let page = firstPage, at = this.#memory.offsetOf(firstPage); page < firstPage + pages; page++, at += PAGE_BYTES) {
      table[2 * page] = kernels.renew(at, page, table[2 * page]!, table[2 * page + 1]!);
      table[2 * page + 1] = kernels.lastHigh();
    }
  }

  /** After a page was sent or stored as zero. */
  forget(page: number): void {
    const table = this.#table;
    if (table[2 * page] === 0 && table[2 * page + 1] === 0) return;
    this.#kernelsOf(page).forget(page, table[2 * page]!, table[2 * page + 1]!);
    table[2 * page] = 0;
    table[2 * page + 1] = 0;
  }

  /** The digest of all pages by their hashes in the table, whoever renewed them. */
  digestOfTable(): bigint {
    const kernels = pageKernels(this.#memory)[0]!; // a guest has a segment
    const table = this.#table;
    for (let at = 0; at < table.length; at += 2)
      if (table[at] !== 0 || table[at + 1] !== 0) kernels.forget(at / 2, table[at]!, table[at + 1]!);
    return BigInt.asUintN(64, -sumOf([kernels]));
  }

  /** True if the page holds what its hash says; a page never hashed must be zero. */
  matches(page: number): boolean {
    const low = this.#table[2 * page]!;
    const high = this.#table[2 * page + 1]!;
    if (low === 0 && high === 0) return this.isZeroPage(page);
    const kernels = this.#kernelsOf(page);
    return kernels.hashPage(this.#memory.offsetOf(page)) >>> 0 === low && kernels.lastHigh() >>> 0 === high;
  }

  /** This instance's share of the image digest. */
  digest(): bigint {
    return BigInt.asUintN(64, sumOf(this.#kernels));
  }

  #kernelsOf(page: number): PageKernels {
    const kernels = this.#kernels[this.#memory.segmentOf(page)];
    if (kernels === undefined) throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `Page ${page}; the guest has ${this.#memory.pages}`);
    return kernels;
  }
}

const sumOf = (kernels: readonly PageKernels[]): bigint =>
  kernels.reduce((all, one) => all + ((BigInt(one.digestHigh() >>> 0) << 32n) | BigInt(one.digestLow() >>> 0)), 0n);

/** Shares of all channels to the digest as it travels: 16 hexadecimal digits. */
export const joinDigests = (shares: readonly bigint[]): string =>
  BigInt.asUintN(
    64,
    shares.reduce((all, share) => all + share, 0n),
  )
    .toString(16)
    .padStart(16, "0");
