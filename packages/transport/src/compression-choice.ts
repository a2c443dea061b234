import { PAGE_BYTES } from "@precopy/protocol";
import type { BlockCompression } from "@precopy/protocol";
import { LINK_BOUND, linkLimitedMs } from "./pump.js";
import type { LinkState } from "./pump.js";

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
  /** Its first page was touched, it was ready to be sent, the last byte was taken. ms, monotonic. */
  readonly startedAt: number;
  readonly packedAt: number;
  readonly endedAt: number;
  /** See SendPump, both. */
  readonly backlogBytes: number | undefined;
  readonly link: LinkState | undefined;
}

type PacketCompression = SentPacket["compression"];

/** Where a socket's backlog is not known, its buffer hides for so many packets in a row what the link carries. */
const SETTLING_PACKETS = 3;
/** What left a channel in less says nothing: packets and acknowledgements come in bursts. */
const WINDOW_MS = 5;
/** A smaller packet says little of a speed. */
const PAGES_MIN = 256;
/** Compression has to promise this much more, since what it saves is forecast and what it costs is certain. */
const GAIN_MIN = 1.15;
/** And so much more before whole packets were seen to leave so: what a few pages take alone, they do not take beside a peer on the same processors. */
const UNTRIED_GAIN_MIN = 1.3;
/** What the packet before was not compressed by is looked at only while all that looking took less than this of the time: on a fast link every sample tells. */
const LOOKING_MAX = 0.01;
/** What was no gain is tried again after so many packets, since it may have been the peer's bad moment, and after twice as many each time that it was none again. */
const RETRY_PACKETS = 64;
/**
 * While packets are compressed nobody sees what the link would take as it is: one is sent so for as many times of what one takes. Sooner in the
 * beginning where little is gained, because the first was seen with peer and link still cold.
 */
const REMEASURE_AFTER = 20;
const REMEASURE_AFTER_FIRST = 5;
const LITTLE_GAIN = 2;
/** So much of the time for which uncompressed pages leave tells whether it is the link that limits; the kernel counts in steps of 4. */
const LOOK_MS = 25;
/** A link that carries this share of what it was known to is no slower. */
const AS_KNOWN = 0.9;
/** How much the latest counts of what is smoothed. A link that seemed slower was a peer being held up, so less counts less. */
const WEIGHT = 0.5;
const WEIGHT_SLOWER = 0.3;

const mixed = (before: number, now: number, weight = WEIGHT): number => (Number.isFinite(before) ? before + weight * (now - before) : now);
const mixedSpeed = (before: number, now: number): number => mixed(before, now, now < before ? WEIGHT_SLOWER : WEIGHT);

/** A candidate's speeds, pages a ms. */
interface Pack {
  /** Of samples; NaN before the first. */
  sampled: number;
  /** What whole packets take of it: a sample of a few pages finds the processor's caches to itself. */
  share: number;
  /** What whole packets were seen to leave at, which the peer's processor may limit; infinite before the first. */
  reached: number;
  /** Packets. */
  retryAt: number;
  retryAfter: number;
}

const newPack = (): Pack => ({ sampled: NaN, share: 1, reached: Infinity, retryAt: 0, retryAfter: RETRY_PACKETS });

/**
 * Decides for each packet of one channel how its pages are compressed, if at all, and changes its mind when link, processor or contents do. What counts is how
 * fast pages leave the socket: uncompressed as fast as they were seen to; compressed as fast as the same link takes what is left of them, or as fast as they
 * can be compressed here, or unpacked there, whichever is slowest. What seems a slow link while compressed pages leave may be the peer unpacking them, so only
 * uncompressed ones may tell it, and some are sent for nothing else.
 */
