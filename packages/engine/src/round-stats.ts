import { BANDWIDTH_WINDOW_BYTES, BANDWIDTH_WINDOW_MS, PAGE_BYTES } from "@precopy/protocol";
import type { RoundTransfer } from "./ports.js";

/** Of a round that found more than this many bytes of zeros for each byte it sent nobody knows how long the sending took. */
const SCAN_SHARE = 4;

/**
 * What finished rounds teach. Bandwidth comes from acknowledged bytes in windows of at least 16 MiB or 20 ms; shorter rounds teach
 * the fixed part of a round, from its last byte to its acknowledgement. Until some round tells the bandwidth, forecasts use the fastest that was
 * seen: the link carries at least that, so they are too long, and one more round corrects them; taken for no time, what is left would be the pause.
 */
export class RoundStats {
  #bandwidth: number | undefined;
  #atLeast = 0;
  #fixedMs: number | undefined;
  #wireBytesPerPage = PAGE_BYTES;

  add({ bytes, ms, normalPages, zeroPages }: RoundTransfer): void {
    if (normalPages > 0) this.#wireBytesPerPage = bytes / normalPages;
    const rate = (bytes / Math.max(ms, 0.001)) * 1000;
    this.#atLeast = Math.max(this.#atLeast, rate);
    if (zeroPages * PAGE_BYTES > SCAN_SHARE * bytes) return; // its time went into looking, not into sending
    if (bytes >= BANDWIDTH_WINDOW_BYTES || ms >= BANDWIDTH_WINDOW_MS) this.#bandwidth = rate;
    else this.#fixedMs = Math.max(0, ms - (this.#bandwidth === undefined ? 0 : this.transferMs(bytes)));
  }

  /** Time that `pages` take on the wire, at the ratio to which the last ones were compressed; 0 before the first round. */
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

  /** Time that `bytes` take on the wire; 0 before the first round. */
  transferMs(bytes: number): number {
    const rate = this.#bandwidth ?? this.#atLeast;
    return rate === 0 ? 0 : (bytes / rate) * 1000;
  }
}
