import { readFileSync } from "node:fs";
import { MigrationError } from "@precopy/protocol";
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

/** Called with each run of pages that are all zero, or all hold something. */
export type VisitContents = (firstPage: number, pages: number, isZero: boolean) => void;

/** Splits runs of pages of one segment into zero and data. Reads 256 bytes of a page that starts with data, all of one that does not. */
export function zeroDetector(memory: GuestMemory): (firstPage: number, pages: number, visit: VisitContents) => void {
  const kernels = pageKernels(memory);
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
