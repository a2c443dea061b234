import { MigrationError, assertNever } from "./errors.js";

/** What the source knows of one hand-over. Names are QEMU's where QEMU has one. */
export type SourceState =
  | { readonly phase: "setup" }
  | { readonly phase: "active"; readonly round: number }
  | { readonly phase: "device"; readonly epoch: number; readonly pausedAtMs: number }
  | { readonly phase: "committing"; readonly epoch: number; readonly pausedAtMs: number }
  | { readonly phase: "in-doubt"; readonly epoch: number; readonly pausedAtMs: number }
  | { readonly phase: "completed"; readonly downtimeMs: number }
  | { readonly phase: "failed" | "cancelled"; readonly cause: unknown }
  | { readonly phase: "taken-back"; readonly epoch: number };

export type SourcePhase = SourceState["phase"];

const LEGAL = {
  setup: ["active", "device", "failed", "cancelled"], // straight to device: stop-and-copy
  active: ["active", "device", "failed", "cancelled"],
  device: ["committing", "failed", "cancelled"], // paused; leaves for committing only after PREPARED
  committing: ["completed", "in-doubt", "taken-back"], // COMMIT is out: only the target's answer decides
  "in-doubt": ["completed", "taken-back"], // a late answer, the arbiter, or an operator who fenced the other side
  completed: [],
  failed: [],
  cancelled: [],
  "taken-back": [], // taken-back raises the epoch once more before the guest runs
} as const satisfies Record<SourcePhase, readonly SourcePhase[]>;

type Next<S extends SourceState> = SourceState & { readonly phase: (typeof LEGAL)[S["phase"]][number] };

/** The only way from one state to the next. @throws {MigrationError} ERR_ILLEGAL_TRANSITION */
export function enterSource<S extends SourceState>(from: S, to: Next<S>): SourceState {
  const legal: readonly SourcePhase[] = LEGAL[from.phase];
  if (!legal.includes(to.phase)) throw new MigrationError("ERR_ILLEGAL_TRANSITION", `source: ${from.phase} -> ${to.phase}`);
  return to;
}

/** True in every state in which the source owns the guest; `device` owns it and keeps it paused. */
export function sourceMayRunGuest(state: SourceState): boolean {
  switch (state.phase) {
    case "setup":
    case "active":
    case "failed":
    case "cancelled":
    case "taken-back":
      return true;
    case "device":
    case "committing":
    case "in-doubt":
    case "completed":
      return false;
    default:
      return assertNever(state);
  }
}

/** Up to here a failure or a cancel leaves the guest at the source as if nothing had happened. */
export const sourceMayAbort = (phase: SourcePhase): boolean => phase === "setup" || phase === "active" || phase === "device";
