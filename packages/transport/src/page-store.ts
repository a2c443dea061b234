import { Bitmap, SLICE_PAGES } from "@precopy/guest";
import type { GuestMemory, PageHashes } from "@precopy/guest";
import type { Pieces } from "@precopy/linux";
import {
  BLOCK_PAGES,
  DeltaReader,
  HEADER_BYTES,
  MigrationError,
  PACKET_PAGES_MAX,
  PAGE_BYTES,
  PageEncoding,
  RUN_BYTES,
  STRIPE_PAGES,
} from "@precopy/protocol";
import { BlockReader, codecOfNode } from "@precopy/protocol/page-codec";
import type { BlockCodec } from "@precopy/protocol/page-codec";
import type { BlockCompression, PacketHeader, PacketSink, RunBounds } from "@precopy/protocol";
import { LaneProgress } from "./lane-progress.js";
import type { LaneTable } from "./lane-table.js";
import { dropped } from "./young-garbage.js";

/** A run that fills most of a huge page: scattered pages each get their own 4 KiB, as at the source. */
const DENSE_PAGES = STRIPE_PAGES / 2;

/** Where a channel's pages go at the target. */
export interface StoreTarget {
  readonly memory: GuestMemory;
  readonly hashes: PageHashes | undefined;
  readonly channel: number;
  readonly lanes: LaneTable;
  /** Pages that may be other than zero; the stripes of a lane are its carrier's alone until the guest runs. */
  readonly populated: Bitmap;
  /** Default true. False where pages may be missing later: a huge page is there or not as one. */
  readonly isDenseAllowed?: boolean;
  /** Asked for when blocks come, not before: a channel without them opens no library. Default Node's. */
  readonly codec?: (compression: BlockCompression) => BlockCodec;
}

/** Where a channel's packets go: header first, then payload, then the end. */
export interface ChannelStore extends PacketSink {
  readonly bounds: RunBounds;
  /** Of a raw packet: the next pieces of memory for its bytes, after those before are filled. Returns how many; 0 at the end. */
  nextPieces(into: Pieces): number;
}

/**
 * Checked packets into guest memory: raw pages land in place, blocks are decoded in private memory first, deltas change pages where they are, zero runs are written only
 * over pages that held something. One packet at a time: begin, payload, end. It may be cut anywhere between: what it named comes again.
 */
export class PageStore implements ChannelStore {
  readonly #target: StoreTarget;
  readonly #progress: LaneProgress;
  #header: PacketHeader | undefined;
  #head: Buffer = Buffer.alloc(0);
  #dataPages = 0;
  #run = 0; // data run that the next raw byte belongs to
  #runOffset = 0; // and the byte in it
  #hashedRun = 0; // data run that the next page to hash belongs to
  #hashedPages = 0; // and the pages of it that are hashed

  constructor(target: StoreTarget) {
    this.#target = target;
    this.#progress = new LaneProgress(target.lanes, target.channel, target.memory.pages);
  }

  get bounds(): RunBounds {
    return this.#progress.bounds;
  }

