import { createRequire } from "node:module";
import * as zlib from "node:zlib";
import { MigrationError } from "./errors.js";
import { BLOCK_PAGES, PAGE_BYTES } from "./limits.js";
import type { BlockCompression } from "./parameters.js";

/**
 * Compressed payload: blocks of up to BLOCK_PAGES pages, each `length u32` and then `length` bytes. A length equal to the pages' own size
 * marks a block that compression did not shorten and that stands there as it is.
 */
/** In front of each block. */
export const LENGTH_BYTES = 4;

/** What compresses a block, one way or another: all give blocks that all can read. */
export interface BlockCodec {
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

let lz4: BlockCodec | undefined;
/**
 * Works wherever Node does. The first call of a thread loads native code, for 15 ms: none that is to carry no such block needs it, and one that may be
 * stopped meanwhile holds its loading lock.
 */
export const lz4Napi = (): BlockCodec => (lz4 ??= loadLz4());

function loadLz4(): BlockCodec {
  // A CommonJS package; require() is typed any, and what it exports is what its own declaration says.
  const { compressSync, uncompressSync } = createRequire(import.meta.url)("lz4-napi") as typeof import("lz4-napi");
  return {
    // In front of a block it has the raw size as u32; on the wire the block's length takes that very place.
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
}

/** What Node has from 22.15 on, and its types for Node 20 do not know. */
interface ZstdOfNode {
  zstdCompressSync(raw: Uint8Array, options: object): Buffer;
  zstdDecompressSync(packed: Uint8Array, options: object): Buffer;
  readonly constants: Readonly<Record<"ZSTD_c_compressionLevel" | "ZSTD_d_windowLogMax", number>>;
}
const hasNodeZstd = (module: object): module is ZstdOfNode => "zstdCompressSync" in module && "zstdDecompressSync" in module;

/** As QEMU's multifd-zstd-level: the least. */
const ZSTD_LEVEL = 1;
/** No block needs a longer window than itself, and a frame that asks for one gets no memory. */
const WINDOW_LOG_MAX = Math.ceil(Math.log2(BLOCK_PAGES * PAGE_BYTES));

/** Undefined before Node 22.15. */
export const zstdOfNode: BlockCodec | undefined = hasNodeZstd(zlib) ? zstdBy(zlib) : undefined;

function zstdBy({ zstdCompressSync, zstdDecompressSync, constants }: ZstdOfNode): BlockCodec {
  const chunkSize = BLOCK_PAGES * PAGE_BYTES; // all of it in one piece
  const packing = { chunkSize, params: { [constants.ZSTD_c_compressionLevel]: ZSTD_LEVEL } };
  const params = { [constants.ZSTD_d_windowLogMax]: WINDOW_LOG_MAX };
  return {
    compress(raw, into) {
      const packed = zstdCompressSync(raw, packing);
      if (packed.byteLength > into.byteLength) return 0;
      into.set(packed);
      return packed.byteLength;
    },
    decompress: (slot, rawBytes) => zstdDecompressSync(slot.subarray(LENGTH_BYTES), { chunkSize, params, maxOutputLength: rawBytes }),
    leavesGarbage: true,
  };
}

/** Whether `codecOfNode` has it. */
export const hasCodec = (compression: BlockCompression): boolean => compression === "lz4" || zstdOfNode !== undefined;

/** What works wherever Node does; see lz4Napi. @throws {MigrationError} ERR_CAPABILITY if this Node has none */
export function codecOfNode(compression: BlockCompression): BlockCodec {
  const codec = compression === "lz4" ? lz4Napi() : zstdOfNode;
  if (codec === undefined) throw new MigrationError("ERR_CAPABILITY", `Node ${process.versions.node} has no zstd; 22.15 and later have`);
  return codec;
}

/**
 * Encodes one block into `payload`, from `at` on. @param raw whole pages, BLOCK_PAGES at most, to which nobody else writes: a page that changes under
 * the compressor gives a block that cannot be decoded. @returns how many bytes of `payload` are the block now.
 */
export function encodeBlock(raw: Buffer, payload: Buffer, at: number, codec: BlockCodec): number {
  const start = at + LENGTH_BYTES;
  const shorter = codec.compress(raw, payload.subarray(start, start + raw.byteLength - 1));
  if (shorter === 0) payload.set(raw, start);
  const bytes = shorter === 0 ? raw.byteLength : shorter;
  payload.writeUInt32LE(bytes, at);
  return LENGTH_BYTES + bytes;
}

/** Decodes the blocks of one payload in order. The peer is hostile: no length is believed before it was compared with what must be there. */
export class BlockReader {
  readonly #payload: Buffer;
  readonly #codec: BlockCodec;
  #at = 0;
  #pagesLeft: number;

  /** @param payload this packet's, ours alone: its length fields are overwritten. */
  constructor(payload: Buffer, pages: number, codec: BlockCodec) {
    this.#payload = payload;
    this.#codec = codec;
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
      pages = this.#codec.decompress(this.#payload.subarray(start - LENGTH_BYTES, start + length), rawBytes);
    } catch (cause) {
      throw new MigrationError("ERR_BLOCK_CORRUPT", `Block of ${length} B does not decode`, { cause });
    }
    if (pages.byteLength !== rawBytes)
      throw new MigrationError("ERR_BLOCK_CORRUPT", `Block decodes to ${pages.byteLength} B, not ${rawBytes}`);
    return pages;
  }
}
