import { Guest, joinDigests } from "@precopy/guest";
import type { GuestHost, GuestRegistry, GuestState, HashTable, Reservation } from "@precopy/guest";
import { MigrationError, enterTarget } from "@precopy/protocol";
import type { Message, TargetPhase, TargetState } from "@precopy/protocol";
import { PageChannel, SWITCHING } from "@precopy/transport";
import type { ChannelName, ChannelSocket, ChannelThreads, ControlChannel, PumpKind } from "@precopy/transport";

export interface TargetAgentOptions {
  readonly registry: GuestRegistry;
  readonly guests: GuestHost;
  readonly threads: ChannelThreads;
  /** How this side reads page channels. */
  readonly pump: PumpKind;
  /** Reported to the peer and in the log. */
  readonly release: string;
  onPhase?(guestId: string, epoch: number, phase: TargetPhase, cause: MigrationError | undefined): void;
  /** For tests that need a peer to stand still in one state; awaited after the state was entered. */
  holdAt?(point: string): Promise<void>;
}

/** How much later than it happened a phase is told. */
const TELL_MS = 10;

/** What one page channel has delivered. */
interface Delivered {
  readonly round: number;
  readonly packets: number;
  readonly digest: bigint | undefined;
}

/**
 * One hand-over at the target: receives pages, verifies, and runs the guest when COMMIT says so and at no other time. A lost control
 * channel discards it while it is receiving, and changes nothing once it is prepared: then only the source, or an operator here, decides.
 */
export class IncomingMigration {
  readonly guest: Guest;
  readonly session: string;
  readonly #options: TargetAgentOptions;
  readonly #admit: Message<"admit">;
  readonly #reservation: Reservation;
  /** Being opened or open; a channel opens once. */
  readonly #channels = new Map<number, Promise<PageChannel | undefined>>();
  readonly #delivered = new Map<number, Delivered>();
  readonly #hashes: HashTable | undefined;
  #control: ControlChannel;
  #state: TargetState;
  #guestClockMs = 0;
  #onDelivered: () => void = () => {};
  #resumeMs = 0;
  #discarding: Promise<void> = Promise.resolve();

