import { PAGE_BYTES, formatBandwidth } from "@precopy/protocol";
import type { Verdict } from "@precopy/protocol";
import type { PolicyParameters, RoundOutlook } from "./policy.js";

/** A guest that dirties more than this share of what is sent needs many rounds, if it ends at all. */
const SOON_SHARE = 0.8;

const speed = (pagesPerSecond: number): string => (Number.isFinite(pagesPerSecond) ? formatBandwidth(pagesPerSecond * PAGE_BYTES) : "?");

/**
 * In words and numbers how a migration stands after a round, and what a person may change. @param history of outlooks, oldest first, never empty.
 * @param isGivenUp the policy sees no progress any more.
 */
export function verdict(history: readonly RoundOutlook[], { downtimeLimitMs, throttle }: PolicyParameters, isGivenUp = false): Verdict {
  const now = history.at(-1);
  const best = Math.min(...history.map(({ expectedDowntimeMs }) => expectedDowntimeMs));
  const [dirtying, sending] = [now?.dirtyPagesPerSecond ?? Infinity, now?.sendPagesPerSecond ?? Infinity];
  const expected = now?.expectedDowntimeMs ?? Infinity;
  const figures = `dirtying ${speed(dirtying)}, sending ${speed(sending)}: the best reachable pause is about ${best.toFixed(0)} ms, downtime-limit is ${downtimeLimitMs} ms`;
  if (expected <= downtimeLimitMs) return { converges: true, text: `${figures}; it can be switched over` };
  const isSlower = dirtying < SOON_SHARE * sending;
  if (isSlower && !isGivenUp) return { converges: true, text: `${figures}; it gets there` };
  const longer = Number.isFinite(best) ? [`--downtime-limit ${Math.ceil(best)}`] : [];
  // A guest that is slower than its link and does not get there has a pause whose parts take longer than the limit without any page.
  const changes = isSlower ? longer : [...(throttle === "none" ? ["--throttle sdps"] : []), ...longer, "a faster link"];
  return { converges: false, text: `${figures}; what would help: ${changes.join(", ")}` };
}
