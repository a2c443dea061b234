import { MigrationError } from "./errors.js";
import type { Decision } from "./journal-entry.js";

/**
 * The source's half of one hand-over: `stepSource(state, event)` gives the next state and what has to be done, and does nothing itself.
 * docs/model/handover.pml has the same phases and events by the same names, and docs/handover.md says what they mean.
 *
 *   setup --rounds--> active --pause--> device --prepared--> committing --active--> completed
 *     |                 |    or split     |                   |  |
 *     '-----------------+-----------------'                   |  '--silence--> in-doubt --active--> completed
 *          fail, cancel: failed, cancelled                    |                 | |  '----give-up--> given-up
 *                                                             '---discarded-----' '-------fenced--> taken-back
 *
 * After `split` the target runs the guest before it has all of its memory (post-copy), and active leads elsewhere:
 *
 *   committing, in-doubt --active--> postcopy-active --placed--> completed
 *                                     |          '--resumed--.
 *                                     '--silence--> postcopy-paused --placed--> completed
 *                                                    |  '--give-up--> given-up
 *                                                    '-------fenced--> taken-back
 */
export const SOURCE_PHASES = [
  "setup",
  "active",
  "device", // paused; leaves for committing only with PREPARED
  "committing", // COMMIT is decided: only the target's answer says who owns the guest
  "in-doubt", // and it did not come in time
  "postcopy-active", // the guest runs at the target, which fetches from here what it does not have
  "postcopy-paused", // and the link is gone: the guest waits there wherever it needs such a page
  "completed",
  "failed",
  "cancelled",
  "taken-back", // ours again, at one epoch above the attempt's
  "given-up", // an operator ended what was here
  "lost", // the target will never run it, and the image here ended with an earlier process
] as const;
export type SourcePhase = (typeof SOURCE_PHASES)[number];

/**
 * rounds: admitted, page channels open. pause: the guest stands still. split: it does, and the target is to run it without all of its memory.
 * silence: no answer in time, or the link is gone. resumed: it is back, in post-copy. prepared, active, discarded, unknown, placed: the target's
 * word, as an answer to `state`, `commit` or `ask`, or that no page is missing any more. fenced: an operator has seen to it that the target
 * cannot run the guest, or the arbiter gave it to us. give-up: the operator's word that it is nobody's business here any more.
 */
export const SOURCE_EVENTS = [
  "rounds",
  "pause",
  "split",
  "prepared",
  "silence",
  "active",
  "discarded",
  "unknown",
  "resumed",
  "placed",
  "fail",
  "cancel",
  "fenced",
  "give-up",
] as const;
export type SourceEvent = (typeof SOURCE_EVENTS)[number];

export interface SourceState {
  readonly phase: SourcePhase;
  /** What the hand-over raises the guest to; in `taken-back` one more. */
  readonly epoch: number;
  /** What the guest had before. */
  readonly epochBefore: number;
  /** False after a restart of the agent: then there is nothing to take back. */
  readonly hasImage: boolean;
  /** The target runs the guest before it has all of its memory. */
  readonly isSplit: boolean;
}

export type HandoverEffect =
  | { readonly effect: "journal"; readonly decision: Decision; readonly epoch: number }
  | { readonly effect: "send"; readonly message: "abort" | "commit" | "prepared" | "active" | "failed" }
  /** Let the guest run, or run on, at this epoch. */
  | { readonly effect: "run"; readonly epoch: number }
  /** Let go of everything that was kept for the guest. */
  | { readonly effect: "free" };

/** One step. If `decide` cannot be written down the step does not happen; `effects` follow in order, and each is carried out whatever the others do. */
export interface Step<S> {
  readonly state: S;
  readonly decide: Decision | undefined;
  readonly effects: readonly HandoverEffect[];
}

const TABLE = {
  setup: { rounds: "active", pause: "device", split: "device", fail: "failed", cancel: "cancelled" }, // straight to device: stop-and-copy
  active: { pause: "device", split: "device", fail: "failed", cancel: "cancelled" },
  device: { prepared: "committing", fail: "failed", cancel: "cancelled" },
  committing: { silence: "in-doubt", active: "completed", discarded: "taken-back" },
  "in-doubt": { prepared: "in-doubt", active: "completed", discarded: "taken-back", fenced: "taken-back", "give-up": "given-up" },
  "postcopy-active": { silence: "postcopy-paused", placed: "completed" },
  "postcopy-paused": { resumed: "postcopy-active", placed: "completed", fenced: "taken-back", "give-up": "given-up" },
  completed: {},
  failed: {},
  cancelled: {},
  "taken-back": {},
  "given-up": {},
  lost: {},
} as const satisfies Record<SourcePhase, Partial<Record<SourceEvent, SourcePhase>>>;

