import { PAGE_BYTES } from "@precopy/protocol";
import type { BlockCompression } from "@precopy/protocol";

/** What compressing a few pages of a packet gave. */
export interface PackSample {
  readonly pages: number;
  /** Of the blocks. */
  readonly bytes: number;
  readonly ms: number;
}

/** A packet that was handed to the socket. */
export interface SentPacket {
  readonly compression: BlockCompression | "none";
  readonly pages: number;
  /** On the wire. */
  readonly bytes: number;
  /** Its first page was touched; the last byte was taken. ms, monotonic. */
  readonly startedAt: number;
  readonly endedAt: number;
  /** See SendPump. */
  readonly backlogBytes: number | undefined;
}

/** After a change of mode the socket's buffer hides for so many packets what the link carries; not where its backlog is known. */
const SETTLING_PACKETS = 3;
/** What drains out of a socket in less says nothing: packets and acknowledgements come in bursts. */
const WINDOW_MS = 1;
/** With less than this left in the socket the link has kept up. */
const BACKLOG_BYTES = 2 ** 18;
/** A packet that waits this long for room in the socket waits for a slow link; for less it may be for the peer's processor. */
const WAITED_MS = 10;
/** A smaller packet says little of a speed. */
const PAGES_MIN = 256;
/** Compression has to promise this much more, since what it saves is forecast and what it costs is certain. */
const GAIN_MIN = 1.1;
/** Where compression cannot keep up with the link, contents are looked at as seldom as this: it takes a twentieth of a packet's time. */
const LOOK_EVERY_PACKETS = 16;
/** Compressing at this share of its own speed or more, the processor is what limits it, and nobody knows what the link would carry. */
const PROCESSOR_BOUND = 0.8;
/**
 * What is compressed may wait for the processor here, or there, and look like a slow link: what a packet takes that is not is found out anew after so
 * many, the first time soon, and after twice as many each time that it came to the same.
 */
const FIRST_MEASURE_PACKETS = 8;
const REMEASURE_PACKETS = 64;
/** How much the latest packet counts. A link that seemed faster was a socket's buffer being filled, so less counts more. */
const WEIGHT = 0.3;
const WEIGHT_SLOWER = 0.7;

const mixed = (before: number | undefined, now: number): number =>
  before === undefined ? now : before + (now < before ? WEIGHT_SLOWER : WEIGHT) * (now - before);

/**
 * Decides for each packet of one channel how its pages are compressed, if at all, and changes its mind when link, processor or contents do. What counts is how
 * fast pages leave: uncompressed as fast as the link takes them, which is measured; compressed as fast as the link takes what is left of them, or as fast as
 * they can be compressed, whichever is slower. Only whole packets are timed, so what else a channel does is in it.
 */
export class CompressionChoice {
  readonly #candidates: readonly BlockCompression[];
  /** Uncompressed. Pages a ms, as all of these. */
  #rawSpeed: number | undefined;
  readonly #packSpeeds = new Map<BlockCompression, number>();
  #packets = 0;
  #rawInARow = 0;
  /** Compressed since the link was last seen without. */
  #packed = 0;
  #remeasureAfter = FIRST_MEASURE_PACKETS;
  /** Nothing is compressed until the link was measured. */
  #remeasuring = false;
  /** After the last packet; undefined where nobody can tell. */
  #backlogBytes: number | undefined = 0;
  #endedAt: number | undefined;
  /** Since the last estimate of the link, while it was what everything waited for. */
  #windowBytes = 0;
  #windowMs = 0;

  /** @param candidates beside none */
  constructor(candidates: readonly BlockCompression[]) {
    this.#candidates = candidates;
  }

