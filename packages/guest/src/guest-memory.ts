import { addressOf, adviseHugePages, isLinuxAvailable, leaveOutOfDumps } from "@precopy/linux";
import type { AddressRange } from "@precopy/linux";
import { MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, MigrationError, PAGE_BYTES, SEGMENT_BYTES } from "@precopy/protocol";
import { newSharedMemory } from "./webassembly.js";
import type { WasmMemory } from "./webassembly.js";

/** What a worker needs to see the same memory; goes through postMessage without a copy. */
export interface SharedMemory {
  readonly bytes: number;
  readonly segments: readonly WasmMemory[];
}

/**
 * Segments that no guest uses, given back to the system and reading as zeros. V8 counts shared memory as nothing and never collects it,
 * so memory is reused, never dropped.
 */
export class SegmentPool {
  readonly #idle: WasmMemory[] = [];
  readonly #idleWords: Uint32Array[] = [];

  take(bytes: number): WasmMemory {
    const at = this.#idle.findIndex((memory) => memory.buffer.byteLength - bytes >= 0 && memory.buffer.byteLength - bytes < 65536);
    const [found] = at < 0 ? [] : this.#idle.splice(at, 1);
    if (found !== undefined) return found;
    try {
      return newSharedMemory(bytes);
    } catch (cause) {
      throw new MigrationError("ERR_MEMORY", `No address space for a segment of ${bytes} B`, { cause });
    }
  }

  /** Shared words, all zero: a bitmap or a table that lives as long as a guest. */
  takeWords(length: number): Uint32Array {
    const at = this.#idleWords.findIndex((words) => words.length === length);
    const [found] = at < 0 ? [] : this.#idleWords.splice(at, 1);
    return found?.fill(0) ?? new Uint32Array(new SharedArrayBuffer(length * 4));
  }

  /** Only words that no thread touches any more. */
  giveWords(words: Uint32Array): void {
    this.#idleWords.push(words);
  }

  /** Only segments whose pages were freed and that no thread touches any more. */
  give(segments: readonly WasmMemory[]): void {
    this.#idle.push(...segments);
  }
}

/** Memory is advised in such parts: each may become an area of its own to the kernel, which takes 65,530 of a process. */
const DENSE_BYTES = 16 * 2 ** 20;

/** A guest's memory image: page-aligned shared segments under one guest-wide page index. */
export class GuestMemory {
  readonly bytes: number;
  readonly pages: number;
  readonly segments: readonly WasmMemory[];
  /** One view a segment; segment `i` holds the guest's bytes from `i * SEGMENT_BYTES`. */
  readonly views: readonly Uint8Array[];
  #addresses: readonly number[] | undefined;
  readonly #dense = new Set<number>();

  constructor({ bytes, segments }: SharedMemory) {
    this.bytes = bytes;
    this.pages = bytes / PAGE_BYTES;
    this.segments = segments;
    this.views = segments.map((memory, at) => new Uint8Array(memory.buffer, 0, Math.min(SEGMENT_BYTES, bytes - at * SEGMENT_BYTES)));
  }

  /** @throws {MigrationError} ERR_PARAMETER, ERR_MEMORY */
  static allocate(bytes: number, pool: SegmentPool): GuestMemory {
    if (bytes % PAGE_BYTES !== 0 || bytes < MEMORY_BYTES_MIN || bytes > MEMORY_BYTES_MAX)
      throw new MigrationError("ERR_PARAMETER", `Guest memory of ${bytes} B: give a multiple of ${PAGE_BYTES} from ${MEMORY_BYTES_MIN} on`);
    const segments: WasmMemory[] = [];
    try {
      for (let at = 0; at < bytes; at += SEGMENT_BYTES) segments.push(pool.take(Math.min(SEGMENT_BYTES, bytes - at)));
    } catch (error) {
      pool.give(segments);
      throw error;
    }
    const memory = new GuestMemory({ bytes, segments });
    if (isLinuxAvailable) for (const range of memory.ranges()) leaveOutOfDumps(range.address, range.bytes);
    return memory;
  }

  share(): SharedMemory {
    return { bytes: this.bytes, segments: this.segments };
  }

  segmentOf(page: number): number {
    return Math.floor((page * PAGE_BYTES) / SEGMENT_BYTES);
  }

  /** Offset of a page in its segment. */
  offsetOf(page: number): number {
    return (page * PAGE_BYTES) % SEGMENT_BYTES;
  }

  /** A view of `pages` pages that lie in one segment. @throws {MigrationError} ERR_RUN_OUT_OF_RANGE */
  view(page: number, pages: number): Uint8Array {
    const offset = this.offsetOf(page);
    const view = this.views[this.segmentOf(page)];
    if (view === undefined || page < 0 || offset + pages * PAGE_BYTES > view.byteLength)
      throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `Run of ${pages} pages at ${page}; the guest has ${this.pages}`);
    return view.subarray(offset, offset + pages * PAGE_BYTES);
  }

  /** Address of a page as a number: user addresses end below 2^47. Only where system calls are available. */
  addressOf(page: number): number {
    this.#addresses ??= this.views.map((view) => Number(addressOf(view)));
    return (this.#addresses[this.segmentOf(page)] ?? Number.NaN) + this.offsetOf(page);
  }

  /**
   * These pages are about to be written, all of them: the kernel may use huge pages for the parts of memory they lie in. Not for scattered
   * pages, each of which would then cost 2 MiB. Does nothing without system calls.
   */
  expectDense(page: number, pages: number): void {
    if (!isLinuxAvailable) return;
    const end = (page + pages) * PAGE_BYTES;
    for (let at = Math.floor((page * PAGE_BYTES) / DENSE_BYTES) * DENSE_BYTES; at < end; at += DENSE_BYTES) {
      if (this.#dense.has(at)) continue;
      this.#dense.add(at);
      const bytes = Math.min(DENSE_BYTES, this.bytes - at);
      adviseHugePages(BigInt(this.addressOf(at / PAGE_BYTES)), bytes, true);
    }
  }

  /** One address range a segment, for system calls. */
  ranges(): AddressRange[] {
    return this.views.map((view) => ({ address: addressOf(view), bytes: view.byteLength }));
  }
}
