import { compressSync, uncompressSync } from "lz4-napi";
import { MigrationError } from "./errors.js";
import { BLOCK_PAGES, PAGE_BYTES } from "./limits.js";

/**
 * LZ4 payload: blocks of up to BLOCK_PAGES pages, each `length u32` and then `length` bytes. A length equal to the pages' own size
 * marks a block that compression did not shorten and that stands there as it is.
 * lz4-napi puts the raw size in front of a block as u32; on the wire the block's length takes that very place.
 */
/** In front of each block. */
export const LENGTH_BYTES = 4;

/**
 * Encodes one block into `payload`, from `at` on. @param raw whole pages, BLOCK_PAGES at most, to which nobody else writes: a page that changes under
 * the compressor gives a block that cannot be decoded. @returns how many bytes of `payload` are the block now.
 */
export function encodeBlock(raw: Buffer, payload: Buffer, at: number): number {
  const packed = compressSync(raw);
  const isShorter = packed.byteLength - LENGTH_BYTES < raw.byteLength;
  if (isShorter) payload.set(packed, at);
  else payload.set(raw, at + LENGTH_BYTES);
  const bytes = isShorter ? packed.byteLength - LENGTH_BYTES : raw.byteLength;
  payload.writeUInt32LE(bytes, at);
  return LENGTH_BYTES + bytes;
}

/** Decodes the blocks of one payload in order. The peer is hostile: no length is believed before it was compared with what must be there. */
export class BlockReader {
  readonly #payload: Buffer;
  #at = 0;
  #pagesLeft: number;

  /** @param payload this packet's, ours alone: its length fields are overwritten. */
  constructor(payload: Buffer, pages: number) {
    this.#payload = payload;
    this.#pagesLeft = pages;
  }

  /** Pages of the next block, end to end, or undefined after the last. @throws {MigrationError} ERR_BLOCK_CORRUPT */
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
    this.#payload.writeUInt32LE(rawBytes, start - LENGTH_BYTES); // the size lz4-napi expects there: ours, never the peer's
    let pages: Buffer;
    try {
      pages = uncompressSync(this.#payload.subarray(start - LENGTH_BYTES, start + length));
    } catch (cause) {
      throw new MigrationError("ERR_BLOCK_CORRUPT", `Block of ${length} B does not decode`, { cause });
    }
    if (pages.byteLength !== rawBytes)
      throw new MigrationError("ERR_BLOCK_CORRUPT", `Block decodes to ${pages.byteLength} B, not ${rawBytes}`);
    return pages;
  }
}
