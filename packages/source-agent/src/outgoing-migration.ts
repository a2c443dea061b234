import { randomUUID } from "node:crypto";
import { Migration, SourceHandover, forecast } from "@precopy/engine";
import type { FinalState, SwitchResult } from "@precopy/engine";
import { hostTime, joinDigests } from "@precopy/guest";
import type { Arbiter, Bitmap, Guest, GuestHost, GuestRegistry, HashTable, ZeroCheck } from "@precopy/guest";
import {
  ARRIVAL_REPORT_TIMEOUT_MS,
  BITMAP_PIECES_AT_ONCE,
  MigrationError,
  PAGE_BYTES,
  TIMER_MS_MAX,
  fillParameters,
  formatAddress,
  hasRounds,
  isPlainData,
  offer,
  piecesOf,
  preparedTimeoutMs,
} from "@precopy/protocol";
import type {
  Address,
  AuditResult,
  ControlMessage,
  Forecast,
  HandoverEffect,
  LiveParameters,
  Message,
  MigrationParameters,
  ProgressEvent,
  RoundProgress,
  SourcePhase,
} from "@precopy/protocol";
import {
  ControlChannel,
  FaultServing,
  allocateServedPages,
  checkCongestionControl,
  choosePump,
  connectFaultChannel,
  holdCompiler,
  peerError,
} from "@precopy/transport";
import type { ChannelThreads, PumpKind, Security, ServedPages } from "@precopy/transport";
import { arbitrationOf } from "./arbitration.js";
import { Commitment } from "./commitment.js";
import { ControlLink } from "./control-link.js";
import type { Attempt } from "./control-link.js";
import { FirstRound } from "./first-round.js";
import type { LinkEvent, PageLink } from "./page-link.js";
import { likelyCosts } from "./plan.js";
import type { HandoverCosts } from "./plan.js";
import { PostcopyServing } from "./postcopy-serving.js";
import type { PostcopyResult } from "./postcopy-serving.js";
import { beAdmitted, channelAccess, makePageLink, silence } from "./transfer.js";
import type { Admitted, Transfer } from "./transfer.js";

/** What an agent can be made to do without, to measure what it saves; all on by default. */
export interface SourceSwitches {
  /** Default vector. */
  readonly zeroCheck?: ZeroCheck;
  /** Default true: page channels and dirty log are ended when the guest runs at the target. False: in the pause, before COMMIT. */
  readonly isCleanUpDeferred?: boolean;
}

export interface SourceAgentOptions extends SourceSwitches {
  readonly registry: GuestRegistry;
  readonly guests: GuestHost;
  readonly threads: ChannelThreads;
  readonly release: string;
  /** What it shows to targets, and wants to see of them; default: nothing. */
  readonly security?: Security;
  /** Undefined: the two sides decide alone. */
  readonly arbiter: NamedArbiter | undefined;
  /** Where this agent listens, for the target's operator; undefined if nobody can ask it. */
  address?(): Address | undefined;
  /** What hand-overs to this target took before; undefined if there were none. For forecasts. */
  handoverCosts?(to: string): HandoverCosts | undefined;
  onEvent?(event: ProgressEvent): void;
  /** For tests that need this side to stand still, or to die, in one state; awaited after the state was entered. */
  reach?(point: string): Promise<void>;
}

/** An arbiter, and the name under which this agent owns guests there. */
export interface NamedArbiter {
  readonly arbiter: Arbiter;
  readonly owner: string;
}

