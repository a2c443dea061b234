import { Bitmap } from "@precopy/guest";
import { MigrationError } from "@precopy/protocol";
import type { MigrationParameters, RoundProgress } from "@precopy/protocol";
import { expectedDowntimeMs } from "./estimate.js";
import type { FixedParts } from "./estimate.js";
import { HoldBack } from "./hold-back.js";
import { decide } from "./policy.js";
import type { Decision, Forced, RoundOutlook } from "./policy.js";
import type { Clock, DirtyPort, GuestPort, LinkPort, Timer } from "./ports.js";
import { RoundStats } from "./round-stats.js";
import type { Throttling } from "./throttling.js";
import { verdict } from "./verdict.js";

export interface RoundLoopPorts {
  readonly dirty: DirtyPort;
  readonly link: Pick<LinkPort, "sendRound" | "roundTripMs">;
  readonly guest: Pick<GuestPort, "probeMs">;
  readonly clock: Clock;
  readonly every: Timer;
  /** The target's own measure of how fast its vCPUs start, ms. */
  readonly resumeMs: number;
}

/** What is to be migrated, and how; the latter may be changed while it runs. */
export interface MigrationPlan {
  /** Of the guest. */
  readonly pages: number;
  /** When the command was accepted, on the ports' clock. */
  readonly acceptedAtMs: number;
  parameters(): MigrationParameters;
  /** The round under way is to be the last: the operator's time is up, or word has come. Undefined: it need not be. */
  forced(): Forced | undefined;
}

export interface RoundLoopResult {
  /** Collected and not sent: the last round begins with these. */
  readonly remaining: Bitmap;
  readonly rounds: number;
  readonly expectedDowntimeMs: number;
  readonly next: Forced;
}

/**
 * Pre-copy: collect, send, estimate, decide, until the policy says that the guest can be paused. Every round is acknowledged before the
 * next is collected, so the channels are drained when this returns. What the guest is throttled by then it stays, until it stands still.
 * @throws {MigrationError} ERR_NOT_CONVERGING with the policy's verdict, and whatever the ports throw.
 * @see Clark et al., "Live Migration of Virtual Machines", NSDI 2005.
 */
export async function preCopy(
  plan: MigrationPlan,
  ports: RoundLoopPorts,
  throttling: Throttling,
  onRound: (round: RoundProgress) => void,
): Promise<RoundLoopResult> {
  try {
    return await sendRounds(plan, ports, throttling, onRound);
  } finally {
    throttling.freeze();
  }
}

