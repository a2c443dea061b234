import { MigrationError } from "./errors.js";
import { PAGE_BYTES } from "./limits.js";

/**
 * XBZRLE payload: for each data page in order `length u16` and then `length` bytes: 0 for a page that is as it was, up to 4095 for a delta, 4096 for
 * the page itself. A delta says again and again how many bytes stay as they are, how many do not, and gives those; both as unsigned LEB128 of at
 * most two bytes. What is behind the last stays as it is.
 * @see Hacking, Hudzia, "Improving the live migration process of large enterprise applications", VTDC 2009; QEMU, migration/xbzrle.c
 */
export const DELTA_LENGTH_BYTES = 2;

const corrupt = (what: string): MigrationError => new MigrationError("ERR_BLOCK_CORRUPT", `Delta ${what}`);

/**
 * Changes `page` as `delta` says. The peer is hostile: nothing outside the page is touched, and a delta that is not exactly one is refused; the page may
 * have changed up to there. @throws {MigrationError} ERR_BLOCK_CORRUPT
 */
export function applyDelta(page: Uint8Array, delta: Uint8Array): void {
  let read = 0;
  const length = (): number => {
    const low = delta[read++];
    if (low === undefined) throw corrupt("ends within a length");
    if (low < 128) return low;
    const high = delta[read++];
    if (high === undefined || high >= 128 || high === 0) throw corrupt("with a length of more than two bytes, or padded");
    return (low & 127) | (high << 7);
  };
  for (let at = 0; read < delta.byteLength; ) {
    at += length();
    const bytes = length();
    if (bytes === 0 || at + bytes > page.byteLength || read + bytes > delta.byteLength) throw corrupt(`of ${bytes} B at ${at}`);
    page.set(delta.subarray(read, read + bytes), at);
    at += bytes;
    read += bytes;
  }
}

/** The pages of one payload, in order. */
export class DeltaReader {
  readonly #payload: Buffer;
  #at = 0;

  constructor(payload: Buffer) {
    this.#payload = payload;
  }

  /** Brings the next page up to date. @throws {MigrationError} ERR_BLOCK_CORRUPT */
  apply(page: Uint8Array): void {
    const start = this.#at + DELTA_LENGTH_BYTES;
    if (start > this.#payload.byteLength) throw corrupt("is missing");
    const bytes = this.#payload.readUInt16LE(this.#at);
    if (bytes > PAGE_BYTES || start + bytes > this.#payload.byteLength)
      throw corrupt(`of ${bytes} B at ${this.#at} of ${this.#payload.byteLength} B`);
    const body = this.#payload.subarray(start, start + bytes);
    if (bytes === PAGE_BYTES) page.set(body);
    else applyDelta(page, body);
    this.#at = start + bytes;
  }

  /** After the last page. @throws {MigrationError} ERR_BLOCK_CORRUPT if there is more. */
  end(): void {
    if (this.#at !== this.#payload.byteLength) throw corrupt("behind the last page");
  }
}
