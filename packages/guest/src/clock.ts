import { bootId } from "@precopy/linux";

/** Milliseconds on this host's monotonic clock; the same origin in every thread of every process here, unlike performance.now(). */
export function hostNowMs(): number {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1000 + nanoseconds / 1e6;
}

let boot: string | undefined;

/**
 * Now, or another moment of that clock, with the name of this start of the host: two such moments can be compared if the names are equal. Undefined
 * where it has no name.
 */
export function hostTime(ms = hostNowMs()): { readonly boot: string; readonly ms: number } | undefined {
  boot ??= bootId();
  return boot === undefined ? undefined : { boot, ms };
}

/**
 * The guest's clock: milliseconds since its first boot. It runs on during a pause and across a hand-over, and never jumps back:
 * the target continues from the value at the pause plus the time since then, which both sides measured as durations.
 */
export class GuestClock {
  readonly #offset: Float64Array;

  /** @param offset one shared number: guest time minus host time. */
  constructor(offset: Float64Array = new Float64Array(new SharedArrayBuffer(8))) {
    this.#offset = offset;
  }

  share(): Float64Array {
    return this.#offset;
  }

  now(): number {
    return hostNowMs() + this.#offset[0]!;
  }

  /** Before any vCPU runs. */
  set(guestMs: number): void {
    this.#offset[0] = guestMs - hostNowMs();
  }
}
