import type { Load } from "../peer.js";

/** A guest at work, moved while somebody watches how it gets on. */
export interface WorkLoad extends Load {
  /** Dirties as fast as it can; `dirtyRate` is only what its work is counted by, the same for every peer. */
  readonly isUnpaced: boolean;
}

export interface WorkOrder {
  readonly load: WorkLoad;
  /** Of all streams together; undefined for as much as there is. */
  readonly maxBandwidthBytesPerSecond: number | undefined;
  /** How long the guest is watched before it is moved. */
  readonly beforeMs: number;
  /** What does not converge is watched for so long. */
  readonly roundsMs: number;
}

/** Shares of the work that is due by the load's rate. */
export interface WorkRun {
  readonly before: number;
  /** From when the guest's pages are sent until it is paused, or nobody waits any longer. */
  readonly during: number;
  readonly roundsMs: number;
  readonly rounds: number;
  readonly end: "paused" | "given up" | "watched long enough";
}

export interface WorkPeer {
  readonly name: string;
  /** @param ready called when the guest runs under its load. @throws {Error} if anything else than expected happens */
  watch(order: WorkOrder, ready: () => void): Promise<WorkRun>;
}

/** After `ready`, which may have kept us from listening: what the guest told meanwhile is heard within this, and not taken for work of later. */
export const LISTEN_AGAIN_MS = 200;

/** @throws {Error} if the guest did not tell of its work twice in that time */
export function told(share: number | undefined, when: string): number {
  if (share === undefined) throw new Error(`The guest told nothing ${when}`);
  return share;
}
