import { ACTIVE_TIMEOUT_MS, MigrationError, fillParameters, sourceMayAbort } from "@precopy/protocol";
import type { Address, MigrationParameters, MigrationReport, QueryMigrate } from "@precopy/protocol";
import { migrationReport, queryMigrate } from "./migration-report.js";
import { OutgoingMigration } from "./outgoing-migration.js";
import type { SourceAgentOptions } from "./outgoing-migration.js";

/** The role that sends a guest. One migration at a time. */
export class SourceAgent {
  readonly #options: SourceAgentOptions;
  readonly #address: () => Address;
  #current: OutgoingMigration | undefined;
  #running: Promise<MigrationReport> | undefined;
  #report: MigrationReport | undefined;

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
    this.#running = this.#migrate(to, given).finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #migrate(to: Address, given: Partial<MigrationParameters>): Promise<MigrationReport> {
    const parameters = fillParameters(given);
    const migration = new OutgoingMigration(this.#options.registry.require(), to, parameters, this.#options);
    this.#current = migration;
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
      throw error;
    }
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

  /**
   * The process ends. Before COMMIT the migration is cancelled; after it the answer is waited for a moment, then nobody asks any more.
   * Resolves when nothing of it runs: true if the guest is left in doubt, standing still here.
   */
  async close(): Promise<boolean> {
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

  /** True once COMMIT is out and unanswered: the guest stands still here. */
  get isInDoubt(): boolean {
    return this.#running !== undefined && this.#current?.phase === "in-doubt";
  }

  /** The last finished migration's report, however it ended. */
  get report(): MigrationReport | undefined {
    return this.#report;
  }

  /** QEMU's `query-migrate`: of the migration in progress, else of the last one. */
  query(): QueryMigrate {
    if (this.#running !== undefined && this.#current !== undefined) return queryMigrate(this.#current, undefined, undefined);
    return this.#report?.["query-migrate"] ?? { status: "none" };
  }
}
