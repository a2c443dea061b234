import { CLOCK_SKEW_MS, LEASE_MS, MigrationError } from "@precopy/protocol";

/** Others' changes of one guest's record that may come before ours, one after another, until we take the arbiter for broken. */
const OVERTAKEN_MAX = 1000;
/** The last moment that a Date can name. */
const TIME_MAX = 8.64e15;

export interface OwnerRecord {
  readonly guest: string;
  /** An agent's name, unique in the fleet: 1 to 128 printable ASCII characters without spaces. */
  readonly owner: string;
  readonly epoch: number;
  /** The owner stops the guest by then unless it has renewed the lease. Wall clock, whole ms since 1970; 0: let go. */
  readonly leaseUntilMs: number;
}

export interface NextOwner {
  readonly owner: string;
  readonly epoch: number;
}

/**
 * A third place that knows who owns a guest, so that two agents that cannot reach each other still agree. It keeps one record a guest, and
 * every call is one atomic step for all agents: the epoch of a record only grows, and of all who want to follow one epoch one does.
 * An agent runs the guest only under a record of its own and no longer than its lease; nobody else can acquire the guest within it.
 *
 * A call takes as long as the way to the arbiter does, which may be for ever: whoever must stop by the end of a lease has a timer of its own.
 * @throws {MigrationError} ERR_ARBITER, every call: it cannot be reached, or what it keeps makes no sense. Whether a change was made is then
 *   open; `read` tells.
 */
export interface Arbiter {
  /** Undefined: nobody ever owned it. */
  read(guest: string): Promise<OwnerRecord | undefined>;
  /**
   * Becomes the owner of a guest that nobody owns, or whose lease is over, at an epoch above the record's. A lease of one's own has to be
   * over too: who asks is not the process that has it.
   * @throws {MigrationError} ERR_OWNED_ELSEWHERE with the owner, and until when.
   */
  acquire(guest: string, owner: string, epoch: number): Promise<OwnerRecord>;
  /**
   * Has the lease last LEASE_MS from now; one that is over too, if nobody followed.
   * @throws {MigrationError} ERR_OWNED_ELSEWHERE once somebody did, or it was let go.
   */
  renew(guest: string, owner: string, epoch: number): Promise<OwnerRecord>;
  /**
   * Makes `next` the owner, with a fresh lease, if the record has the epoch expected, whoever has it and whatever its lease. `record` is
   * what stands afterwards: if it is `next` and nothing was swapped, an earlier call has done it.
   */
  compareAndSwap(
    guest: string,
    expectedEpoch: number,
    next: NextOwner,
  ): Promise<{ readonly isSwapped: boolean; readonly record: OwnerRecord | undefined }>;
  /** Lets go, so that nobody has to wait for the lease, and keeps the epoch. Does nothing where somebody else has it. */
  release(guest: string, owner: string, epoch: number): Promise<void>;
}

/** Whether others may acquire the guest. @param nowMs wall clock, ms since 1970. */
export const isLeaseOver = ({ leaseUntilMs }: OwnerRecord, nowMs: number): boolean =>
  leaseUntilMs === 0 || nowMs >= leaseUntilMs + CLOCK_SKEW_MS;

/** For what is about to be written, and for what somebody else wrote. */
export const isOwnerRecord = ({ owner, epoch, leaseUntilMs }: OwnerRecord): boolean =>
  /^[\x21-\x7e]{1,128}$/.test(owner) &&
  Number.isInteger(epoch) &&
  epoch >= 1 &&
  epoch < 2 ** 32 &&
  Number.isInteger(leaseUntilMs) &&
  leaseUntilMs >= 0 &&
  leaseUntilMs <= TIME_MAX;

const isHeldBy = (record: OwnerRecord | undefined, owner: string, epoch: number): boolean =>
  record !== undefined && record.owner === owner && record.epoch === epoch && record.leaseUntilMs !== 0;

