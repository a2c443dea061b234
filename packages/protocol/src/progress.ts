import type { ErrorCode } from "./errors.js";
import type { Forecast, ForecastOutcome } from "./forecast.js";
import type { MigrationParameters } from "./parameters.js";
import type { SourcePhase } from "./source-state.js";

/** How a migration stands, for a person. */
export interface Verdict {
  /** False if it would never end as things are. */
  readonly converges: boolean;
  readonly text: string;
}

/** What XBZRLE did in a round, or in all of them. */
export interface XbzrleCounts {
  /** Sent as a delta. */
  readonly pages: number;
  /** Of those deltas. */
  readonly bytes: number;
  /** Sent whole, because no version of theirs was kept. */
  readonly misses: number;
  /** Sent whole, because the delta would have been longer. */
  readonly overflows: number;
}

export const addXbzrle = (one: XbzrleCounts | undefined, other: XbzrleCounts | undefined): XbzrleCounts => ({
  pages: (one?.pages ?? 0) + (other?.pages ?? 0),
  bytes: (one?.bytes ?? 0) + (other?.bytes ?? 0),
  misses: (one?.misses ?? 0) + (other?.misses ?? 0),
  overflows: (one?.overflows ?? 0) + (other?.overflows ?? 0),
});

/** One finished round. Times in ms, sizes in bytes. */
export interface RoundProgress {
  readonly round: number;
  /** Since the command was accepted. */
  readonly startMs: number;
  readonly durationMs: number;
  readonly collectMs: number;
  /** Pages the dirty log gave for this round. */
  readonly dirtyPages: number;
  readonly normalPages: number;
  readonly zeroPages: number;
  /** On the page channels, headers included. */
  readonly bytes: number;
  /** Acknowledged; undefined while every round was too short to tell. */
  readonly bandwidthBytesPerSecond: number | undefined;
  /** Over the time between the two collections; undefined in the first round, which sends everything. */
  readonly dirtyPagesPerSecond: number | undefined;
  readonly expectedDowntimeMs: number | undefined;
  /** Known dirty when the round was acknowledged. */
  readonly remainingPages: number;
  /** Undefined without XBZRLE, and in the first round. */
  readonly xbzrle: XbzrleCounts | undefined;
  /** Of the vCPUs' time, withheld from one collection to the next; measured. */
  readonly throttlePercent: number;
  /** It could be switched over, and waits for the operator: `pause-before-switchover`. */
  readonly isReady: boolean;
  /** What the policy decided after this round, and why. */
  readonly decision: string;
  /** Undefined of the last round, in which the guest is paused. */
  readonly verdict: Verdict | undefined;
}

/** Parts of the pause in ms, in order; they add up to the source's downtime. */
export interface DowntimeBreakdown {
  readonly pause: number; // asked to acknowledged by every vCPU, devices quiet, state saved
  readonly collect: number; // last dirty pages
  readonly transfer: number; // last pages sent, with state
  readonly prepare: number; // sent to PREPARED: arrival, verification, digest
  readonly commit: number; // COMMIT to ACTIVE: journal, round trip, resume
}

export interface AuditResult {
  readonly pages: number;
  readonly mismatched: number;
  readonly ms: number;
}

/** What log, terminal, event stream and bench read. Nothing else leaves a migration while it runs. */
export type ProgressEvent =
  | {
      readonly type: "started";
      readonly guest: string;
      readonly to: string;
      readonly epoch: number;
      readonly parameters: MigrationParameters;
      readonly dirtyLog: string;
      readonly pump: string;
    }
  /** An operator changed them while it runs. */
  | { readonly type: "set"; readonly parameters: MigrationParameters; readonly atMs: number }
  | { readonly type: "phase"; readonly phase: SourcePhase; readonly atMs: number }
  | ({ readonly type: "round" } & RoundProgress)
  | { readonly type: "switchover"; readonly breakdown: DowntimeBreakdown; readonly downtimeMs: number }
  /** Something of the link broke or was mended while the guest ran on. channel: null where the control channel is meant. code: why it broke. */
  | {
      readonly type: "link";
      readonly what: "channel-lost" | "channel-made-again" | "lane-carried" | "control-lost" | "control-rejoined" | "postcopy-paused";
      readonly channel: number | null;
      readonly code: ErrorCode | null;
      readonly message: string;
      readonly atMs: number;
    }
  /** After the first round, if there is more than a moment left. */
  | { readonly type: "forecast"; readonly forecast: Forecast }
  /** report: once it has ended; absent while it is in doubt. */
  | {
      readonly type: "failed";
      readonly phase: SourcePhase;
      readonly code: ErrorCode;
      readonly message: string;
      readonly remedy: string;
      readonly report?: MigrationReport;
    }
  | { readonly type: "done"; readonly report: MigrationReport };

