import { readFileSync } from "node:fs";
import { PAGE_BYTES } from "@precopy/protocol";
import { compileModule, instantiateOver, newSharedMemory } from "./webassembly.js";
import type { WasmModule } from "./webassembly.js";

/** What assembly/delta-kernels.ts exports; addresses are byte offsets in the memory it was made over. */
interface DeltaKernels {
  encodeDelta(before: number, now: number, out: number, most: number): number;
}

let compiled: WasmModule | undefined;

/** The version being sent, and the delta in the making. */
const SCRATCH_BYTES = 2 * PAGE_BYTES;
const NONE = 0xffffffff;

/** What became of a page. hit: `delta` is how it differs. miss: no earlier version was here. overflow: the page itself is shorter. */
export type DeltaKind = "hit" | "miss" | "overflow";

/**
 * Versions of pages as they were sent last, in as much memory as it is given, and how a page differs from its own. Direct-mapped: a page has one
 * place, which it takes from another that was sent before. Nobody else may read the memory.
 */
export class PageDeltas {
  readonly #bytes: Uint8Array;
  readonly #kernels: DeltaKernels;
  /** Which page each place holds. */
  readonly #pages: Uint32Array;
  readonly #places: number;

  /** @param cacheBytes at least one page; what is no whole page is not used. */
  constructor(cacheBytes: number) {
    this.#places = Math.floor(cacheBytes / PAGE_BYTES);
    const memory = newSharedMemory(SCRATCH_BYTES + this.#places * PAGE_BYTES);
    this.#bytes = new Uint8Array(memory.buffer);
    this.#pages = new Uint32Array(this.#places).fill(NONE);
    compiled ??= compileModule(readFileSync(new URL("./delta-kernels.wasm", import.meta.url)));
    this.#kernels = instantiateOver(compiled, memory) as DeltaKernels; // what the module was built from; page-deltas.test.ts calls it
  }

  /**
   * Copies `page` as it is now, and keeps it as the version that was sent. @param now the page in guest memory, which may change meanwhile.
   * @param most bytes of a delta that is still worth it.
   * @returns what became of it, and the bytes to send: a delta (none: it is as it was) or the copy; good until the next call.
   */
  encode(page: number, now: Uint8Array, most: number): { readonly kind: DeltaKind; readonly bytes: Uint8Array } {
    const place = page % this.#places;
    const kept = SCRATCH_BYTES + place * PAGE_BYTES;
    if (this.#pages[place] !== page) {
      this.#bytes.set(now, kept);
      this.#pages[place] = page;
      return { kind: "miss", bytes: this.#bytes.subarray(kept, kept + PAGE_BYTES) };
    }
    this.#bytes.set(now, 0);
    const length = this.#kernels.encodeDelta(kept, 0, PAGE_BYTES, Math.min(most, PAGE_BYTES));
    this.#bytes.copyWithin(kept, 0, PAGE_BYTES);
    if (length < 0) return { kind: "overflow", bytes: this.#bytes.subarray(0, PAGE_BYTES) };
    return { kind: "hit", bytes: this.#bytes.subarray(PAGE_BYTES, PAGE_BYTES + length) };
  }

  /** The page was sent in another way: what is kept of it is not what the other side has. */
  forget(page: number): void {
    const place = page % this.#places;
    if (this.#pages[place] === page) this.#pages[place] = NONE;
  }
}
