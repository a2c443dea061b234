import type { Bitmap } from "@precopy/guest";
import type { DowntimeBreakdown } from "@precopy/protocol";
import type { Clock, DirtyPort, FinalState, GuestPort, HandoverPort, LinkPort, RoundTransfer } from "./ports.js";

export interface SwitchoverPorts {
  readonly dirty: DirtyPort;
  readonly link: LinkPort;
  readonly guest: GuestPort;
  readonly handover: HandoverPort;
  readonly clock: Clock;
}

export interface Prepared {
  readonly pausedAtMs: number;
  readonly preparedAtMs: number;
  readonly last: RoundTransfer;
  readonly lastPages: number;
  readonly breakdown: Omit<DowntimeBreakdown, "commit">;
}

/**
 * Stop-and-copy, up to PREPARED. The order is the point: vCPUs stand still and devices are quiet and have saved their state (which may
 * still write memory) before the last dirty sync; what it finds is sent with the state; the target verifies everything.
 * Until this resolves the source may resume its guest; a failure in here leaves it paused for the caller to do so.
 * @param remaining collected and not sent yet; joined with the last collection, so no page travels twice. With `isArmed` false (plain
 * stop-and-copy) the dirty log is started here, and lists every page that may be other than zero.
 */
export async function pauseAndPrepare(
  remaining: Bitmap,
  round: number,
  isArmed: boolean,
  { dirty, link, guest, handover, clock }: SwitchoverPorts,
): Promise<Prepared> {
  const askedAt = clock();
  const state = await guest.pause();
  const pausedAt = clock();
  await (isArmed ? dirty.collect(remaining) : dirty.start(remaining));
  const collectedAt = clock();
  const lastPages = remaining.count();
  // The state travels beside the last pages; the target waits for both.
  const [last] = await Promise.all([link.sendLast(round, remaining), tell(handover, { round, guest: state })]);
  const sentAt = clock();
  await handover.prepare();
  const preparedAtMs = clock();
  return {
    pausedAtMs: askedAt,
    preparedAtMs,
    last,
    lastPages,
    breakdown: {
      pause: pausedAt - askedAt,
      collect: collectedAt - pausedAt,
      transfer: sentAt - collectedAt,
      prepare: preparedAtMs - sentAt,
    },
  };
}

/** A state that cannot be sent rejects, and the pages under way are the caller's to stop. */
const tell = async (handover: HandoverPort, state: FinalState): Promise<void> => handover.tell(state);
