import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { compressSync } from "lz4-napi";
import { Bitmap, GuestMemory, SegmentPool, zeroDetector } from "@precopy/guest";
import { freePages } from "@precopy/linux";
import { BLOCK_PAGES, STRIPE_PAGES, parseCount, parseSize } from "@precopy/protocol";
import { PagePacker } from "@precopy/transport";
import type { SendPump } from "@precopy/transport";
import { fillImage } from "./fill-image.js";
import { formatPairs, interleave } from "./pairs.js";
import type { Pair } from "./pairs.js";
import { PageWalk } from "./peers/page-walk.js";
import type { PageSize } from "./peers/page-walk.js";

// Figures are GiB of raw pages a second, on one thread.
const GIB = 2 ** 30;
const pool = new SegmentPool();

/** Lends memory whose first `bytes` are filled, and gives it back. */
async function withImage<T>(bytes: number, kind: Parameters<typeof fillImage>[2], use: (memory: GuestMemory) => Promise<T>): Promise<T> {
  const memory = GuestMemory.allocate(bytes, pool);
  try {
    fillImage(memory, bytes, kind);
    return await use(memory);
  } finally {
    for (const { address, bytes: length } of memory.ranges()) freePages(address, length);
    pool.give(memory.segments);
  }
}

const rate = (bytes: number, started: number): number => bytes / GIB / ((performance.now() - started) / 1000);

/** Looks at every page, a stripe at a time as the packer does. @throws {Error} if not all of them are as expected */
function detect(memory: GuestMemory, detector: ReturnType<typeof zeroDetector>, expected: boolean): number {
  const started = performance.now();
  for (let page = 0; page < memory.pages; page += STRIPE_PAGES)
    detector(page, STRIPE_PAGES, (first, _, isZero) => {
      if (isZero !== expected) throw new Error(`Page ${first} was said to be ${expected ? "other than zero" : "zero"}`);
    });
  return rate(memory.bytes, started);
}

/**
 * Zero detection against the memory's read bandwidth on one core. Only zeros are read to their end: `zeros` is what the detector can do, `random`
 * what a page that holds something costs. @param pages what the reader asks for; ours does as the product does.
 */
export async function zeroDetection(
  bytes: number,
  pages: PageSize,
  pairs: number,
  walk: PageWalk,
): Promise<Record<"random" | "zeros", Pair<number>[]>> {
  const reader = await walk.reader(bytes, pages);
  const series = (kind: "random" | "zeros"): Promise<Pair<number>[]> =>
    withImage(bytes, kind, (memory) => {
      const detector = zeroDetector(memory);
      detect(memory, detector, kind === "zeros"); // compiled by then
      return interleave(
        pairs,
        () => detect(memory, detector, kind === "zeros"),
        () => reader.gibPerSecond(),
      );
    });
  try {
    return { random: await series("random"), zeros: await series("zeros") };
  } finally {
    await reader.end();
  }
}

/** As PagePacker: only between two turns of the event loop does lz4-napi free what it returned. */
const YIELD_BYTES = 2 ** 20;

const NOWHERE: SendPump = { sendPages: () => undefined, sendBytes: () => undefined, setPacing: () => {}, close: () => {} };

/** One round of the packer with nobody to send to: zero detection, private copy, blocks, payload. */
async function pack(memory: GuestMemory): Promise<number> {
  const packer = new PagePacker({ memory, hashes: undefined, lanes: 1, compression: "lz4" }, NOWHERE);
  const pages = new Bitmap(memory.pages);
  pages.setRun(0, memory.pages);
  const started = performance.now();
  await packer.sendRound(1, pages, [{ lane: 0, page: 0 }]);
  return rate(memory.bytes, started);
}

async function compressAll(blocks: readonly Buffer[]): Promise<number> {
  let bytes = 0;
  let sinceYield = 0;
  const started = performance.now();
  for (const block of blocks) {
    compressSync(block);
    bytes += block.byteLength;
    sinceYield += block.byteLength;
    if (sinceYield < YIELD_BYTES) continue;
    sinceYield = 0;
    await new Promise((resolve) => setImmediate(resolve));
  }
  return rate(bytes, started);
}

/** The packer's LZ4 path against lz4-napi alone on the same blocks, which it gets ready made in memory of their own. */
export const lz4 = (bytes: number, kind: "text" | "random", pairs: number): Promise<Pair<number>[]> =>
  withImage(bytes, kind, async (memory) => {
    const blocks: Buffer[] = [];
    for (let page = 0; page < memory.pages; page += BLOCK_PAGES)
      blocks.push(Buffer.from(memory.view(page, Math.min(BLOCK_PAGES, memory.pages - page)))); // a copy
    await pack(memory); // compiled by then
    await compressAll(blocks);
    return interleave(
      pairs,
      () => pack(memory),
      () => compressAll(blocks),
    );
  });

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  // `node bench/dist/kernels.js [--pairs 5] [--bytes 1GiB] [--lz4-bytes 64MiB] [--pages small|huge]`
  const { values } = parseArgs({
    options: {
      pairs: { type: "string", default: "5" },
      bytes: { type: "string", default: "1GiB" },
      "lz4-bytes": { type: "string", default: "64MiB" },
      pages: { type: "string", default: "small" },
    },
  });
  const pairs = parseCount(values.pairs);
  const print = (name: string, runs: readonly Pair<number>[]): void => console.log(formatPairs(name, "GiB/s", runs, (figure) => figure));
  const walk = PageWalk.build();
  if (typeof walk === "string") console.log(`no read bandwidth: ${walk}`);
  else {
    const { random, zeros } = await zeroDetection(parseSize(values.bytes), values.pages === "huge" ? "huge" : "small", pairs, walk);
    print("zero detection of random pages, against reading them", random);
    print("zero detection of zeros, against reading memory", zeros);
  }
  for (const kind of ["text", "random"] as const) print(`lz4 of ${kind} pages`, await lz4(parseSize(values["lz4-bytes"]), kind, pairs));
}
