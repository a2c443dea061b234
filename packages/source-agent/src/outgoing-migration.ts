import { randomUUID } from "node:crypto";
import { endianness } from "node:os";
import { Migration } from "@precopy/engine";
import type { FinalState, SwitchResult } from "@precopy/engine";
import type { Guest, GuestHost, GuestRegistry, HashTable } from "@precopy/guest";
import {
  ACTIVE_TIMEOUT_MS,
  ADMISSION_TIMEOUT_MS,
  ARRIVAL_REPORT_TIMEOUT_MS,
  ASK_AGAIN_MS,
  MigrationError,
  PAGE_BYTES,
  PROTOCOL_VERSION,
  formatAddress,
  isPlainData,
  preparedTimeoutMs,
  sourceMayRunGuest,
} from "@precopy/protocol";
import type {
  Address,
  AuditResult,
  ControlMessage,
  MigrationParameters,
  ProgressEvent,
  RoundProgress,
  SourcePhase,
} from "@precopy/protocol";
import { ControlChannel, PageChannel, choosePump, connectPageChannel, peerError } from "@precopy/transport";
import type { ChannelThreads, PumpKind } from "@precopy/transport";
import { PageLink } from "./page-link.js";

export interface SourceAgentOptions {
  readonly registry: GuestRegistry;
  readonly guests: GuestHost;
  readonly threads: ChannelThreads;
  readonly release: string;
  onEvent?(event: ProgressEvent): void;
  /** For tests that need this side to stand still in one state; awaited after the state was entered. */
  holdAt?(point: string): Promise<void>;
}

/** A peer that breaks a page channel usually says why on the control channel; its word is worth waiting for this long. */
const REASON_MS = 200;

const silence = (what: string) => (): MigrationError => new MigrationError("ERR_PEER_DEAD", `The target did not answer ${what}`);
/** For how long events may wait until the guest runs again. */
const QUIET_MS = 30;
/** As long as a Node timer can wait; something else ends it. */
const NEVER_MS = 2 ** 31 - 1;
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** One hand-over at the source: connects, is admitted, lets the engine run, and cleans up whichever way it ends. */
export class OutgoingMigration {
  readonly guest: Guest;
  readonly to: Address;
  readonly epoch: number;
  readonly parameters: MigrationParameters;
  readonly acceptedAtMs = performance.now();
  readonly rounds: RoundProgress[] = [];
  readonly #options: SourceAgentOptions;
  readonly #abort = new AbortController();
  readonly #session = randomUUID();
  #migration: Migration | undefined;
  #control: ControlChannel | undefined;
  #link: PageLink | undefined;
  #hashes: HashTable | undefined;
  #pauseTimer: NodeJS.Timeout | undefined;
  readonly #untold: ProgressEvent[] = [];
  #telling: NodeJS.Timeout | undefined;
  #isPaused = false;
  #pausedAtGuestMs = 0;
  #isAbandoned = false;
  /** How it ended if that was before the engine began. */
  #outcome: "failed" | "cancelled" | undefined;
  #opened: PageChannel[] = [];
  /** What went wrong in the clean-up, after the outcome was clear. */
  afterwards: MigrationError | undefined;
  guestGapMs: number | null = null;
  audit: AuditResult | null = null;

  constructor(guest: Guest, to: Address, parameters: MigrationParameters, options: SourceAgentOptions) {
    this.guest = guest;
    this.to = to;
    this.parameters = parameters;
    this.#options = options;
    // Every attempt is an epoch of its own, so what an aborted one left at a target can never run.
    this.epoch = Math.max(options.registry.journal.latestEpoch(guest.manifest.id), guest.epoch) + 1;
  }

  /** What the page channels' sockets use where they are ours to set; null where the system's choice holds. */
  get congestionControl(): string | null {
    return this.#opened[0]?.congestionControl ?? null;
  }

  get phase(): SourcePhase {
    return this.#migration?.state.phase ?? this.#outcome ?? "setup";
  }