/** Where the next round lasts at least so long there is time for a forecast, which takes some tens of milliseconds. */
const FORECAST_ROUND_MS = 500;
/** For how long events may wait until the guest runs again. */
const QUIET_MS = 30;
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** One hand-over at the source: connects, is admitted, lets the engine run, and carries out what the state machine asks for, whichever way it ends. */
export class OutgoingMigration {
  readonly guest: Guest;
  readonly to: Address;
  readonly epoch: number;
  readonly acceptedAtMs = performance.now();
  readonly rounds: RoundProgress[] = [];
  readonly attempt: Attempt;
  /** What it was expected to come to, oldest first. */
  readonly forecasts: Forecast[] = [];
  readonly #firstRound: FirstRound;
  #resumeMs = 0;
  /** As probed last. */
  #pauseMs = 0;
  readonly #options: SourceAgentOptions;
  readonly handover: SourceHandover;
  readonly #abort = new AbortController();
  #parameters: MigrationParameters;
  #migration: Migration | undefined;
  #control: ControlLink | undefined;
  #link: PageLink | undefined;
  #commitment: Commitment | undefined;
  #hashes: HashTable | undefined;
  #pump: PumpKind = "portable";
  #admitted: Admitted | undefined;
  #faults: { readonly serving: FaultServing; readonly served: ServedPages } | undefined;
  #serving: PostcopyServing | undefined;
  #pauseTimer: NodeJS.Timeout | undefined;
  /** Of `timeout`. */
  #timer: NodeJS.Timeout | undefined;
  #prepared: Promise<Message<"prepared">> | undefined;
  readonly #untold: ProgressEvent[] = [];
  #forecasting: (() => Promise<Forecast>) | undefined;
  #telling: NodeJS.Timeout | undefined;
  #isPaused = false;
  #isTimeUp = false;
  #pausedAtGuestMs = 0;
  #pausedAtHost: ReturnType<typeof hostTime>;
  #reached: Promise<void> | undefined;
  /** When the guest was paused, this host's clock, ms since 1970; what runs after a roll-back is from then. */
  pausedAt: number | undefined;
  /** STATE went out: the target may be prepared. */
  isStateSent = false;
  congestionControl: string | null = null;
  /** What went wrong in the clean-up, after the outcome was clear. */
  afterwards: MigrationError | undefined;
  guestGapMs: number | null = null;
  /** Pause asked for to guest running, where both agents are on one host. */
  hostGapMs: number | null = null;
  audit: AuditResult | null = null;
  /** Of post-copy, once every page is at the target. */
  postcopy: PostcopyResult | null = null;
  /** In post-copy: what the target holds is what was here at the pause; null while nobody knows, and with the digest off. */
  isImageEqual: boolean | null = null;

  /** Writes the attempt down. */
  constructor(guest: Guest, to: Address, parameters: MigrationParameters, options: SourceAgentOptions) {
    this.guest = guest;
    this.to = to;
    this.#parameters = parameters;
    this.#options = options;
    const { id } = guest.manifest;
    this.epoch = Math.max(options.registry.journal.nextEpoch(id), guest.epoch + 1);
    this.attempt = { guest: id, epoch: this.epoch, session: randomUUID() };
    this.#firstRound = new FirstRound(options.guests.memory, guest.memory.pages);
    const { state, decide } = offer(guest.epoch, this.epoch);
    if (decide !== undefined) this.#record(decide, this.epoch);
    this.handover = new SourceHandover(state, {
      decide: (decision, epoch) => this.#record(decision, epoch),
      onPhase: (phase) => this.#onPhase(phase),
    });
  }

  /** As they are now. */
  get parameters(): MigrationParameters {
    return this.#parameters;
  }

  /** Changes them while it runs; what they mean from now on. @throws {MigrationError} ERR_PARAMETER, ERR_NO_MIGRATION once the guest is paused. */
  set(changes: Partial<LiveParameters>): void {
    if (this.phase !== "setup" && this.phase !== "active")
      throw new MigrationError("ERR_NO_MIGRATION", `The migration is ${this.phase}: nothing can be changed any more`);
    this.#parameters = fillParameters({ ...this.#parameters, ...changes });
    this.#link?.setMaxBandwidth(this.#parameters.maxBandwidthBytesPerSecond);
    this.#limitTime();
    this.#emit({ type: "set", parameters: this.#parameters, atMs: performance.now() - this.acceptedAtMs });
  }

  get phase(): SourcePhase {
    return this.handover.state.phase;
  }

  get channelLosses(): number {
    return this.#link?.losses ?? 0;
  }

  get controlRejoins(): number {
    return this.#control?.rejoins ?? 0;
  }

  get resentPages(): number {
    return this.#link?.resentPages ?? 0;
  }

  /** The operator's hold on it once COMMIT is out. */
  get commitment(): Commitment | undefined {
    return this.#commitment;
  }