/** `query-migrate` in QEMU's shape, spelling and units: ms, bytes, Mbit/s. */
export interface QueryMigrate {
  readonly status: string;
  readonly "total-time"?: number;
  readonly downtime?: number;
  readonly "expected-downtime"?: number;
  readonly "setup-time"?: number;
  /** Of the latest round; absent if nothing was withheld. */
  readonly "cpu-throttle-percentage"?: number;
  readonly "error-desc"?: string;
  /** Absent without XBZRLE. */
  readonly "xbzrle-cache"?: {
    readonly "cache-size": number;
    readonly bytes: number;
    readonly pages: number;
    readonly "cache-miss": number;
    /** Of the pages that were looked for. */
    readonly "cache-miss-rate": number;
    /** Bytes of pages sent as deltas, over bytes of the deltas; 0 without one. */
    readonly "encoding-rate": number;
    readonly overflow: number;
  };
  readonly ram?: {
    readonly transferred: number;
    readonly remaining: number;
    readonly total: number;
    readonly duplicate: number;
    readonly normal: number;
    readonly "normal-bytes": number;
    readonly "dirty-pages-rate": number;
    readonly mbps: number;
    readonly "dirty-sync-count": number;
    readonly "page-size": number;
    readonly "multifd-bytes": number;
    readonly "precopy-bytes": number;
    readonly "downtime-bytes": number;
    readonly "pages-per-second": number;
    /** Of post-copy: pages that a vCPU stopped at and the source was asked for, and bytes sent since the guest ran at the target. */
    readonly "postcopy-requests": number;
    readonly "postcopy-bytes": number;
  };
  /** Of each vCPU, its time at missing pages; absent without post-copy and before its end. */
  readonly "postcopy-vcpu-blocktime"?: readonly number[];
  /** us from a vCPU's stop at a missing page to the page's being there, the median; and how many took up to 1, 2, 4, ... us. */
  readonly "postcopy-latency"?: number;
  readonly "postcopy-latency-dist"?: readonly number[];
}

/** What post-copy came to. */
export interface PostcopyReport {
  /** Pages that a vCPU stopped at and the source was asked for. */
  readonly requests: number;
  /** And those known to hold zeros only. */
  readonly "zero-faults": number;
  readonly "latency-us": { readonly median: number; readonly p99: number; readonly max: number };
  /** How many took up to 1, 2, 4, ... us. */
  readonly "latency-dist": readonly number[];
  readonly "vcpu-blocktime-ms": readonly number[];
  /** Sent without being asked for. */
  readonly "pushed-pages": number;
  readonly "pushed-bytes": number;
  /** Times that the link was gone and came back. */
  readonly pauses: number;
  /** The guest running at the target to the last page's being there, ms. */
  readonly "fetch-ms": number;
}

/** What is kept of a migration (`--report FILE`). Keys are spelled as QEMU spells its own. */
export interface MigrationReport {
  readonly guest: string;
  readonly from: string;
  readonly to: string;
  readonly "owner-epoch": number;
  readonly "query-migrate": QueryMigrate;
  readonly iterations: readonly Record<string, unknown>[];
  readonly "downtime-breakdown": DowntimeBreakdown | null;
  /** What it was expected to come to, by a plan made before it and by its own first round; as far as there were any. */
  readonly forecasts: readonly Forecast[];
  /** What it came to, in the same keys; null if it did not complete. */
  readonly outcome: ForecastOutcome | null;
  readonly clocks: {
    /** The source's: pause asked for, to ACTIVE received. */
    readonly "source-ms": number | null;
    /** The clock of the host that both sides are on: pause asked for, to the guest running. Null between hosts. */
    readonly "host-ms": number | null;
    /** The guest's: longest gap between two of its ticks. */
    readonly "guest-ms": number | null;
    readonly "client-ms": number | null;
  };
  /**
   * True only if both digests matched in the commit and the audit found nothing; null if either was off. In post-copy: every page as it was placed at
   * the target is what stands in the frozen image here; null with the digest off.
   */
  readonly "digest-equal": boolean | null;
  readonly audit: AuditResult | null;
  /** Null without post-copy. */
  readonly postcopy: PostcopyReport | null;
  /** Page channels that broke and were made again, or carried by another one. */
  readonly "channel-losses": number;
  readonly "control-rejoins": number;
  /** Sent once more because nobody could tell if they had arrived. */
  readonly "resent-pages": number;
  readonly "resent-bytes": number;
  readonly verdict: string;
  readonly parameters: Record<string, unknown>;
  readonly error: { readonly code: string; readonly message: string; readonly remedy: string } | null;
}

/** QEMU's status word for a phase; `in-doubt` and `taken-back` have none there and keep ours. */
export const qemuStatus = (phase: SourcePhase | "none"): string => (phase === "committing" ? "device" : phase);
