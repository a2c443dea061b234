import { BLOCK_PAGES, PAGE_BYTES } from "@precopy/protocol";
import { LENGTH_BYTES } from "@precopy/protocol/page-codec";
import type { BlockCodec } from "@precopy/protocol/page-codec";
import { openLibrary } from "./library.js";

const LIBRARY = "liblz4.so.1";
/** 1.9.4: before it a hostile block could make the decoder write outside its buffer (CVE-2021-3520). */
const VERSION_MIN = 10_904;

let found: BlockCodec | null | undefined; // null: it cannot be had

/** The system's own LZ4, which nearly every Linux has: faster than lz4-napi, and leaves nothing to collect. Undefined without it. */
export function systemLz4(): BlockCodec | undefined {
  if (found === undefined) found = open() ?? null;
  return found ?? undefined;
}

function open(): BlockCodec | undefined {
  const library = openLibrary(LIBRARY);
  if (library === undefined || library("int LZ4_versionNumber()")() < VERSION_MIN) return undefined;
  const compress = library("int LZ4_compress_default(const void *raw, void *into, int bytes, int room)");
  const decompress = library("int LZ4_decompress_safe(const void *block, void *into, int bytes, int room)");
  const pages = Buffer.allocUnsafeSlow(BLOCK_PAGES * PAGE_BYTES);
  return {
    compress: (raw, into) => compress(raw, into, raw.byteLength, into.byteLength),
    decompress(slot, rawBytes) {
      if (rawBytes > pages.byteLength) throw new RangeError(`${rawBytes} B are more than a block holds`);
      const block = slot.subarray(LENGTH_BYTES);
      const bytes = decompress(block, pages, block.byteLength, rawBytes);
      if (bytes < 0) throw new Error(`Not an LZ4 block of ${rawBytes} B`);
      return pages.subarray(0, bytes);
    },
    leavesGarbage: false,
  };
}
