import { zeroDetector } from "@precopy/guest";
import type { Bitmap, GuestMemory, PageHashes, VisitPages, ZeroCheck } from "@precopy/guest";
import type { LinkState } from "@precopy/linux";
import {
  BLOCK_PAGES,
  HEADER_BYTES,
  PACKET_PAGES_MAX,
  PACKET_PAYLOAD_BYTES_MAX,
  PACKET_ZERO_RUNS_MAX,
  PAGE_BYTES,
  PacketKind,
  PageEncoding,
  STRIPE_PAGES,
  TABLE_BYTES_MAX,
  encodeHeader,
} from "@precopy/protocol";
import type { BlockCompression, MigrationParameters, XbzrleCounts } from "@precopy/protocol";
import { codecOfNode, encodeBlock } from "@precopy/protocol/page-codec";
import type { BlockCodec } from "@precopy/protocol/page-codec";
import { CompressionChoice } from "./compression-choice.js";
import type { PackSample } from "./compression-choice.js";
import { DeltaEncoder } from "./delta-encoder.js";
import { bitsOfLanes } from "./lane-table.js";
import { BLOCK_BYTES } from "./page-store.js";
import type { SendPump } from "./pump.js";
import { dropped } from "./young-garbage.js";

/** What a channel sent in one round. */
export interface RoundSent {
  readonly normalPages: number;
  readonly zeroPages: number;
  /** On the wire, headers included. */
  readonly bytes: number;
  /** Since the channel began. */
  readonly packets: number;
  /** This channel's share of the image digest so far; undefined without hashes. */
  readonly digest: bigint | undefined;
  /** Undefined without XBZRLE, and in the first round. */
  readonly xbzrle: XbzrleCounts | undefined;
  /** When the last byte was taken; undefined where nobody can tell. */
  readonly link: LinkState | undefined;
}

/** A lane to send, and the page to begin at: what is below it is stored already. 0 for all. */
export interface LaneStart {
  readonly lane: number;
  readonly page: number;
}

/** How far a sender came: everything of this round below `page`, over the lanes it was told to send, was handed to the socket. */
export interface SendPosition {
  readonly round: number;
  readonly page: number;
  /** In its last `sendRound`, up to here. */
  readonly normalPages: number;
  readonly zeroPages: number;
  /** On the wire, headers included. */
  readonly bytes: number;
}

export interface PackerSource {
  readonly memory: GuestMemory;
  /** Undefined with the digest off. */
  readonly hashes: PageHashes | undefined;
  /** How many there are; each round names those it sends. */
  readonly lanes: number;
  readonly compression: MigrationParameters["multifdCompression"];
  /** Of this channel; after the first round pages are sent as what changed since. 0, the default, for none. */
  readonly xbzrleCacheBytes?: number;
  /** What `auto` may choose from, beside none: what the target can decode, and this side encode. Default LZ4 only. */
  readonly choices?: readonly BlockCompression[];
  /** Asked for when blocks are made, not before: a channel without them opens no library. Default Node's. */
  readonly codec?: (compression: BlockCompression) => BlockCodec;
  /** Default vector. */
  readonly zeroCheck?: ZeroCheck;
  /** One shared number, raised by the pages with data that were handed to the socket; a reader may see it a little late. */
  readonly sentPages?: Float64Array;
}

const ENCODINGS = { lz4: PageEncoding.Lz4, zstd: PageEncoding.Zstd } as const satisfies Record<BlockCompression, PageEncoding>;

/** Turns a round's bitmap into packets of the lanes a channel carries: zero pages as runs, the others as runs and bytes. */
export class PagePacker {
  readonly #source: PackerSource;
  readonly #pump: SendPump;
  readonly #forEachContents: ReturnType<typeof zeroDetector>;
  readonly #head = Buffer.alloc(HEADER_BYTES + TABLE_BYTES_MAX);
  // Runs of the packet being made, as (first, pages); zero runs go behind the data runs only when it is complete.
  readonly #dataRuns = new Uint32Array(2 * (PACKET_PAGES_MAX + 1));
  readonly #zeroRuns = new Uint32Array(2 * PACKET_ZERO_RUNS_MAX);
  #payload: Buffer | undefined; // of the packet being encoded; there once one was
  #block: Buffer | undefined; // raw, being filled
  /** Of `auto`. */
  readonly #choice: CompressionChoice;
  /** There from the beginning, so that its memory is not asked for in a pause. */
  readonly #encoder: DeltaEncoder | undefined;
  /** The same from the second round on: in the first nothing was sent before. */
  #deltas: DeltaEncoder | undefined;
  readonly #renew: VisitPages | undefined;
  #data = 0; // entries used
  #zero = 0;
  #dataPages = 0;
  #sequence = 0;
  #round = 0;
  #normalPages = 0;
  #zeroPages = 0;
  #bytes = 0;
  #packedTo = 0; // end of the last stripe in the packet being made
  #handedTo = 0; // end of the last one in a packet that was handed over
  readonly #starts: Float64Array; // by lane; infinite for one that is not sent

