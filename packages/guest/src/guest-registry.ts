import { availableMemoryBytes } from "@precopy/linux";
import { MigrationError, formatBytes } from "@precopy/protocol";
import type { Guest } from "./guest.js";
import type { Journal } from "./journal.js";

/** A place for a guest that is on its way here. */
export interface Reservation {
  readonly guestId: string;
  readonly epoch: number;
  /** The guest is here and ours. */
  keep(guest: Guest): void;
  release(): void;
}

/** The guest of this agent, and what may come. An agent holds one for now; a second is refused with the reason. */
export class GuestRegistry {
  readonly journal: Journal;
  readonly #memoryLimitBytes: number | undefined;
  #guest: Guest | undefined;
  #reserved: { readonly guestId: string; readonly epoch: number } | undefined;

  /** @param memoryLimitBytes for all guests here; undefined leaves only what the system has available. */
  constructor(journal: Journal, memoryLimitBytes: number | undefined) {
    this.journal = journal;
    this.#memoryLimitBytes = memoryLimitBytes;
  }

  get guest(): Guest | undefined {
    return this.#guest;
  }

  /** @throws {MigrationError} ERR_NO_GUEST */
  require(): Guest {
    if (this.#guest === undefined) throw new MigrationError("ERR_NO_GUEST", "No guest runs in this agent");
    return this.#guest;
  }

  /**
   * Checks everything that does not need the workload, and keeps the place. `offered` is the epoch of an offer, which only has to be above
   * all that were seen here; undefined: a fresh boot, of a guest that did not leave this host for another.
   * @throws {MigrationError} ERR_GUEST_PRESENT, ERR_AGENT_FULL, ERR_UNRESOLVED, ERR_OWNED_ELSEWHERE, ERR_EPOCH, ERR_MEMORY_LIMIT, ERR_MEMORY
   */
  reserve(guestId: string, memoryBytes: number, offered: number | undefined): Reservation {
    const present = this.#guest?.manifest.id ?? this.#reserved?.guestId;
    if (present === guestId) throw new MigrationError("ERR_GUEST_PRESENT", `Guest ${guestId} is here already`);
    if (present !== undefined) throw new MigrationError("ERR_AGENT_FULL", `This agent holds guest ${present}; it takes one`);
    if (offered === undefined) this.#checkDeparture(guestId);
    const latest = this.journal.latestEpoch(guestId);
    const epoch = offered ?? this.journal.nextEpoch(guestId);
    if (epoch <= latest)
      throw new MigrationError("ERR_EPOCH", `Guest ${guestId} is offered at epoch ${epoch}; epoch ${latest} was seen here`);
    if (this.#memoryLimitBytes !== undefined && memoryBytes > this.#memoryLimitBytes)
      throw new MigrationError(
        "ERR_MEMORY_LIMIT",
        `Guest of ${formatBytes(memoryBytes)}, --memory-limit ${formatBytes(this.#memoryLimitBytes)}`,
      );
    const available = availableMemoryBytes();
    if (available !== undefined && memoryBytes > available)
      throw new MigrationError("ERR_MEMORY", `Guest of ${formatBytes(memoryBytes)}, ${formatBytes(available)} available`);
    const reservation = { guestId, epoch };
    this.#reserved = reservation;
    const release = (): void => {
      if (this.#reserved === reservation) this.#reserved = undefined;
    };
    return {
      ...reservation,
      keep: (guest) => {
        this.#guest = guest;
        release();
      },
      release,
    };
  }

  #checkDeparture(guestId: string): void {
    const left = this.journal.departure(guestId);
    if (left === undefined) return;
    const { decision, epoch, peer = "another agent" } = left;
    if (decision === "completed") throw new MigrationError("ERR_OWNED_ELSEWHERE", `Guest ${guestId} moved to ${peer} at epoch ${epoch}`);
    throw new MigrationError(
      "ERR_UNRESOLVED",
      `Guest ${guestId} was handed to ${peer} at epoch ${epoch}, and its answer was never written down`,
    );
  }

  /** The guest has left, or ended. */
  remove(guest: Guest): void {
    if (this.#guest === guest) this.#guest = undefined;
  }
}
