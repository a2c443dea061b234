import type { MigrationParameters } from "@precopy/protocol";
import { verdict } from "./verdict.js";

/** What the policy knows when a round has been acknowledged and the next dirty pages are collected. Times in ms. */
export interface RoundOutlook {
  /** Collected now: what the next round, or the last one, has to send. */
  readonly remainingPages: number;
  /** What the round that has ended sent, with data. */
  readonly sentPages: number;
  /** Of the guest's time, withheld since the collection before; measured. */
  readonly throttlePercent: number;
  /** auto-converge's step while that round lasted; 0 before the first, and without it. */
  readonly throttleStepPercent: number;
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
  /** throttlePercent: auto-converge's next step, if it takes one now. */
  | { readonly action: "next round"; readonly reason: string; readonly throttlePercent?: number }
  /** It could be switched over, and the operator wants to say when. */
  | { readonly action: "wait"; readonly reason: string }
  | { readonly action: "switch over"; readonly reason: string }
  /** The guest runs at the target now, and fetches what is missing there. */
  | { readonly action: "go to post-copy"; readonly reason: string }
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
/** auto-converge: rounds in which the guest dirtied too much, at one step, before the next. As many as in QEMU. */
const OUTRUN_ROUNDS = 2;
/** sdps: where this much was withheld, there was nothing left to withhold. */
const SDPS_PERCENT_MAX = 97;

/** What the policy reads of the parameters; they may have changed since the round before. */
export type PolicyParameters = Pick<
  MigrationParameters,
  | "mode"
  | "downtimeLimitMs"
  | "isPauseBeforeSwitchoverOn"
  | "throttle"
  | "throttleTriggerThresholdPercent"
  | "cpuThrottleInitialPercent"
  | "cpuThrottleIncrementPercent"
  | "maxCpuThrottlePercent"
>;

/**
 * Decides after each round, from the history of outlooks (oldest first, never empty) and the parameters. Pure: engine, simulator and tests
 * ask the same function. Being under the limit permits the switch and does not order it: rounds go on while the next is forecast to
 * lower the expected downtime markedly for little more total time.
 * @param forced the operator's time is up, or word has come: the guest is paused now, whatever the pause will be, or goes to post-copy.
 */
export function decide(history: readonly RoundOutlook[], parameters: PolicyParameters, forced?: Forced): Decision {
  const { downtimeLimitMs } = parameters;
  const now = history.at(-1);
  if (now === undefined) return { action: "next round", reason: "nothing known yet" };
  const expected = now.expectedDowntimeMs;
  if (forced === "switch over") return { action: "switch over", reason: `time is up, expected ${expected.toFixed(1)} ms` };
  if (forced === "go to post-copy") return { action: "go to post-copy", reason: "asked for" };
  if (expected <= downtimeLimitMs) {
    const gain = expected - now.forecastDowntimeMs;
    const isWorth = gain > Math.max(WORTH_SHARE * expected, WORTH_MS) && now.nextRoundMs <= TOTAL_MS_PER_PAUSE_MS * gain;
    if (isWorth && history.length < ROUNDS_MAX && !isStalled(history, 2))
      return { action: "next round", reason: `would save ${gain.toFixed(1)} ms of pause` };
    const action = parameters.isPauseBeforeSwitchoverOn ? "wait" : "switch over";
    return { action, reason: `expected ${expected.toFixed(1)} ms` };
  }
  if (parameters.mode === "hybrid" && !isShrinking(history))
    return {
      action: "go to post-copy",
      reason: `expected ${expected.toFixed(0)} ms is over the limit, and a round shortens it too little`,
    };
  // Once it was within the limit, and another round was to make it better: what it was then it can be again.
  const wasWithin = history.some(({ expectedDowntimeMs }) => expectedDowntimeMs <= downtimeLimitMs);
  const isHopeless = isStalled(history, STALLED_ROUNDS) && !wasWithin && !mayThrottleMore(history, parameters);
  if (history.length >= ROUNDS_MAX || isHopeless) return { action: "give up", reason: verdict(history, parameters, true).text };
  const throttlePercent = parameters.throttle === "auto-converge" ? nextStep(history, parameters) : undefined;
  const reason = `expected ${expected.toFixed(0)} ms is over the limit`;
  if (throttlePercent === undefined) return { action: "next round", reason };
  return { action: "next round", reason: `${reason}, throttled to ${throttlePercent} %`, throttlePercent };
}

/** What ends the rounds, whatever they led to. */
export type Forced = "switch over" | "go to post-copy";

/** hybrid: a round has to take this much off what is left, else post-copy is sooner there, and sends nothing twice. */
const SHRINKING_SHARE = 0.5;

/** True if the next round is forecast to leave much less than this one did. */
function isShrinking(history: readonly RoundOutlook[]): boolean {
  const now = history.at(-1);
  return now !== undefined && now.forecastDowntimeMs <= now.expectedDowntimeMs * SHRINKING_SHARE;
}

/** True if none of the last `rounds` brought a shorter expected downtime than all before them. */
function isStalled(history: readonly RoundOutlook[], rounds: number): boolean {
  if (history.length <= rounds) return false;
  const shortest = (part: readonly RoundOutlook[]): number => Math.min(...part.map(({ expectedDowntimeMs }) => expectedDowntimeMs));
  return shortest(history.slice(-rounds)) > shortest(history.slice(0, -rounds)) * (1 - STALLED_SHARE);
}

/** Rounds without progress say that nothing will come of it only if nothing more could be withheld in any of them. */
function mayThrottleMore(history: readonly RoundOutlook[], { throttle, maxCpuThrottlePercent }: PolicyParameters): boolean {
  if (throttle !== "auto-converge" && throttle !== "sdps") return false; // a dirty limit is met as well as it can be, and stays what it is
  return history
    .slice(-STALLED_ROUNDS)
    .some(({ throttlePercent, throttleStepPercent }) =>
      throttle === "sdps" ? throttlePercent < SDPS_PERCENT_MAX : throttleStepPercent < maxCpuThrottlePercent,
    );
}

/**
 * auto-converge: raises what is withheld after two rounds at one step in which the guest dirtied more than its share of what was sent.
 * @returns percent, or undefined to leave it. @see QEMU, migration/ram.c, migration_trigger_throttle
 */
function nextStep(
  history: readonly RoundOutlook[],
  { throttleTriggerThresholdPercent, cpuThrottleInitialPercent, cpuThrottleIncrementPercent, maxCpuThrottlePercent }: PolicyParameters,
): number | undefined {
  const isOutrun = ({ remainingPages, sentPages }: RoundOutlook): boolean =>
    remainingPages > (sentPages * throttleTriggerThresholdPercent) / 100;
  const last = history.slice(-OUTRUN_ROUNDS);
  const step = last.at(-1)?.throttleStepPercent ?? 0;
  if (last.length < OUTRUN_ROUNDS || !last.every((round) => isOutrun(round) && round.throttleStepPercent === step)) return undefined;
  const next = Math.min(step === 0 ? cpuThrottleInitialPercent : step + cpuThrottleIncrementPercent, maxCpuThrottlePercent);
  return next === step ? undefined : next;
}