  private constructor(
    guest: Guest,
    admit: Message<"admit">,
    reservation: Reservation,
    control: ControlChannel,
    options: TargetAgentOptions,
  ) {
    this.guest = guest;
    this.session = admit.session;
    this.#admit = admit;
    this.#reservation = reservation;
    this.#options = options;
    this.#state = { phase: "receiving", epoch: admit.epoch };
    this.#hashes = admit.digest ? guest.freshHashTable() : undefined;
    this.#control = control;
    this.join(control);
    guest.onFailure = (error) => {
      if (this.#state.phase === "receiving" || this.#state.phase === "prepared") this.#discardAndForget(error);
    };
    guest.onTicked = (gapMs) => this.#control.send({ type: "arrived", epoch: admit.epoch, guestGapMs: gapMs });
  }

  /** Reserves and creates everything; the guest is quiet and empty. @throws {MigrationError} the reason for a refusal. */
  static async admit(admit: Message<"admit">, control: ControlChannel, options: TargetAgentOptions): Promise<IncomingMigration> {
    const { manifest, epoch } = admit;
    const reservation = options.registry.reserve(manifest.id, manifest.memoryBytes, epoch);
    try {
      const guest = await Guest.create(manifest, options.guests);
      return new IncomingMigration(guest, admit, reservation, control, options);
    } catch (error) {
      reservation.release();
      throw error;
    }
  }

  get state(): TargetState {
    return this.#state;
  }

  /** Takes a control channel as the one to the source: at admission, or when the source came back in doubt. */
  join(control: ControlChannel): void {
    this.#control = control;
    control.onClose = (reason) => {
      if (this.#state.phase === "receiving") this.#discardAndForget(reason);
    };
  }

  openChannel({ channel, generation }: ChannelName, socket: ChannelSocket): boolean {
    if (this.#state.phase !== "receiving" || generation !== 1 || channel >= this.#admit.channels || this.#channels.has(channel))
      return false;
    const { memory } = this.guest;
    const opening = PageChannel.open(socket, this.#options.threads, {
      type: "receive",
      pump: this.#options.pump,
      channel,
      channels: this.#admit.channels,
      memory: memory.share(),
      hashes: this.#hashes,
      populated: this.guest.populatedWords,
      answer: SWITCHING,
    });
    this.#channels.set(
      channel,
      opening.then(
        (opened) => this.#attach(channel, opened),
        (error: unknown) => {
          this.#discardAndForget(MigrationError.from(error));
          return undefined;
        },
      ),
    );
    return true;
  }

  #attach(channel: number, opened: PageChannel): PageChannel {
    opened.onFlushed = ({ round, packets, digest }) => {
      this.#delivered.set(channel, { round, packets, digest });
      this.#control.send({ type: "flushed", channel, round, packets });
      this.#onDelivered();
    };
    opened.onFailure = (error) => {
      if (this.#state.phase === "receiving") this.#discardAndForget(error);
    };
    return opened;
  }

  /** STATE: everything was sent. Verifies that it is all here and equal, then answers PREPARED. @throws {MigrationError} ERR_DIGEST_MISMATCH, ... */
  async prepare(state: Message<"state">): Promise<void> {
    const started = performance.now();
    const { epoch } = this.#state;
    if (this.#state.phase !== "receiving" || state.epoch !== epoch || state.packets.length !== this.#admit.channels)
      throw new MigrationError(
        "ERR_BAD_MESSAGE",
        `STATE at epoch ${state.epoch} for ${state.packets.length} channels; we are ${this.#state.phase} at ${epoch}`,
      );
    await this.#allDelivered(state); // a program may look at its memory while it loads
    await this.guest.load(toGuestState(state));
    const shares = [...this.#delivered.values()].map(({ digest }) => digest ?? 0n);
    const digest = this.#hashes === undefined ? null : joinDigests(shares);
    if (digest !== state.digest)
      throw new MigrationError("ERR_DIGEST_MISMATCH", `Image digest ${String(digest)} here, ${String(state.digest)} at the source`);
    this.#guestClockMs = state.clockMs;
    this.#enter(enterTarget(this.#state, { phase: "prepared", epoch, digest }));
    this.#options.registry.journal.record(this.guest.manifest.id, epoch, "prepared");
    await this.#options.holdAt?.("target.prepared");
    this.#control.send({ type: "prepared", epoch, digest, verifyMs: performance.now() - started });
  }

  #allDelivered({ packets, round }: Message<"state">): Promise<void> {
    const isThere = (): boolean =>
      packets.every((sent, channel) => {
        const delivered = this.#delivered.get(channel);
        return delivered !== undefined && delivered.round === round && delivered.packets === sent;
      });
    // Nothing to time out here: a source that stays silent closes the control channel, and its own clock ends the pause.
    return new Promise((resolve) => {
      this.#onDelivered = () => {
        if (isThere()) resolve();
      };
      this.#onDelivered();
    });
  }

  /** COMMIT: the guest is ours. Idempotent: a repeated COMMIT is answered again. */
  async commit({ epoch, elapsedMs }: Message<"commit">): Promise<void> {
    if (this.#state.phase === "active" && epoch === this.#state.epoch) return this.#answerActive();
    if (this.#state.phase !== "prepared" || epoch !== this.#state.epoch)
      throw new MigrationError("ERR_BAD_MESSAGE", `COMMIT at epoch ${epoch}; we are ${this.#state.phase} at ${this.#state.epoch}`);
    const started = performance.now();
    await this.#options.holdAt?.("target.commit");
    const { registry } = this.#options;
    const active = enterTarget(this.#state, { phase: "active", epoch }); // throws if it was discarded meanwhile, before anything is journalled
    registry.journal.record(this.guest.manifest.id, epoch, "owner");
    this.#enter(active);
    this.#reservation.keep(this.guest);
    // The guest's clock goes on: the pause so far on the source's clock, the way here, and what we spent. Durations only.
    this.guest.clock.set(this.#guestClockMs + elapsedMs + (this.#control.rttMs ?? 0) / 2 + performance.now() - started);
    await this.guest.run(epoch, true);
    this.#resumeMs = performance.now() - started;
    this.#answerActive();
    await this.#endChannels();
    await registry.journal.sync(this.guest.manifest.id);
  }

  #answerActive(): void {
    this.#control.send({ type: "active", epoch: this.#state.epoch, resumeMs: this.#resumeMs });
  }

  /** This epoch never runs here; final. Resolves when everything is free again, for a second caller too. Nothing happens once it is active. */
  discard(cause: MigrationError): Promise<void> {
    if (this.#state.phase === "receiving" || this.#state.phase === "prepared") this.#discarding = this.#discard(cause);
    return this.#discarding;
  }

  async #discard(cause: MigrationError): Promise<void> {
    const { id } = this.guest.manifest;
    const wasPrepared = this.#state.phase === "prepared";
    this.#enter(enterTarget(this.#state, { phase: "discarded", epoch: this.#state.epoch, cause }), cause);
    // An error of ours is the peer's to know; one that came from it, or a closed channel, it knows.
    this.#control.send({ type: "failed", code: cause.code, message: cause.message.slice(0, 1000) });
    try {
      if (wasPrepared) this.#options.registry.journal.record(id, this.#state.epoch, "refused");
      await this.#endChannels();
      await this.guest.destroy();
    } finally {
      this.#reservation.release();
    }
  }

  #discardAndForget(cause: MigrationError): void {
    this.discard(cause).catch((error: unknown) =>
      this.#options.onPhase?.(this.guest.manifest.id, this.#state.epoch, "discarded", MigrationError.from(error)),
    );
  }

  async #endChannels(): Promise<void> {
    await Promise.all([...this.#channels.values()].map(async (channel) => (await channel)?.end()));
  }

  #enter(state: TargetState, cause?: MigrationError): void {
    this.#state = state;
    // Not in this turn: the guest stands still, and whoever writes a log takes time.
    setTimeout(() => this.#options.onPhase?.(this.guest.manifest.id, state.epoch, state.phase, cause), TELL_MS);
  }
}

/** The state as it came; what the registers mean is for each workload's `load` to check. */
function toGuestState({ registers, devices, clockMs }: Message<"state">): GuestState {
  return {
    clockMs,
    devices,
    registers: registers.map((one) => {
      if (typeof one !== "object" || one === null || !("lastTickMs" in one) || typeof one.lastTickMs !== "number")
        throw new MigrationError("ERR_BAD_MESSAGE", "Registers without lastTickMs");
      return { program: "program" in one ? one.program : null, lastTickMs: one.lastTickMs };
    }),
  };
}