export class CompressionChoice {
  readonly #candidates: readonly BlockCompression[];
  /** Uncompressed. Pages a ms; NaN before the first was measured. */
  #rawSpeed = NaN;
  readonly #packs = new Map<BlockCompression, Pack>();
  #packets = 0;
  /** By what gains most, as of the latest packet that was decided on. */
  #chosen: PacketCompression = "none";
  /** While packets were made and sent, and of that with samples. */
  #passedMs = 0;
  #lookingMs = 0;
  #isRemeasuring = true;
  #remeasureAfter = REMEASURE_AFTER_FIRST;
  /** Of compressed packets, since the link was last seen uncompressed. */
  #packedMs = 0;
  /** So it was when packets were last seen to leave uncompressed. If not, packing and unpacking would be more work for a processor that limits. */
  #isLinkBound = false;
  /** While they left: of all this time for how long it was the link that was waited for. What is older counts less. */
  readonly #raw = { ms: 0, linkMs: 0 };
  /** As of the packet before; a connection that has just been made has waited for nothing yet. */
  #linkMs: number | undefined = 0;
  #endedAt: number | undefined;
  #latest: PacketCompression = "none";
  /** Of the latest kind. */
  #inARow = 0;
  /** In the socket: what is left of each packet, the oldest first. */
  readonly #queue: { readonly compression: PacketCompression; bytes: number; pages: number }[] = [];
  #queuedBytes = 0;
  /** What left the socket since a speed was last found. */
  readonly #left = { bytes: 0, pages: 0, ms: 0, seenMs: 0, linkMs: 0, compressions: new Set<PacketCompression>() };

  /** @param candidates beside none */
  constructor(candidates: readonly BlockCompression[]) {
    this.#candidates = candidates;
  }