  /** @throws {MigrationError} ERR_CANCEL_TOO_LATE once COMMIT is out. */
  cancel(): void {
    if (this.#migration === undefined) this.#abort.abort(new MigrationError("ERR_CANCELLED", "Cancelled by the operator"));
    else this.#migration.cancel();
  }

  /**
   * Resolves when the guest runs at the target and is gone from here, audited if asked for.
   * @throws {MigrationError} the guest runs here as before.
   */
  async run(): Promise<SwitchResult> {
    const { registry } = this.#options;
    const { id } = this.guest.manifest;
    registry.journal.record(id, this.epoch, "offered");
    let result: SwitchResult;
    try {
      result = await this.#handOver();
    } catch (thrown) {
      const error = this.#abort.signal.aborted ? MigrationError.from(this.#abort.signal.reason) : MigrationError.from(thrown);
      await this.#giveUp(error).catch((failure: unknown) => {
        this.afterwards = MigrationError.from(failure);
      });
      throw error;
    }
    await this.#leave();
    return result;
  }

  /** The process ends while the target has not answered: stops asking. The guest stands still to the end, and the journal says `committed`. */
  abandon(): void {
    this.#isAbandoned = true;
    this.#control?.close(new MigrationError("ERR_IN_DOUBT", "The agent ended before the target answered"));
  }

  async #handOver(): Promise<SwitchResult> {
    const { guest, epoch, parameters } = this;
    const { memory } = this.#options.guests;
    if (guest.dirtyLog === "barrier" && guest.hasDirectWriter)
      throw new MigrationError("ERR_UNTRACKED_WRITES", "A workload writes guest memory directly, which the barrier dirty log cannot see");
    const pump = choosePump(parameters.pump);
    this.#emit({
      type: "started",
      guest: guest.manifest.id,
      to: formatAddress(this.to),
      epoch,
      parameters,
      dirtyLog: guest.dirtyLog,
      pump,
    });
    this.#emitPhase("setup");
    await this.#options.holdAt?.("source.setup");
    this.#abort.signal.throwIfAborted();
    const control = await ControlChannel.connect(this.to, this.#abort.signal);
    this.#control = control;
    this.#abort.signal.addEventListener("abort", () => control.close(MigrationError.from(this.#abort.signal.reason)), { once: true });
    const { resumeMs, channels } = await this.#beAdmitted(control, pump);
    const link = new PageLink(channels, control, parameters.maxBandwidthBytesPerSecond);
    this.#link = link;
    this.#abort.signal.throwIfAborted();
    const migration = new Migration(
      { pages: guest.memory.pages, epoch, parameters, acceptedAtMs: this.acceptedAtMs },
      {
        clock: () => performance.now(),
        resumeMs,
        dirty: { start: (into) => memory.start(into), collect: (into) => memory.collect(into) },
        link,
        guest: { probeMs: () => guest.probeMs(), pause: () => this.#pause() },
        handover: {
          prepare: (state) => this.#prepare(control, state),
          decideCommit: () => this.#options.registry.journal.record(guest.manifest.id, epoch, "committed"),
          commit: (onDoubt) => this.#commit(control, onDoubt),
        },
        stop: (reason) => this.#stop(reason),
        onPhase: (phase) => this.#onPhase(phase),
        onRound: (round) => {
          this.rounds.push(round);
          this.#emit({ type: "round", ...round });
        },
      },
    );
    this.#migration = migration;
    this.#watch(migration, control, channels);
    return migration.run();
  }

  async #beAdmitted(control: ControlChannel, pump: PumpKind): Promise<{ resumeMs: number; channels: PageChannel[] }> {
    const { guest, parameters } = this;
    const session = this.#session;
    const capabilities = [...(parameters.multifdCompression === "lz4" ? ["lz4"] : []), ...(parameters.isDigestOn ? ["digest"] : [])];
    const answered = control.expect(["admitted"], ADMISSION_TIMEOUT_MS, silence("the admission"));
    control.send({
      type: "admit",
      protocolVersion: PROTOCOL_VERSION,
      release: this.#options.release,
      session,
      epoch: this.epoch,
      pageBytes: PAGE_BYTES,
      endianness: endianness(),
      channels: parameters.multifdChannels,
      capabilities,
      digest: parameters.isDigestOn,
      manifest: guest.manifest,
    });
    const admitted = await answered;
    this.#hashes = parameters.isDigestOn ? guest.freshHashTable() : undefined;
    const opening = await Promise.allSettled(
      Array.from({ length: parameters.multifdChannels }, async (_, channel) => {
        const socket = await connectPageChannel(this.to, { session, channel, generation: 1 }, this.#abort.signal);
        return PageChannel.open(socket, this.#options.threads, {
          type: "send",
          pump,
          channel,
          channels: parameters.multifdChannels,
          memory: guest.memory.share(),
          hashes: this.#hashes,
          compression: parameters.multifdCompression,
        });
      }),
    );
    this.#opened = opening.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
    for (const one of opening) if (one.status === "rejected") throw MigrationError.from(one.reason);
    return { resumeMs: admitted.probeMs, channels: this.#opened };
  }

  #watch(migration: Migration, control: ControlChannel, channels: readonly PageChannel[]): void {
    control.onClose = (reason) => migration.fail(reason);
    control.onMessage = (message) => {
      if (message.type === "flushed") this.#link?.onFlushed(message);
      else if (message.type === "failed") migration.fail(peerError(message));
      else if (message.type === "arrived") this.guestGapMs = message.guestGapMs;
    };
    if (control.closed !== undefined) migration.fail(control.closed);
    for (const channel of channels) channel.onFailure = (error) => setTimeout(() => migration.fail(error), REASON_MS);
    this.guest.onFailure = (error) => migration.fail(error);
  }

  async #pause(): ReturnType<Guest["pause"]> {
    const state = await this.guest.pause();
    this.#isPaused = true;
    this.#pausedAtGuestMs = state.clockMs;
    if (![...state.registers, ...state.devices].every((one) => isPlainData(one)))
      throw new MigrationError("ERR_WORKLOAD_FAILED", "A workload's save() gave something that is not plain data");
    await this.#options.holdAt?.("source.device");
    return state;
  }

  async #prepare(control: ControlChannel, { round, guest, last }: FinalState): Promise<void> {
    const prepared = control.expect(["prepared"], NEVER_MS, silence("the state"));
    // Pre-copy has had a limit since the pause (#onPhase). The pages of a plain stop-and-copy take as long as they take; then the same holds.
    if (this.parameters.mode === "stop-and-copy")
      this.#link?.lastStored.then(
        () => this.#limitPause(),
        () => {}, // the link broke: that has ended the migration already
      );
    control.send({
      type: "state",
      epoch: this.epoch,
      round,
      digest: last.digest,
      packets: [...last.packets],
      registers: [...guest.registers],
      devices: [...guest.devices],
      clockMs: guest.clockMs,
    });
    const { digest, epoch } = await prepared;
    if (digest !== last.digest || epoch !== this.epoch)
      throw new MigrationError("ERR_DIGEST_MISMATCH", `Image digest ${String(last.digest)} here, ${String(digest)} at the target`);
  }

  /** Asks until there is an answer. No timer ever resumes the guest here. */
  async #commit(first: ControlChannel, onDoubt: () => void): Promise<"active" | "refused"> {
    // On the guest's own clock, which runs on: exactly the time that the state does not know of yet.
    const message = (): ControlMessage => ({
      type: "commit",
      epoch: this.epoch,
      elapsedMs: this.guest.clock.now() - this.#pausedAtGuestMs,
    });
    let isInDoubt = false;
    await this.#options.holdAt?.("source.committing");
    for (let control = first; ; ) {
      this.#checkAbandoned();
      try {
        const active = control.expect(["active"], ACTIVE_TIMEOUT_MS, silence("COMMIT"));
        control.send(message());
        await active;
        return "active";
      } catch (thrown) {
        // Whatever happened, a peer that speaks of a failure included: only `owner` tells.
        this.#emitDoubt(MigrationError.from(thrown));
        if (!isInDoubt) onDoubt();
        isInDoubt = true;
      }
      const answer = await this.#askAgain(control);
      if (answer === "active") return "active";
      if (answer === "refused") return "refused";
      control = answer;
    }
  }

  /** One question to the target; a channel on which COMMIT may be repeated, or its answer. Waits in between. */
  async #askAgain(old: ControlChannel): Promise<"active" | "refused" | ControlChannel> {
    for (;;) {
      await sleep(ASK_AGAIN_MS);
      this.#checkAbandoned();
      let control = old;
      try {
        if (old.closed !== undefined) control = await ControlChannel.connect(this.to);
        const answered = control.expect(["owner", "active"], ACTIVE_TIMEOUT_MS, silence("the question who owns the guest"));
        control.send({ type: "ask", guest: this.guest.manifest.id, epoch: this.epoch, session: this.#session });
        const answer = await answered;
        this.#adopt(control);
        if (answer.type === "active" || answer.phase === "active") return "active";
        if (answer.phase === "discarded") return "refused";
        if (answer.phase === "prepared") return control;
        // `unknown`: the agent there was started anew, which says nothing about the guest.
        if (control !== old) control.close(new MigrationError("ERR_IN_DOUBT", "The target does not know"));
      } catch (error) {
        this.#emitDoubt(MigrationError.from(error));
        if (control !== old) control.close(MigrationError.from(error));
      }
    }
  }

  #checkAbandoned(): void {
    if (this.#isAbandoned) throw new MigrationError("ERR_IN_DOUBT", `The agent ended before ${formatAddress(this.to)} answered`);
  }

  #adopt(control: ControlChannel): void {
    if (control === this.#control) return;
    this.#control = control;
    control.onMessage = (message) => {
      if (message.type === "arrived") this.guestGapMs = message.guestGapMs;
    };
  }

  #lastDoubt = "";
  #emitDoubt({ message }: MigrationError): void {
    if (message === this.#lastDoubt) return; // once for each reason, not once a second
    this.#lastDoubt = message;
    const doubt = new MigrationError("ERR_IN_DOUBT", `COMMIT is out and unanswered: ${message}`);
    this.#emit({ type: "failed", phase: "in-doubt", code: doubt.code, message: doubt.message, remedy: doubt.remedy });
  }

  #onPhase(phase: SourcePhase): void {
    clearTimeout(this.#pauseTimer);
    if (phase === "device" && this.parameters.mode === "precopy") this.#limitPause();
    this.#emitPhase(phase);
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
    this.#control?.send({ type: "abort", code: reason.code, message: reason.message.slice(0, 1000) });
    this.#control?.close(reason);
    await this.#endLink(reason);
  }

  async #endLink(reason: MigrationError): Promise<void> {
    await this.#link?.stop(reason);
    await Promise.all(this.#opened.map((channel) => channel.end())); // all of them, where the link was never made
  }

  /**
   * If the guest is still ours it runs on here as before: dirty log off, vCPUs and devices go on, at the epoch they had, or a higher one if
   * it was taken back. Once COMMIT is out it is not, whatever was thrown, and stands still.
   */
  async #giveUp(error: MigrationError): Promise<void> {
    const { registry, guests } = this.#options;
    const { id } = this.guest.manifest;
    clearTimeout(this.#pauseTimer);
    const state = this.#migration?.state;
    if (state !== undefined && !sourceMayRunGuest(state) && state.phase !== "device") return this.#endLink(error);
    if (this.#migration === undefined) {
      this.#outcome = error.code === "ERR_CANCELLED" ? "cancelled" : "failed";
      this.#emitPhase(this.#outcome);
    }
    await this.#stop(error);
    const isTakenBack = state?.phase === "taken-back";
    const epoch = isTakenBack ? this.epoch + 1 : this.guest.epoch;
    this.guest.onFailure = () => {};
    if (this.#isPaused) this.guest.resume(epoch); // before anything that may fail: a full disk must not freeze a guest
    await guests.memory.stop();
    registry.journal.record(id, isTakenBack ? epoch : this.epoch, isTakenBack ? "taken-back" : "aborted");
    await registry.journal.sync(id);
  }

  /** ACTIVE is here: the guest is the target's, whatever happens in here, and nothing counts into downtime or total time. */
  async #leave(): Promise<void> {
    const { registry, guests } = this.#options;
    const { id } = this.guest.manifest;
    const steps: readonly (() => Promise<void> | void)[] = [
      () => registry.journal.record(id, this.epoch, "completed"),
      () => this.#link?.stop(new MigrationError("ERR_LINK_LOST", "The migration is complete")),
      () => guests.memory.stop(),
      async () => {
        if (this.#hashes !== undefined && this.parameters.isAuditOn) this.audit = await guests.memory.audit(this.#hashes);
      },
      // Only when nothing of it is left may the next one come.
      () => this.guest.destroy(),
      () => registry.remove(this.guest),
      () => registry.journal.sync(id),
      () => this.#awaitArrival(),
    ];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        this.afterwards ??= MigrationError.from(error);
      }
    }
  }

  async #awaitArrival(): Promise<void> {
    const control = this.#control;
    for (let left = ARRIVAL_REPORT_TIMEOUT_MS; this.guestGapMs === null && left > 0 && control?.closed === undefined; left -= 10)
      await sleep(10);
    control?.close(new MigrationError("ERR_LINK_LOST", "The migration is complete"));
  }

  #emitPhase(phase: SourcePhase): void {
    this.#emit({ type: "phase", phase, atMs: performance.now() - this.acceptedAtMs });
  }

  /**
   * Tells the observers, but not while the guest stands still: waking other processes up costs it milliseconds on a busy host. What happens
   * then is told QUIET_MS later at the latest.
   */
  #emit(event: ProgressEvent): void {
    this.#untold.push(event);
    const isQuiet = this.phase === "device" || this.phase === "committing";
    if (!isQuiet) this.#tell();
    else this.#telling ??= setTimeout(() => this.#tell(), QUIET_MS);
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