async function sendRounds(
  { pages, acceptedAtMs, parameters, forced }: MigrationPlan,
  { dirty, link, guest, clock, every, resumeMs }: RoundLoopPorts,
  throttling: Throttling,
  onRound: (round: RoundProgress) => void,
): Promise<RoundLoopResult> {
  const stats = new RoundStats();
  const history: RoundOutlook[] = [];
  const bitmap = new Bitmap(pages);
  let collectMs = await dirty.start(bitmap);
  let collectedAt = clock();
  let dirtyRate: number | undefined;
  let throttleStepPercent = 0;
  let cap = parameters().maxBandwidthBytesPerSecond;
  /** Another cap is another link, in effect: what the rounds over the old one led to says nothing of what they lead to now. */
  const heedCap = (): void => {
    const { maxBandwidthBytesPerSecond } = parameters();
    if (maxBandwidthBytesPerSecond === cap) return;
    cap = maxBandwidthBytesPerSecond;
    stats.cap(cap);
    history.length = 0;
  };
  const holdBack = parameters().isHoldBackOn ? new HoldBack(pages) : undefined;
  for (let round = 1; ; round++) {
    const dirtyPages = bitmap.count();
    heedCap();
    const startMs = clock() - acceptedAtMs;
    const transfer = await link.sendRound(round, bitmap);
    stats.add(transfer, link.roundTripMs());
    heedCap();
    const durationMs = clock() - acceptedAtMs - startMs;

    // The round's pages are acknowledged, so its bits may go; what is collected now is the next round.
    bitmap.clear();
    const roundCollectMs = collectMs;
    collectMs = await dirty.collect(bitmap);
    const now = clock();
    const dirtied = bitmap.count();
    const lastRate = dirtyRate;
    dirtyRate = (dirtied / Math.max(now - collectedAt, 0.001)) * 1000;
    collectedAt = now;
    holdBack?.take(bitmap);
    const heldPages = holdBack?.heldPages ?? 0;
    const remainingPages = bitmap.count() + heldPages;

    throttling.collected(dirtied, 1000 / stats.pagesMs(1));
    const throttlePercent = throttling.takePercent();

    const parts = { pauseMs: guest.probeMs(), collectMs, roundTripMs: link.roundTripMs(), resumeMs };
    const { normalPages: sentPages } = transfer;
    const rate = dirtyRate;
    const look = (held: number): RoundOutlook => ({
      ...outlook(remainingPages, held, rate, stats, parts),
      ...{ sentPages, throttlePercent, throttleStepPercent },
    });
    history.push(look(heldPages));
    let decision = decide(history, parameters(), forced());
    if (decision.action === "switch over" && heldPages > 0 && forced() === undefined) {
      // The pause is not to be longer for what was held: a round may take that away first.
      holdBack?.release(bitmap);
      history.splice(-1, 1, look(0));
      decision = decide(history, parameters());
    }
    if (decision.action === "next round" && decision.throttlePercent !== undefined) {
      throttleStepPercent = decision.throttlePercent;
      throttling.converge(throttleStepPercent);
    }
    const expected = expectedDowntimeMs(remainingPages, stats, parts);
    onRound({
      round,
      startMs,
      durationMs,
      collectMs: roundCollectMs,
      dirtyPages,
      normalPages: transfer.normalPages,
      zeroPages: transfer.zeroPages,
      bytes: transfer.bytes,
      bandwidthBytesPerSecond: stats.bandwidthBytesPerSecond,
      dirtyPagesPerSecond: round === 1 ? undefined : lastRate,
      expectedDowntimeMs: expected,
      remainingPages,
      throttlePercent,
      xbzrle: transfer.xbzrle,
      isReady: decision.action === "wait",
      decision: describe(decision),
      verdict: verdict(history, parameters(), decision.action === "give up"),
    });
    if (decision.action === "give up") throw new MigrationError("ERR_NOT_CONVERGING", `After ${round} rounds: ${decision.reason}`);
    if (decision.action === "switch over" || decision.action === "go to post-copy") {
      holdBack?.release(bitmap);
      return { remaining: bitmap, rounds: round, expectedDowntimeMs: expected, next: decision.action };
    }
    if (decision.action !== "wait") continue;
    history.length = 0; // however long it waits, that is no lack of progress
    await rest(every, () => forced() !== undefined || !parameters().isPauseBeforeSwitchoverOn);
  }
}

/** While the operator is waited for, a round each so often keeps what is left small. */
const REST_MS = 1000;
const REST_LOOK_MS = 20;

/** Until it is over, or it is time for another round. */
const rest = (every: Timer, isOver: () => boolean): Promise<void> =>
  new Promise((resolve) => {
    let looks = 0;
    const stop = every(REST_LOOK_MS, () => {
      if (++looks * REST_LOOK_MS < REST_MS && !isOver()) return;
      stop();
      resolve();
    });
  });

const describe = ({ action, reason }: Decision): string => `${action}: ${reason}`;

type Forecast = Omit<RoundOutlook, "sentPages" | "throttlePercent" | "throttleStepPercent">;

/** @param heldPages of the remaining, which the next round does not send. */
function outlook(remainingPages: number, heldPages: number, dirtyPagesPerSecond: number, stats: RoundStats, parts: FixedParts): Forecast {
  const nextRoundMs = stats.pagesMs(remainingPages - heldPages) + parts.collectMs + (stats.fixedMs ?? parts.roundTripMs);
  const nextPages = Math.min(heldPages + (dirtyPagesPerSecond * nextRoundMs) / 1000, remainingPages);
  return {
    remainingPages,
    dirtyPagesPerSecond,
    sendPagesPerSecond: 1000 / stats.pagesMs(1),
    expectedDowntimeMs: expectedDowntimeMs(remainingPages, stats, parts),
    nextRoundMs,
    forecastDowntimeMs: expectedDowntimeMs(nextPages, stats, parts),
  };
}
