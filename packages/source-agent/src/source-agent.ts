import { randomUUID } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { SourceHandover } from "@precopy/engine";
import { Bitmap } from "@precopy/guest";
import {
  ACTIVE_TIMEOUT_MS,
  MigrationError,
  fillParameters,
  formatAddress,
  isServing,
  recoverSource,
  reportParameters,
  sourceMayAbort,
} from "@precopy/protocol";
import type {
  Address,
  Decision,
  DirtyRate,
  JournalEntry,
  LiveParameters,
  MigrationParameters,
  MigrationPlanReport,
  MigrationReport,
  OwnerAnswer,
  QueryMigrate,
} from "@precopy/protocol";
import { tellAborted } from "./abort-notice.js";
import { Commitment } from "./commitment.js";
import { sampleDirtyRate } from "./dirty-rate.js";
import { migrationReport, queryMigrate } from "./migration-report.js";
import { OutgoingMigration } from "./outgoing-migration.js";
import type { SourceAgentOptions } from "./outgoing-migration.js";
import { planMigration } from "./plan.js";

/** What a guest does may be another thing later. */
const PLAN_HOLDS_MS = 600_000;

/** An operator's word on a guest that is in doubt here. */
export interface SourceResolveRequest {
  readonly way: "take-back" | "give-up";
  readonly isOtherSideFenced: boolean;
  readonly isRollbackAccepted: boolean;
}
export interface SourceResolution {
  readonly outcome: "taken-back" | "given-up" | "completed";
  readonly epoch: number;
  /** When the copy that runs now was taken, if what the target did since is or may be lost; ms since 1970. */
  readonly copyAt: number | undefined;
}

/** The role that sends a guest. One migration at a time. */
export class SourceAgent {
  readonly #options: SourceAgentOptions;
  readonly #address: () => Address;
  #current: OutgoingMigration | undefined;
  #running: Promise<MigrationReport> | undefined;
  #report: MigrationReport | undefined;
  /** Attempts of an earlier process that nobody has answered, by guest. */
  readonly #recovered = new Map<string, { readonly commitment: Commitment; readonly handover: SourceHandover }>();
  readonly #ending = new AbortController();
  /** A plan or a sample that is being made. */
  #probing: { readonly abort: AbortController; readonly ended: Promise<unknown> } | undefined;
  /** The last plan to each target. */
  readonly #plans = new Map<string, MigrationPlanReport>();

  /** @param address where this agent listens, for reports. */
  constructor(options: SourceAgentOptions, address: () => Address) {
    this.#options = options;
    this.#address = address;
  }

