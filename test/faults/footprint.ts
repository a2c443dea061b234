import { readFileSync, readdirSync } from "node:fs";

/** What a process holds of its host. */
export interface Footprint {
  readonly residentMiB: number;
  readonly descriptors: number;
  readonly threads: number;
}

export function footprintOf(pid: number): Footprint {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const field = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1]);
  return {
    residentMiB: Math.round(field("VmRSS") / 1024),
    threads: field("Threads"),
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
  };
}

const KEYS = ["residentMiB", "descriptors", "threads"] as const;
/** By how much the median of a stretch may differ from an earlier one's: the collector lets memory swing, pools fill up to their most. */
const GROWTH_MAX: Footprint = { residentMiB: 24, descriptors: 2, threads: 2 };
/** Left out at the beginning, where pools fill: as a share of all samples. */
const WARM_UP_SHARE = 0.2;
const STRETCH_SHARE = 0.2;
const STRETCH_MIN = 3;

function median(values: readonly number[]): number {
  const sorted = values.toSorted((one, another) => one - another);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

const medians = (samples: readonly Footprint[]): Footprint => {
  const of = (key: (typeof KEYS)[number]): number => median(samples.map((sample) => sample[key]));
  return { residentMiB: of("residentMiB"), descriptors: of("descriptors"), threads: of("threads") };
};

export interface Growth {
  readonly early: Footprint;
  readonly late: Footprint;
  /** What grew beyond its bound; empty as it should be, also where there are too few samples to tell. */
  readonly grown: readonly string[];
}

/** Compares two stretches of one process's samples, one behind the warm-up and one at the end. Moments say nothing: memory swings. */
export function growthOf(samples: readonly Footprint[]): Growth {
  const from = Math.floor(samples.length * WARM_UP_SHARE);
  const length = Math.max(STRETCH_MIN, Math.floor(samples.length * STRETCH_SHARE));
  const early = medians(samples.slice(from, from + length));
  const late = medians(samples.slice(-length));
  const isEnough = samples.length >= from + 2 * length;
  const grown = KEYS.filter((key) => isEnough && late[key] - early[key] > GROWTH_MAX[key]);
  return { early, late, grown: grown.map((key) => `${key} from ${early[key]} to ${late[key]}`) };
}