  /** How the next packet is sent. @param sample compresses some pages of it; called only if the answer may matter. */
  choose(sample: (compression: BlockCompression) => PackSample): BlockCompression | "none" {
    this.#packets++;
    if (this.#packed >= this.#remeasureAfter) {
      this.#packed = 0;
      this.#remeasureAfter = Math.max(2 * this.#remeasureAfter, REMEASURE_PACKETS);
      this.#remeasuring = true;
      this.#rawInARow = 0;
    }
    if (this.#remeasuring) return "none";
    const raw = this.#rawSpeed;
    if (raw === undefined) return "none"; // one packet tells that a link is slow, and on a fast one everything else would be a loss
    let [best, bestSpeed]: [BlockCompression | "none", number] = ["none", raw * GAIN_MIN];
    for (const candidate of this.#candidates) {
      const known = this.#packSpeeds.get(candidate);
      // What cannot be faster than what was found already is looked at from time to time.
      if (known !== undefined && known < bestSpeed && this.#packets % LOOK_EVERY_PACKETS !== 0) continue;
      const { pages, bytes, ms } = sample(candidate);
      const packSpeed = mixed(known, pages / Math.max(ms, 0.001));
      this.#packSpeeds.set(candidate, packSpeed);
      const speed = Math.min(packSpeed, (raw * pages * PAGE_BYTES) / bytes);
      if (speed > bestSpeed) [best, bestSpeed] = [candidate, speed];
    }
    return best;
  }

  sent({ compression, pages, bytes, startedAt, endedAt, backlogBytes }: SentPacket): void {
    this.#windowBytes += bytes + (this.#backlogBytes ?? 0) - (backlogBytes ?? 0);
    this.#windowMs += endedAt - (this.#endedAt ?? startedAt);
    this.#backlogBytes = backlogBytes;
    this.#endedAt = endedAt;
    const speed = pages / Math.max(endedAt - startedAt, 0.001);
    if (backlogBytes === undefined) {
      if (pages >= PAGES_MIN) this.#sentBlindly(compression, speed, speed * (bytes / (pages * PAGE_BYTES)));
      return;
    }
    // Of the packet before something was left when this one came: all the while the link was what everything waited for. It was as well if a packet
    // that nobody compressed waited long for room, where the socket takes less than one.
    const hasWaited = compression === "none" && backlogBytes >= BACKLOG_BYTES && endedAt - startedAt >= WAITED_MS;
    const isLinkBound = backlogBytes > bytes || hasWaited;
    if (isLinkBound && this.#windowMs < WINDOW_MS) return;
    const linkSpeed = Math.max(this.#windowBytes / PAGE_BYTES / Math.max(this.#windowMs, 0.001), 0.001);
    this.#windowBytes = this.#windowMs = 0;
    if (isLinkBound) {
      this.#learn(linkSpeed, compression === "none");
    } else if (pages < PAGES_MIN) return;
    else if (compression !== "none") this.#atLeast(linkSpeed);
    else if (backlogBytes < BACKLOG_BYTES) this.#learn(speed, true); // else the socket took it, and nobody knows yet how long it will keep it
  }

  /** Where a socket's buffer cannot be looked into: what keeps a packet longer than compressing it takes is the link. */
  #sentBlindly(compression: BlockCompression | "none", speed: number, linkSpeed: number): void {
    if (compression !== "none") {
      this.#rawInARow = 0;
      if (speed >= (this.#packSpeeds.get(compression) ?? 0) * PROCESSOR_BOUND) return this.#atLeast(linkSpeed);
      return this.#learn(linkSpeed, false);
    }
    const isSettled = ++this.#rawInARow > SETTLING_PACKETS;
    if (this.#rawInARow === SETTLING_PACKETS + 1) this.#rawSpeed = undefined; // what was known before was another mode's
    if (isSettled) this.#learn(speed, true);
  }

  /** @param speed of the link, or of pages that are not compressed where that is slower */
  #learn(speed: number, isRaw: boolean): void {
    this.#rawSpeed = mixed(isRaw && this.#remeasuring ? undefined : this.#rawSpeed, speed);
    if (!isRaw) {
      this.#packed++;
      return;
    }
    this.#packed = 0;
    if (!this.#remeasuring) this.#remeasureAfter = REMEASURE_PACKETS; // it was better
    this.#remeasuring = false;
  }

  /** The processor was what limited a packet. */
  #atLeast(linkSpeed: number): void {
    this.#packed++;
    this.#rawSpeed = Math.max(this.#rawSpeed ?? 0, linkSpeed);
  }
}