  /** Of post-copy, while it serves the target. */
  get serving(): PostcopyServing | undefined {
    return this.#serving;
  }

  /** The guest runs at the target after the round under way. @throws {MigrationError} ERR_NO_MIGRATION */
  goToPostcopy(): void {
    if (this.#migration === undefined) throw new MigrationError("ERR_NO_MIGRATION", "The target has not admitted the guest yet");
    this.#migration.goToPostcopy();
  }

  /** @throws {MigrationError} ERR_CANCEL_TOO_LATE once COMMIT is out. */
  cancel(): void {
    if (this.#migration === undefined) this.#abort.abort(new MigrationError("ERR_CANCELLED", "Cancelled by the operator"));
    else this.#migration.cancel();
  }

  /** The process ends while the target has not answered. The guest stands still to the end, and the journal says `committed`. */
  abandon(): void {
    this.#commitment?.abandon();
    this.#serving?.abandon();
  }

  /**
   * Resolves when the guest runs at the target and is gone from here, audited if asked for.
   * @throws {MigrationError} the guest runs here as before; ERR_IN_DOUBT if it was abandoned, ERR_GIVEN_UP if it is gone.
   */
  async run(): Promise<SwitchResult> {
    this.#limitTime();
    try {
      const result = await this.#serveRest(await this.#handOver());
      await this.#carryOut(new MigrationError("ERR_LINK_LOST", "The migration is complete"));
      await this.#forecasting?.();
      return result;
    } catch (thrown) {
      const error = this.#abort.signal.aborted ? MigrationError.from(this.#abort.signal.reason) : MigrationError.from(thrown);
      this.handover.abort(error);
      await this.#carryOut(error);
      await this.#forecasting?.();
      throw error;
    } finally {
      this.#firstRound.end();
      clearTimeout(this.#pauseTimer);
      clearTimeout(this.#timer);
    }
  }

  /** Counts from the command on, whenever the limit was set. */
  #limitTime(): void {
    clearTimeout(this.#timer);
    const { timeoutMs } = this.#parameters;
    if (timeoutMs > 0) this.#timer = setTimeout(() => this.#timeOut(), timeoutMs - (performance.now() - this.acceptedAtMs));
  }

  #timeOut(): void {
    const { timeoutMs, timeoutAction } = this.#parameters;
    if (this.#migration !== undefined) this.#migration.timeOut();
    else if (timeoutAction === "cancel") this.#abort.abort(new MigrationError("ERR_TIMEOUT", `Not admitted within ${timeoutMs} ms`));
    else this.#isTimeUp = true; // there is nothing yet that could be forced
  }

  async #handOver(): Promise<SwitchResult> {
    const { guest, epoch, parameters } = this;
    const { memory } = this.#options.guests;
    if (!guest.isWhole)
      throw new MigrationError("ERR_BUSY", `Guest ${guest.manifest.id} still fetches its memory from where it ran before`);
    if (guest.dirtyLog === "barrier" && guest.hasDirectWriter)
      throw new MigrationError("ERR_UNTRACKED_WRITES", "A workload writes guest memory directly, which the barrier dirty log cannot see");
    const pump = choosePump(parameters.pump, this.#options.security);
    this.#pump = pump;
    checkCongestionControl(parameters.congestionControl); // a channel that was refused it would be made again, and refused again
    this.#emit({
      type: "started",
      guest: guest.manifest.id,
      to: formatAddress(this.to),
      epoch,
      parameters,
      dirtyLog: guest.dirtyLog,
      pump,
    });
    this.#onPhase("setup");
    await this.#reached;
    await this.#options.registry.journal.sync(guest.manifest.id); // a host that goes down must not forget that somebody may have a copy
    this.#abort.signal.throwIfAborted();
    const channel = await ControlChannel.connect(this.to, this.#abort.signal, this.#options.security);
    const control = new ControlLink(channel, this.to, this.attempt, this.#options.security);
    this.#control = control;
    this.#abort.signal.addEventListener("abort", () => this.#leave(MigrationError.from(this.#abort.signal.reason)), { once: true });
    const admitted = await beAdmitted(control, this.#transfer);
    this.#admitted = admitted;
    this.#resumeMs = admitted.probeMs;
    control.setLasting(true); // the guest runs, and will for a while
    const link = await this.#openPages(control, pump, admitted);
    this.#abort.signal.throwIfAborted();
    const migration = new Migration(
      { pages: guest.memory.pages, parameters: () => this.#parameters, acceptedAtMs: this.acceptedAtMs },
      {
        clock: () => performance.now(),
        every: (ms, work) => {
          const timer = setInterval(work, ms);
          return () => clearInterval(timer);
        },
        resumeMs: this.#resumeMs,
        dirty: {
          start: async (into) => {
            await this.#reached;
            const ms = await memory.start(into);
            if (hasRounds(parameters)) this.#firstRound.begin(ms);
            return ms;
          },
          collect: (into, known) => {
            this.#firstRound.end();
            return memory.collect(into, known);
          },
        },
        link,
        guest: {
          probeMs: () => (this.#pauseMs = guest.probeMs()),
          pause: () => this.#pause(),
          withhold: (shares) => guest.withhold(shares),
          activity: () => guest.activity(),
        },
        handover: {
          tell: (state) => this.#sendState(control, state),
          prepare: () => this.#prepare(control, link),
          commit: () => this.#commit(control),
        },
        postcopy: {
          devicePages: guest.devicePages,
          discard: (pages) => this.#discard(control, pages),
          tellDiscard: (pages) => this.#tellDiscard(control, pages),
        },
        stop: (reason) => this.#stop(reason),
        onRound: (round) => {
          this.rounds.push(round);
          this.congestionControl ??= link.congestionControl; // the channels' threads tell it when they are ready to send
          this.#emit({ type: "round", ...round });
          if (round.round === 1) this.#forecastFrom(round, link.roundTripMs());
        },
      },
      this.handover,
    );
    this.#migration = migration;
    if (this.#isTimeUp) migration.timeOut();
    control.onDead = (reason) => migration.fail(reason);
    control.ready().catch((error: unknown) => migration.fail(MigrationError.from(error))); // it died before anybody listened
    this.guest.onFailure = (error) => migration.fail(error);
    return migration.run();
  }

  get #transfer(): Transfer {
    const { guest, to, attempt, parameters } = this;
    return { guest, to, attempt, parameters, options: this.#options };
  }

  async #openPages(control: ControlLink, pump: PumpKind, admitted: Admitted): Promise<PageLink> {
    this.#hashes = this.parameters.isDigestOn ? this.guest.freshHashTable() : undefined;
    const link = makePageLink(control, this.#transfer, pump, this.#hashes, admitted, {
      fail: (error) => {
        this.#migration?.fail(error);
        this.#serving?.fail(error);
      },
      onEvent: (event) => this.#emitLink(event),
      onMessage: (message) => this.#onMessage(message),
    });
    this.#link = link;
    const stop = (): void => void link.stop(MigrationError.from(this.#abort.signal.reason));
    this.#abort.signal.addEventListener("abort", stop, { once: true });
    await link.open();
    return link;
  }

  #tellDiscard(control: ControlLink, pages: Bitmap): void {
    for (const piece of piecesOf(pages.words)) control.send({ type: "discard", epoch: this.epoch, ...piece });
  }

  /** And has the target listen. Whatever it asks for from here on can be answered. */
  async #discard(control: ControlLink, pages: Bitmap): Promise<void> {
    const pieces = [...piecesOf(pages.words)];
    do {
      const listening = control.expect(["listening"], TIMER_MS_MAX, silence("what it will miss"));
      for (const piece of pieces.splice(0, BITMAP_PIECES_AT_ONCE)) control.send({ type: "discard", epoch: this.epoch, ...piece });
      control.send({ type: "listen", epoch: this.epoch });
      await listening;
    } while (pieces.length > 0);
    holdCompiler(); // the guest may stand still next
    this.#faults ??= await this.#openFaults();
  }

  async #openFaults(): Promise<{ serving: FaultServing; served: ServedPages }> {
    const { guest, to } = this;
    const { session } = this.attempt;
    if (this.#admitted === undefined) throw new MigrationError("ERR_INTERNAL", "A fault channel before the admission");
    const access = channelAccess(this.#admitted, this.#options);
    const socket = await connectFaultChannel(to, { session, generation: 1 }, this.#abort.signal, access);
    const served = allocateServedPages(guest.memory.pages);
    const serving = await FaultServing.open(socket, this.#options.threads, this.#pump, guest.memory.share(), served);
    serving.onFailure = (error) => this.#migration?.fail(error); // until it serves
    return { serving, served };
  }

  /** In post-copy: until nothing is missing at the target any more, however long that takes. */
  async #serveRest(result: SwitchResult): Promise<SwitchResult> {
    const [control, link, faults, admitted] = [this.#control, this.#link, this.#faults, this.#admitted];
    if (result.missing === undefined || control === undefined || link === undefined || faults === undefined || admitted === undefined)
      return result;
    const ports = {
      transfer: this.#transfer,
      pump: this.#pump,
      admitted,
      handover: this.handover,
      served: faults.served,
      onEvent: (event: LinkEvent) => this.#emitLink(event),
    };
    this.#serving = new PostcopyServing(ports, result.missing);
    const stopping = this.#options.guests.memory.stop(); // nobody writes here any more
    this.postcopy = (await this.#serving.run(control, link, faults.serving)) ?? null;
    const totalMs = performance.now() - this.acceptedAtMs;
    await stopping;
    if (this.phase === "taken-back") throw new MigrationError("ERR_TAKEN_BACK", "The guest was taken back, as it was at the pause");
    if (this.phase === "given-up") throw new MigrationError("ERR_GIVEN_UP", "The operator gave up what was left of the guest here");
    await this.#compareImages();
    return { ...result, totalMs };
  }

  /** The target's image, page by page as it was placed, with the one that stands here. */
  async #compareImages(): Promise<void> {
    const theirs = this.postcopy?.digest ?? null;
    if (theirs === null || this.#hashes === undefined) return;
    this.isImageEqual = joinDigests([await this.#options.guests.memory.digest(this.#hashes)]) === theirs;
  }

  /** Simulated at once if there is time for it, else when nobody waits any more: what it is made from does not change. */
  #forecastFrom(round: RoundProgress, roundTripMs: number): void {
    const { guest, parameters } = this;
    if (!hasRounds(parameters) || round.verdict === undefined) return;
    const handover = this.#options.handoverCosts?.(formatAddress(this.to)) ?? likelyCosts(roundTripMs, this.#resumeMs);
    const { multifdChannels: channels } = parameters;
    const known = { pauseMs: this.#pauseMs, resumeMs: this.#resumeMs, roundTripMs, handover, channels };
    const measured = this.#firstRound.measured(round, guest.memory.pages, known);
    this.#forecasting = async () => {
      this.#forecasting = undefined;
      const made = await forecast("first-round", measured, parameters);
      this.forecasts.push(made);
      return made;
    };
    const nextRoundMs = (round.remainingPages * PAGE_BYTES * 1000) / (round.bandwidthBytesPerSecond ?? Number.POSITIVE_INFINITY);
    if (nextRoundMs < FORECAST_ROUND_MS) return;
    void this.#forecasting().then((made) => this.#emit({ type: "forecast", forecast: made }));
  }

  #onMessage(message: ControlMessage): void {
    if (message.type === "failed") this.#migration?.fail(peerError(message));
    else if (message.type === "arrived") this.#onArrived(message);
    else this.#serving?.onMessage(message);
  }

  #onArrived({ guestGapMs, ranAt }: Message<"arrived">): void {
    this.guestGapMs = guestGapMs;
    const pausedAt = this.#pausedAtHost;
    if (ranAt !== null && ranAt.boot === pausedAt?.boot) this.hostGapMs = ranAt.ms - pausedAt.ms;
  }

  async #pause(): ReturnType<Guest["pause"]> {
    this.#pausedAtHost = hostTime();
    const state = await this.guest.pause();
    this.#isPaused = true;
    this.#pausedAtGuestMs = state.clockMs;
    this.pausedAt = Date.now();
    if (![...state.registers, ...state.devices].every((one) => isPlainData(one)))
      throw new MigrationError("ERR_WORKLOAD_FAILED", "A workload's save() gave something that is not plain data");
    await this.#reached;
    return state;
  }

  #sendState(control: ControlLink, { round, guest }: FinalState): void {
    // Something else ends it: the limit of the pause, or the link.
    this.#prepared = control.expect(["prepared"], TIMER_MS_MAX, silence("the state"));
    this.#prepared.catch(() => {}); // it is awaited when everything was sent
    this.isStateSent = true;
    const { registers, devices, clockMs } = guest;
    control.send({ type: "state", epoch: this.epoch, round, registers: [...registers], devices: [...devices], clockMs });
  }

  async #prepare(control: ControlLink, link: PageLink): Promise<void> {
    // Pre-copy has had a limit since the pause (#onPhase). The pages of a pause that was not forecast take as long as they take; then the same holds.
    if (this.#mayPauseLong)
      link.lastStored().then(
        () => this.#limitPause(),
        () => {}, // the link broke: that has ended the migration already
      );
    // In post-copy the images are compared when the target has all of its own.
    const expected = this.handover.state.isSplit ? null : link.digest(this.parameters.isDigestOn);
    if (expected !== null) control.send({ type: "image", epoch: this.epoch, digest: expected });
    const answer = await this.#prepared;
    if (answer?.digest !== expected || answer.epoch !== this.epoch)
      throw new MigrationError("ERR_DIGEST_MISMATCH", `Image digest ${String(expected)} here, ${String(answer?.digest)} at the target`);
    if (this.#options.isCleanUpDeferred === false) await this.#endTransfer(link);
  }

  /**
   * The target has every page, and the guest stands still: whoever owns it then, this attempt sends and collects nothing any more. Memory and
   * vCPUs stay until the guest runs there.
   */
  async #endTransfer(link: PageLink): Promise<void> {
    await link.stop(new MigrationError("ERR_LINK_LOST", "Every page is at the target"));
    await this.#options.guests.memory.stop();
  }

  async #commit(control: ControlLink): Promise<void> {
    const { arbiter } = this.#options;
    this.#commitment = new Commitment(
      {
        to: formatAddress(this.to),
        security: this.#options.security,
        attempt: this.attempt,
        handover: this.handover,
        arbitration: arbiter === undefined ? undefined : arbitrationOf(arbiter, this.attempt.guest, this.guest.epoch, this.epoch),
        // On the guest's own clock, which runs on: exactly the time that the state does not know of yet.
        elapsedMs: () => this.guest.clock.now() - this.#pausedAtGuestMs,
        onDoubt: (reason) => this.#emitDoubt(reason),
        onMessage: (message) => {
          if (message.type === "arrived") this.#onArrived(message);
        },
      },
      control.channel,
    );
    await this.#reached;
    await this.#commitment.run();
  }

  #emitDoubt({ message }: MigrationError): void {
    const doubt = new MigrationError("ERR_IN_DOUBT", `COMMIT is out and unanswered: ${message}`);
    this.#emit({ type: "failed", phase: "in-doubt", code: doubt.code, message: doubt.message, remedy: doubt.remedy });
  }

  #onPhase(phase: SourcePhase): void {
    clearTimeout(this.#pauseTimer);
    if (phase !== "active") this.#control?.setLasting(false);
    if (phase === "device" && !this.#mayPauseLong) this.#limitPause();
    this.#emitPhase(phase);
    this.#reached = this.#options.reach?.(`source.${phase}`);
  }

  /** Everything is sent in the pause, or its time limit forced it. */
  get #mayPauseLong(): boolean {
    return this.parameters.mode === "stop-and-copy" || this.#migration?.isForced === true;
  }

  #limitPause(): void {
    const timeoutMs = preparedTimeoutMs(this.parameters.downtimeLimitMs);
    if (this.phase !== "device") return;
    this.#pauseTimer = setTimeout(
      () => this.#migration?.fail(new MigrationError("ERR_PREPARED_TIMEOUT", `No PREPARED within ${timeoutMs} ms`)),
      timeoutMs,
    );
  }

  /** Before COMMIT: tells the target, and ends link and control, so that everything pending on them rejects. */
  async #stop(reason: MigrationError): Promise<void> {
    this.#leave(reason);
    await Promise.all([this.#link?.stop(reason), this.#faults?.serving.end()]);
  }

  #leave(reason: MigrationError): void {
    this.#control?.send({ type: "abort", code: reason.code, message: reason.message.slice(0, 1000) });
    this.#control?.close(reason);
  }

  #record(decision: Parameters<GuestRegistry["journal"]["record"]>[2], epoch: number): void {
    const { guest, session } = this.attempt;
    this.#options.registry.journal.record(guest, epoch, decision, { peer: formatAddress(this.to), session });
  }

  /** What the hand-over's steps asked for, in order; one that fails does not keep the others from being done. */
  async #carryOut(reason: MigrationError): Promise<void> {
    await this.#reached;
    this.guest.onFailure = () => {};
    for (const effect of this.handover.takeEffects()) await this.#attempt(() => this.#perform(effect, reason));
    await this.#attempt(() => this.#link?.stop(reason));
    await this.#attempt(() => this.#options.registry.journal.sync(this.attempt.guest));
    if (this.phase === "completed") await this.#attempt(() => this.#awaitArrival());
    this.#control?.close(reason);
    this.#commitment?.control?.close(reason);
  }

