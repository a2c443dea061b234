import type { RoundStats } from "./round-stats.js";

/** Measured parts of a pause that do not depend on how much is left to send, ms. */
export interface FixedParts {
  /** To the end of every vCPU's step. */
  readonly pauseMs: number;
  /** The last dirty sync. */
  readonly collectMs: number;
  /** One control round trip; a hand-over has two: state to PREPARED and COMMIT to ACTIVE. */
  readonly roundTripMs: number;
  /** The target's vCPUs, from the message to the first step. */
  readonly resumeMs: number;
}

/** Expected downtime in ms if the guest were paused now with `remainingPages` to send: a sum of measured parts. */
export function expectedDowntimeMs(remainingPages: number, stats: RoundStats, parts: FixedParts): number {
  // A short round's fixed part is its own thread hand-offs and acknowledgement; before one was seen the round trip stands for it.
  const flushMs = stats.fixedMs ?? parts.roundTripMs;
  return parts.pauseMs + parts.collectMs + stats.pagesMs(remainingPages) + flushMs + 2 * parts.roundTripMs + parts.resumeMs;
}
