import { MigrationError } from "./errors.js";
import type { Decision } from "./journal-entry.js";
import type { HandoverEffect, Step } from "./source-state.js";

/**
 * The target's half of one hand-over; see source-state.ts.
 *
 *   receiving --verified--> prepared --commit--> active
 *       |                     |    '---claim--> claimed        (an operator's: the copy runs one epoch above the attempt's)
 *       '---------------------'          '--starved--> lost    (in post-copy)
 *         abort, fail, cancel, superseded: discarded; silence: only out of receiving; outvoted: only out of prepared
 */
export const TARGET_PHASES = [
  "receiving", // admitted; pages arrive
  "prepared", // all is here and verified; waits for COMMIT
  "active", // owner: the guest runs here
  "discarded", // final: this epoch never runs here
  "lost", // it ran here, and what was missing of its memory is nowhere any more
  "claimed", // owner by an operator's word, of a copy that may be older than what the source did since
] as const;
export type TargetPhase = (typeof TARGET_PHASES)[number];

/**
 * verified: all pages and the state are here and the digests equal. commit, abort: the source's word. silence: its link was gone for longer
 * than the grace period. fail: something went wrong here. cancel: this side's operator, or its orderly end. superseded: the source offers
 * the guest again. outvoted: the arbiter has given the guest to somebody else. claim: an operator runs the copy. starved: the source, which
 * had pages that are missing here, has ended.
 */
export const TARGET_EVENTS = [
  "verified",
  "commit",
  "abort",
  "silence",
  "fail",
  "cancel",
  "superseded",
  "outvoted",
  "claim",
  "starved",
] as const;
export type TargetEvent = (typeof TARGET_EVENTS)[number];

export interface TargetState {
  readonly phase: TargetPhase;
  /** Of the attempt; in `claimed` one more. */
  readonly epoch: number;
}

/** The target's answer to `ask`. gone: it ran here and ended with its process. unknown: no record, which is no refusal. */
export const OWNER_ANSWERS = ["receiving", "prepared", "active", "discarded", "gone", "unknown"] as const;
export type OwnerAnswer = (typeof OWNER_ANSWERS)[number];

const TABLE = {
  receiving: {
    verified: "prepared",
    abort: "discarded",
    silence: "discarded",
    fail: "discarded",
    cancel: "discarded",
    superseded: "discarded",
  },
  prepared: {
    commit: "active",
    abort: "discarded",
    fail: "discarded",
    cancel: "discarded",
    superseded: "discarded",
    outvoted: "discarded",
    claim: "claimed",
  },
  active: { commit: "active", starved: "lost" }, // COMMIT is answered again
  lost: {},
  discarded: {},
  claimed: { commit: "claimed" }, // the source is told that the guest runs here, and lets go of its copy
} as const satisfies Record<TargetPhase, Partial<Record<TargetEvent, TargetPhase>>>;

/** May come late, twice or for nothing. */
const FROM_PEER: readonly TargetEvent[] = ["commit", "abort", "silence", "superseded"];

export const admitted = (epoch: number): TargetState => ({ phase: "receiving", epoch });

/** @throws {MigrationError} ERR_ILLEGAL_TRANSITION for an event of our own that has no place in this phase. */
export function stepTarget(from: TargetState, event: TargetEvent): Step<TargetState> {
  const table: Partial<Record<TargetEvent, TargetPhase>> = TABLE[from.phase];
  const phase = table[event];
  if (phase === undefined) {
    if (FROM_PEER.includes(event)) return { state: from, decide: undefined, effects: [] };
    throw new MigrationError("ERR_ILLEGAL_TRANSITION", `target: ${event} in ${from.phase}`);
  }
  const { epoch } = from;
  const state = { phase, epoch };
  const decided = (decision: Decision, ...effects: HandoverEffect[]): Step<TargetState> => ({ state, decide: decision, effects });
  switch (phase) {
    case "receiving":
      return { state, decide: undefined, effects: [] };
    case "prepared":
      return decided("prepared", { effect: "send", message: "prepared" });
    case "active":
      if (from.phase === "active") return { state, decide: undefined, effects: [{ effect: "send", message: "active" }] };
      return decided("owner", { effect: "run", epoch }, { effect: "send", message: "active" });
    case "lost":
      return { state, decide: undefined, effects: [{ effect: "free" }] };
    case "discarded": {
      const effects: HandoverEffect[] = [{ effect: "send", message: "failed" }, { effect: "free" }];
      // Only PREPARED may have led to a COMMIT: only then somebody may ask for our word later, when this process is no more.
      if (from.phase === "prepared") effects.unshift({ effect: "journal", decision: "refused", epoch });
      return { state, decide: undefined, effects };
    }
    case "claimed":
      if (from.phase === "claimed") return { state: from, decide: undefined, effects: [{ effect: "send", message: "active" }] };
      return { state: { phase, epoch: epoch + 1 }, decide: "claimed", effects: [{ effect: "run", epoch: epoch + 1 }] };
  }
}

export const targetMayRunGuest = ({ phase }: TargetState): boolean => phase === "active" || phase === "claimed";

/** What a source that asks is told while the attempt is in this agent's memory. */
export const ownerAnswer = ({ phase }: TargetState): OwnerAnswer => {
  if (phase === "claimed") return "active";
  return phase === "lost" ? "gone" : phase;
};
