import { compressSync, uncompressSync } from "lz4-napi";
import { MigrationError } from "./errors.js";
import { BLOCK_PAGES, PAGE_BYTES } from "./limits.js";

/**
 * LZ4 payload: blocks of up to BLOCK_PAGES pages, each `length u32` and then `length` bytes. A length equal to the pages' own size
 * marks a block that compression did not shorten and that stands there as it is.
 */
/** In front of each block. */
export const LENGTH_BYTES = 4;

/** What compresses a block, one way or another: all give blocks that all can read. */
export interface Lz4 {
  /** @returns how many bytes of `into` are the block, or 0 if it does not fit there. */
  compress(raw: Buffer, into: Buffer): number;
  /**
   * @param slot LENGTH_BYTES that may be overwritten, and the block behind them.
   * @returns its contents, `rawBytes` or fewer, good until the next call. @throws {Error} if it is no block, or one of more.
   */
  decompress(slot: Buffer, rawBytes: number): Uint8Array;
  /** Each call leaves a buffer for the garbage collector. */
  readonly leavesGarbage: boolean;
}

/** Works wherever Node does. In front of a block it has the raw size as u32; on the wire the block's length takes that very place. */
export const lz4Napi: Lz4 = {
  compress(raw, into) {
    const packed = compressSync(raw).subarray(LENGTH_BYTES);
    if (packed.byteLength > into.byteLength) return 0;
    into.set(packed);
    return packed.byteLength;
  },
  decompress(slot, rawBytes) {
    slot.writeUInt32LE(rawBytes, 0); // ours, never the peer's
    return uncompressSync(slot);
  },
  leavesGarbage: true,
};

/**
 * Encodes one block into `payload`, from `at` on. @param raw whole pages, BLOCK_PAGES at most, to which nobody else writes: a page that changes under
 * the compressor gives a block that cannot be decoded. @returns how many bytes of `payload` are the block now.
 */
export function encodeBlock(raw: Buffer, payload: Buffer, at: number, lz4: Lz4): number {
  const start = at + LENGTH_BYTES;
  const shorter = lz4.compress(raw, payload.subarray(start, start + raw.byteLength - 1));
  if (shorter === 0) payload.set(raw, start);
  const bytes = shorter === 0 ? raw.byteLength : shorter;
  payload.writeUInt32LE(bytes, at);
  return LENGTH_BYTES + bytes;
}

/** Decodes the blocks of one payload in order. The peer is hostile: no length is believed before it was compared with what must be there. */
export class BlockReader {
  readonly #payload: Buffer;
  readonly #lz4: Lz4;
  #at = 0;
  #pagesLeft: number;

  /** @param payload this packet's, ours alone: its length fields are overwritten. */
  constructor(payload: Buffer, pages: number, lz4: Lz4) {
    this.#payload = payload;
    this.#lz4 = lz4;
    this.#pagesLeft = pages;
  }

  /** Pages of the next block, end to end, good until the one after, or undefined after the last. @throws {MigrationError} ERR_BLOCK_CORRUPT */
  next(): Uint8Array | undefined {
    if (this.#pagesLeft === 0) {
      if (this.#at !== this.#payload.byteLength) throw new MigrationError("ERR_BLOCK_CORRUPT", "Bytes after the last block");
      return undefined;
    }
    const rawBytes = Math.min(this.#pagesLeft, BLOCK_PAGES) * PAGE_BYTES;
    const start = this.#at + LENGTH_BYTES;
    const length = start <= this.#payload.byteLength ? this.#payload.readUInt32LE(this.#at) : 0;
    if (length === 0 || length > rawBytes || start + length > this.#payload.byteLength)
      throw new MigrationError("ERR_BLOCK_CORRUPT", `Block of ${length} B at ${this.#at} of ${this.#payload.byteLength} B`);
    this.#pagesLeft -= rawBytes / PAGE_BYTES;
    this.#at = start + length;
    if (length === rawBytes) return this.#payload.subarray(start, start + length);
    let pages: Uint8Array;
    try {
      pages = this.#lz4.decompress(this.#payload.subarray(start - LENGTH_BYTES, start + length), rawBytes);
    } catch (cause) {
      throw new MigrationError("ERR_BLOCK_CORRUPT", `Block of ${length} B does not decode`, { cause });
    }
    if (pages.byteLength !== rawBytes)
      throw new MigrationError("ERR_BLOCK_CORRUPT", `Block decodes to ${pages.byteLength} B, not ${rawBytes}`);
    return pages;
  }
}