  /**
   * Moves the guest of this agent to the agent at `to`, where it runs on. Resolves with the report once it is gone from here.
   * @throws {MigrationError} whatever ended it; its code tells. The guest then runs here as before, but for ERR_IN_DOUBT; `report` has the story.
   */
  migrate(to: Address, given: Partial<MigrationParameters> = {}): Promise<MigrationReport> {
    if (this.#running !== undefined) return Promise.reject(new MigrationError("ERR_BUSY", "A migration is in progress"));
    const probing = this.#probing;
    const started = probing === undefined ? this.#migrate(to, given) : this.#endProbe(probing).then(() => this.#migrate(to, given));
    this.#running = started.finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #migrate(to: Address, given: Partial<MigrationParameters>): Promise<MigrationReport> {
    const parameters = fillParameters(given);
    const migration = new OutgoingMigration(this.#options.registry.require(), to, parameters, this.#options);
    this.#current = migration;
    const plan = this.#plans.get(formatAddress(to));
    if (plan !== undefined && mayHold(plan, migration)) migration.forecasts.push(plan.forecast);
    try {
      const result = await migration.run();
      const report = migrationReport(this.#address(), migration, result, undefined);
      this.#report = report;
      this.#options.onEvent?.({ type: "switchover", breakdown: result.breakdown, downtimeMs: result.downtimeMs });
      this.#options.onEvent?.({ type: "done", report });
      return report;
    } catch (thrown) {
      const error = MigrationError.from(thrown);
      const report = migrationReport(this.#address(), migration, undefined, error);
      this.#report = report;
      const { code, message, remedy } = error;
      this.#options.onEvent?.({ type: "failed", phase: migration.phase, code, message, remedy, report });
      if (migration.isStateSent && sourceOwnsAgain(migration))
        void tellAborted({ to, security: this.#options.security }, migration.attempt, error, this.#ending.signal);
      throw error;
    }
  }

  /** A migration goes before whatever only looks. */
  async #endProbe({ abort, ended }: { readonly abort: AbortController; readonly ended: Promise<unknown> }): Promise<void> {
    this.#current = undefined; // there is nothing yet that could be cancelled or changed
    abort.abort(new MigrationError("ERR_CANCELLED", "A migration began"));
    await ended;
  }

  /**
   * What a migration to `to` would come to, by measuring guest and link; see planMigration. A migration that begins meanwhile ends it.
   * @throws {MigrationError} ERR_BUSY, ERR_NO_GUEST, ERR_CANCELLED, and what a migration would be refused with.
   */
  plan(to: Address, given: Partial<MigrationParameters> = {}): Promise<MigrationPlanReport> {
    return this.#probe(async (signal) => {
      const guest = this.#options.registry.require();
      const { id } = guest.manifest;
      const epoch = Math.max(this.#options.registry.journal.nextEpoch(id), guest.epoch + 1);
      const attempt = { guest: id, epoch, session: randomUUID() };
      const handover = this.#options.handoverCosts?.(formatAddress(to));
      const transfer = { guest, to, attempt, parameters: fillParameters(given), options: this.#options };
      const plan = await planMigration(transfer, handover, signal);
      this.#plans.set(formatAddress(to), plan);
      return plan;
    });
  }

  /** How many different pages the guest writes within 0.01 to 3 s. @throws {MigrationError} ERR_BUSY, ERR_NO_GUEST, ERR_CANCELLED, ERR_SYSTEM_CALL */
  dirtyRate(): Promise<DirtyRate> {
    return this.#probe(async (signal) => {
      const guest = this.#options.registry.require();
      const sampled = await sampleDirtyRate(guest, this.#options.guests.memory, new Bitmap(guest.memory.pages), signal);
      signal.throwIfAborted();
      return sampled;
    });
  }

  /** One at a time, and none while a migration needs the dirty log. */
  async #probe<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#running !== undefined) throw new MigrationError("ERR_BUSY", "A migration is in progress");
    if (this.#probing !== undefined) throw new MigrationError("ERR_BUSY", "Guest or link are being measured already");
    const abort = new AbortController();
    const working = work(abort.signal);
    const probing = { abort, ended: working.catch(() => {}) };
    this.#probing = probing;
    try {
      return await working;
    } finally {
      this.#probing = undefined;
    }
  }

  /** Once, at the start: takes up every attempt whose journal ends with `committed`, and asks until its target answers. */
  recover(): void {
    const { journal } = this.#options.registry;
    for (const guest of journal.guests()) {
      const { standing, last } = journal.standing(guest);
      if (standing === "in-doubt" && last?.peer !== undefined && last.session !== undefined)
        this.#takeUp(guest, last, last.peer, last.session);
    }
  }

  #takeUp(guest: string, committed: JournalEntry, peer: string, session: string): void {
    const { journal } = this.#options.registry;
    const record = (decision: Decision, epoch: number): void => journal.record(guest, epoch, decision, { peer, session });
    const handover = new SourceHandover(recoverSource(committed.epoch), { decide: record, onPhase: () => {} });
    const commitment = new Commitment(
      {
        to: peer,
        security: this.#options.security,
        attempt: { guest, epoch: committed.epoch, session },
        handover,
        arbitration: undefined, // nothing is left here that could be taken back
        elapsedMs: () => Math.max(0, Date.now() - Date.parse(committed.at)),
        onDoubt: () => {},
        onMessage: () => {},
      },
      undefined,
    );
    this.#recovered.set(guest, { commitment, handover });
    void this.#follow(guest, commitment, handover, record);
  }

  async #follow(
    guest: string,
    commitment: Commitment,
    handover: SourceHandover,
    record: (decision: Decision, epoch: number) => void,
  ): Promise<void> {
    try {
      await commitment.run();
      for (const effect of handover.takeEffects()) if (effect.effect === "journal") record(effect.decision, effect.epoch);
    } catch {
      // abandoned: the agent ends, or the guest came back. What could not be written down is found again at the next start.
    } finally {
      this.#recovered.delete(guest);
      commitment.control?.close(new MigrationError("ERR_LINK_LOST", "The hand-over is over"));
    }
  }

  /** The guest comes to this agent anew: what was asked about an older attempt is answered by that. */
  forget(guest: string): void {
    this.#recovered.get(guest)?.commitment.abandon();
  }

  /**
   * Ends a doubt by the operator's word, after the target was asked.
   * @throws {MigrationError} ERR_NOTHING_TO_RESOLVE, ERR_NOT_FENCED, ERR_ROLLBACK, ERR_UNRESOLVED if there is nothing here to take back.
   */
  async resolve(guest: string, request: SourceResolveRequest): Promise<SourceResolution> {
    const current = this.isDecided && this.#current?.attempt.guest === guest ? this.#current : undefined;
    const { commitment, handover } = current ?? this.#recovered.get(guest) ?? {};
    if (commitment === undefined || handover === undefined)
      throw new MigrationError("ERR_NOTHING_TO_RESOLVE", `Guest ${guest} is not in doubt here`);
    const { epoch } = handover.state;
    if (handover.state.phase === "postcopy-active")
      throw new MigrationError("ERR_OWNED_ELSEWHERE", `Guest ${guest} runs at the target, and fetches its memory from here`);
    if (current === undefined && request.way === "take-back")
      throw new MigrationError(
        "ERR_UNRESOLVED",
        `The image of guest ${guest} ended with an earlier process of this agent; it asks the target on`,
      );
    const copyAt = current?.pausedAt;
    const mayForce = (answer: OwnerAnswer | "unreachable"): void => checkForce(answer, request, guest);
    const { answer, wasForced } = await (request.way === "take-back" ? commitment.takeBack(mayForce) : commitment.giveUp(mayForce));
    current?.serving?.stop();
    await this.#running?.catch(() => {}); // until it runs here, or is gone
    const { phase } = handover.state;
    if (phase === "taken-back") return { outcome: "taken-back", epoch: epoch + 1, copyAt: wasForced ? copyAt : undefined };
    // It ran there and ended, and nothing of it is left here: there is nothing that it could be called completed for.
    const hasEnded = phase === "completed" && answer === "gone";
    return { outcome: phase === "completed" && !hasEnded ? "completed" : "given-up", epoch, copyAt: undefined };
  }

  /**
   * Ends the migration in progress; resolves when the guest runs here again.
   * @throws {MigrationError} ERR_NO_MIGRATION, ERR_CANCEL_TOO_LATE once COMMIT is out.
   */
  async cancel(): Promise<void> {
    if (this.#current === undefined || this.#running === undefined)
      throw new MigrationError("ERR_NO_MIGRATION", "No migration is in progress");
    this.#current.cancel();
    const outcome = await this.#running.then(
      () => undefined,
      (error: unknown) => MigrationError.from(error),
    );
    if (outcome === undefined) throw new MigrationError("ERR_CANCEL_TOO_LATE", "The migration completed first");
    if (outcome.code !== "ERR_CANCELLED") throw outcome; // it failed by itself before it heard
  }

  /** Changes the migration in progress. @throws {MigrationError} ERR_PARAMETER, ERR_NO_MIGRATION if there is none, or its guest is paused already */
  set(changes: Partial<LiveParameters>): MigrationParameters {
    if (this.#current === undefined || this.#running === undefined)
      throw new MigrationError("ERR_NO_MIGRATION", "No migration is in progress");
    this.#current.set(changes);
    return this.#current.parameters;
  }

  /**
   * The process ends. Before COMMIT the migration is cancelled; after it the answer is waited for a moment, then nobody asks any more.
   * Resolves when nothing of it runs: true if the guest is left in doubt, standing still here.
   */
  async close(): Promise<boolean> {
    this.#ending.abort();
    if (this.#probing !== undefined) await this.#endProbe(this.#probing);
    for (const { commitment } of this.#recovered.values()) commitment.abandon();
    const running = this.#running?.then(
      () => false,
      (error: unknown) => MigrationError.from(error).code === "ERR_IN_DOUBT",
    );
    if (running === undefined || this.#current === undefined) return false;
    if (sourceMayAbort(this.#current.phase)) {
      this.#current.cancel();
      return running;
    }
    const timer = setTimeout(() => this.#current?.abandon(), this.#current.phase === "completed" ? 0 : ACTIVE_TIMEOUT_MS);
    return running.finally(() => clearTimeout(timer));
  }

  get isMigrating(): boolean {
    return this.#running !== undefined;
  }

  /** Resolves when the migration in progress has ended, however it does. */
  async ended(): Promise<void> {
    await this.#running?.catch(() => {});
  }

  /** True from COMMIT on: who owns the guest is not this side's to say any more. */
  get isDecided(): boolean {
    const phase = this.#running === undefined ? undefined : this.#current?.phase;
    return phase === "committing" || phase === "in-doubt" || phase === "completed" || phase === "given-up" || this.isServing;
  }

  /** True in post-copy: the guest runs at the target, and part of its memory is here. */
  get isServing(): boolean {
    return this.#running !== undefined && this.#current !== undefined && isServing(this.#current.phase);
  }

  /** The migration in progress goes to post-copy after the round under way. @throws {MigrationError} ERR_NO_MIGRATION */
  startPostcopy(): void {
    if (this.#current === undefined || this.#running === undefined)
      throw new MigrationError("ERR_NO_MIGRATION", "No migration is in progress");
    this.#current.goToPostcopy();
  }

  /** Tries at once to make a broken link to the target again. @throws {MigrationError} ERR_NO_MIGRATION if there is none that is broken */
  recoverPostcopy(): void {
    if (this.#current?.phase !== "postcopy-paused" || this.#running === undefined)
      throw new MigrationError("ERR_NO_MIGRATION", "No link is to be recovered");
    this.#current.serving?.recover();
  }

  /** True once COMMIT is out and unanswered: the guest stands still here. */
  get isInDoubt(): boolean {
    return this.#running !== undefined && this.#current?.phase === "in-doubt";
  }

  /** The last finished migration's report, however it ended. */
  get report(): MigrationReport | undefined {
    return this.#report;
  }

  /** Of the migration in progress how it stands, of the last one how it ended; undefined if there was none. */
  get verdict(): string | undefined {
    if (this.#running === undefined || this.#current === undefined) return this.#report?.verdict;
    return this.#current.rounds.findLast(({ verdict }) => verdict !== undefined)?.verdict?.text;
  }

  /** QEMU's `query-migrate`: of the migration in progress, else of the last one. */
  query(): QueryMigrate {
    if (this.#running !== undefined && this.#current !== undefined) return queryMigrate(this.#current, undefined, undefined);
    return this.#report?.["query-migrate"] ?? { status: "none" };
  }
}

/** A plan says something of a migration of the same guest with the same parameters, for a while. */
function mayHold({ guest, at, parameters }: MigrationPlanReport, migration: OutgoingMigration): boolean {
  const isSame = guest === migration.attempt.guest && isDeepStrictEqual(parameters, reportParameters(migration.parameters));
  return isSame && Date.now() - Date.parse(at) < PLAN_HOLDS_MS;
}

/** The target never will run what it may have prepared. */
const sourceOwnsAgain = ({ phase }: OutgoingMigration): boolean => phase === "failed" || phase === "cancelled";

/** What the target's answer leaves to the operator. @throws {MigrationError} what has to be said first */
function checkForce(
  answer: OwnerAnswer | "unreachable",
  { way, isOtherSideFenced, isRollbackAccepted }: SourceResolveRequest,
  guest: string,
): void {
  const said = answer === "unreachable" ? "does not answer" : `says "${answer}"`;
  if (way === "take-back" && answer === "gone") {
    // It ran there and ended with its process: nothing is left that could run twice, but what it did is lost.
    if (!isRollbackAccepted)
      throw new MigrationError("ERR_ROLLBACK", `Guest ${guest} ran at the target and ended there; what it did since is lost`);
    return;
  }
  if (!isOtherSideFenced) throw new MigrationError("ERR_NOT_FENCED", `The target ${said}, so guest ${guest} may run there`);
}
