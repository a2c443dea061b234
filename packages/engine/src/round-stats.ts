import { BANDWIDTH_WINDOW_BYTES, BANDWIDTH_WINDOW_MS, PAGE_BYTES } from "@precopy/protocol";
import type { RoundTransfer } from "./ports.js";

/** A round that found more than this many bytes of zeros for each byte it sent teaches nothing of the link. */
const SCAN_SHARE = 4;

/**
 * What finished rounds teach. Bandwidth comes from acknowledged bytes in windows of at least 16 MiB or 20 ms; shorter rounds teach
 * only the fixed part of a round, from its last byte to its acknowledgement.
 */
export class RoundStats {
  #bandwidth: number | undefined;
  #fixedMs: number | undefined;
  #wireBytesPerPage = PAGE_BYTES;

  add({ bytes, ms, normalPages, zeroPages }: RoundTransfer): void {
    if (normalPages > 0) this.#wireBytesPerPage = bytes / normalPages;
    if (zeroPages * PAGE_BYTES > SCAN_SHARE * bytes) return; // its time went into looking, not into sending
    if (bytes >= BANDWIDTH_WINDOW_BYTES || ms >= BANDWIDTH_WINDOW_MS) this.#bandwidth = (bytes / Math.max(ms, 0.001)) * 1000;
    else this.#fixedMs = Math.max(0, ms - this.transferMs(bytes));
  }

  /** Time that `pages` take on the wire, at the ratio to which the last ones were compressed; 0 while the bandwidth is unknown. */
  pagesMs(pages: number): number {
    return this.transferMs(pages * this.#wireBytesPerPage);
  }

  /** Bytes a second, acknowledged; undefined until some round was long enough to tell. */
  get bandwidthBytesPerSecond(): number | undefined {
    return this.#bandwidth;
  }

  /** A round's fixed part, ms; undefined until some round was short enough to tell. */
  get fixedMs(): number | undefined {
    return this.#fixedMs;
  }

  /** Time that `bytes` take on the wire; 0 while the bandwidth is unknown. */
  transferMs(bytes: number): number {
    return this.#bandwidth === undefined ? 0 : (bytes / this.#bandwidth) * 1000;
  }
}
