import { MigrationError, assertNever } from "./errors.js";

/** What the target knows of one hand-over. */
export type TargetState =
  | { readonly phase: "receiving"; readonly epoch: number } // admitted; pages arrive
  | { readonly phase: "prepared"; readonly epoch: number; readonly digest: string | null } // all is here and verified; waits for COMMIT
  | { readonly phase: "active"; readonly epoch: number } // owner: the guest runs here
  | { readonly phase: "discarded"; readonly epoch: number; readonly cause: unknown }; // final: this epoch never runs here

export type TargetPhase = TargetState["phase"];

const LEGAL = {
  receiving: ["prepared", "discarded"],
  prepared: ["active", "discarded"], // active only on COMMIT; a lost link alone changes nothing here
  active: [],
  discarded: [],
} as const satisfies Record<TargetPhase, readonly TargetPhase[]>;

type Next<S extends TargetState> = TargetState & { readonly phase: (typeof LEGAL)[S["phase"]][number] };

/** The only way from one state to the next. @throws {MigrationError} ERR_ILLEGAL_TRANSITION */
export function enterTarget<S extends TargetState>(from: S, to: Next<S>): TargetState {
  const legal: readonly TargetPhase[] = LEGAL[from.phase];
  if (!legal.includes(to.phase)) throw new MigrationError("ERR_ILLEGAL_TRANSITION", `target: ${from.phase} -> ${to.phase}`);
  if (to.epoch !== from.epoch) throw new MigrationError("ERR_ILLEGAL_TRANSITION", `target: epoch ${from.epoch} -> ${to.epoch}`);
  return to;
}

export function targetMayRunGuest(state: TargetState): boolean {
  switch (state.phase) {
    case "active":
      return true;
    case "receiving":
    case "prepared":
    case "discarded":
      return false;
    default:
      return assertNever(state);
  }
}
