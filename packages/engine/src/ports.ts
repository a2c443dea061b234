import type { Bitmap, GuestState, VcpuActivity } from "@precopy/guest";
import type { MigrationError, XbzrleCounts } from "@precopy/protocol";

/** One round on the page channels. */
export interface RoundTransfer {
  readonly normalPages: number;
  readonly zeroPages: number;
  /** On the wire, headers included. */
  readonly bytes: number;
  /** Undefined without XBZRLE, and in the first round. */
  readonly xbzrle?: XbzrleCounts | undefined;
  /** From the first byte to the last channel's acknowledgement, ms. */
  readonly ms: number;
}

/** The guest's dirty log; see DirtyLog in @precopy/guest. Both resolve with the ms they took. */
export interface DirtyPort {
  start(into: Bitmap): Promise<number>;
  collect(into: Bitmap, known?: Bitmap): Promise<number>;
}

/** The page channels. A round's bitmap is theirs until its promise settles. */
export interface LinkPort {
  sendRound(round: number, pages: Bitmap): Promise<RoundTransfer>;
  /** Without any bandwidth limit. Resolves when the system has taken every byte; PREPARED tells that they arrived. */
  sendLast(round: number, pages: Bitmap): Promise<RoundTransfer>;
  /** Shortest control round trip seen, ms. */
  roundTripMs(): number;
  /** Pages handed to the system with their data since the migration began, in the round under way too. */
  sentPages(): number;
}

export interface GuestPort {
  /** How long a pause would take now, ms. */
  probeMs(): number;
  pause(): Promise<GuestState>;
  /** Of each vCPU this share of its time, 0 to 0.999, until told otherwise; an empty list lifts all. */
  withhold(shares: readonly number[]): void;
  /** Of each vCPU; counters. */
  activity(): readonly VcpuActivity[];
}

export interface FinalState {
  /** The last that was sent; 0 if there was none. */
  readonly round: number;
  readonly guest: GuestState;
}

/** The conversation of the hand-over. */
export interface HandoverPort {
  /** Sends the state, while the last pages are still being sent. @throws {MigrationError} it cannot be encoded */
  tell(state: FinalState): void;
  /** Everything was sent. Resolves at PREPARED, with the digest compared. */
  prepare(): Promise<void>;
  /** Sends COMMIT and takes the hand-over's steps until it is over, however long that takes: only an answer ends it, the arbiter or an operator. */
  commit(): Promise<void>;
}

/** Post-copy: what the target is told before it runs the guest without all of its memory. */
export interface PostcopyPort {
  /** The guest's first pages, which devices use: they are at the target before it runs. */
  readonly devicePages: number;
  /** The target lets go of its versions of these pages; resolves when it has, and stops whoever touches a missing page. */
  discard(pages: Bitmap): Promise<void>;
  /** The same in the pause; PREPARED says that it is done. */
  tellDiscard(pages: Bitmap): void;
}

/** Ends every port at once, so that whatever is pending on them rejects soon; tells the target why. Before COMMIT only. */
export type StopPorts = (reason: MigrationError) => Promise<void>;

/** Milliseconds, monotonic. */
export type Clock = () => number;

/** Calls `work` every `ms` until the function it returns is called. */
export type Timer = (ms: number, work: () => void) => () => void;
