/** A withheld vCPU runs and stands in turns of about this. QEMU's turns last 10 ms at 0 % and 1 s at 99 %; a guest's clients notice each. */
const TURN_MS = 10;
/** A step that took long is not followed by a silence of minutes. */
const STAND_MS_MAX = 1000;

/**
 * When a vCPU stands still so that it gets only its share of the time. It is a duty cycle of wall time, as QEMU's throttle is: what the program
 * rests by itself counts as run. Exact whatever a step or a rest takes, because the time to stand follows from the time that it ran.
 */
export class Withholding {
  #turnStartedMs: number;

  constructor(nowMs: number) {
    this.#turnStartedMs = nowMs;
  }

  /** The vCPU stood still, whoever stopped it: a new turn begins. */
  restart(nowMs: number): void {
    this.#turnStartedMs = nowMs;
  }

  /** How long to stand now, ms; 0 while its part of the turn lasts. @param share of the time that is withheld, 0 to below 1. */
  standMs(nowMs: number, share: number): number {
    if (share === 0) this.restart(nowMs);
    const ranMs = nowMs - this.#turnStartedMs;
    return ranMs < TURN_MS * (1 - share) ? 0 : Math.min((ranMs * share) / (1 - share), STAND_MS_MAX);
  }
}
