import { Bitmap } from "@precopy/guest";
import type { GuestMemory, PageHashes } from "@precopy/guest";
import {
  BLOCK_PAGES,
  HEADER_BYTES,
  MigrationError,
  PAGE_BYTES,
  PageEncoding,
  RUN_BYTES,
  STRIPE_PAGES,
  channelOfPage,
} from "@precopy/protocol";
import { BlockReader } from "@precopy/protocol/page-codec";
import type { PacketHeader, PacketSink, RunBounds } from "@precopy/protocol";

/** Where a channel's pages go at the target. */
export interface StoreTarget {
  readonly memory: GuestMemory;
  readonly hashes: PageHashes | undefined;
  readonly channel: number;
  readonly channels: number;
  /** Pages that may be other than zero; this channel's stripes are its alone until the guest runs. */
  readonly populated: Bitmap;
}

/**
 * Checked packets into guest memory: raw pages land in place, blocks are decoded in private memory first, zero runs are written only
 * over pages that held something. One packet at a time: begin, payload, end.
 */
export class PageStore implements PacketSink {
  readonly bounds: RunBounds;
  readonly #target: StoreTarget;
  #header: PacketHeader | undefined;
  #head: Buffer = Buffer.alloc(0);
  #dataPages = 0;
  #run = 0; // data run that the next raw byte belongs to
  #runOffset = 0; // and the byte in it

  constructor(target: StoreTarget) {
    const { memory, channel, channels } = target;
    this.#target = target;
    this.bounds = {
      pages: memory.pages,
      mayCarry: (first, pages) =>
        channelOfPage(first, channels) === channel && Math.floor(first / STRIPE_PAGES) === Math.floor((first + pages - 1) / STRIPE_PAGES),
    };
  }

  begin(header: PacketHeader, head: Buffer, dataPages: number): void {
    this.#header = header;
    this.#head = head;
    this.#dataPages = dataPages;
    this.#run = 0;
    this.#runOffset = 0;
  }

  /** The (address, bytes) pieces that `readv` fills with this packet's raw pages; returns how many. */
  pieces(into: BigUint64Array): number {
    const { memory } = this.#target;
    const runs = this.#header?.dataRuns ?? 0;
    for (let run = 0; run < runs; run++) {
      into[2 * run] = BigInt(memory.addressOf(this.#first(run)));
      into[2 * run + 1] = BigInt(this.#pages(run) * PAGE_BYTES);
    }
    return runs;
  }

  payload(bytes: Buffer): void {
    if (this.#header?.encoding === PageEncoding.Lz4) this.#storeBlocks(bytes);
    else this.#storeRaw(bytes);
  }

  #storeRaw(bytes: Buffer): void {
    for (let at = 0; at < bytes.byteLength; ) {
      const left = this.#pages(this.#run) * PAGE_BYTES - this.#runOffset;
      const piece = bytes.subarray(at, at + left);
      this.#target.memory.view(this.#first(this.#run), this.#pages(this.#run)).set(piece, this.#runOffset);
      at += piece.byteLength;
      this.#runOffset += piece.byteLength;
      if (piece.byteLength < left) return;
      this.#run++;
      this.#runOffset = 0;
    }
  }

  #storeBlocks(payload: Buffer): void {
    const blocks = new BlockReader(payload, this.#dataPages);
    for (let pages = blocks.next(); pages !== undefined; pages = blocks.next())
      this.#storeRaw(Buffer.from(pages.buffer, pages.byteOffset, pages.byteLength));
  }

  /** The payload is in place: zero runs, hashes and the map of populated pages follow. */
  end(): void {
    const { memory, hashes, populated } = this.#target;
    const { dataRuns = 0, zeroRuns = 0 } = this.#header ?? {};
    for (let run = 0; run < dataRuns; run++) {
      const first = this.#first(run);
      const pages = this.#pages(run);
      populated.setRun(first, pages);
      if (hashes !== undefined) for (let page = first; page < first + pages; page++) hashes.renew(page);
    }
    for (let run = dataRuns; run < dataRuns + zeroRuns; run++) {
      const first = this.#first(run);
      for (let page = first; page < first + this.#pages(run); page++) {
        if (!populated.has(page)) continue; // never held anything: it reads as zero already, untouched
        memory.view(page, 1).fill(0);
        hashes?.forget(page);
      }
    }
  }

  #first(run: number): number {
    return this.#head.readUInt32LE(HEADER_BYTES + run * RUN_BYTES);
  }

  #pages(run: number): number {
    return this.#head.readUInt32LE(HEADER_BYTES + run * RUN_BYTES + 4);
  }
}

/** Raw bytes in one block at most; what a private copy for the compressor holds. */
export const BLOCK_BYTES = BLOCK_PAGES * PAGE_BYTES;

/** The channel was told to stop, or its connection ended in good order. Nobody's mistake. */
export class ChannelStopped extends MigrationError {
  constructor() {
    super("ERR_LINK_LOST", "The page channel was closed");
  }
}