  /**
   * Marks what the packet may write before a byte of it is written: cut off in the middle, the page holds something, and must be cleared if it
   * comes as zero next. @throws {MigrationError} ERR_RUN_OUT_OF_RANGE for a FLUSH of a lane that its channel does not carry.
   */
  begin(header: PacketHeader, head: Buffer, dataPages: number): void {
    this.#progress.begin(header);
    this.#header = header;
    this.#head = head;
    this.#dataPages = dataPages;
    this.#run = 0;
    this.#runOffset = 0;
    this.#hashedRun = 0;
    this.#hashedPages = 0;
    const { populated, memory, isDenseAllowed = true } = this.#target;
    for (let run = 0; run < header.dataRuns; run++) {
      if (isDenseAllowed && this.#pages(run) >= DENSE_PAGES) memory.expectDense(this.#first(run), this.#pages(run));
      populated.setRun(this.#first(run), this.#pages(run));
    }
  }

  /**
   * The next pieces that `readv` is to fill with this packet's raw pages, after those before are filled: all that are left, or a slice, whose pages
   * are hashed while they are in the processor's cache. Returns how many; 0 at the end.
   */
  nextPieces(into: Pieces): number {
    this.#renewStored();
    const { memory, hashes } = this.#target;
    const runs = this.#header?.dataRuns ?? 0;
    let pieces = 0;
    for (let room = hashes === undefined ? PACKET_PAGES_MAX : SLICE_PAGES; this.#run < runs && room > 0; pieces++) {
      const stored = this.#runOffset / PAGE_BYTES;
      const pages = Math.min(this.#pages(this.#run) - stored, room);
      into.set(pieces, memory.addressOf(this.#first(this.#run) + stored), pages * PAGE_BYTES);
      this.#advance(pages * PAGE_BYTES);
      room -= pages;
    }
    return pieces;
  }

  #advance(bytes: number): void {
    this.#runOffset += bytes;
    if (this.#runOffset < this.#pages(this.#run) * PAGE_BYTES) return;
    this.#run++;
    this.#runOffset = 0;
  }

  payload(bytes: Buffer): void {
    if (this.#header?.encoding === PageEncoding.Lz4) this.#storeBlocks(bytes, "lz4");
    else if (this.#header?.encoding === PageEncoding.Zstd) this.#storeBlocks(bytes, "zstd");
    else if (this.#header?.encoding === PageEncoding.Xbzrle) this.#storeDeltas(bytes);
    else this.#storeRaw(bytes);
  }

  #storeRaw(bytes: Buffer): void {
    for (let at = 0; at < bytes.byteLength; ) {
      const left = this.#pages(this.#run) * PAGE_BYTES - this.#runOffset;
      const piece = bytes.subarray(at, at + Math.min(left, SLICE_PAGES * PAGE_BYTES));
      this.#target.memory.view(this.#first(this.#run), this.#pages(this.#run)).set(piece, this.#runOffset);
      at += piece.byteLength;
      this.#advance(piece.byteLength);
      this.#renewStored();
    }
  }

  /** Hashes the pages that are complete and not hashed yet. */
  #renewStored(): void {
    const { hashes } = this.#target;
    if (hashes === undefined) return;
    for (; this.#hashedRun < this.#run; this.#hashedRun++, this.#hashedPages = 0) {
      const left = this.#pages(this.#hashedRun) - this.#hashedPages;
      if (left > 0) hashes.renew(this.#first(this.#hashedRun) + this.#hashedPages, left);
    }
    const complete = Math.floor(this.#runOffset / PAGE_BYTES);
    if (complete === this.#hashedPages) return;
    hashes.renew(this.#first(this.#run) + this.#hashedPages, complete - this.#hashedPages);
    this.#hashedPages = complete;
  }

  #storeBlocks(payload: Buffer, compression: BlockCompression): void {
    const codec = (this.#target.codec ?? codecOfNode)(compression);
    const blocks = new BlockReader(payload, this.#dataPages, codec);
    for (let pages = blocks.next(); pages !== undefined; pages = blocks.next()) {
      this.#storeRaw(Buffer.from(pages.buffer, pages.byteOffset, pages.byteLength));
      if (codec.leavesGarbage) dropped(pages.byteLength);
    }
  }

  /** What this channel stored last of each page is what its sender took the difference to. */
  #storeDeltas(payload: Buffer): void {
    const { memory, hashes } = this.#target;
    const deltas = new DeltaReader(payload);
    for (let run = 0; run < (this.#header?.dataRuns ?? 0); run++)
      for (let page = this.#first(run), end = page + this.#pages(run); page < end; page++) {
        deltas.apply(memory.view(page, 1));
        hashes?.renew(page, 1);
      }
    deltas.end();
  }

  /** The payload is in place: zero runs and the mark how far each lane is stored follow. */
  end(): void {
    if (this.#header === undefined) return;
    const { memory, hashes, populated } = this.#target;
    const { dataRuns, zeroRuns } = this.#header;
    for (let run = 0; run < dataRuns; run++) this.#progress.reach(this.#first(run), this.#first(run) + this.#pages(run));
    for (let run = dataRuns; run < dataRuns + zeroRuns; run++) {
      const first = this.#first(run);
      const end = first + this.#pages(run);
      for (let page = first; page < end; page++) {
        if (!populated.has(page)) continue; // never held anything: it reads as zero already, untouched
        memory.view(page, 1).fill(0);
        hashes?.forget(page);
      }
      this.#progress.reach(first, end);
    }
    this.#progress.end(this.#header);
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
