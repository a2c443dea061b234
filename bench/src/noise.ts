import { readFileSync } from "node:fs";
import { availableParallelism, loadavg } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";

const WATCH_MS = 1000;
const SPINS = 40;
const SPIN_STEPS = 2_000_000;

/** More than this, and what is measured is the rest of the machine: shares of all processors together, and slow to usual of equal work. */
const BUSY_MAX = 0.15;
const STEAL_MAX = 0.05;
const SPIN_MAX = 1.5;

/** What of a machine does not belong to the bench. */
export interface Noise {
  /** Runnable threads, mean of the last minute. */
  readonly load: number;
  /** Processor time that others took while the bench slept, 0 to 1 of all processors. */
  readonly busyShare: number;
  /** Processor time that the host gave to other machines meanwhile. */
  readonly stealShare: number;
  /** The same piece of work again and again: the slow ones (90 of 100 are faster) to the median; 1 on a machine to itself. */
  readonly spinSpread: number;
}

interface ProcessorTimes {
  readonly idle: number;
  readonly steal: number;
  readonly all: number;
}

/** The first line of /proc/stat: user nice system idle iowait irq softirq steal, in ticks since boot. */
export function parseProcessorTimes(stat: string): ProcessorTimes {
  const [user = 0, nice = 0, system = 0, idle = 0, waiting = 0, irq = 0, softirq = 0, steal = 0] = (/^cpu +(.*)$/m.exec(stat)?.[1] ?? "")
    .split(" ")
    .map(Number);
  return { idle: idle + waiting, steal, all: user + nice + system + idle + waiting + irq + softirq + steal };
}
const processorTimes = (): ProcessorTimes => parseProcessorTimes(readFileSync("/proc/stat", "utf8"));

/** Counts what the host gives to other machines from now on. @returns the share of all processors' time so far, 0 to 1 */
export function watchSteal(): () => number {
  const before = processorTimes();
  return () => {
    const now = processorTimes();
    return (now.steal - before.steal) / Math.max(now.all - before.all, 1);
  };
}
/** A run of which the host took more was a run of another machine. */
export const isDisturbed = (stealShare: number): boolean => stealShare > STEAL_MAX;

/** Tries of a run that the host disturbs, and how long it is left alone in between. */
const TRIES = 4;
const AGAIN_MS = 5000;

export interface Undisturbed<T> {
  readonly result: T;
  /** Processor time that the host gave to other machines meanwhile, 0 to 1. */
  readonly stealShare: number;
  readonly tries: number;
}

interface Watching<T> {
  /** Whether a result stands however much the host took meanwhile. */
  readonly isFinal?: (result: T) => boolean;
  readonly watch?: () => () => number;
  readonly againMs?: number;
}

/** Makes a run again while it was disturbed, four times in all; what counts is the one that was disturbed least. */
export async function undisturbed<T>(
  run: () => Promise<T>,
  { isFinal = () => false, watch = watchSteal, againMs = AGAIN_MS }: Watching<T> = {},
): Promise<Undisturbed<T>> {
  let best: Omit<Undisturbed<T>, "tries"> | undefined;
  for (let tries = 1; ; tries++) {
    const stealShare = watch();
    const made = { result: await run(), stealShare: stealShare() };
    if (best === undefined || made.stealShare < best.stealShare) best = made;
    if (!isDisturbed(best.stealShare) || isFinal(made.result) || tries === TRIES) return { ...best, tries };
    await sleep(againMs);
  }
}

/** Not optimised away: its result is used. */
function spin(): number {
  let state = 1;
  for (let step = 0; step < SPIN_STEPS; step++) state = (Math.imul(state, 1_103_515_245) + 12_345) | 0;
  return state;
}

function spinSpread(): number {
  const took: number[] = [];
  let sum = 0;
  for (let at = 0; at < SPINS; at++) {
    const started = performance.now();
    sum += spin();
    took.push(performance.now() - started);
  }
  if (Number.isNaN(sum)) throw new Error("never");
  const sorted = took.toSorted((one, other) => one - other);
  return (sorted[Math.floor(0.9 * SPINS)] ?? Number.NaN) / (sorted[Math.floor(SPINS / 2)] ?? Number.NaN);
}

/** Listens for a second. Linux; elsewhere the shares are NaN, and nobody is refused for them. */
export async function listenForNoise(): Promise<Noise> {
  const before = process.platform === "linux" ? processorTimes() : undefined;
  await sleep(WATCH_MS);
  const after = process.platform === "linux" ? processorTimes() : undefined;
  const all = (after?.all ?? Number.NaN) - (before?.all ?? Number.NaN);
  const share = (name: "idle" | "steal"): number => ((after?.[name] ?? Number.NaN) - (before?.[name] ?? Number.NaN)) / all;
  return {
    load: loadavg()[0] ?? Number.NaN,
    busyShare: 1 - share("idle") - share("steal"),
    stealShare: share("steal"),
    spinSpread: spinSpread(),
  };
}

/** Undefined on a machine quiet enough to measure on. */
export function whyTooNoisy({ busyShare, stealShare, spinSpread: spread }: Noise): string | undefined {
  const percent = (share: number): string => `${Math.round(100 * share)} %`;
  if (busyShare > BUSY_MAX)
    return `others take ${percent(busyShare)} of ${availableParallelism()} processors (at most ${percent(BUSY_MAX)})`;
  if (stealShare > STEAL_MAX) return `the host gives ${percent(stealShare)} of the processors away (at most ${percent(STEAL_MAX)})`;
  if (spread > SPIN_MAX) return `equal work takes up to ${spread.toFixed(1)} times as long as usual (at most ${SPIN_MAX})`;
  return undefined;
}
