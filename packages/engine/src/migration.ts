import { Bitmap } from "@precopy/guest";
import { MigrationError, hasRounds, isServing, sourceMayAbort } from "@precopy/protocol";
import type { DowntimeBreakdown, RoundProgress } from "@precopy/protocol";
import type { Forced } from "./policy.js";
import type { Clock, DirtyPort, GuestPort, HandoverPort, LinkPort, PostcopyPort, StopPorts, Timer } from "./ports.js";
import { preCopy } from "./round-loop.js";
import type { MigrationPlan, RoundLoopResult } from "./round-loop.js";
import type { SourceHandover } from "./source-handover.js";
import { Throttling } from "./throttling.js";
import { announceMissing, pauseAndPrepare, pauseAndSplit } from "./switchover.js";
import type { Prepared, Split } from "./switchover.js";

export interface MigrationPorts {
  readonly dirty: DirtyPort;
  readonly link: LinkPort;
  readonly guest: GuestPort;
  readonly handover: HandoverPort;
  readonly postcopy: PostcopyPort;
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
  /** Pages that the target lacks, and fetches from here while the guest runs there; undefined without post-copy. */
  readonly missing: Bitmap | undefined;
}

/** The guest is paused, and the target is prepared. */
interface Decided {
  readonly prepared: Prepared;
  readonly setupMs: number;
  readonly expectedDowntimeMs: number | undefined;
  readonly missing: Bitmap | undefined;
}

/**
 * One hand-over at the source, from `setup` on: drives the state machine, and asks the ports for everything else. Whatever ends it before
 * COMMIT leaves the guest the source's, for the owner of this object to resume; after COMMIT only the target's answer ends it.
 */
export class Migration {
  readonly #plan: Omit<MigrationPlan, "forced">;
  readonly #ports: MigrationPorts;
  readonly #broken: Promise<never>;
  #reject: (error: MigrationError) => void = () => {};
  readonly #handover: SourceHandover;
  #isBroken = false;
  /** What ends the rounds, whatever they led to. */
  #forced: Forced | undefined;
  #throttling: Throttling | undefined;

  /** @param handover in `setup`; nobody else takes its steps until `commit` is asked to. */
  constructor(plan: Omit<MigrationPlan, "forced">, ports: MigrationPorts, handover: SourceHandover) {
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

  /** Time was up: the pause takes as long as it takes. */
  get isForced(): boolean {
    return this.#forced === "switch over";
  }

  /** The guest runs at the target after the round under way. @throws {MigrationError} ERR_NO_MIGRATION if it is too late or the mode forbids it */
  goToPostcopy(): void {
    const { phase } = this.#handover.state;
    if (this.#plan.parameters().mode !== "hybrid")
      throw new MigrationError("ERR_NO_MIGRATION", "This migration cannot come to post-copy: its mode is not hybrid");
    if (phase !== "setup" && phase !== "active") throw new MigrationError("ERR_NO_MIGRATION", `The migration is ${phase}`);
    this.#forced ??= "go to post-copy";
  }

  /** The time that it was given is up. Only before the pause: what comes after it has time-outs of its own. */
  timeOut(): void {
    const { timeoutMs, timeoutAction } = this.#plan.parameters();
    const { phase } = this.#handover.state;
    if (phase !== "setup" && phase !== "active") return;
    if (timeoutAction === "force") this.#forced = "switch over";
    else if (timeoutAction === "postcopy") this.#forced ??= "go to post-copy";
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
   * Resolves at `completed`, or in post-copy when the guest runs at the target, however long the answer to COMMIT takes.
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
    const { prepared, setupMs, expectedDowntimeMs, missing } = await this.#reachCommitting();
    const { pausedAtMs } = prepared;
    await handover.commit();
    const answeredAt = clock();
    const { phase } = this.#handover.state;
    if (phase === "taken-back")
      throw new MigrationError("ERR_TAKEN_BACK", "The guest was taken back: it will not run at the target at that epoch");
    if (phase !== "completed" && !isServing(phase)) throw new MigrationError("ERR_GIVEN_UP", "The operator gave up the guest here");
    const downtimeMs = answeredAt - pausedAtMs;
    return {
      breakdown: { ...prepared.breakdown, commit: answeredAt - prepared.preparedAtMs },
      downtimeMs,
      totalMs: answeredAt - acceptedAtMs,
      setupMs,
      downtimeBytes: prepared.last.bytes,
      expectedDowntimeMs,
      missing: isServing(phase) ? missing : undefined,
    };
  }

  /** Ends in `committing`, or throws in `failed` or `cancelled`. */
  async #reachCommitting(): Promise<Decided> {
    const { clock } = this.#ports;
    const { acceptedAtMs } = this.#plan;
    try {
      const { mode } = this.#plan.parameters();
      const live = hasRounds({ mode }) ? await this.#runRounds() : undefined;
      const isSplit = mode === "postcopy" || live?.next === "go to post-copy";
      const split = isSplit ? await this.#unlessBroken(this.#announce(live?.remaining)) : undefined;
      const pausedAtMs = clock();
      this.#handover.step(isSplit ? "split" : "pause");
      const round = (live?.rounds ?? 0) + 1;
      const { prepared, missing } = await this.#unlessBroken(this.#prepare(live, split, round));
      const { last, lastPages, missingPages } = prepared;
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
        expectedDowntimeMs: isSplit ? undefined : live?.expectedDowntimeMs,
        remainingPages: missingPages,
        throttlePercent: 0,
        xbzrle: last.xbzrle,
        isReady: false,
        decision: isSplit ? "guest paused, its devices' pages" : "last round: guest paused",
        verdict: undefined,
      });
      // A cancel() that did not throw is obeyed, up to here: nothing is awaited between this look and `committing`.
      if (this.#isBroken) await this.#unlessBroken(this.#broken);
      this.#handover.step("prepared"); // what cannot be written down is not decided, and the guest is still ours
      const expectedDowntimeMs = isSplit ? undefined : live?.expectedDowntimeMs;
      return { prepared, missing, expectedDowntimeMs, setupMs: live?.setupMs ?? pausedAtMs - acceptedAtMs };
    } catch (thrown) {
      const error = MigrationError.from(thrown);
      this.#handover.abort(error);
      throw error;
    }
  }

  /** @param remaining collected after the last round; undefined if there was none, and nothing is at the target. */
  async #announce(remaining: Bitmap | undefined): Promise<Split> {
    const missing = remaining ?? new Bitmap(this.#plan.pages);
    if (remaining === undefined) await this.#ports.dirty.start(missing);
    return announceMissing(missing, this.#ports);
  }

  async #prepare(
    live: RoundLoopResult | undefined,
    split: Split | undefined,
    round: number,
  ): Promise<{ prepared: Prepared; missing: Bitmap | undefined }> {
    if (split === undefined) {
      const remaining = live?.remaining ?? new Bitmap(this.#plan.pages);
      return { prepared: await pauseAndPrepare(remaining, round, live !== undefined, this.#ports), missing: undefined };
    }
    const prepared = await pauseAndSplit(split, round, this.#ports);
    return { prepared, missing: prepared.missing };
  }

  async #runRounds(): Promise<RoundLoopResult & { readonly setupMs: number }> {
    const plan = { ...this.#plan, forced: () => this.#forced };
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
