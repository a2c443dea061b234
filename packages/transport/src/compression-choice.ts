import { PAGE_BYTES } from "@precopy/protocol";

/** What compressing a few pages of a packet gave. */
export interface PackSample {
  readonly pages: number;
  /** Of the blocks. */
  readonly bytes: number;
  readonly ms: number;
}

/** After a change of mode the socket's buffer hides for so many packets what the link carries. */
const SETTLING_PACKETS = 3;
/** A smaller packet says little of a speed. */
const PAGES_MIN = 256;
/** Compression has to promise this much more, since what it saves is forecast and what it costs is certain. */
const GAIN_MIN = 1.1;
/** Where compression cannot keep up with the link, contents are looked at as seldom as this: it takes a twentieth of a packet's time. */
const LOOK_EVERY_PACKETS = 16;
/** Compressing at this share of its own speed or more, the processor is what limits it, and nobody knows what the link would carry. */
const PROCESSOR_BOUND = 0.8;
/** So that is found out anew after so many packets, and after twice as many each time that it came to the same. */
const REMEASURE_PACKETS = 64;
/** How much the latest packet counts. */
const WEIGHT = 0.3;

const mixed = (before: number | undefined, now: number): number => (before === undefined ? now : before + WEIGHT * (now - before));

/**
 * Decides for each packet of one channel whether its pages are compressed, and changes its mind when link, processor or contents do. What counts is how
 * fast pages leave: uncompressed as fast as the link takes them, which is measured; compressed as fast as the link takes what is left of them, or as fast as
 * they can be compressed, whichever is slower. Only whole packets are timed, so what else a channel does is in it.
 */
export class CompressionChoice {
  /** Uncompressed. Pages a ms, all of these. */
  #rawSpeed: number | undefined;
  #packSpeed: number | undefined;
  #packets = 0;
  #rawInARow = 0;
  #processorBound = 0;
  #remeasureAfter = REMEASURE_PACKETS;
  #remeasuring = 0;
  /** The packet under way is as it is because the link is being measured, and not because that is better. */
  #isMeasurement = false;

  /** @param sample compresses some pages of the packet. Called only if its answer may matter. @returns true: compress this packet */
  mayCompress(sample: () => PackSample): boolean {
    this.#packets++;
    if (this.#processorBound >= this.#remeasureAfter) {
      this.#processorBound = 0;
      this.#remeasureAfter *= 2;
      this.#remeasuring = SETTLING_PACKETS + 1;
      this.#rawInARow = 0;
    }
    this.#isMeasurement = this.#remeasuring > 0;
    if (this.#isMeasurement) {
      this.#remeasuring--;
      return false;
    }
    const raw = this.#rawSpeed;
    if (raw === undefined) return false;
    const isTooSlow = this.#packSpeed !== undefined && this.#packSpeed < raw * GAIN_MIN;
    if (isTooSlow && this.#packets % LOOK_EVERY_PACKETS !== 0) return false;
    const { pages, bytes, ms } = sample();
    this.#packSpeed = mixed(this.#packSpeed, pages / Math.max(ms, 0.001));
    const ratio = bytes / (pages * PAGE_BYTES);
    return Math.min(this.#packSpeed, raw / ratio) > raw * GAIN_MIN;
  }

  /** A packet was handed to the socket. @param bytes on the wire. @param ms from the first page to the last byte taken. */
  sent(isCompressed: boolean, pages: number, bytes: number, ms: number): void {
    if (pages < PAGES_MIN) return;
    const speed = pages / Math.max(ms, 0.001);
    if (!isCompressed) {
      this.#processorBound = 0;
      if (!this.#isMeasurement) this.#remeasureAfter = REMEASURE_PACKETS;
      if (++this.#rawInARow > SETTLING_PACKETS)
        this.#rawSpeed = this.#rawInARow === SETTLING_PACKETS + 1 ? speed : mixed(this.#rawSpeed, speed);
      return;
    }
    this.#rawInARow = 0;
    const linkSpeed = speed * (bytes / (pages * PAGE_BYTES)); // in pages that are not compressed
    if (speed >= (this.#packSpeed ?? 0) * PROCESSOR_BOUND) {
      this.#processorBound++;
      this.#rawSpeed = Math.max(this.#rawSpeed ?? 0, linkSpeed); // it carries at least that
    } else {
      this.#processorBound = 0;
      this.#rawSpeed = mixed(this.#rawSpeed, linkSpeed);
    }
  }
}
