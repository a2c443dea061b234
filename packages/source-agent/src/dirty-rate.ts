import { setTimeout as sleep } from "node:timers/promises";
import { Bitmap, firstWriteMs } from "@precopy/guest";
import type { Guest, MemoryService } from "@precopy/guest";
import { MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { DirtyCurvePoint, DirtyRate } from "@precopy/protocol";
import { addStripes, draw, stripesWith } from "./stripe-sample.js";
import type { Stripe } from "./stripe-sample.js";

/** When the watched pages are looked at, ms after the first moment. */
const LOOKS_MS = [10, 30, 100, 300, 1000, 3000];
/** How much of its time a guest may lose to being watched. */
const COST_SHARE_MAX = 0.01;
/** The first look at a few blocks of 2 MiB, which tells how many may be watched. */
const PILOT_MS = 50;
const PILOT_SHARE = 1 / 32;
const PILOT_STRIPES_MIN = 16;
/** Two standard errors. */
const SURE = 2;

/**
 * Samples how many different pages the guest writes within 0.01 to 3 s: on all blocks of 2 MiB that hold something, or on as many, drawn at
 * random, as cost the guest one percent of its time at most. Nothing of a dirty log that a migration uses is touched, so there must be none.
 * @param populated empty; gets the pages that may be other than zero. @param signal ends it early: what was seen by then counts.
 * @throws {MigrationError} ERR_SYSTEM_CALL
 */
export async function sampleDirtyRate(guest: Guest, memory: MemoryService, populated: Bitmap, signal: AbortSignal): Promise<DirtyRate> {
  const { pages } = populated;
  const listMs = await memory.list(populated);
  const stripes = stripesWith(populated);
  // The writer that marks its own pages does so whether anybody looks or not.
  const writeMs = guest.dirtyLog === "mmu" ? firstWriteMs() : 0;
  const vcpus = guest.manifest.vcpus.length;
  let watched = stripes;
  if (writeMs > 0) {
    const pilot = draw(stripes, Math.max(PILOT_STRIPES_MIN, Math.ceil(stripes.length * PILOT_SHARE)));
    const [seen] = await watch(memory, pages, pilot, [PILOT_MS], signal);
    const writesAMs = ((seen?.sum ?? 0) * (stripes.length / Math.max(pilot.length, 1))) / PILOT_MS;
    const costShare = (writesAMs * writeMs) / vcpus;
    if (costShare > COST_SHARE_MAX)
      watched = draw(stripes, Math.max(PILOT_STRIPES_MIN, Math.floor((stripes.length * COST_SHARE_MAX) / costShare)));
  }
  const looks = await watch(memory, pages, watched, LOOKS_MS, signal);
  const curve = looks.map((look) => scale(look, watched.length, stripes.length));
  const last = looks.at(-1);
  const cost = last === undefined ? 0 : (last.sum * writeMs) / (last.ms * vcpus);
  const second = curve.findLast(({ ms }) => ms <= 1100) ?? curve[0];
  return {
    "dirty-log": guest.dirtyLog,
    "dirty-rate": second === undefined ? 0 : ((second.pages * PAGE_BYTES) / 2 ** 20 / second.ms) * 1000,
    curve,
    "populated-pages": populated.count(),
    "watched-pages": watched.reduce((sum, stripe) => sum + populated.countStripe(stripe), 0),
    "cost-percent": cost * 100,
    "list-ms": listMs,
  };
}

interface Look {
  readonly ms: number;
  readonly sum: number;
  /** Of the written pages of each watched block. */
  readonly squares: number;
}

async function watch(
  memory: MemoryService,
  pages: number,
  stripes: readonly Stripe[],
  looksMs: readonly number[],
  signal: AbortSignal,
): Promise<Look[]> {
  const looks: Look[] = [];
  if (stripes.length === 0) return looks;
  const watched = new Bitmap(pages);
  addStripes(watched, stripes);
  const written = new Bitmap(pages);
  await memory.watch(watched);
  const started = performance.now();
  try {
    for (const lookMs of looksMs) {
      await sleep(Math.max(0, lookMs - (performance.now() - started)), undefined, { signal });
      written.clear();
      await memory.look(written);
      const ms = performance.now() - started;
      const counts = stripes.map((stripe) => written.countStripe(stripe));
      looks.push({ ms, sum: counts.reduce((sum, count) => sum + count, 0), squares: counts.reduce((sum, count) => sum + count ** 2, 0) });
    }
  } catch (error) {
    if (!signal.aborted) throw MigrationError.from(error);
  } finally {
    await memory.unwatch();
  }
  return looks;
}

/** From the watched blocks to all of them, with the error of a sample without replacement. */
function scale({ ms, sum, squares }: Look, watched: number, all: number): DirtyCurvePoint {
  const mean = sum / watched;
  const variance = watched < 2 ? 0 : Math.max(0, squares - watched * mean ** 2) / (watched - 1);
  const error = SURE * all * Math.sqrt((variance / watched) * (1 - watched / all));
  return { ms, pages: Math.round(mean * all), "error-pages": Math.round(error) };
}
