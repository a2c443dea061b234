import { compressSync } from "lz4-napi";
import { Bitmap, GuestMemory, SegmentPool, zeroDetector } from "@precopy/guest";
import { freePages, systemLz4 } from "@precopy/linux";
import { BLOCK_PAGES, STRIPE_PAGES } from "@precopy/protocol";
import { lz4Napi } from "@precopy/protocol/page-codec";
import type { BlockCodec } from "@precopy/protocol/page-codec";
import { PagePacker } from "@precopy/transport";
import type { SendPump } from "@precopy/transport";
import type { Bench, Figure } from "../define-bench.js";
import { fillImage } from "../fill-image.js";
import { interleave, ratiosOf } from "../pairs.js";
import type { Pair } from "../pairs.js";
import { PageWalk } from "../peers/page-walk.js";
import type { MemoryReader } from "../peers/page-walk.js";

// Figures are GiB of raw pages a second, on one thread.
const GIB = 2 ** 30;
const MIB = 2 ** 20;
const ZEROS_MIN = 0.8;
const LZ4_MIN = 0.9;
const LZ4_BYTES = 64 * MIB;
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
 * what a page that holds something costs.
 */
const zeroDetection = (bytes: number, kind: "random" | "zeros", pairs: number, reader: MemoryReader): Promise<Pair<number>[]> =>
  withImage(bytes, kind, (memory) => {
    const detector = zeroDetector(memory);
    detect(memory, detector, kind === "zeros"); // compiled by then
    return interleave(
      pairs,
      () => detect(memory, detector, kind === "zeros"),
      () => reader.gibPerSecond(),
    );
  });

/** Only between two turns of the event loop does lz4-napi free what it returned. */
const YIELD_BYTES = 2 ** 20;

const NOWHERE: SendPump = {
  sendPages: () => undefined,
  sendBytes: () => undefined,
  setPacing: () => {},
  backlogBytes: () => undefined,
  linkState: () => undefined,
  close: () => {},
};

/** One round of the packer with nobody to send to: zero detection, private copy, blocks, payload. */
async function pack(memory: GuestMemory): Promise<number> {
  const codec = (): BlockCodec => systemLz4() ?? lz4Napi(); // as a channel of the direct pump
  const packer = new PagePacker({ memory, hashes: undefined, lanes: 1, compression: "lz4", codec }, NOWHERE);
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
const lz4 = (bytes: number, kind: "text" | "random", pairs: number): Promise<Pair<number>[]> =>
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

function figuresOf(what: string, rival: string, pairs: readonly Pair<number>[], target: number | undefined): Figure[] {
  const ours = pairs.map((pair) => pair.ours);
  const theirs = pairs.map((pair) => pair.theirs);
  return [
    { name: `${what} to ${rival}`, unit: "ratio", better: "higher", values: ratiosOf(ours, theirs), target },
    { name: what, unit: "GiB/s", better: "higher", values: ours },
    { name: `${what}, ${rival}`, unit: "GiB/s", better: "higher", values: theirs },
  ];
}

export const kernelEntries: readonly Bench[] = [
  {
    name: "zero-detection",
    suite: "table",
    workload: { bytes: GIB, pages: "huge" },
    async measure({ pairs }) {
      const walk = PageWalk.build();
      if (typeof walk === "string") return walk;
      const reader = await walk.reader(GIB, "huge");
      try {
        const zeros = await zeroDetection(GIB, "zeros", pairs, reader);
        const random = await zeroDetection(GIB, "random", pairs, reader);
        return {
          figures: [
            ...figuresOf("zeros", "reading in C", zeros, ZEROS_MIN),
            ...figuresOf("random pages", "reading in C", random, undefined),
          ],
        };
      } finally {
        await reader.end();
      }
    },
  },
  {
    name: "lz4",
    suite: "table",
    workload: { bytes: LZ4_BYTES, block: "as the packer's" },
    async measure({ pairs }) {
      const text = await lz4(LZ4_BYTES, "text", pairs);
      const random = await lz4(LZ4_BYTES, "random", pairs);
      return {
        figures: [
          ...figuresOf("text", "lz4-napi in a loop", text, LZ4_MIN),
          ...figuresOf("random pages", "lz4-napi in a loop", random, LZ4_MIN),
        ],
      };
    },
  },
];
