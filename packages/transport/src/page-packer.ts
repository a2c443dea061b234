import { zeroDetector } from "@precopy/guest";
import type { Bitmap, GuestMemory, PageHashes } from "@precopy/guest";
import {
  BLOCK_PAGES,
  HEADER_BYTES,
  PACKET_PAGES_MAX,
  PACKET_ZERO_RUNS_MAX,
  PAGE_BYTES,
  PacketKind,
  PageEncoding,
  STRIPE_PAGES,
  TABLE_BYTES_MAX,
  encodeHeader,
} from "@precopy/protocol";
import { encodeBlock } from "@precopy/protocol/page-codec";
import { BLOCK_BYTES } from "./page-store.js";
import type { SendPump } from "./pump.js";

/** What a channel sent in one round. */
export interface RoundSent {
  readonly normalPages: number;
  readonly zeroPages: number;
  /** On the wire, headers included. */
  readonly bytes: number;
  /** Since the channel began. */
  readonly packets: number;
  /** This channel's share of the image digest; undefined without hashes. */
  readonly digest: bigint | undefined;
}

export interface PackerSource {
  readonly memory: GuestMemory;
  /** Undefined with the digest off. */
  readonly hashes: PageHashes | undefined;
  readonly channel: number;
  readonly channels: number;
  readonly compression: "none" | "lz4";
}

/** Raw bytes compressed between two turns of the event loop: only there does lz4-napi free what it returned. */
const YIELD_BYTES = 2 ** 20;

/** Turns a round's bitmap into this channel's packets: zero pages as runs, the others as runs and bytes. */
export class PagePacker {
  readonly #source: PackerSource;
  readonly #pump: SendPump;
  readonly #isZeroPage: (page: number) => boolean;
  readonly #head = Buffer.alloc(HEADER_BYTES + TABLE_BYTES_MAX);
  // Runs of the packet being made, as (first, pages); zero runs go behind the data runs only when it is complete.
  readonly #dataRuns = new Uint32Array(2 * (PACKET_PAGES_MAX + 1));
  readonly #zeroRuns = new Uint32Array(2 * PACKET_ZERO_RUNS_MAX);
  readonly #block = new Uint8Array(BLOCK_BYTES);
  #data = 0; // entries used
  #zero = 0;
  #dataPages = 0;
  #sequence = 0;
  #sinceYield = 0;
  #round = 0;
  #normalPages = 0;
  #zeroPages = 0;
  #bytes = 0;

  constructor(source: PackerSource, pump: SendPump) {
    this.#source = source;
    this.#pump = pump;
    this.#isZeroPage = zeroDetector(source.memory);
  }

  /** Sends this channel's stripes of `pages`, then FLUSH. The guest may be writing: such a page is in the next round too. */
  async sendRound(round: number, pages: Bitmap): Promise<RoundSent> {
    const { channel, channels, hashes } = this.#source;
    this.#round = round;
    this.#normalPages = this.#zeroPages = this.#bytes = 0;
    for (let stripe = channel; stripe < pages.stripes; stripe += channels) {
      const count = pages.countStripe(stripe);
      if (count === 0) continue;
      if (this.#dataPages + count > PACKET_PAGES_MAX || this.#zero / 2 + STRIPE_PAGES > PACKET_ZERO_RUNS_MAX) await this.#flushPacket();
      pages.forEachRunOfStripe(stripe, (first, run) => this.#addRun(first, run));
    }
    await this.#flushPacket();
    await this.#send(PacketKind.Flush, undefined);
    return {
      normalPages: this.#normalPages,
      zeroPages: this.#zeroPages,
      bytes: this.#bytes,
      packets: this.#sequence,
      digest: hashes?.digest(),
    };
  }

  #addRun(first: number, pages: number): void {
    const { hashes } = this.#source;
    for (let page = first; page < first + pages; page++) {
      // Read before the hash and the send: if the guest writes in between, the page is dirty again and comes once more.
      if (this.#isZeroPage(page)) {
        this.#zero = extend(this.#zeroRuns, this.#zero, page);
        this.#zeroPages++;
        hashes?.forget(page);
      } else {
        this.#data = extend(this.#dataRuns, this.#data, page);
        this.#dataPages++;
        hashes?.renew(page);
      }
    }
  }

  async #flushPacket(): Promise<void> {
    if (this.#data + this.#zero === 0) return;
    const table = Buffer.from(this.#dataRuns.buffer, 0, this.#data * 4);
    this.#head.set(table, HEADER_BYTES);
    this.#head.set(Buffer.from(this.#zeroRuns.buffer, 0, this.#zero * 4), HEADER_BYTES + table.byteLength);
    const blocks = this.#source.compression === "lz4" && this.#dataPages > 0 ? await this.#compress() : undefined;
    await this.#send(PacketKind.Pages, blocks);
    this.#normalPages += this.#dataPages;
    this.#data = this.#zero = this.#dataPages = 0;
  }

  async #send(kind: PacketKind, blocks: Buffer | undefined): Promise<void> {
    const payloadBytes = blocks?.byteLength ?? this.#dataPages * PAGE_BYTES;
    const headBytes = encodeHeader(this.#head, {
      kind,
      encoding: blocks === undefined ? PageEncoding.Raw : PageEncoding.Lz4,
      round: this.#round,
      sequence: this.#sequence++,
      dataRuns: this.#data / 2,
      zeroRuns: this.#zero / 2,
      payloadBytes,
    });
    const head = this.#head.subarray(0, headBytes);
    this.#bytes += headBytes + payloadBytes;
    const slow = blocks === undefined && this.#data > 0 ? this.#pump.sendPages(head, this.#data / 2) : this.#pump.sendBytes(head, blocks);
    if (slow !== undefined) await slow;
  }

  /** From a private copy: a page that changed under the compressor would give a block that nobody can decode. */
  async #compress(): Promise<Buffer> {
    const { memory } = this.#source;
    const blocks: Uint8Array[] = [];
    let filled = 0;
    const flush = (): void => {
      if (filled > 0) blocks.push(encodeBlock(this.#block.subarray(0, filled * PAGE_BYTES)));
      filled = 0;
    };
    for (let at = 0; at < this.#data; at += 2) {
      for (let page = this.#dataRuns[at]!, end = page + this.#dataRuns[at + 1]!; page < end; ) {
        const pages = Math.min(end - page, BLOCK_PAGES - filled);
        this.#block.set(memory.view(page, pages), filled * PAGE_BYTES);
        filled += pages;
        page += pages;
        if (filled === BLOCK_PAGES) flush();
      }
    }
    flush();
    this.#sinceYield += this.#dataPages * PAGE_BYTES;
    if (this.#sinceYield >= YIELD_BYTES) {
      this.#sinceYield = 0;
      await new Promise((resolve) => setImmediate(resolve));
    }
    return Buffer.concat(blocks);
  }
}

/** Adds `page` to the last run if it follows it in the same stripe, else as a new run; returns the entries used. */
function extend(runs: Uint32Array, used: number, page: number): number {
  if (used > 0 && page % STRIPE_PAGES !== 0 && runs[used - 2]! + runs[used - 1]! === page) {
    runs[used - 1]!++;
    return used;
  }
  runs[used] = page;
  runs[used + 1] = 1;
  return used + 2;
}
