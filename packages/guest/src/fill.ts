import { MigrationError, PAGE_BYTES, SEGMENT_BYTES } from "@precopy/protocol";
import { GuestMemory } from "./guest-memory.js";
import { pageKernels } from "./page-kernels.js";
import type { WorkloadContext } from "./workload.js";

/** What a filled page holds: random does not compress, text compresses about three to one, sparse has data in a sixteenth of it, zeros are written and then all zero. */
export const FILL_KINDS = ["random", "text", "sparse", "zeros"] as const;

/** Cut at multiples of this: the kernel counts bytes in 32 bits, and a full segment would be none. */
const PIECE_BYTES = SEGMENT_BYTES / 2;

/** The first `randomBytes` of each page random, and what `rest` makes of that. */
function fillPages(context: WorkloadContext, start: number, bytes: number, randomBytes: number, rest: (page: Buffer) => void): void {
  const page = Buffer.alloc(PAGE_BYTES);
  for (let at = start; at < start + bytes; at += PAGE_BYTES) {
    for (let word = 0; word < randomBytes; word += 4) page.writeUInt32LE(Math.floor(Math.random() * 2 ** 32), word);
    rest(page);
    context.memory.write(at, page);
  }
}

/** A third of a page, three times. */
function repeatThird(page: Buffer): void {
  page.copyWithin(1365, 0, 1365);
  page.copyWithin(2730, 0, 1366);
}

/**
 * Gives the start of a vCPU's region contents before the first step, by the options `fill` (bytes) and `fillKind`.
 * @throws {MigrationError} ERR_PARAMETER if the region is smaller.
 */
export function fillRegion(context: WorkloadContext): void {
  const bytes = Number(context.options["fill"] ?? 0);
  const kind = context.options["fillKind"] ?? "random";
  const { start } = context.region;
  if (bytes > context.region.bytes || bytes % PAGE_BYTES !== 0)
    throw new MigrationError("ERR_PARAMETER", `Fill of ${bytes} B for a region of ${context.region.bytes} B`);
  const memory = new GuestMemory({ bytes: context.memory.bytes, segments: context.segments });
  memory.expectDense(start / PAGE_BYTES, bytes / PAGE_BYTES);
  if (kind === "text") return fillPages(context, start, bytes, PAGE_BYTES / 3, repeatThird);
  if (kind === "sparse") return fillPages(context, start, bytes, PAGE_BYTES / 16, () => {});
  if (kind === "zeros") return context.memory.fill(start, bytes, 0);
  if (kind !== "random") throw new MigrationError("ERR_PARAMETER", `fillKind ${String(kind)}: ${FILL_KINDS.join(", ")}`);
  const kernels = pageKernels(memory);
  for (let at = start; at < start + bytes; ) {
    const piece = Math.min(start + bytes, (Math.floor(at / PIECE_BYTES) + 1) * PIECE_BYTES) - at;
    kernels[Math.floor(at / SEGMENT_BYTES)]?.fillRandom(at % SEGMENT_BYTES, piece, BigInt(at + 1) * 0x9e3779b97f4a7c15n);
    context.memory.wrote(at, piece);
    at += piece;
  }
}
