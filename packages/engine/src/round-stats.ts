import { BANDWIDTH_WINDOW_BYTES, BANDWIDTH_WINDOW_MS } from "@precopy/protocol";
import type { RoundTransfer } from "./ports.js";

/**
 * What finished rounds teach. Bandwidth comes from acknowledged bytes in windows of at least 16 MiB or 20 ms; shorter rounds teach
 * only the fixed part of a round, from its last byte to its acknowledgement.
 */
export class RoundStats {
  #bandwidth: number | undefined;
  #fixedMs: number | undefined;

  add({ bytes, ms }: RoundTransfer): void {
    if (bytes >= BANDWIDTH_WINDOW_BYTES || ms >= BANDWIDTH_WINDOW_MS) this.#bandwidth = (bytes / Math.max(ms, 0.001)) * 1000;
    else this.#fixedMs = Math.max(0, ms - this.transferMs(bytes));
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
