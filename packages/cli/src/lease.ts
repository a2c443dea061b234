import type { Arbiter, Guest } from "@precopy/guest";
import { LEASE_MS, LEASE_RENEW_MS, MigrationError } from "@precopy/protocol";

export interface LeasePorts {
  readonly arbiter: Arbiter;
  readonly owner: string;
  /** The guest that this agent owns at this moment, or undefined: none, or one whose hand-over is decided. */
  owned(): Guest | undefined;
  /** It stands still from now on: by the arbiter's book it may soon run somewhere else, or does. */
  onHeld(guest: Guest, reason: MigrationError): void;
  /** The lease holds again. */
  onReleased(guest: Guest): void;
}

/**
 * Keeps the arbiter's lease on the guest that is here. An owner that cannot renew stops its guest a while before the lease ends, so that nobody
 * who sees it ended finds the guest still running.
 */
export class Lease {
  readonly #ports: LeasePorts;
  readonly #timer: NodeJS.Timeout;
  #renewed: { readonly guest: Guest; readonly at: number } | undefined;
  #held: Guest | undefined;
  /** Whose renewal is under way. */
  #asking: Guest | undefined;

  constructor(ports: LeasePorts) {
    this.#ports = ports;
    this.#timer = setInterval(() => this.#tick(), LEASE_RENEW_MS);
  }

  end(): void {
    clearInterval(this.#timer);
  }

  /** A renewal may take for ever; whether the lease still holds is looked at all the same. */
  #tick(): void {
    const guest = this.#ports.owned();
    if (guest === undefined) {
      this.#renewed = undefined;
      return;
    }
    const now = performance.now();
    // It came since the last look, with a lease as old as that at most.
    if (this.#renewed?.guest !== guest) this.#renewed = { guest, at: now - LEASE_RENEW_MS };
    if (this.#asking !== guest) void this.#renew(guest, now);
    if (now - this.#renewed.at > LEASE_MS - 2 * LEASE_RENEW_MS)
      this.#hold(guest, new MigrationError("ERR_ARBITER", "The arbiter does not answer"));
  }

  async #renew(guest: Guest, askedAt: number): Promise<void> {
    const { arbiter, owner, owned, onReleased } = this.#ports;
    this.#asking = guest;
    try {
      await arbiter.renew(guest.manifest.id, owner, guest.epoch);
      // An answer that took long says nothing of now.
      if (owned() !== guest || performance.now() - askedAt > LEASE_MS - 2 * LEASE_RENEW_MS) return;
      this.#renewed = { guest, at: askedAt };
      if (this.#held !== guest) return;
      this.#held = undefined;
      guest.release();
      onReleased(guest);
    } catch (thrown) {
      const error = MigrationError.from(thrown);
      if (error.code === "ERR_OWNED_ELSEWHERE") this.#hold(guest, error);
    } finally {
      if (this.#asking === guest) this.#asking = undefined;
    }
  }

  #hold(guest: Guest, reason: MigrationError): void {
    if (this.#held === guest || this.#ports.owned() !== guest) return;
    this.#held = guest;
    guest.hold().catch(() => {}); // a vCPU that does not stop has been told of by the guest itself
    this.#ports.onHeld(guest, reason);
  }
}
