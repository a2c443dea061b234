/**
 * An agent's answer to `who-owns`. owner: the guest is here, and runs or may run. in-doubt: COMMIT is out, unanswered. receiving, prepared:
 * on its way here. The others are what its journal says of a guest that is not in its memory.
 */
export const OWNERSHIPS = ["owner", "in-doubt", "receiving", "prepared", "moved", "refused", "given-up", "gone", "unknown"] as const;
export type OwnershipStanding = (typeof OWNERSHIPS)[number];

/** What one agent says of a guest. */
export interface Ownership {
  readonly guest: string;
  readonly standing: OwnershipStanding;
  /** An owner's own; else the highest one that the agent has met, 0 if it never met the guest. */
  readonly epoch: number;
  /** Of its last journal entry, ISO 8601; null without one. */
  readonly at: string | null;
  /** The other side of the last hand-over, HOST:PORT. */
  readonly peer: string | null;
}
