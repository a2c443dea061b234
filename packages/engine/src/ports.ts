import type { Bitmap, GuestState } from "@precopy/guest";
import type { MigrationError } from "@precopy/protocol";

/** One round on the page channels. */
export interface RoundTransfer {
  readonly normalPages: number;
  readonly zeroPages: number;
  /** On the wire, headers included. */
  readonly bytes: number;
  /** From the first byte to the last channel's acknowledgement, ms. */
  readonly ms: number;
}

/** The last round: its acknowledgement is PREPARED. */
export interface LastTransfer extends RoundTransfer {
  /** Image digest, or null with the digest off. */
  readonly digest: string | null;
  /** Packets each channel has sent since it began. */
  readonly packets: readonly number[];
}

/** The guest's dirty log; see DirtyLog in @precopy/guest. Both resolve with the ms they took. */
export interface DirtyPort {
  start(into: Bitmap): Promise<number>;
  collect(into: Bitmap): Promise<number>;
}

/** The page channels. A round's bitmap is theirs until its promise settles. */
export interface LinkPort {
  sendRound(round: number, pages: Bitmap): Promise<RoundTransfer>;
  /** Without any bandwidth limit. Resolves when the system has taken every byte; PREPARED tells that they arrived. */
  sendLast(round: number, pages: Bitmap): Promise<LastTransfer>;
  /** Shortest control round trip seen, ms. */
  roundTripMs(): number;
}

export interface GuestPort {
  /** How long a pause would take now, ms. */
  probeMs(): number;
  pause(): Promise<GuestState>;
}

export interface FinalState {
  readonly round: number;
  readonly guest: GuestState;
  readonly last: LastTransfer;
}

/** The three messages of the hand-over. */
export interface HandoverPort {
  /** Sends the state; resolves at PREPARED, with the digest compared. */
  prepare(state: FinalState): Promise<void>;
  /** Journals the decision; if that throws there is none. Once it returns only the target's answer decides. */
  decideCommit(): void;
  /**
   * Sends COMMIT and asks until the target has answered, however long that takes. Calls `onDoubt` once if no answer came in time or the
   * link is gone. Resolves with the answer: it runs there, or it never will.
   */
  commit(onDoubt: () => void): Promise<"active" | "refused">;
}

/** Ends every port at once, so that whatever is pending on them rejects soon; tells the target why. Before COMMIT only. */
export type StopPorts = (reason: MigrationError) => Promise<void>;

/** Milliseconds, monotonic. */
export type Clock = () => number;
