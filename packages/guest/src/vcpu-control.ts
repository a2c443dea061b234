/**
 * Words that a vCPU thread and the main thread share. REQUEST and WITHHELD are written by the main thread only, PROBED by the vCPU only;
 * WAKE is raised by whoever has news, and is what the vCPU sleeps on. Whoever changes REQUEST, PROBE or WITHHELD raises WAKE after it: a vCPU
 * reads WAKE, then looks for work, then sleeps only if WAKE is still what it read, so no news is slept over.
 */
export const VcpuWord = { REQUEST: 0, WAKE: 1, PROBE: 2, PROBED: 3, WITHHELD: 4 } as const;
const VCPU_WORDS = 5;
/** WITHHELD is a share of the time in units of this. */
const SHARE_UNIT = 1 / 10_000;

/**
 * What REQUEST may be. Stand: it has not run yet. From FirstPause on it is a pause, each with a number of its own: a pause that follows another at once is seen as
 * a new one, and an acknowledgement that comes late is not taken for the next pause's.
 */
export const VcpuRequest = { Run: 0, End: 1, Stand: 2, FirstPause: 3 } as const;

/**
 * What only the vCPU writes. WITHHELD_MS and DIRTIED_PAGES it raises at every tick and before it stands; whoever reads them wants rates, and may read a
 * little late. RAN_AT_MS is when it began its first step, on the host's monotonic clock; 0 until then.
 */
export const VcpuCounter = { WITHHELD_MS: 0, DIRTIED_PAGES: 1, RAN_AT_MS: 2 } as const;
const VCPU_COUNTERS = 3;

export interface VcpuControl {
  readonly words: Int32Array;
  /** One writer and one reader; on a 64-bit processor an aligned load or store of 8 bytes is whole. */
  readonly counters: Float64Array;
}

export function allocateVcpuControl(): VcpuControl {
  const words = new Int32Array(new SharedArrayBuffer(VCPU_WORDS * 4));
  words[VcpuWord.REQUEST] = VcpuRequest.Stand;
  return { words, counters: new Float64Array(new SharedArrayBuffer(VCPU_COUNTERS * 8)) };
}

/** Raises WAKE: ends the vCPU's sleep, and the next one if it is not asleep yet. */
export function wake(words: Int32Array): void {
  Atomics.add(words, VcpuWord.WAKE, 1);
  Atomics.notify(words, VcpuWord.WAKE);
}

/** @param share 0 to 0.9999; what is more would be a pause. */
export function setWithheld(words: Int32Array, share: number): void {
  Atomics.store(words, VcpuWord.WITHHELD, Math.round(Math.min(Math.max(share, 0), 1 - SHARE_UNIT) / SHARE_UNIT));
  wake(words);
}

export const withheldShare = (words: Int32Array): number => Atomics.load(words, VcpuWord.WITHHELD) * SHARE_UNIT;
