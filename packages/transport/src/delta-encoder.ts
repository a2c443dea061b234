import { PageDeltas } from "@precopy/guest";
import type { GuestMemory, VisitPages } from "@precopy/guest";
import { DELTA_LENGTH_BYTES, PACKET_PAYLOAD_BYTES_MAX, PAGE_BYTES } from "@precopy/protocol";
import type { XbzrleCounts } from "@precopy/protocol";

/** A longer delta is the page itself. */
const DELTA_BYTES_MAX = PAGE_BYTES - 1;

/**
 * Encodes pages as what changed since they were sent last by this very encoder. It belongs to one generation of one channel: what it sent arrives in
 * order or not at all, so the other end holds what is kept here. A channel that is made again begins with nothing kept.
 */
export class DeltaEncoder {
  readonly #memory: GuestMemory;
  readonly #deltas: PageDeltas;
  readonly #payload = Buffer.allocUnsafeSlow(PACKET_PAYLOAD_BYTES_MAX);
  #counts = { pages: 0, bytes: 0, misses: 0, overflows: 0 };

  constructor(memory: GuestMemory, cacheBytes: number) {
    this.#memory = memory;
    this.#deltas = new PageDeltas(cacheBytes);
  }

  /**
   * One packet's pages; good until the next call. @param runs (first page, pages), `used` entries of it. @param renew told of each page right after it was
   * copied: if the guest writes in between it is dirty again, and comes once more.
   */
  encode(runs: Uint32Array, used: number, renew: VisitPages | undefined): Buffer {
    let to = 0;
    for (let at = 0; at < used; at += 2)
      for (let page = runs[at]!, end = page + runs[at + 1]!; page < end; page++) {
        const { kind, bytes } = this.#deltas.encode(page, this.#memory.view(page, 1), DELTA_BYTES_MAX);
        renew?.(page, 1);
        this.#payload.writeUInt16LE(bytes.byteLength, to);
        this.#payload.set(bytes, to + DELTA_LENGTH_BYTES);
        to += DELTA_LENGTH_BYTES + bytes.byteLength;
        if (kind === "hit") {
          this.#counts.pages++;
          this.#counts.bytes += bytes.byteLength;
        } else if (kind === "miss") this.#counts.misses++;
        else this.#counts.overflows++;
      }
    return this.#payload.subarray(0, to);
  }

  /** The page was sent as zero. */
  forget(page: number): void {
    this.#deltas.forget(page);
  }

  /** Since the last call. */
  takeCounts(): XbzrleCounts {
    const counts = this.#counts;
    this.#counts = { pages: 0, bytes: 0, misses: 0, overflows: 0 };
    return counts;
  }
}
