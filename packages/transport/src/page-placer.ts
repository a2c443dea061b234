import { GuestMemory, SegmentPool, pageKernels } from "@precopy/guest";
import type { Bitmap, HashTable, PageKernels } from "@precopy/guest";
import { PagePlacing } from "@precopy/linux";
import type { Pieces } from "@precopy/linux";
import {
  FAULT_AROUND_PAGES_MAX,
  HEADER_BYTES,
  MEMORY_BYTES_MIN,
  MigrationError,
  PACKET_PAGES_MAX,
  PAGE_BYTES,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
} from "@precopy/protocol";
import type { BlockCompression, PacketHeader, RunBounds } from "@precopy/protocol";
import { BlockReader, codecOfNode } from "@precopy/protocol/page-codec";
import type { BlockCodec } from "@precopy/protocol/page-codec";
import type { LaneProgress } from "./lane-progress.js";
import type { ChannelStore } from "./page-store.js";
import { dropped } from "./young-garbage.js";

/** Where missing pages go at the target. */
export interface PlaceTarget {
  readonly memory: GuestMemory;
  /** Undefined with the digest off. */
  readonly table: HashTable | undefined;
  /** Shared; a bit is cleared when the page is there. */
  readonly missing: Bitmap;
  /** Shared; pages that may be other than zero. */
  readonly populated: Bitmap;
  /** Of UserFaults. */
  readonly descriptor: number;
  /** Undefined on the fault channel, which carries any page, and no round. */
  readonly progress: LaneProgress | undefined;
  /** See StoreTarget. */
  readonly codec?: (compression: BlockCompression) => BlockCodec;
}

interface Staging {
  readonly memory: GuestMemory;
  readonly bytes: Uint8Array;
  readonly kernels: PageKernels;
}
let kept: Staging | undefined;
/** This thread's private memory for one packet; V8 never gives such memory back. */
function staging(): Staging {
  if (kept !== undefined) return kept;
  const memory = GuestMemory.allocate(Math.max(PACKET_PAGES_MAX * PAGE_BYTES, MEMORY_BYTES_MIN), new SegmentPool());
  kept = { memory, bytes: memory.view(0, PACKET_PAGES_MAX), kernels: pageKernels(memory)[0]! };
  return kept;
}

/**
 * Checked packets of a guest that runs, to where its pages are missing: received into private memory, and placed whole, so that no vCPU ever sees
 * half a page. A page that is there already stays: the guest may have written to it.
 *
 * Concurrency. Several threads place, and one page may come to two of them: the kernel lets one win, and only the winner hashes it (the bytes are
 * the same) and clears its bit in `missing`, in this order. So a bit that is clear says that the page is there and its hash in the table.
 */
export class PagePlacer implements ChannelStore {
  readonly bounds: RunBounds;
  readonly #target: PlaceTarget;
  readonly #placing: PagePlacing;
  readonly #staging = staging();
  #header: PacketHeader | undefined;
  #head: Buffer = Buffer.alloc(0);
  #dataPages = 0;
  #filled = 0; // bytes of the packet
  #isHandedOut = false;

  constructor(target: PlaceTarget) {
    this.#target = target;
    this.#placing = new PagePlacing(target.descriptor);
    this.bounds = target.progress?.bounds ?? { pages: target.memory.pages, mayCarry: (_, pages) => pages <= FAULT_AROUND_PAGES_MAX };
  }

  /** @throws {MigrationError} ERR_NOT_A_PACKET for what makes no sense here, and as LaneProgress. */
  begin(header: PacketHeader, head: Buffer, dataPages: number): void {
    if (header.encoding === PageEncoding.Xbzrle)
      throw new MigrationError("ERR_NOT_A_PACKET", "There is nothing here that a delta could change");
    if (this.#target.progress === undefined && header.kind !== PacketKind.Pages)
      throw new MigrationError("ERR_NOT_A_PACKET", "A fault channel has no rounds");
    this.#target.progress?.begin(header);
    this.#header = header;
    this.#head = head;
    this.#dataPages = dataPages;
    this.#filled = 0;
    this.#isHandedOut = false;
  }

  nextPieces(into: Pieces): number {
    if (this.#isHandedOut || this.#dataPages === 0) return 0;
    this.#isHandedOut = true;
    into.set(0, this.#staging.memory.addressOf(0), this.#dataPages * PAGE_BYTES);
    return 1;
  }

  payload(bytes: Buffer): void {
    if (this.#header?.encoding === PageEncoding.Lz4) this.#unpack(bytes, "lz4");
    else if (this.#header?.encoding === PageEncoding.Zstd) this.#unpack(bytes, "zstd");
    else this.#fill(bytes);
  }

  #fill(bytes: Uint8Array): void {
    this.#staging.bytes.set(bytes, this.#filled);
    this.#filled += bytes.byteLength;
  }

  #unpack(payload: Buffer, compression: BlockCompression): void {
    const codec = (this.#target.codec ?? codecOfNode)(compression);
    const blocks = new BlockReader(payload, this.#dataPages, codec);
    for (let pages = blocks.next(); pages !== undefined; pages = blocks.next()) {
      this.#fill(pages);
      if (codec.leavesGarbage) dropped(pages.byteLength);
    }
  }

  end(): void {
    if (this.#header === undefined) return;
    const { dataRuns, zeroRuns } = this.#header;
    let staged = 0;
    for (let run = 0; run < dataRuns + zeroRuns; run++) {
      const first = this.#head.readUInt32LE(HEADER_BYTES + run * RUN_BYTES);
      const pages = this.#head.readUInt32LE(HEADER_BYTES + run * RUN_BYTES + 4);
      this.#place(first, pages, run < dataRuns ? staged : undefined);
      if (run < dataRuns) staged += pages;
      this.#target.progress?.reach(first, first + pages);
    }
    this.#target.progress?.end(this.#header);
  }

  /** @param staged page of the private memory that holds the first one; undefined for zeros */
  #place(first: number, pages: number, staged: number | undefined): void {
    const { memory, missing, populated } = this.#target;
    for (let page = 0; page < pages; ) {
      const address = memory.addressOf(first + page);
      const bytes = (pages - page) * PAGE_BYTES;
      const placed =
        (staged === undefined
          ? this.#placing.zero(address, bytes)
          : this.#placing.copy(address, this.#staging.memory.addressOf(staged + page), bytes)) / PAGE_BYTES;
      if (placed > 0) {
        if (staged !== undefined) this.#hash(first + page, placed, staged + page);
        populated.setRunShared(first + page, placed);
        missing.clearRunShared(first + page, placed);
      }
      page += Math.max(placed, 1); // it stopped at one that is there already
    }
  }

  #hash(first: number, pages: number, staged: number): void {
    const { table } = this.#target;
    if (table === undefined) return;
    const { kernels } = this.#staging;
    for (let page = 0; page < pages; page++) {
      table[2 * (first + page)] = kernels.hashPage((staged + page) * PAGE_BYTES);
      table[2 * (first + page) + 1] = kernels.lastHigh();
    }
  }
}
