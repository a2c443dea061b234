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

/**
 * By how much the median of a stretch may exceed an earlier one's. Seen: memory swings by 80 MiB, and its medians rise by 30 to 50 MiB over the
 * first 500 migrations and level off there. 64 MiB over an hour of 4,000 migrations is 25 KiB a migration.
 */
const GROWTH_MAX: Footprint = { residentMiB: 64, descriptors: 2, threads: 2 };
/** Samples in a stretch from which on its median says something. */
const STRETCH_MIN: Footprint = { residentMiB: 12, descriptors: 3, threads: 3 };
/** Left out at the beginning, where pools fill: as a share of all samples. */
const WARM_UP_SHARE = 0.2;
const STRETCH_SHARE = 0.2;

function median(values: readonly number[]): number {
  const sorted = values.toSorted((one, another) => one - another);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

export interface Growth {
  readonly early: Footprint;
  readonly late: Footprint;
  /** What grew beyond its bound; empty as it should be, also where there are too few samples to tell. */
  readonly grown: readonly string[];
}

/** Compares two stretches of one process's samples, one behind the warm-up and one at the end. Moments say nothing: memory swings. */
export function growthOf(samples: readonly Footprint[]): Growth {
  const from = Math.floor(samples.length * WARM_UP_SHARE);
  const grown: string[] = [];
  const compare = (key: keyof Footprint): readonly [number, number] => {
    const length = Math.max(STRETCH_MIN[key], Math.floor(samples.length * STRETCH_SHARE));
    const values = samples.map((sample) => sample[key]);
    const [early, late] = [median(values.slice(from, from + length)), median(values.slice(-length))];
    if (samples.length >= from + 2 * length && late - early > GROWTH_MAX[key]) grown.push(`${key} from ${early} to ${late}`);
    return [early, late];
  };
  const [memory, descriptors, threads] = [compare("residentMiB"), compare("descriptors"), compare("threads")];
  return {
    early: { residentMiB: memory[0], descriptors: descriptors[0], threads: threads[0] },
    late: { residentMiB: memory[1], descriptors: descriptors[1], threads: threads[1] },
    grown,
  };
}
