/** A figure with the range in which it is expected: what comes out if link and guest do a little better or worse than was measured. */
export interface ForecastRange {
  readonly low: number;
  readonly expected: number;
  readonly high: number;
}

/** Parts of a pause, ms. */
export interface DowntimeParts {
  readonly pause: number;
  readonly collect: number;
  /** The last pages and the state, to PREPARED. */
  readonly send: number;
  readonly commit: number;
}

/** plan: by `precopy plan`, before the migration. first-round: by the migration itself, of what its first round taught. */
export type ForecastSource = "plan" | "first-round";

/** What a migration is expected to come to. Simulated from what was measured; keys as in reports. */
export interface Forecast {
  readonly by: ForecastSource;
  /** False: as things are it would be given up. The figures are 0 then. */
  readonly ends: boolean;
  /** Why it would be given up; empty if it would not. */
  readonly failure: string;
  /** Command to the guest running at the target. */
  readonly "total-ms": ForecastRange;
  readonly "downtime-ms": ForecastRange;
  readonly "downtime-parts": DowntimeParts;
  /** On the page channels. */
  readonly bytes: ForecastRange;
  readonly rounds: number;
  /** Of the guest's time before the pause, withheld by throttling, percent. */
  readonly "lost-percent": number;
  /** Of its time at the target, at pages that are still to come, ms; 0 without post-copy. */
  readonly "blocked-ms": ForecastRange;
}

/** What it came to, in the same keys. */
export interface ForecastOutcome {
  readonly "total-ms": number;
  readonly "downtime-ms": number;
  readonly "downtime-parts": DowntimeParts;
  readonly bytes: number;
}

/** How many different pages a guest wrote within so long, of all its pages, by a sample of them. */
export interface DirtyCurvePoint {
  readonly ms: number;
  readonly pages: number;
  /** With 95 % of certainty no further off than this; 0 where all were watched. */
  readonly "error-pages": number;
}

/** What `precopy dirty-rate` measured. */
export interface DirtyRate {
  readonly "dirty-log": "mmu" | "barrier";
  /** MiB/s over the second after the sample began, as QEMU's calc-dirty-rate tells it. */
  readonly "dirty-rate": number;
  readonly curve: readonly DirtyCurvePoint[];
  readonly "populated-pages": number;
  readonly "watched-pages": number;
  /** Of the guest's time while it was watched. */
  readonly "cost-percent": number;
  /** Listing what is populated took so long, ms. */
  readonly "list-ms": number;
}

/** What a sample of the guest's pages holds. */
export interface PageSurvey {
  readonly "sampled-pages": number;
  /** Of the populated pages, 0 to 1. */
  readonly "zero-share": number;
  /** What LZ4 leaves of the others, and how much of them one thread compresses; null if there were none. */
  readonly "lz4-ratio": number | null;
  readonly "lz4-bytes-per-second": number | null;
}

/** What a second of real streams to the target showed. */
export interface LinkSurvey {
  /** Acknowledged, on the page channels. */
  readonly "bandwidth-bytes-per-second": number;
  /** How far the stretch that was furthest off was from all of them, as a share, 0.02 to 0.9. */
  readonly spread: number;
  readonly "round-trip-ms": number;
  readonly "probe-ms": number;
  readonly "probed-bytes": number;
  /** Connection, admission and page channels. */
  readonly "setup-ms": number;
  /** Of a round, from its last byte to its acknowledgement. */
  readonly "round-ms": number;
}

/** A change that makes a migration end within its limits, what it costs, and what would come of it. */
export interface PlannedChange {
  /** As it is given on the command line. */
  readonly option: string;
  readonly price: string;
  readonly forecast: Forecast;
}

/** What `precopy plan` answers. */
export interface MigrationPlanReport {
  readonly guest: string;
  readonly to: string;
  readonly at: string;
  readonly "dirty-rate": DirtyRate;
  readonly pages: PageSurvey;
  readonly link: LinkSurvey;
  readonly forecast: Forecast;
  /** Cheapest first; empty if it ends as it is. */
  readonly changes: readonly PlannedChange[];
  readonly parameters: Record<string, unknown>;
}