function ownedElsewhere(guest: string, record: OwnerRecord | undefined): MigrationError {
  const told = (what: string): MigrationError => new MigrationError("ERR_OWNED_ELSEWHERE", `Guest ${guest} ${what}`);
  if (record === undefined) return told("has no owner");
  const { owner, epoch, leaseUntilMs } = record;
  if (leaseUntilMs === 0) return told(`was let go by ${owner} at epoch ${epoch}`);
  return told(`is owned by ${owner} at epoch ${epoch} until ${new Date(leaseUntilMs).toISOString()}`);
}

/**
 * The rules, for every place that can replace a record only if it is still the same version: a folder, or etcd. Each change is one such
 * replacement, so that of a take-over and a renewal that comes late only one succeeds, whatever their clocks say.
 */
export abstract class VersionedArbiter<Version extends { readonly record: OwnerRecord | undefined }> implements Arbiter {
  readonly #now: () => number;

  /** @param now wall clock, ms since 1970. */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** What stands now; without a record if nobody ever owned the guest. @throws {MigrationError} ERR_ARBITER */
  protected abstract latest(guest: string): Promise<Version>;
  /** Has `next` stand if `before` still does. False: it is to be tried again from what stands now. @throws {MigrationError} ERR_ARBITER */
  protected abstract replace(guest: string, before: Version, next: OwnerRecord): Promise<boolean>;

  async read(guest: string): Promise<OwnerRecord | undefined> {
    return (await this.latest(guest)).record;
  }

  async acquire(guest: string, owner: string, epoch: number): Promise<OwnerRecord> {
    const { record } = await this.#change(guest, (before) => {
      if (before !== undefined && !isLeaseOver(before, this.#now())) throw ownedElsewhere(guest, before);
      if (before !== undefined && before.epoch >= epoch)
        throw new MigrationError(
          "ERR_OWNED_ELSEWHERE",
          `Guest ${guest} was owned by ${before.owner} at epoch ${before.epoch}; epoch ${epoch} is not above that`,
        );
      return this.#leased(guest, { owner, epoch });
    });
    return record;
  }

  async renew(guest: string, owner: string, epoch: number): Promise<OwnerRecord> {
    const { record } = await this.#change(guest, (before) => {
      if (!isHeldBy(before, owner, epoch)) throw ownedElsewhere(guest, before);
      return this.#leased(guest, { owner, epoch });
    });
    return record;
  }

  async compareAndSwap(
    guest: string,
    expectedEpoch: number,
    next: NextOwner,
  ): Promise<{ readonly isSwapped: boolean; readonly record: OwnerRecord | undefined }> {
    if (next.epoch <= expectedEpoch) throw new MigrationError("ERR_INTERNAL", `Epoch ${next.epoch} cannot follow epoch ${expectedEpoch}`);
    const { isChanged, record } = await this.#change(guest, (before) =>
      before?.epoch === expectedEpoch ? this.#leased(guest, next) : before,
    );
    return { isSwapped: isChanged, record };
  }

  async release(guest: string, owner: string, epoch: number): Promise<void> {
    await this.#change(guest, (before) => (isHeldBy(before, owner, epoch) ? { guest, owner, epoch, leaseUntilMs: 0 } : before));
  }

  /** @param next what shall stand; the very record that does if nothing shall change. */
  async #change<After extends OwnerRecord | undefined>(
    guest: string,
    next: (before: OwnerRecord | undefined) => After,
  ): Promise<{ readonly isChanged: boolean; readonly record: After }> {
    for (let tries = 0; tries < OVERTAKEN_MAX; tries++) {
      const before = await this.latest(guest);
      const record = next(before.record);
      if (record === undefined || record === before.record) return { isChanged: false, record };
      if (!isOwnerRecord(record)) throw new MigrationError("ERR_INTERNAL", `No owner of a guest: "${record.owner}", epoch ${record.epoch}`);
      if (await this.replace(guest, before, record)) return { isChanged: true, record };
    }
    throw new MigrationError("ERR_ARBITER", `Overtaken ${OVERTAKEN_MAX} times at guest ${guest}`);
  }

  #leased(guest: string, { owner, epoch }: NextOwner): OwnerRecord {
    return { guest, owner, epoch, leaseUntilMs: Math.round(this.#now()) + LEASE_MS };
  }
}
