/**
 * Decisions that outlive the process, as each agent writes them down. As source: offered, committed, completed, aborted, taken-back, given-up,
 * lost. As target: prepared, owner, refused, claimed. Booted: here.
 */
export type Decision =
  | "booted"
  | "offered"
  | "committed"
  | "completed"
  | "aborted"
  | "taken-back"
  | "given-up"
  | "lost"
  | "prepared"
  | "owner"
  | "refused"
  | "claimed";

export interface JournalEntry {
  /** ISO 8601, this host's clock. */
  readonly at: string;
  readonly epoch: number;
  readonly decision: Decision;
  /** The other side of the hand-over, HOST:PORT; of an attempt only. */
  readonly peer?: string;
  /** Of the attempt. */
  readonly session?: string;
  /** Which start of this host's kernel: what was written under the same one is all there, synced or not. */
  readonly boot?: string;
}

/**
 * What a journal says of a guest that is not in the agent's memory: the process that held it, if one did, has ended.
 *   unknown   never met, or met under an earlier start of the host without a last word
 *   gone      it was here and ended with its process
 *   in-doubt  COMMIT was decided, and the target's answer never written down
 *   moved     the target confirmed that it runs there
 *   refused   it will never run here at that epoch
 *   given-up  an operator ended what was left of it here
 */
export type Standing = "unknown" | "gone" | "in-doubt" | "moved" | "refused" | "given-up";

/** @param entries of one guest, oldest first. @param boot this start of the host's kernel; undefined where it has no name. */
export function standingOf(
  entries: readonly JournalEntry[],
  boot: string | undefined,
): { readonly standing: Standing; readonly last: JournalEntry | undefined } {
  const last = entries.at(-1);
  const standing = (): Standing => {
    switch (last?.decision) {
      case undefined:
        return "unknown";
      case "booted":
      case "owner":
      case "claimed":
      case "taken-back":
      case "aborted":
      case "lost":
        return "gone";
      case "offered":
        // The process ended before COMMIT was decided, and the guest with it; unless a `committed` behind it was lost with the host.
        return boot !== undefined && last.boot === boot ? "gone" : "unknown";
      case "committed":
        return "in-doubt";
      case "completed":
        return "moved";
      case "given-up":
        return "given-up";
      case "refused":
        return "refused";
      case "prepared":
        // `owner` comes before the guest's first step. Under the same kernel no line is lost, so it never ran, and never will.
        return boot !== undefined && last.boot === boot ? "refused" : "unknown";
    }
  };
  return { standing: standing(), last };
}
