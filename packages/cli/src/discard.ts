import type { Guest } from "@precopy/guest";
import { MigrationError } from "@precopy/protocol";

export interface DiscardPorts {
  /** From the guest's first step here, ms. */
  readonly afterMs: number;
  /** The guest that this agent owns at this moment, or undefined: none, or one whose hand-over is decided. */
  owned(): Guest | undefined;
  /** Resolves when no hand-over, here or on from here, touches a guest. */
  settled(): Promise<void>;
  /** Nothing of it is left here when this resolves. */
  end(guest: Guest): Promise<void>;
  onFailure(guest: Guest, error: MigrationError): void;
}

/** Ends a guest some time after it came, so that the next one finds the agent empty: for benchmarks, which want an arrival and no guest. */
export class Discard {
  readonly #ports: DiscardPorts;
  #timer: NodeJS.Timeout | undefined;
  #guest: Guest | undefined;
  #ending: Promise<void> = Promise.resolve();
  #isStopped = false;

  constructor(ports: DiscardPorts) {
    this.#ports = ports;
  }

  /** A guest runs here now. */
  arrived(): void {
    const guest = this.#ports.owned();
    if (guest === undefined || this.#isStopped) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#discard(guest), this.#ports.afterMs);
  }

  /** The guest that is being ended; it is neither to be moved nor to be kept. */
  get guest(): Guest | undefined {
    return this.#guest;
  }

  /** No guest is ended after this; resolves when the one that is being ended is gone. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    clearTimeout(this.#timer);
    await this.#ending;
  }

  async #discard(guest: Guest): Promise<void> {
    await this.#ports.settled(); // it may be on its way on, and may come to stay here after all
    if (this.#isStopped || this.#ports.owned() !== guest) return;
    this.#ending = this.#end(guest);
  }

  async #end(guest: Guest): Promise<void> {
    this.#guest = guest;
    try {
      await this.#ports.end(guest);
    } catch (error) {
      this.#ports.onFailure(guest, MigrationError.from(error));
    } finally {
      this.#guest = undefined;
    }
  }
}