  async #attempt(work: () => unknown): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.afterwards ??= MigrationError.from(error);
    }
  }

  async #perform(effect: HandoverEffect, reason: MigrationError): Promise<void> {
    switch (effect.effect) {
      case "journal":
        return this.#record(effect.decision, effect.epoch);
      case "send": // COMMIT is the commitment's to send
        return effect.message === "abort" ? this.#stop(reason) : undefined;
      case "run":
        if (this.#isPaused) this.guest.resume(effect.epoch); // before anything that may fail
        await Promise.all([this.#link?.stop(reason), this.#faults?.serving.end()]);
        return this.#options.guests.memory.stop();
      case "free":
        return this.#free(reason);
    }
  }

  /** The guest is the target's, whatever happens in here, and nothing counts into downtime or total time. */
  async #free(reason: MigrationError): Promise<void> {
    const { registry, guests } = this.#options;
    await this.#attempt(() => this.#link?.stop(reason));
    await this.#attempt(() => this.#faults?.serving.end());
    await this.#attempt(() => guests.memory.stop());
    await this.#attempt(async () => {
      const { state } = this.handover;
      const mayAudit = this.#hashes !== undefined && this.parameters.isAuditOn && state.phase === "completed" && !state.isSplit;
      if (mayAudit && this.#hashes !== undefined) this.audit = await guests.memory.audit(this.#hashes);
    });
    // Only when nothing of it is left may the next one come.
    await this.#attempt(() => this.guest.destroy());
    registry.remove(this.guest);
  }

  async #awaitArrival(): Promise<void> {
    const control = this.#commitment?.control;
    for (let left = ARRIVAL_REPORT_TIMEOUT_MS; this.guestGapMs === null && left > 0 && control?.closed === undefined; left -= 10)
      await sleep(10);
  }

  #emitLink(event: LinkEvent): void {
    this.#emit({ type: "link", ...event, atMs: performance.now() - this.acceptedAtMs });
  }

  #emitPhase(phase: SourcePhase): void {
    this.#emit({ type: "phase", phase, atMs: performance.now() - this.acceptedAtMs });
  }

  /**
   * Tells the observers, but not while the guest stands still or may do so in a moment: waking other processes up costs it milliseconds on a
   * busy host. What happens then is told a little later.
   */
  #emit(event: ProgressEvent): void {
    this.#untold.push(event);
    const isQuiet = this.phase === "device" || this.phase === "committing";
    if (this.phase !== "active" && !isQuiet) return this.#tell();
    if (isQuiet) clearTimeout(this.#telling); // else what was held back in a round would be told in the pause
    if (isQuiet || this.#telling === undefined) this.#telling = setTimeout(() => this.#tell(), QUIET_MS);
  }

  #tell(): void {
    clearTimeout(this.#telling);
    this.#telling = undefined;
    for (const event of this.#untold.splice(0)) {
      try {
        this.#options.onEvent?.(event);
      } catch (error) {
        process.emitWarning(MigrationError.from(error)); // an observer's mistake decides nothing about a guest
      }
    }
  }
}
