import { readFileSync } from "node:fs";
import { MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { GuestMemory } from "./guest-memory.js";
import { compileModule, instantiateOver } from "./webassembly.js";
import type { WasmModule } from "./webassembly.js";

/** What assembly/page-kernels.ts exports; addresses are byte offsets in one segment. Halves of 64-bit values are signed on arrival. */
export interface PageKernels {
  isZero(at: number): number;
  leadingZeroPages(at: number, pages: number): number;
  leadingDataPages(at: number, pages: number): number;
  digestLow(): number;
  digestHigh(): number;
  lastHigh(): number;
  renew(at: number, page: number, oldLow: number, oldHigh: number): number;
  forget(page: number, oldLow: number, oldHigh: number): void;
  hashPage(at: number): number;
  fillRandom(at: number, bytes: number, seed: bigint): void;
}

let compiled: WasmModule | undefined;

/** The kernels of each segment, instantiated over the segment itself: nothing is copied. */
export function pageKernels(memory: GuestMemory): PageKernels[] {
  compiled ??= compileModule(readFileSync(new URL("./page-kernels.wasm", import.meta.url)));
  const module = compiled;
  // The cast states what the module was built from; page-kernels.test.ts calls every one of them.
  return memory.segments.map((segment) => instantiateOver(module, segment) as PageKernels);
}

/** How a page is looked at. vector: 16 bytes at a time, in WebAssembly. scalar: 4 at a time, in JavaScript, to measure what vectors save. */
export type ZeroCheck = "vector" | "scalar";

type ContentKernels = Pick<PageKernels, "leadingZeroPages" | "leadingDataPages">;

const PAGE_WORDS = PAGE_BYTES / 4;

/** What the vector kernels do, a word at a time. Whole numbers: floating-point zero may have a sign bit, which is data. */
function scalarKernels(memory: GuestMemory): ContentKernels[] {
  return memory.views.map((view) => {
    const words = new Int32Array(view.buffer, view.byteOffset, view.byteLength / 4);
    const isZero = (first: number): boolean => {
      for (let at = first; at < first + PAGE_WORDS; at += 8) {
        const low = words[at]! | words[at + 1]! | words[at + 2]! | words[at + 3]!;
        const high = words[at + 4]! | words[at + 5]! | words[at + 6]! | words[at + 7]!;
        if ((low | high) !== 0) return false;
      }
      return true;
    };
    const leading = (isWanted: boolean) => (at: number, pages: number) => {
      let count = 0;
      while (count < pages && isZero(at / 4 + count * PAGE_WORDS) === isWanted) count++;
      return count;
    };
    return { leadingZeroPages: leading(true), leadingDataPages: leading(false) };
  });
}

/** Called with each run of pages that are all zero, or all hold something. */
export type VisitContents = (firstPage: number, pages: number, isZero: boolean) => void;

/** Splits runs of pages of one segment into zero and data. Reads 256 bytes of a page that starts with data, all of one that does not. */
export function zeroDetector(
  memory: GuestMemory,
  check: ZeroCheck = "vector",
): (firstPage: number, pages: number, visit: VisitContents) => void {
  const kernels: readonly ContentKernels[] = check === "vector" ? pageKernels(memory) : scalarKernels(memory);
  return (firstPage, pages, visit) => {
    const kernel = kernels[memory.segmentOf(firstPage)];
    if (kernel === undefined) throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `Page ${firstPage}; the guest has ${memory.pages}`);
    const end = firstPage + pages;
    for (let page = firstPage; page < end; ) {
      const zeros = kernel.leadingZeroPages(memory.offsetOf(page), end - page);
      if (zeros > 0) visit(page, zeros, true);
      page += zeros;
      if (page === end) return;
      // The guest may write: a page that was zero a moment ago and is not any more is left to the next turn of the loop, or comes as data.
      const data = Math.max(1, kernel.leadingDataPages(memory.offsetOf(page), end - page));
      visit(page, data, false);
      page += data;
    }
  };
}
