import { BANDWIDTH_BYTES_MIN, BANDWIDTH_WINDOW_BYTES, BANDWIDTH_WINDOW_MS, PAGE_BYTES } from "@precopy/protocol";
import type { RoundTransfer } from "./ports.js";

/** Of a round that found more than this many bytes of zeros for each byte it sent nobody knows how long the sending took. */
const SCAN_SHARE = 4;

/** The part of a round in which its bytes were under way is at least this share of it, whatever the round trip was taken to be. */
const SENDING_SHARE_MIN = 0.5;

/**
 * What finished rounds teach. Bandwidth comes from acknowledged bytes over the time beyond a round trip, in rounds of at least 16 MiB, or of 20 ms
 * and 1 MiB; all others teach the fixed part of a round, from its last byte to its acknowledgement: a page that took 60 ms on a long link or a busy
 * host says nothing of a thousand. Until some round tells the bandwidth, forecasts use the fastest that was seen: the link carries at least that,
 * so they are too long, and one more round corrects them; taken for no time, what is left would be the pause.
 */
export class RoundStats {
  #bandwidth: number | undefined;
  #atLeast = 0;
  #fixedMs: number | undefined;
  #wireBytesPerPage = PAGE_BYTES;

  /** @param roundTripMs shortest seen */
  add({ bytes, ms, normalPages, zeroPages }: RoundTransfer, roundTripMs: number): void {
    if (normalPages > 0) this.#wireBytesPerPage = bytes / normalPages;
    const sendingMs = Math.max(ms - roundTripMs, SENDING_SHARE_MIN * ms, 0.001);
    const rate = (bytes / sendingMs) * 1000;
    this.#atLeast = Math.max(this.#atLeast, rate);
    if (zeroPages * PAGE_BYTES > SCAN_SHARE * bytes) return; // its time went into looking, not into sending
    const isWindow = bytes >= BANDWIDTH_WINDOW_BYTES || (sendingMs >= BANDWIDTH_WINDOW_MS && bytes >= BANDWIDTH_BYTES_MIN);
    if (isWindow) this.#bandwidth = rate;
    else this.#fixedMs = Math.max(0, ms - (this.#bandwidth === undefined ? 0 : this.transferMs(bytes)));
  }

  /** From now on the link is capped at this, bytes/s, 0 for not at all. What it carried so far it carries at least, as far as the cap lets it. */
  cap(bytesPerSecond: number): void {
    this.#atLeast = Math.min(this.#bandwidth ?? this.#atLeast, bytesPerSecond === 0 ? Number.POSITIVE_INFINITY : bytesPerSecond);
    this.#bandwidth = undefined;
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
