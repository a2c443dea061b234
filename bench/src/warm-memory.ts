import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { GuestMemory, SegmentPool } from "@precopy/guest";
import { availableMemoryBytes } from "@precopy/linux";
import { PAGE_BYTES } from "@precopy/protocol";

/**
 * Touches `bytes`, or most of what is free if that is less, in a process that ends at once. On a virtual machine free memory goes back to the
 * host within seconds, and the next first touch of a page then costs ten times more: what a bench would measure is the hypervisor.
 * In huge pages: small ones, freed, do not come back as those that a dense image gets next. 1 GiB received into huge pages took 0.33 to 0.54 s of
 * processor time after this (page-walk, 3 GiB warmed, 4 runs), and 1.0 and 1.6 s after as many small pages.
 */
export function warmMemory(bytes: number): void {
  if (bytes > 0) spawnSync(process.execPath, [fileURLToPath(import.meta.url), String(bytes)], { stdio: "ignore" });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const bytes = Math.min(Number(process.argv[2]), 0.8 * (availableMemoryBytes() ?? Number.POSITIVE_INFINITY));
  const memory = GuestMemory.allocate(Math.ceil(bytes / 2 ** 20) * 2 ** 20, new SegmentPool());
  memory.expectDense(0, memory.pages);
  for (const view of memory.views) for (let at = 0; at < view.byteLength; at += PAGE_BYTES) view[at] = 1;
}
