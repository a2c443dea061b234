import { Bitmap } from "@precopy/guest";
import type { DowntimeBreakdown } from "@precopy/protocol";
import type { Clock, DirtyPort, FinalState, GuestPort, HandoverPort, LinkPort, PostcopyPort, RoundTransfer } from "./ports.js";

export interface SwitchoverPorts {
  readonly dirty: DirtyPort;
  readonly link: LinkPort;
  readonly guest: GuestPort;
  readonly handover: HandoverPort;
  readonly clock: Clock;
}

export interface SplitPorts extends SwitchoverPorts {
  readonly postcopy: PostcopyPort;
}

export interface Prepared {
  readonly pausedAtMs: number;
  readonly preparedAtMs: number;
  readonly last: RoundTransfer;
  readonly lastPages: number;
  /** That the target will miss when it runs the guest. */
  readonly missingPages: number;
  readonly breakdown: Omit<DowntimeBreakdown, "commit">;
}

/**
 * Stop-and-copy, up to PREPARED. The order is the point: vCPUs stand still and devices are quiet and have saved their state (which may
 * still write memory) before the last dirty sync; what it finds is sent with the state; the target verifies everything.
 * Until this resolves the source may resume its guest; a failure in here leaves it paused for the caller to do so.
 * @param remaining collected and not sent yet; joined with the last collection, so no page travels twice. With `isArmed` false (plain
 * stop-and-copy) the dirty log is started here, and lists every page that may be other than zero.
 */
export const pauseAndPrepare = (remaining: Bitmap, round: number, isArmed: boolean, ports: SwitchoverPorts): Promise<Prepared> =>
  pauseAndSend(round, ports, async () => {
    await (isArmed ? ports.dirty.collect(remaining) : ports.dirty.start(remaining));
    return { pages: remaining, missing: undefined };
  });

const NOTHING_SENT: RoundTransfer = { normalPages: 0, zeroPages: 0, bytes: 0, ms: 0 };

/**
 * @param round the number of the last one, if there is anything to be sent in it; those before it are acknowledged.
 * @param collect the last dirty sync; resolves with what is to be sent in the pause, and what is not.
 */
async function pauseAndSend(
  round: number,
  { link, guest, handover, clock }: SwitchoverPorts,
  collect: () => Promise<{ readonly pages: Bitmap; readonly missing: Bitmap | undefined }>,
): Promise<Prepared> {
  const askedAt = clock();
  const state = await guest.pause();
  const pausedAt = clock();
  const { pages, missing } = await collect();
  const collectedAt = clock();
  const lastPages = pages.count();
  // The state travels beside the last pages; the target waits for both. Without pages every channel is spared a round trip.
  const [last] = await Promise.all([
    lastPages > 0 ? link.sendLast(round, pages) : NOTHING_SENT,
    tell(handover, { round: lastPages > 0 ? round : round - 1, guest: state }),
  ]);
  const sentAt = clock();
  const preparing = handover.prepare();
  const missingPages = missing?.count() ?? 0; // while the target is at work
  await preparing;
  const preparedAtMs = clock();
  return {
    pausedAtMs: askedAt,
    preparedAtMs,
    last,
    lastPages,
    missingPages,
    breakdown: {
      pause: pausedAt - askedAt,
      collect: collectedAt - pausedAt,
      transfer: sentAt - collectedAt,
      prepare: preparedAtMs - sentAt,
    },
  };
}

/** Written since the last collection, few enough to be let go of in the pause: 0.7 us each. */
const FEW_PAGES = 1000;
const DISCARDS_MAX = 5;

function devicePagesOf(pages: number, { devicePages }: PostcopyPort): Bitmap {
  const bitmap = new Bitmap(pages);
  if (devicePages > 0) bitmap.setRun(0, devicePages);
  return bitmap;
}

/** What the target will miss, while the guest still runs here. */
export interface Split {
  /** Everything of which the target does not hold the last version. */
  readonly missing: Bitmap;
  /** Of these, what it was not told of yet. */
  readonly untold: Bitmap;
}

/**
 * Post-copy, before the pause: tells the target what it will miss, again and again while that takes pages along that were written meanwhile, so
 * that little is left to be told in the pause.
 * @param missing collected, and not at the target as it is now; becomes all that is missing.
 */
export async function announceMissing(missing: Bitmap, { dirty, postcopy }: Pick<SplitPorts, "dirty" | "postcopy">): Promise<Split> {
  missing.join(devicePagesOf(missing.pages, postcopy));
  let told = missing;
  for (let tries = 1; ; tries++) {
    await postcopy.discard(told);
    const written = await collectBeside(missing, dirty);
    if (written.count() <= FEW_PAGES || tries === DISCARDS_MAX) return { missing, untold: written };
    told = written;
  }
}

/** Adds to `missing` what was written meanwhile; `missing` is most of what there is, and is not looked through again. @returns what is new */
async function collectBeside(missing: Bitmap, dirty: DirtyPort): Promise<Bitmap> {
  const written = new Bitmap(missing.pages);
  await dirty.collect(written, missing);
  written.remove(missing);
  missing.join(written);
  return written;
}

/**
 * Up to PREPARED, as `pauseAndPrepare`; but what is sent in the pause is what devices use, and the target learns which pages are missing.
 * @returns also the pages that the target still lacks then, to be served once it runs the guest.
 */
export async function pauseAndSplit(
  { missing, untold }: Split,
  round: number,
  ports: SplitPorts,
): Promise<Prepared & { readonly missing: Bitmap }> {
  const { dirty, postcopy } = ports;
  const prepared = await pauseAndSend(round, ports, async () => {
    untold.join(await collectBeside(missing, dirty));
    if (untold.count() > 0) postcopy.tellDiscard(untold);
    const devices = devicePagesOf(missing.pages, postcopy);
    missing.remove(devices);
    return { pages: devices, missing };
  });
  return { ...prepared, missing };
}

/** A state that cannot be sent rejects, and the pages under way are the caller's to stop. */
const tell = async (handover: HandoverPort, state: FinalState): Promise<void> => handover.tell(state);