  /** A round begins: what passed since the last one was not the channel's time, and its packets have left. */
  beginRound(): void {
    this.#endedAt = undefined;
    if (this.#packets > 0) this.#linkMs = undefined;
    this.#queue.length = this.#queuedBytes = 0;
    this.#beginWindow();
  }

  /**
   * How the next packet is sent. @param pages in it, with data
   * @param sample compresses some pages of it; called only if the answer may matter.
   */
  choose(pages: number, sample: (compression: BlockCompression) => PackSample): PacketCompression {
    this.#packets++;
    // A packet tells that a link is slow, and on a fast one everything else would be a loss. A small one tells nothing: it goes as those before it.
    if (!this.#isLinkBound || (this.#isRemeasuring && pages >= PAGES_MIN)) return "none";
    let [best, bestSpeed]: [PacketCompression, number] = ["none", this.#rawSpeed * GAIN_MIN];
    for (const candidate of this.#candidates) {
      const pack = this.#packs.get(candidate) ?? newPack();
      if (pack.reached < this.#rawSpeed * GAIN_MIN) {
        if (this.#packets < pack.retryAt) continue;
        pack.reached = Infinity;
      }
      if (candidate !== this.#chosen && this.#lookingMs > LOOKING_MAX * this.#passedMs) continue;
      const { pages, bytes, ms } = sample(candidate);
      this.#lookingMs += ms;
      pack.sampled = mixedSpeed(pack.sampled, pages / Math.max(ms, 0.001));
      this.#packs.set(candidate, pack);
      const doubt = pack.reached === Infinity ? UNTRIED_GAIN_MIN : 1;
      const speed = Math.min(pack.sampled * pack.share, pack.reached, (this.#rawSpeed * pages * PAGE_BYTES) / bytes) / doubt;
      if (speed > bestSpeed) [best, bestSpeed] = [candidate, speed];
    }
    this.#chosen = best;
    return best;
  }

  sent({ compression, pages, bytes, startedAt, packedAt, endedAt, backlogBytes, link }: SentPacket): void {
    const ms = endedAt - (this.#endedAt ?? startedAt);
    this.#endedAt = endedAt;
    this.#passedMs += ms;
    this.#inARow = compression === this.#latest ? this.#inARow + 1 : 1;
    this.#latest = compression;
    this.#lookAt(link, ms);
    const pack = compression === "none" ? undefined : this.#packs.get(compression);
    if (pack !== undefined) {
      if (pages >= PAGES_MIN) pack.share = mixed(pack.share, pages / Math.max(packedAt - startedAt, 0.001) / pack.sampled);
      this.#packedMs += ms;
      const speed = Math.min(pack.sampled * pack.share, pack.reached, (this.#rawSpeed * pages * PAGE_BYTES) / bytes);
      const after = speed < LITTLE_GAIN * this.#rawSpeed ? this.#remeasureAfter : REMEASURE_AFTER;
      if (!this.#isRemeasuring && this.#packedMs * this.#rawSpeed > after * pages) {
        this.#isRemeasuring = true;
        this.#remeasureAfter = Math.min(2 * after, REMEASURE_AFTER);
      }
    }
    this.#queue.push({ compression, bytes, pages });
    this.#queuedBytes += bytes;
    this.#leave(this.#queuedBytes - (backlogBytes ?? 0), ms);
    if (backlogBytes === undefined && this.#inARow <= SETTLING_PACKETS) this.#beginWindow();
    else if (this.#left.ms >= WINDOW_MS) this.#learn();
  }

  /** Where nobody tells, all the time is taken for the link's. What it did between two rounds is not known, and so not what it did for the first packet of one. */
  #lookAt(link: LinkState | undefined, ms: number): void {
    const now = link && linkLimitedMs(link);
    if (now === undefined || this.#linkMs !== undefined) {
      this.#left.seenMs += ms;
      this.#left.linkMs += now === undefined ? ms : now - this.#linkMs!;
    }
    this.#linkMs = now;
  }

  /** @param bytes from the front of the queue, in these ms */
  #leave(bytes: number, ms: number): void {
    const left = this.#left;
    left.ms += ms;
    this.#queuedBytes -= Math.max(bytes, 0);
    for (let first = this.#queue[0]; first !== undefined && bytes >= 1; first = this.#queue[0]) {
      const share = Math.min(bytes / first.bytes, 1);
      const [leftBytes, leftPages] = [first.bytes * share, first.pages * share];
      left.compressions.add(first.compression);
      left.bytes += leftBytes;
      left.pages += leftPages;
      first.bytes -= leftBytes;
      first.pages -= leftPages;
      bytes -= leftBytes;
      if (share === 1) this.#queue.shift();
    }
  }

  #learn(): void {
    const { bytes, pages, ms, compressions } = this.#left;
    const speed = Math.max(bytes / PAGE_BYTES / ms, 0.001);
    const isRaw = compressions.has("none");
    const isPure = compressions.size <= 1;
    if (isRaw && isPure) this.#judgeLink();
    const known = this.#rawSpeed;
    if ((isRaw && isPure) || compressions.size === 0 || speed > known) this.#rawSpeed = mixedSpeed(known, speed);
    if (isRaw && (isPure || speed > AS_KNOWN * known)) {
      this.#isRemeasuring = false;
      this.#packedMs = 0;
    }
    for (const [compression, pack] of this.#packs)
      if (isPure && compressions.has(compression)) {
        pack.reached = mixed(pack.reached, pages / ms);
        if (pack.reached >= this.#rawSpeed * GAIN_MIN) pack.retryAfter = RETRY_PACKETS;
        else if (this.#packets >= pack.retryAt) {
          pack.retryAt = this.#packets + pack.retryAfter;
          pack.retryAfter *= 2;
        }
      }
    this.#beginWindow();
  }

  #judgeLink(): void {
    const raw = this.#raw;
    raw.ms += this.#left.seenMs;
    raw.linkMs += this.#left.linkMs;
    if (raw.ms < LOOK_MS) return;
    this.#isLinkBound = raw.linkMs >= LINK_BOUND * raw.ms;
    raw.ms /= 2;
    raw.linkMs /= 2;
  }

  #beginWindow(): void {
    this.#left.bytes = this.#left.pages = this.#left.ms = this.#left.seenMs = this.#left.linkMs = 0;
    this.#left.compressions.clear();
  }
}
