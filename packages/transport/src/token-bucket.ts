/** Paces a sender that can wait: bytes flow at `rate`, with what 10 ms allow in one burst. */
export class TokenBucket {
  readonly #now: () => number;
  #rate = 0;
  #credit = 0; // bytes
  #filledAt: number;

  /** @param now milliseconds, monotonic. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#filledAt = now();
  }

  /** Bytes a second; 0 lifts the limit, and forgives what is owed. */
  setRate(bytesPerSecond: number): void {
    this.#rate = bytesPerSecond;
    this.#credit = 0;
    this.#filledAt = this.#now();
  }

  /** Takes `bytes`, and returns how many ms to wait before taking more. */
  take(bytes: number): number {
    if (this.#rate === 0) return 0;
    const now = this.#now();
    const perMs = this.#rate / 1000;
    this.#credit = Math.min(this.#credit + (now - this.#filledAt) * perMs, 10 * perMs) - bytes;
    this.#filledAt = now;
    return this.#credit >= 0 ? 0 : -this.#credit / perMs;
  }
}
