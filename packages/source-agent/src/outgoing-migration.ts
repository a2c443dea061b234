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
  preparedTimeoutMs,
} from "@precopy/protocol";
import type { Address, AuditResult, ControlMessage, MigrationParameters, ProgressEvent, RoundProgress, SourcePhase, SourceState } from "@precopy/protocol";
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
  #migration: Migration | undefined;
  #control: ControlChannel | undefined;
  #link: PageLink | undefined;
  #hashes: HashTable | undefined;
  #pauseTimer: NodeJS.Timeout | undefined;
  #isPaused = false;
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

  get phase(): SourcePhase {
    return this.#migration?.state.phase ?? (this.#abort.signal.aborted ? "cancelled" : "setup");
  }

  get state(): SourceState | undefined {
    return this.#migration?.state;
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
    try {
      const result = await this.#handOver();
      registry.journal.record(id, this.epoch, "completed");
      await this.#leave();
      return result;
    } catch (thrown) {
      const error = this.#abort.signal.aborted ? MigrationError.from(this.#abort.signal.reason) : MigrationError.from(thrown);
      await this.#giveUp(error);
      throw error;
    }
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
          commit: (elapsedMs, onDoubt) => this.#commit(control, elapsedMs, onDoubt),
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
    const session = randomUUID();
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
    const channels = await Promise.all(
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
    return { resumeMs: admitted.probeMs, channels };
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
    await this.#options.holdAt?.("source.device");
    return state;
  }

  async #prepare(control: ControlChannel, { round, guest, last }: FinalState): Promise<void> {
    // From the pause on a timer of its own runs (#onPhase); this one is for stop-and-copy, whose pages take as long as they take.
    const timeoutMs = preparedTimeoutMs(this.parameters.downtimeLimitMs);
    const prepared = control.expect(["prepared"], timeoutMs, () => new MigrationError("ERR_PREPARED_TIMEOUT", `No PREPARED within ${timeoutMs} ms`));
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
  async #commit(first: ControlChannel, elapsedMs: number, onDoubt: () => void): Promise<"active" | "refused"> {
    const started = performance.now();
    const message = (): ControlMessage => ({ type: "commit", epoch: this.epoch, elapsedMs: elapsedMs + performance.now() - started });
    let isInDoubt = false;
    await this.#options.holdAt?.("source.committing");
    for (let control = first; ; ) {
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
      let control = old;
      try {
        if (old.closed !== undefined) control = await ControlChannel.connect(this.to);
        const answered = control.expect(["owner", "active"], ACTIVE_TIMEOUT_MS, silence("the question who owns the guest"));
        control.send({ type: "ask", guest: this.guest.manifest.id, epoch: this.epoch });
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

  #adopt(control: ControlChannel): void {
    if (control === this.#control) return;
    this.#control = control;
    control.onMessage = (message) => {
      if (message.type === "arrived") this.guestGapMs = message.guestGapMs;
    };
  }

  #lastDoubt = "";
  #emitDoubt({ code, message, remedy }: MigrationError): void {
    if (message === this.#lastDoubt) return; // once for each reason, not once a second
    this.#lastDoubt = message;
    this.#emit({ type: "failed", phase: "in-doubt", code, message, remedy });
  }

  #onPhase(phase: SourcePhase): void {
    clearTimeout(this.#pauseTimer);
    if (phase === "device" && this.parameters.mode === "precopy") {
      const timeoutMs = preparedTimeoutMs(this.parameters.downtimeLimitMs);
      this.#pauseTimer = setTimeout(
        () => this.#migration?.fail(new MigrationError("ERR_PREPARED_TIMEOUT", `No PREPARED within ${timeoutMs} ms of the pause`)),
        timeoutMs,
      );
    }
    this.#emitPhase(phase);
  }

  /** Before COMMIT: tells the target, and ends link and control, so that everything pending on them rejects. */
  async #stop(reason: MigrationError): Promise<void> {
    this.#control?.send({ type: "abort", code: reason.code, message: reason.message.slice(0, 1000) });
    this.#control?.close(reason);
    await this.#link?.stop(reason);
  }

  /** The guest runs here as before: dirty log off, vCPUs and devices go on, at the epoch they had, or a higher one if it was taken back. */
  async #giveUp(error: MigrationError): Promise<void> {
    const { registry, guests } = this.#options;
    const { id } = this.guest.manifest;
    clearTimeout(this.#pauseTimer);
    await this.#stop(error);
    await guests.memory.stop();
    const isTakenBack = this.phase === "taken-back";
    registry.journal.record(id, isTakenBack ? this.epoch + 1 : this.epoch, isTakenBack ? "taken-back" : "aborted");
    if (this.#isPaused) this.guest.resume(isTakenBack ? this.epoch + 1 : this.guest.epoch);
    this.guest.onFailure = () => {};
    await registry.journal.sync(id);
  }

  /** ACTIVE is here: nothing from now on counts into downtime or total time. */
  async #leave(): Promise<void> {
    const { registry, guests } = this.#options;
    await this.#link?.stop(new MigrationError("ERR_LINK_LOST", "The migration is complete"));
    await guests.memory.stop();
    if (this.#hashes !== undefined && this.parameters.isAuditOn) this.audit = await guests.memory.audit(this.#hashes);
    registry.remove(this.guest);
    await this.guest.destroy();
    await registry.journal.sync(this.guest.manifest.id);
    const control = this.#control;
    for (let left = ARRIVAL_REPORT_TIMEOUT_MS; this.guestGapMs === null && left > 0 && control?.closed === undefined; left -= 10) await sleep(10);
    control?.close(new MigrationError("ERR_LINK_LOST", "The migration is complete"));
  }

  #emitPhase(phase: SourcePhase): void {
    this.#emit({ type: "phase", phase, atMs: performance.now() - this.acceptedAtMs });
  }

  #emit(event: ProgressEvent): void {
    this.#options.onEvent?.(event);
  }
}