/** What a peer says may come late, twice or for nothing: then it changes nothing. Anything else out of place is a mistake of ours. */
const FROM_PEER: readonly SourceEvent[] = ["prepared", "silence", "active", "discarded", "unknown", "placed"];

/** Every attempt is an epoch of its own, so what an aborted one left at a target can never run. @param epoch above all that this agent has met. */
export const offer = (epochBefore: number, epoch: number): Step<SourceState> => ({
  state: { phase: "setup", epoch, epochBefore, hasImage: true, isSplit: false },
  decide: "offered",
  effects: [],
});

/** The attempt of an earlier process whose journal ends with `committed`: it asks on, with nothing in its hands. */
export const recoverSource = (epoch: number): SourceState => ({
  phase: "in-doubt",
  epoch,
  epochBefore: epoch - 1,
  hasImage: false,
  isSplit: false, // there is nothing left to give
});

/** @throws {MigrationError} ERR_ILLEGAL_TRANSITION for an event of our own that has no place in this phase. */
export function stepSource(from: SourceState, event: SourceEvent): Step<SourceState> {
  const table: Partial<Record<SourceEvent, SourcePhase>> = TABLE[from.phase];
  const phase = table[event];
  const isHollow = event === "fenced" && !from.hasImage;
  if (phase === undefined || isHollow) {
    if (FROM_PEER.includes(event)) return { state: from, decide: undefined, effects: [] };
    throw new MigrationError("ERR_ILLEGAL_TRANSITION", `source: ${event} in ${from.phase}${isHollow ? " without an image" : ""}`);
  }
  if (phase === "completed" && event === "active" && from.isSplit) return enter(from, "postcopy-active", event);
  return enter(from, phase === "taken-back" && !from.hasImage ? "lost" : phase, event);
}

function enter(from: SourceState, phase: SourcePhase, event: SourceEvent): Step<SourceState> {
  const { epoch, epochBefore } = from;
  const state = { ...from, phase, isSplit: from.isSplit || event === "split" };
  const ended = { ...state, hasImage: false };
  const journal = (decision: Decision, at = epoch): HandoverEffect => ({ effect: "journal", decision, epoch: at });
  switch (phase) {
    case "setup":
    case "active":
    case "device":
    case "postcopy-active":
    case "postcopy-paused":
      return { state, decide: undefined, effects: [] };
    case "committing":
      return { state, decide: "committed", effects: [{ effect: "send", message: "commit" }] };
    case "in-doubt": // COMMIT did not arrive if the target is still prepared: once more
      return { state, decide: undefined, effects: event === "prepared" ? [{ effect: "send", message: "commit" }] : [] };
    case "completed":
      return { state: ended, decide: undefined, effects: [journal("completed"), { effect: "free" }] };
    case "failed":
    case "cancelled":
      return {
        state,
        decide: undefined,
        effects: [{ effect: "send", message: "abort" }, { effect: "run", epoch: epochBefore }, journal("aborted")],
      };
    case "taken-back":
      return {
        state: { ...state, epoch: epoch + 1 },
        decide: undefined,
        effects: [journal("taken-back", epoch + 1), { effect: "run", epoch: epoch + 1 }],
      };
    case "given-up":
      return { state: ended, decide: "given-up", effects: [{ effect: "free" }] };
    case "lost":
      return { state: ended, decide: undefined, effects: [journal("lost")] };
  }
}

/** True in every state in which the source owns the guest; `device` owns it and keeps it paused. */
export function sourceMayRunGuest({ phase }: SourceState): boolean {
  return phase === "setup" || phase === "active" || phase === "failed" || phase === "cancelled" || phase === "taken-back";
}

/** Up to here a failure or a cancel leaves the guest at the source as if nothing had happened. */
export const sourceMayAbort = (phase: SourcePhase): boolean => phase === "setup" || phase === "active" || phase === "device";

/** The guest runs at the target, and part of its memory is here only. */
export const isServing = (phase: SourcePhase): boolean => phase === "postcopy-active" || phase === "postcopy-paused";
