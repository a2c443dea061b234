import { PAGE_BYTES, formatBandwidth } from "@precopy/protocol";

/** What the policy knows when a round has been acknowledged and the next dirty pages are collected. Times in ms. */
export interface RoundOutlook {
  /** Collected now: what the next round, or the last one, has to send. */
  readonly remainingPages: number;
  /** Over the time between the last two collections. */
  readonly dirtyPagesPerSecond: number;
  /** What the link carries while a round's bytes are under way; Infinity if nothing was sent yet. */
  readonly sendPagesPerSecond: number;
  readonly expectedDowntimeMs: number;
  /** How long it would take to send `remainingPages` in one more round. */
  readonly nextRoundMs: number;
  /** What the pause would be after that round if the guest goes on dirtying as it did. */
  readonly forecastDowntimeMs: number;
}

export type Decision =
  | { readonly action: "next round"; readonly reason: string }
  | { readonly action: "switch over"; readonly reason: string }
  | { readonly action: "give up"; readonly reason: string };

/** Another round has to lower the expected downtime by this much to be worth it, once the limit is met. */
const WORTH_SHARE = 0.1;
const WORTH_MS = 0.3;
/** And each millisecond of pause it saves may cost this much more total time. */
const TOTAL_MS_PER_PAUSE_MS = 20;
/** Rounds without a new shortest expected downtime after which more of them are pointless. */
const STALLED_ROUNDS = 5;
/** A new shortest must be shorter by this much to count. */
const STALLED_SHARE = 0.02;
/** A guest that dirties almost as fast as the link sends gains a little each round, for hours: 64 GiB at 99 % would take 549 rounds. */
const ROUNDS_MAX = 150;

/**
 * Decides after each round, from the history of outlooks (oldest first, never empty) and the limit. Pure: engine, simulator and tests
 * ask the same function. Being under the limit permits the switch and does not order it: rounds go on while the next is forecast to
 * lower the expected downtime markedly for little more total time.
 */
export function decide(history: readonly RoundOutlook[], downtimeLimitMs: number): Decision {
  const now = history.at(-1);
  if (now === undefined) return { action: "next round", reason: "nothing known yet" };
  const expected = now.expectedDowntimeMs;
  if (expected <= downtimeLimitMs) {
    const gain = expected - now.forecastDowntimeMs;
    const isWorth = gain > Math.max(WORTH_SHARE * expected, WORTH_MS) && now.nextRoundMs <= TOTAL_MS_PER_PAUSE_MS * gain;
    if (isWorth && history.length < ROUNDS_MAX && !isStalled(history, 2))
      return { action: "next round", reason: `would save ${gain.toFixed(1)} ms of pause` };
    return { action: "switch over", reason: `expected ${expected.toFixed(1)} ms` };
  }
  // Once it was within the limit, and another round was to make it better: what it was then it can be again.
  const wasWithin = history.some(({ expectedDowntimeMs }) => expectedDowntimeMs <= downtimeLimitMs);
  if (history.length >= ROUNDS_MAX || (isStalled(history, STALLED_ROUNDS) && !wasWithin))
    return { action: "give up", reason: verdict(history, downtimeLimitMs) };
  return { action: "next round", reason: `expected ${expected.toFixed(0)} ms is over the limit` };
}

/** True if none of the last `rounds` brought a shorter expected downtime than all before them. */
function isStalled(history: readonly RoundOutlook[], rounds: number): boolean {
  if (history.length <= rounds) return false;
  const shortest = (part: readonly RoundOutlook[]): number => Math.min(...part.map(({ expectedDowntimeMs }) => expectedDowntimeMs));
  return shortest(history.slice(-rounds)) > shortest(history.slice(0, -rounds)) * (1 - STALLED_SHARE);
}

/** In words, with the numbers a person needs to choose a remedy. */
function verdict(history: readonly RoundOutlook[], downtimeLimitMs: number): string {
  const best = Math.min(...history.map(({ expectedDowntimeMs }) => expectedDowntimeMs));
  const now = history.at(-1);
  const speed = (pagesPerSecond = Infinity): string =>
    Number.isFinite(pagesPerSecond) ? formatBandwidth(pagesPerSecond * PAGE_BYTES) : "?";
  const [dirtying, sending] = [speed(now?.dirtyPagesPerSecond), speed(now?.sendPagesPerSecond)];
  return `dirtying ${dirtying}, sending ${sending}: the best reachable pause is about ${best.toFixed(0)} ms, downtime-limit is ${downtimeLimitMs} ms`;
}
