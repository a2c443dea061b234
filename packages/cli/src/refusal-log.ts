import type { MigrationError } from "@precopy/protocol";
import type { Logger } from "pino";

/** So many lines in each of these stretches. */
const LINES_MAX = 10;
const STRETCH_MS = 1000;

/** The log of those who were not let in: whoever floods the port shall not flood the log. */
export class RefusalLog {
  readonly #log: Pick<Logger, "warn">;
  #lines = 0;
  #untold = 0;
  #isStretch = false;

  constructor(log: Pick<Logger, "warn">) {
    this.#log = log;
  }

  refused(peer: string, { code, message, remedy }: MigrationError): void {
    if (!this.#isStretch) setTimeout(() => this.#begin(), STRETCH_MS).unref();
    this.#isStretch = true;
    if (this.#lines++ < LINES_MAX) this.#log.warn({ peer, code, remedy }, message);
    else this.#untold++;
  }

  #begin(): void {
    if (this.#untold > 0) this.#log.warn({ untold: this.#untold }, "and more were not let in");
    this.#lines = this.#untold = 0;
    this.#isStretch = false;
  }
}
