import { Bitmap, zeroDetector } from "@precopy/guest";
import type { GuestMemory } from "@precopy/guest";
import { BLOCK_PAGES, PAGE_BYTES, STRIPE_PAGES } from "@precopy/protocol";
import type { PageSurvey } from "@precopy/protocol";
import { LENGTH_BYTES, encodeBlock, lz4Napi } from "@precopy/protocol/page-codec";
import { addStripes, draw, stripesWith } from "./stripe-sample.js";

/** So many blocks of 2 MiB are looked at for zeros, and so many pages of them are compressed: some ten milliseconds of work each. */
const STRIPES = 32;
const BLOCKS = 64;

export interface Surveyed {
  readonly survey: PageSurvey;
  /** What it takes to see that a page holds zeros only. */
  readonly zeroPageMs: number;
}

/** Looks at some of the populated pages, drawn at random: how many hold zeros only, and what LZ4 makes of the others. */
export function surveyPages(memory: GuestMemory, populated: Bitmap): Surveyed {
  const sample = new Bitmap(memory.pages);
  addStripes(sample, draw(stripesWith(populated), STRIPES));
  sample.intersect(populated);
  const detect = zeroDetector(memory);
  const data: number[] = [];
  let zeroPages = 0;
  const started = performance.now();
  sample.forEachRun((first, pages) =>
    detect(first, pages, (from, count, isZero) => {
      if (isZero) zeroPages += count;
      else for (let page = from; page < from + count; page++) data.push(page);
    }),
  );
  const sampled = zeroPages + data.length;
  const zeroPageMs = sampled === 0 ? 0 : (performance.now() - started) / sampled;
  return {
    zeroPageMs,
    survey: { "sampled-pages": sampled, "zero-share": sampled === 0 ? 0 : zeroPages / sampled, ...compress(memory, data) },
  };
}

function compress(memory: GuestMemory, data: readonly number[]): Pick<PageSurvey, "lz4-ratio" | "lz4-bytes-per-second"> {
  const blocks: Buffer[] = [];
  for (const page of draw(data, BLOCKS)) {
    const pages = Math.min(BLOCK_PAGES, STRIPE_PAGES - (page % STRIPE_PAGES), memory.pages - page);
    blocks.push(Buffer.from(memory.view(page, pages))); // a copy: the guest may be writing
  }
  if (blocks.length === 0) return { "lz4-ratio": null, "lz4-bytes-per-second": null };
  const payload = Buffer.alloc(LENGTH_BYTES + BLOCK_PAGES * PAGE_BYTES);
  const raw = blocks.reduce((sum, { byteLength }) => sum + byteLength, 0);
  const codec = lz4Napi();
  const started = performance.now();
  const packed = blocks.reduce((sum, block) => sum + encodeBlock(block, payload, 0, codec), 0);
  return { "lz4-ratio": packed / raw, "lz4-bytes-per-second": (raw / Math.max(performance.now() - started, 0.01)) * 1000 };
}
