import { Bitmap } from "@precopy/guest";
import { MigrationError, sourceMayAbort } from "@precopy/protocol";
import type { DowntimeBreakdown, RoundProgress } from "@precopy/protocol";
import type { Clock, DirtyPort, GuestPort, HandoverPort, LinkPort, StopPorts, Timer } from "./ports.js";
import { preCopy } from "./round-loop.js";
import type { MigrationPlan } from "./round-loop.js";
import type { SourceHandover } from "./source-handover.js";
import { Throttling } from "./throttling.js";
import { pauseAndPrepare } from "./switchover.js";
import type { Prepared } from "./switchover.js";

export interface MigrationPorts {
  readonly dirty: DirtyPort;
  readonly link: LinkPort;
  readonly guest: GuestPort;
  readonly handover: HandoverPort;
  readonly stop: StopPorts;
  readonly clock: Clock;
  readonly every: Timer;
  /** The target's own measure of how fast its vCPUs start, ms. */
  readonly resumeMs: number;
  onRound(round: RoundProgress): void;
}

/** What a completed switch measured. */
export interface SwitchResult {
  readonly breakdown: DowntimeBreakdown;
  /** Pause asked for to ACTIVE received. */
  readonly downtimeMs: number;
  /** Command accepted to ACTIVE received. */
  readonly totalMs: number;
  /** Command accepted to first page sent; with stop-and-copy, to the pause. */
  readonly setupMs: number;
  /** Bytes sent while the guest was paused. */
  readonly downtimeBytes: number;
  readonly expectedDowntimeMs: number | undefined;
}

/**
 * One hand-over at the source, from `setup` on: drives the state machine, and asks the ports for everything else. Whatever ends it before
 * COMMIT leaves the guest the source's, for the owner of this object to resume; after COMMIT only the target's answer ends it.
 */
export class Migration {
  readonly #plan: Omit<MigrationPlan, "isForced">;
  readonly #ports: MigrationPorts;
  readonly #broken: Promise<never>;
  #reject: (error: MigrationError) => void = () => {};
  readonly #handover: SourceHandover;
  #isBroken = false;
  /** Time was up: the pause takes as long as it takes. */
  isForced = false;
  #throttling: Throttling | undefined;