  constructor(source: PackerSource, pump: SendPump) {
    this.#source = source;
    this.#pump = pump;
    const { hashes, memory, xbzrleCacheBytes = 0, choices = ["lz4"] } = source;
    this.#choice = new CompressionChoice(choices);
    this.#encoder = xbzrleCacheBytes > 0 ? new DeltaEncoder(memory, xbzrleCacheBytes) : undefined;
    this.#renew = hashes && ((first, pages) => hashes.renew(first, pages));
    this.#forEachContents = zeroDetector(source.memory, source.zeroCheck);
    this.#starts = new Float64Array(source.lanes);
  }

  /** Undefined before the first round. */
  get position(): SendPosition | undefined {
    if (this.#round === 0) return undefined;
    const sent = { normalPages: this.#normalPages, zeroPages: this.#zeroPages, bytes: this.#bytes };
    return { round: this.#round, page: this.#handedTo, ...sent };
  }

  /**
   * Sends the stripes of these lanes, in ascending page order, then a FLUSH that names the lanes. The order is what makes a lane's progress at
   * the target one point. The guest may be writing: such a page is in the next round too.
   */
  async sendRound(round: number, pages: Bitmap, from: readonly LaneStart[]): Promise<RoundSent> {
    const { lanes, hashes } = this.#source;
    this.#deltas = round > 1 ? this.#encoder : undefined;
    this.#round = round;
    this.#choice.beginRound();
    this.#normalPages = this.#zeroPages = this.#bytes = this.#handedTo = this.#packedTo = 0;
    this.#starts.fill(Number.POSITIVE_INFINITY);
    for (const { lane, page } of from) this.#starts[lane] = page;
    for (let stripe = pages.skipEmpty(0); stripe < pages.stripes; stripe = pages.skipEmpty(stripe + 1)) {
      const start = this.#starts[stripe % lanes]!;
      if ((stripe + 1) * STRIPE_PAGES <= start) continue;
      const count = pages.countStripe(stripe, start);
      if (count === 0) continue;
      if (this.#dataPages + count > PACKET_PAGES_MAX || this.#zero / 2 + STRIPE_PAGES > PACKET_ZERO_RUNS_MAX) await this.#flushPacket();
      pages.forEachRunOfStripe(stripe, (first, run) => {
        const from = Math.max(first, start);
        if (from < first + run) this.#forEachContents(from, first + run - from, this.#addContents);
      });
      this.#packedTo = Math.min((stripe + 1) * STRIPE_PAGES, pages.pages);
    }
    await this.#flushPacket();
    await this.#send(PacketKind.Flush, bitsOfLanes(from.map(({ lane }) => lane)));
    this.#handedTo = pages.pages;
    return {
      normalPages: this.#normalPages,
      zeroPages: this.#zeroPages,
      bytes: this.#bytes,
      packets: this.#sequence,
      digest: hashes?.digest(),
      xbzrle: this.#deltas?.takeCounts(),
      link: this.#pump.linkState(),
    };
  }

  readonly #addContents = (first: number, pages: number, isZero: boolean): void => {
    const { hashes } = this.#source;
    // Looked at first, then sent, then hashed: if the guest writes in between, the page is dirty again and comes once more.
    if (isZero) {
      this.#zero = extend(this.#zeroRuns, this.#zero, first, pages);
      this.#zeroPages += pages;
      if (hashes !== undefined) for (let page = first; page < first + pages; page++) hashes.forget(page);
      if (this.#deltas !== undefined) for (let page = first; page < first + pages; page++) this.#deltas.forget(page);
    } else {
      this.#data = extend(this.#dataRuns, this.#data, first, pages);
      this.#dataPages += pages;
    }
  };

  async #flushPacket(): Promise<void> {
    if (this.#data + this.#zero === 0) return;
    const table = Buffer.from(this.#dataRuns.buffer, 0, this.#data * 4);
    this.#head.set(table, HEADER_BYTES);
    this.#head.set(Buffer.from(this.#zeroRuns.buffer, 0, this.#zero * 4), HEADER_BYTES + table.byteLength);
    if (this.#dataPages === 0) await this.#send(PacketKind.Pages, 0);
    else if (this.#deltas !== undefined) {
      const payload = this.#deltas.encode(this.#dataRuns, this.#data, this.#renew);
      await this.#send(PacketKind.Pages, 0, PageEncoding.Xbzrle, payload);
    } else if (this.#source.compression === "auto") await this.#sendChosen();
    else await this.#sendPages(this.#source.compression);
    this.#handedTo = this.#packedTo;
    this.#normalPages += this.#dataPages;
    const { sentPages } = this.#source;
    if (sentPages !== undefined) sentPages[0]! += this.#dataPages;
    this.#data = this.#zero = this.#dataPages = 0;
  }

  /** @returns when the packet was ready to be sent. ms, monotonic */
  async #sendPages(compression: BlockCompression | "none"): Promise<number> {
    const payload = compression === "none" ? undefined : await this.#compress(this.#codec(compression));
    const packedAt = performance.now();
    await this.#send(PacketKind.Pages, 0, compression === "none" ? PageEncoding.Raw : ENCODINGS[compression], payload);
    return packedAt;
  }

  /** As they are or compressed, whichever the link takes sooner. */
  async #sendChosen(): Promise<void> {
    const compression = this.#choice.choose(this.#dataPages, (candidate) => this.#sample(this.#codec(candidate)));
    const [startedAt, before] = [performance.now(), this.#bytes];
    const packedAt = await this.#sendPages(compression);
    const [pages, bytes, endedAt] = [this.#dataPages, this.#bytes - before, performance.now()];
    const [backlogBytes, link] = [this.#pump.backlogBytes(), this.#pump.linkState()];
    this.#choice.sent({ compression, pages, bytes, startedAt, packedAt, endedAt, backlogBytes, link });
  }

  #codec(compression: BlockCompression): BlockCodec {
    return (this.#source.codec ?? codecOfNode)(compression);
  }

  /** A block from the middle of the packet, which nobody sends. */
  #sample(codec: BlockCodec): PackSample {
    const run = 2 * Math.floor(this.#data / 4);
    const [first, pages] = [this.#dataRuns[run]!, Math.min(this.#dataRuns[run + 1]!, BLOCK_PAGES)];
    const started = performance.now();
    const block = (this.#block ??= Buffer.allocUnsafeSlow(BLOCK_BYTES));
    block.set(this.#source.memory.view(first, pages));
    const payload = (this.#payload ??= Buffer.allocUnsafeSlow(PACKET_PAYLOAD_BYTES_MAX));
    const bytes = encodeBlock(block.subarray(0, pages * PAGE_BYTES), payload, 0, codec);
    return { pages, bytes, ms: performance.now() - started };
  }

  /** @param payload of the packet's data runs; without it they are sent as they are. */
  async #send(kind: PacketKind, lanes: number, encoding: PageEncoding = PageEncoding.Raw, payload?: Buffer): Promise<void> {
    const payloadBytes = payload?.byteLength ?? this.#dataPages * PAGE_BYTES;
    const headBytes = encodeHeader(this.#head, {
      kind,
      encoding,
      round: this.#round,
      sequence: this.#sequence++,
      dataRuns: this.#data / 2,
      zeroRuns: this.#zero / 2,
      payloadBytes,
      lanes,
    });
    const head = this.#head.subarray(0, headBytes);
    this.#bytes += headBytes + payloadBytes;
    const hasPages = payload === undefined && this.#data > 0;
    const slow = hasPages ? this.#pump.sendPages(head, this.#data / 2, this.#renew) : this.#pump.sendBytes(head, payload);
    if (slow !== undefined) await slow;
  }

  /**
   * From a private copy: a page that changed under the compressor would give a block that nobody can decode. Always the same copy, which stays in
   * the processor's cache.
   */
  async #compress(codec: BlockCodec): Promise<Buffer> {
    const { memory } = this.#source;
    const payload = (this.#payload ??= Buffer.allocUnsafeSlow(PACKET_PAYLOAD_BYTES_MAX));
    const block = (this.#block ??= Buffer.allocUnsafeSlow(BLOCK_BYTES));
    let bytes = 0;
    let raw = 0; // of the block being filled
    const end = (): void => {
      bytes += encodeBlock(block.subarray(0, raw), payload, bytes, codec);
      raw = 0;
    };
    for (let at = 0; at < this.#data; at += 2) {
      for (let page = this.#dataRuns[at]!, last = page + this.#dataRuns[at + 1]!; page < last; ) {
        const pages = Math.min(last - page, BLOCK_PAGES - raw / PAGE_BYTES);
        block.set(memory.view(page, pages), raw);
        this.#renew?.(page, pages);
        raw += pages * PAGE_BYTES;
        page += pages;
        if (raw === BLOCK_BYTES) end();
      }
    }
    if (raw > 0) end();
    if (codec.leavesGarbage && dropped(bytes)) await new Promise((resolve) => setImmediate(resolve));
    return payload.subarray(0, bytes);
  }
}

/** Adds a run to the last one if it follows it in the same stripe, else as a new one; returns the entries used. */
function extend(runs: Uint32Array, used: number, first: number, pages: number): number {
  if (used > 0 && first % STRIPE_PAGES !== 0 && runs[used - 2]! + runs[used - 1]! === first) {
    runs[used - 1]! += pages;
    return used;
  }
  runs[used] = first;
  runs[used + 1] = pages;
  return used + 2;
}
