import { readFileSync } from "node:fs";
import type { GuestMemory } from "./guest-memory.js";
import { compileModule, instantiateOver } from "./webassembly.js";
import type { WasmModule } from "./webassembly.js";

/** What assembly/page-kernels.ts exports; addresses are byte offsets in one segment. Halves of 64-bit values are signed on arrival. */
export interface PageKernels {
  isZero(at: number): number;
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

/** Tells whether a page is all zero. Reads 256 bytes of a page that starts with data, all of one that does not. */
export function zeroDetector(memory: GuestMemory): (page: number) => boolean {
  const kernels = pageKernels(memory);
  return (page) => kernels[memory.segmentOf(page)]?.isZero(memory.offsetOf(page)) === 1;
}