  /** @param handover in `setup`; nobody else takes its steps until `commit` is asked to. */
  constructor(plan: Omit<MigrationPlan, "isForced">, ports: MigrationPorts, handover: SourceHandover) {
    this.#plan = plan;
    this.#ports = ports;
    this.#handover = handover;
    this.#broken = new Promise((_, reject) => {
      this.#reject = reject;
    });
    this.#broken.catch(() => {}); // it is raced against everything that is awaited; by itself it concerns nobody
  }

  /** @throws {MigrationError} ERR_CANCEL_TOO_LATE once COMMIT is out. */
  cancel(): void {
    const { phase } = this.#handover.state;
    if (!sourceMayAbort(phase)) throw new MigrationError("ERR_CANCEL_TOO_LATE", `The migration is ${phase}`);
    this.#break(new MigrationError("ERR_CANCELLED", "Cancelled by the operator"));
  }

  /** The time that it was given is up. Only before the pause: what comes after it has time-outs of its own. */
  timeOut(): void {
    const { timeoutMs, timeoutAction } = this.#plan.parameters();
    const { phase } = this.#handover.state;
    if (phase !== "setup" && phase !== "active") return;
    if (timeoutAction === "force") this.isForced = true;
    else this.#break(new MigrationError("ERR_TIMEOUT", `Not done within ${timeoutMs} ms`));
  }

  #break(error: MigrationError): void {
    this.#isBroken = true;
    this.#reject(error);
  }

  /** Link or peer are gone. Before COMMIT that fails the migration; after it, it changes nothing: the target's answer decides. */
  fail(error: MigrationError): void {
    this.#break(error);
  }

  /**
   * Resolves at `completed`, however long the answer to COMMIT takes.
   * @throws {MigrationError} in `failed`, `cancelled` or `taken-back`: the guest is the source's, and stands still if it was paused. ERR_GIVEN_UP.
   */
  async run(): Promise<SwitchResult> {
    try {
      return await this.#run();
    } finally {
      this.#throttling?.lift(); // before anybody lets the guest go on here
    }
  }

  async #run(): Promise<SwitchResult> {
    const { handover, clock } = this.#ports;
    const { acceptedAtMs } = this.#plan;
    const { prepared, setupMs, expectedDowntimeMs } = await this.#reachCommitting();
    const { pausedAtMs } = prepared;
    await handover.commit();
    const answeredAt = clock();
    const { phase } = this.#handover.state;
    if (phase === "taken-back")
      throw new MigrationError("ERR_TAKEN_BACK", "The guest was taken back: it will not run at the target at that epoch");
    if (phase !== "completed") throw new MigrationError("ERR_GIVEN_UP", "The operator gave up the guest here");
    const downtimeMs = answeredAt - pausedAtMs;
    return {
      breakdown: { ...prepared.breakdown, commit: answeredAt - prepared.preparedAtMs },
      downtimeMs,
      totalMs: answeredAt - acceptedAtMs,
      setupMs,
      downtimeBytes: prepared.last.bytes,
      expectedDowntimeMs,
    };
  }

  /** Ends in `committing`, or throws in `failed` or `cancelled`. */
  async #reachCommitting(): Promise<{ prepared: Prepared; setupMs: number; expectedDowntimeMs: number | undefined }> {
    const { clock } = this.#ports;
    const { acceptedAtMs } = this.#plan;
    try {
      const live = this.#plan.parameters().mode === "precopy" ? await this.#runRounds() : undefined;
      const pausedAtMs = clock();
      this.#handover.step("pause");
      const remaining = live?.remaining ?? new Bitmap(this.#plan.pages);
      const round = (live?.rounds ?? 0) + 1;
      const prepared = await this.#unlessBroken(pauseAndPrepare(remaining, round, live !== undefined, this.#ports));
      const { last, lastPages } = prepared;
      this.#ports.onRound({
        round,
        startMs: pausedAtMs - acceptedAtMs,
        durationMs: clock() - pausedAtMs,
        collectMs: prepared.breakdown.collect,
        dirtyPages: lastPages,
        normalPages: last.normalPages,
        zeroPages: last.zeroPages,
        bytes: last.bytes,
        bandwidthBytesPerSecond: undefined,
        dirtyPagesPerSecond: undefined,
        expectedDowntimeMs: live?.expectedDowntimeMs,
        remainingPages: 0,
        throttlePercent: 0,
        xbzrle: last.xbzrle,
        isReady: false,
        decision: "last round: guest paused",
        verdict: undefined,
      });
      // A cancel() that did not throw is obeyed, up to here: nothing is awaited between this look and `committing`.
      if (this.#isBroken) await this.#unlessBroken(this.#broken);
      this.#handover.step("prepared"); // what cannot be written down is not decided, and the guest is still ours
      return { prepared, setupMs: live?.setupMs ?? pausedAtMs - acceptedAtMs, expectedDowntimeMs: live?.expectedDowntimeMs };
    } catch (thrown) {
      const error = MigrationError.from(thrown);
      this.#handover.abort(error);
      throw error;
    }
  }

  async #runRounds(): Promise<{ remaining: Bitmap; rounds: number; expectedDowntimeMs: number; setupMs: number }> {
    const plan = { ...this.#plan, isForced: () => this.isForced };
    let setupMs: number | undefined;
    this.#handover.step("rounds");
    this.#throttling = new Throttling(this.#ports, plan.parameters);
    const loop = preCopy(plan, this.#ports, this.#throttling, (round) => {
      setupMs ??= round.startMs;
      this.#ports.onRound(round);
    });
    return { ...(await this.#unlessBroken(loop)), setupMs: setupMs ?? 0 };
  }

  /** On failure stops the ports, and waits until the work has noticed: nothing of it may act on a guest that runs again. */
  async #unlessBroken<T>(work: Promise<T>): Promise<T> {
    try {
      return await Promise.race([work, this.#broken]);
    } catch (thrown) {
      // Both end because of what is being thrown already, so whatever they throw themselves says nothing new.
      await Promise.allSettled([this.#ports.stop(MigrationError.from(thrown)), work]);
      throw thrown;
    }
  }
}
