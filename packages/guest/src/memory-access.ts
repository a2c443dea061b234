import { MigrationError, PAGE_BYTES, SEGMENT_BYTES } from "@precopy/protocol";
import { WriteBarrier } from "./dirty-log-barrier.js";
import type { SharedBarrier } from "./dirty-log-barrier.js";
import type { GuestMemory } from "./guest-memory.js";

/**
 * How a guest's program and devices reach its memory by guest address (bytes from 0). Every write is logged, whichever dirty log is
 * in use. Aligned 32-bit accesses are atomic; `write` and `fill` may be seen half done by other threads.
 * Every method throws MigrationError ERR_RUN_OUT_OF_RANGE outside guest memory.
 */
export class MemoryAccess {
  readonly bytes: number;
  readonly #words: readonly Int32Array[];
  readonly #views: readonly Uint8Array[];
  readonly #barrier: WriteBarrier | undefined;

  /** @param barrier given with the barrier log; with mmu the page tables see every write. */
  constructor(memory: GuestMemory, barrier: SharedBarrier | undefined) {
    this.bytes = memory.bytes;
    this.#views = memory.views;
    this.#words = memory.views.map((view) => new Int32Array(view.buffer, view.byteOffset, view.byteLength / 4));
    this.#barrier = barrier === undefined ? undefined : new WriteBarrier(barrier);
  }

  /** With the barrier log: pages this accessor dirtied, each once between two collections; undefined with mmu. */
  get dirtiedPages(): number | undefined {
    return this.#barrier?.dirtied;
  }

  loadU32(at: number): number {
    return Atomics.load(this.#wordsOf(at), (at % SEGMENT_BYTES) >>> 2) >>> 0;
  }

  storeU32(at: number, value: number): void {
    Atomics.store(this.#wordsOf(at), (at % SEGMENT_BYTES) >>> 2, value);
    this.#barrier?.mark(Math.floor(at / PAGE_BYTES));
  }

  /** Copies guest memory from `at` into `into`. */
  read(at: number, into: Uint8Array): void {
    for (let done = 0; done < into.byteLength; ) {
      const piece = this.#piece(at + done, into.byteLength - done);
      into.set(piece, done);
      done += piece.byteLength;
    }
  }

  write(at: number, from: Uint8Array): void {
    for (let done = 0; done < from.byteLength; ) {
      const piece = this.#piece(at + done, from.byteLength - done);
      piece.set(from.subarray(done, done + piece.byteLength));
      this.#mark(at + done, piece.byteLength);
      done += piece.byteLength;
    }
  }

  fill(at: number, bytes: number, value: number): void {
    for (let done = 0; done < bytes; ) {
      const piece = this.#piece(at + done, bytes - done);
      piece.fill(value);
      this.#mark(at + done, piece.byteLength);
      done += piece.byteLength;
    }
  }

  /** Logs a write of `bytes` from `at` that went around this accessor, such as a WebAssembly kernel's. Call it after the write. */
  wrote(at: number, bytes: number): void {
    if (at < 0 || at + bytes > this.bytes)
      throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `${bytes} B at ${at}; the guest has ${this.bytes} B`);
    if (bytes > 0) this.#mark(at, bytes);
  }

  #mark(at: number, bytes: number): void {
    const first = Math.floor(at / PAGE_BYTES);
    this.#barrier?.markRun(first, Math.floor((at + bytes - 1) / PAGE_BYTES) - first + 1);
  }

  #wordsOf(at: number): Int32Array {
    const words = this.#words[Math.floor(at / SEGMENT_BYTES)];
    if (words === undefined || at < 0 || at % 4 !== 0 || at + 4 > this.bytes)
      throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `Word at ${at}; the guest has ${this.bytes} B`);
    return words;
  }

  /** As much of [at, at + bytes) as lies in one segment. */
  #piece(at: number, bytes: number): Uint8Array {
    const view = this.#views[Math.floor(at / SEGMENT_BYTES)];
    if (view === undefined || at < 0 || at + bytes > this.bytes)
      throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `${bytes} B at ${at}; the guest has ${this.bytes} B`);
    const offset = at % SEGMENT_BYTES;
    return view.subarray(offset, Math.min(offset + bytes, view.byteLength));
  }
}
