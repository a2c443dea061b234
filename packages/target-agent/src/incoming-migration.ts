import { Guest, joinDigests } from "@precopy/guest";
import type { Arbiter, GuestHost, GuestRegistry, GuestState, HashTable, Reservation } from "@precopy/guest";
import { MigrationError, RECEIVING_GRACE_MS, admitted, formatAddress, parseAddress, stepTarget } from "@precopy/protocol";
import type { HandoverEffect, Message, Ownership, TargetEvent, TargetPhase, TargetState } from "@precopy/protocol";
import { ChannelKey, KeyRing } from "@precopy/security";
import { LaneTable, PageReceiver, holdCompiler } from "@precopy/transport";
import type {
  ChannelName,
  ChannelSocket,
  ChannelThreads,
  ControlChannel,
  FaultChannelName,
  PumpKind,
  Security,
  ShownKey,
} from "@precopy/transport";
import { Fetching } from "./fetching.js";

export interface TargetAgentOptions {
  readonly registry: GuestRegistry;
  readonly guests: GuestHost;
  readonly threads: ChannelThreads;
  /** How this side reads page channels. */
  readonly pump: PumpKind;
  /** What channels have to show goes by it; default: nothing but what the target has told their source. */
  readonly security?: Security;
  /** Reported to the peer and in the log. */
  readonly release: string;
  /** And the name under which this agent owns guests there; undefined: the two sides decide alone. */
  readonly arbiter: { readonly arbiter: Arbiter; readonly owner: string } | undefined;
  /** What this agent knows of a guest, for whoever asks. */
  ownership(guest: string): Ownership;
  /** A guest runs here now, whatever an older attempt left in doubt. */
  onOwned?(guest: string): void;
  onPhase?(guestId: string, epoch: number, phase: TargetPhase, cause: MigrationError | undefined): void;
  /** For tests that need a peer to stand still, or to die, in one state; awaited after the state was entered. */
  reach?(point: string): Promise<void>;
}

/** How much later than it happened a phase is told. */
const TELL_MS = 10;

/**
 * One hand-over at the target: receives pages, verifies, and runs the guest when COMMIT says so and at no other time. A lost control
 * channel discards it while it is receiving, after a grace period, and changes nothing once it is prepared: then only the source, or an
 * operator here, decides.
 */
export class IncomingMigration {
  readonly guest: Guest;
  readonly session: string;
  /** What the source is told, and channels have to know. */
  channelSecret = ChannelKey.fresh();
  #keys: KeyRing;
  readonly #options: TargetAgentOptions;
  readonly #admit: Message<"admit">;
  readonly #reservation: Reservation;
  #pages: PageReceiver;
  /** Where the migration may come to post-copy; open from `listen` on. */
  readonly #fetching: Fetching | undefined;
  /** Where the source says that it can be asked; undefined if it cannot. */
  readonly #peer: string | undefined;
  #control: ControlChannel;
  #state: TargetState;
  #guestClockMs = 0;
  #preparedAt: number | undefined;
  #grace: NodeJS.Timeout | undefined;
  #onDelivered: () => void = () => {};
  #onImage: (digest: string) => void = () => {};
  readonly #imageDigest = new Promise<string>((resolve) => {
    this.#onImage = resolve;
  });
  readonly #hashes: HashTable | undefined;
  #resumeMs = 0;
  #discarding: Promise<void> = Promise.resolve();
  #committing: Promise<unknown> = Promise.resolve();

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
    this.#keys = this.#keysOf(this.channelSecret);
    this.#state = admitted(admit.epoch);
    this.#hashes = admit.digest ? guest.freshHashTable() : undefined;
    this.#fetching = admit.postcopy ? new Fetching(guest, options.guests.memory, options.threads, this.#hashes) : undefined;
    if (this.#fetching !== undefined)
      this.#fetching.onFailure = (error) => {
        guest.failure ??= error;
        options.guests.onGuestFailure(guest.manifest.id, error);
        if (this.isUndecided) this.#discardAndForget(error);
      };
    this.#pages = this.#openPages();
    this.#peer = admit.from === null ? undefined : reachableFrom(admit.from, control.remoteHost);
    this.#control = control;
    this.join(control);
    guest.onFailure = (error) => {
      if (this.isUndecided) this.#discardAndForget(error);
    };
    guest.onTicked = (gapMs) => this.#control.send({ type: "arrived", epoch: admit.epoch, guestGapMs: gapMs, ranAt: guest.ranAt ?? null });
  }

  #keysOf(secret: Uint8Array): KeyRing {
    return new KeyRing(this.#options.security?.token?.channelSecret(secret) ?? secret);
  }

  #openPages(): PageReceiver {
    const { guest } = this;
    const { threads, pump } = this.#options;
    const pages = new PageReceiver({
      lanes: LaneTable.allocate(this.#admit.channels),
      threads,
      pump,
      memory: guest.memory.share(),
      hashes: this.#hashes,
      populated: guest.populatedWords,
      postcopy: this.#fetching?.shared,
    });
    pages.onDelivered = ({ channel, generation, round, packets }) => {
      this.#onDelivered();
      if (this.#state.phase === "receiving") holdCompiler(); // it may have been the last round
      // In the next turn: if the guest stands still its vCPUs are told first, and load while the source is told.
      setImmediate(() => this.#control.send({ type: "flushed", channel, generation, round, packets }));
    };
    // The source makes it again if it can; what arrived stays.
    pages.onLost = ({ channel, generation }, { code, message }) =>
      this.#control.send({ type: "lost", channel, generation, code, message: message.slice(0, 1000) });
    return pages;
  }

  /** Reserves and creates everything; the guest is quiet and empty. @throws {MigrationError} the reason for a refusal. */
  static async admit(admit: Message<"admit">, control: ControlChannel, options: TargetAgentOptions): Promise<IncomingMigration> {
    const { manifest, epoch } = admit;
    const reservation = options.registry.reserve(manifest.id, manifest.memoryBytes, epoch);
    try {
      const guest = await Guest.create(manifest, options.guests);
      options.registry.journal.open(manifest.id); // a new file takes longer than a line, and the first line is written in the pause
      return new IncomingMigration(guest, admit, reservation, control, options);
    } catch (error) {
      reservation.release();
      throw error;
    }
  }

  get state(): TargetState {
    return this.#state;
  }

  /** Unlike the state's it stays what it was when an operator claims the copy. */
  get attemptEpoch(): number {
    return this.#admit.epoch;
  }

  /** It may still go either way. */
  get isUndecided(): boolean {
    return this.#state.phase === "receiving" || this.#state.phase === "prepared";
  }

  get peer(): string | undefined {
    return this.#peer;
  }

  /** When the copy was complete, ms since 1970 on this host's clock. */
  get preparedAt(): number | undefined {
    return this.#preparedAt;
  }

  /** Takes a control channel as the one to the source: at admission, or when the source came back. */
  join(control: ControlChannel): void {
    clearTimeout(this.#grace);
    this.#control = control;
    control.onClose = (reason) => {
      if (this.#state.phase !== "receiving" || control !== this.#control) return;
      this.#grace = setTimeout(() => this.#discardAndForget(reason, "silence"), RECEIVING_GRACE_MS);
    };
  }

  /** The source joins again: what it may have missed. */
  get missed(): Pick<Message<"rejoined">, "flushed" | "lost"> {
    const { delivered, lost } = this.#pages;
    return {
      flushed: delivered.map(({ channel, generation, round, packets }) => ({ channel, generation, round, packets })),
      lost: [...lost],
    };
  }

  /** @throws {MigrationError} ERR_CHANNEL_KEY, ERR_KEY_REPLAYED */
  openChannel(name: ChannelName & ShownKey, socket: ChannelSocket): boolean {
    this.#keys.use({ kind: "pages", ...name }, name.key);
    return (this.#state.phase === "receiving" || this.isFetching) && this.#pages.accept(name, socket);
  }

  /** @throws {MigrationError} ERR_CHANNEL_KEY, ERR_KEY_REPLAYED */
  openFaultChannel(name: FaultChannelName & ShownKey, socket: ChannelSocket): boolean {
    this.#keys.use({ kind: "faults", channel: 0, ...name }, name.key);
    return this.#fetching?.connect(name.generation, socket) === true;
  }

  /** The guest runs here, and some of its memory is at the source. */
  get isFetching(): boolean {
    return this.#state.phase === "active" && this.#fetching?.isOpen === true;
  }

  /** In post-copy, while it fetches: how many pages are missing, and whether the source is there. */
  get fetching(): { readonly missingPages: number; readonly isPaused: boolean } | undefined {
    if (!this.isFetching || this.#fetching === undefined) return undefined;
    return { missingPages: this.#fetching.missingPages, isPaused: this.#control.closed !== undefined };
  }

  #fetchingOf(type: string, epoch: number): Fetching {
    if (this.#fetching === undefined || epoch !== this.attemptEpoch)
      throw new MigrationError("ERR_BAD_MESSAGE", `${type} at epoch ${epoch}, which is not of a post-copy migration here`);
    return this.#fetching;
  }

  /** What is here of these pages is old. @throws {MigrationError} ERR_BAD_MESSAGE */
  discardPages({ epoch, ...piece }: Message<"discard">): void {
    if (this.#state.phase !== "receiving") throw new MigrationError("ERR_BAD_MESSAGE", `discard; we are ${this.#state.phase}`);
    this.#fetchingOf("discard", epoch).note(piece);
  }

  /** Lets go of what is old, and stops whoever touches a missing page from here on. @throws {MigrationError} ERR_BAD_MESSAGE, ERR_SYSTEM_CALL */
  async listen({ epoch }: Message<"listen">): Promise<void> {
    if (this.#state.phase !== "receiving") throw new MigrationError("ERR_BAD_MESSAGE", `listen; we are ${this.#state.phase}`);
    const started = performance.now();
    await this.#fetchingOf("listen", epoch).listen();
    holdCompiler(); // the guest may stand still next
    this.#control.send({ type: "listening", epoch, ms: performance.now() - started });
  }

  /** The source is back, on a new connection: it is told what is missing, and makes its channels anew. */
  async serve(control: ControlChannel): Promise<void> {
    if (!this.isFetching) return this.allSent({ type: "all-sent", epoch: this.#admit.epoch }, control); // it has not heard yet
    await this.#pages.end(); // the lanes of the life before may lie elsewhere
    this.#pages = this.#openPages();
    this.channelSecret = ChannelKey.fresh(); // its channels' generations begin anew, and no key is good twice
    this.#keys = this.#keysOf(this.channelSecret);
    this.#control = control;
    this.#tellMissing();
  }

  #tellMissing(): void {
    const { epoch } = this.#admit;
    for (const piece of this.#fetching?.pieces() ?? []) this.#control.send({ type: "missing", epoch, ...piece });
    this.#control.send({ type: "serving", epoch, channelSecret: this.channelSecret });
  }

  /** The source has sent everything that it knew to be missing. @throws {MigrationError} ERR_BAD_MESSAGE */
  async allSent({ epoch }: Message<"all-sent">, control = this.#control): Promise<void> {
    const fetching = this.#fetchingOf("all-sent", epoch);
    if (this.#state.phase !== "active") throw new MigrationError("ERR_BAD_MESSAGE", `all-sent; we are ${this.#state.phase}`);
    const placed = await fetching.finish();
    if (placed === undefined) return this.#tellMissing();
    control.send({ type: "placed", epoch, ...placed });
    await this.#pages.end();
  }

  /**
   * The source has ended, and with it what is missing here: a guest that runs is lost, and a copy that was to run is of no use. Not where nothing is
   * missing, though the source did not live to hear that.
   */
  async starve(): Promise<void> {
    const pages = this.#fetching?.isOpen === true ? this.#fetching.missingPages : 0;
    const cause = new MigrationError(
      "ERR_POSTCOPY_LOST",
      `The source has ended, and with it ${pages} pages of the guest that are missing here`,
    );
    if (pages > 0 && this.#state.phase === "prepared") return this.discard(cause);
    if (!this.isFetching) return;
    if ((await this.#fetching?.finish()) !== undefined) return this.#pages.end();
    this.guest.failure ??= cause;
    this.#options.registry.remove(this.guest);
    await this.#carryOut(this.#step("starved", cause), 0, cause);
  }

  /** The process ends: the guest is told to, and nothing more is fetched. */
  async stopFetching(): Promise<void> {
    if (!this.isFetching) return;
    await this.#pages.end();
    await this.#fetching?.end();
  }

  /** The channel of a lane cannot be made again: another one carries it from where it stands. @throws {MigrationError} ERR_BAD_MESSAGE */
  async carry({ lane, channel }: Message<"carry">): Promise<void> {
    if (this.#state.phase !== "receiving") throw new MigrationError("ERR_BAD_MESSAGE", `carry; we are ${this.#state.phase}`);
    this.#control.send({ type: "carried", lane, stored: await this.#pages.carry(lane, channel) });
  }

  /** STATE. Verifies that everything is here and equal, then answers PREPARED. @throws {MigrationError} ERR_DIGEST_MISMATCH, ... */
  async prepare(state: Message<"state">): Promise<void> {
    const started = performance.now();
    const { epoch, phase } = this.#state;
    if (phase !== "receiving" || state.epoch !== epoch)
      throw new MigrationError("ERR_BAD_MESSAGE", `STATE at epoch ${state.epoch}; we are ${phase} at ${epoch}`);
    await this.#allDelivered(state.round); // a program may look at its memory while it loads
    if (this.#fetching?.isOpen === true) await this.#fetching.listen(); // to what was written since; a guest that could be followed needs none of it
    await this.guest.load(toGuestState(state));
    const digest = this.#admit.digest && this.#fetching?.isOpen !== true ? await this.#verifiedDigest() : null;
    if (this.#state.phase !== "receiving") return; // discarded meanwhile
    this.#guestClockMs = state.clockMs;
    this.#preparedAt = Date.now();
    this.#step("verified");
    await this.#options.reach?.("target.prepared");
    this.#control.send({ type: "prepared", epoch, digest, verifyMs: performance.now() - started });
  }

  /** Everything was sent, says the source. @throws {MigrationError} ERR_BAD_MESSAGE */
  image({ epoch, digest }: Message<"image">): void {
    if (!this.#admit.digest || this.#state.phase !== "receiving" || epoch !== this.#state.epoch)
      throw new MigrationError("ERR_BAD_MESSAGE", `image at epoch ${epoch}; we are ${this.#state.phase} at ${this.#state.epoch}`);
    this.#onImage(digest);
  }

  /** @throws {MigrationError} ERR_DIGEST_MISMATCH */
  async #verifiedDigest(): Promise<string> {
    const expected = await this.#imageDigest;
    const sum = this.#pages.digest;
    const digest = sum === undefined ? undefined : joinDigests([sum]);
    if (digest !== expected)
      throw new MigrationError("ERR_DIGEST_MISMATCH", `Image digest ${String(digest)} here, ${expected} at the source`);
    return expected;
  }

  /** Nothing to time out here: a source that stays silent closes the control channel, and its own clock ends the pause. */
  #allDelivered(round: number): Promise<void> {
    return new Promise((resolve) => {
      this.#onDelivered = () => {
        if (this.#pages.hasDelivered(round)) resolve();
      };
      this.#onDelivered();
    });
  }

  /** COMMIT: the guest is ours. Idempotent: a repeated COMMIT is answered again. */
  commit(message: Message<"commit">): Promise<void> {
    const committed = this.#commit(message);
    this.#committing = Promise.allSettled([this.#committing, committed]);
    return committed;
  }

  /** Resolves when no COMMIT is being carried out, and its channels have ended: nothing of the hand-over touches the guest then. */
  async settled(): Promise<void> {
    await this.#committing;
  }

  async #commit({ epoch, elapsedMs }: Message<"commit">): Promise<void> {
    if (epoch !== this.#admit.epoch || this.#state.phase === "receiving" || this.#state.phase === "discarded")
      throw new MigrationError("ERR_BAD_MESSAGE", `COMMIT at epoch ${epoch}; we are ${this.#state.phase} at ${this.#state.epoch}`);
    if (this.#state.phase !== "prepared") return this.#carryOut(this.#step("commit"));
    const started = performance.now();
    await this.#options.reach?.("target.commit");
    if (!(await this.#mayOwn(this.#admit.arbiterEpoch, epoch)))
      return this.discard(new MigrationError("ERR_OWNED_ELSEWHERE", "The arbiter has given the guest to somebody else"), "outvoted");
    if (this.#state.phase !== "prepared") return; // discarded meanwhile, before anything was journalled
    const effects = this.#step("commit");
    await this.#options.reach?.("target.owner");
    // The guest's clock goes on: the pause so far on the source's clock, the way here, and what we spent. Durations only.
    this.guest.clock.set(this.#guestClockMs + elapsedMs + (this.#control.rttMs ?? 0) / 2 + performance.now() - started);
    await this.#carryOut(effects, started);
    await this.#options.reach?.("target.answered");
    await this.#settle();
  }

  /** An operator runs the copy, one epoch above the attempt's. @throws {MigrationError} ERR_OWNED_ELSEWHERE by the arbiter's word */
  async claim(): Promise<void> {
    const { epoch } = this.#admit;
    if (this.#fetching?.isOpen === true)
      throw new MigrationError(
        "ERR_POSTCOPY_LOST",
        `${this.#fetching.missingPages} pages of this copy were to come from the source once it runs`,
      );
    if (!(await this.#mayOwn(this.#admit.arbiterEpoch, epoch + 1)))
      throw new MigrationError("ERR_OWNED_ELSEWHERE", "By the arbiter's book somebody else owns the guest");
    const effects = this.#step("claim");
    this.guest.clock.set(this.#guestClockMs);
    await this.#carryOut(effects);
    await this.#settle();
  }

  /** With an arbiter the guest is ours only if nobody else got it first. */
  async #mayOwn(epochBefore: number | null, epoch: number): Promise<boolean> {
    const { arbiter } = this.#options;
    if (arbiter === undefined || epochBefore === null) return true;
    const { isSwapped, record } = await arbiter.arbiter.compareAndSwap(this.guest.manifest.id, epochBefore, {
      owner: arbiter.owner,
      epoch,
    });
    return isSwapped || (record?.owner === arbiter.owner && record.epoch === epoch);
  }

  /** This epoch never runs here; final. Resolves when everything is free again, for a second caller too. Nothing happens once it is active. */
  discard(cause: MigrationError, event: TargetEvent = "fail"): Promise<void> {
    if (this.isUndecided) this.#discarding = this.#carryOut(this.#step(event, cause), 0, cause);
    return this.#discarding;
  }

  #discardAndForget(cause: MigrationError, event: TargetEvent = "fail"): void {
    this.discard(cause, event).catch((error: unknown) =>
      this.#options.onPhase?.(this.guest.manifest.id, this.#state.epoch, "discarded", MigrationError.from(error)),
    );
  }

  /** Writes the decision down first; what the step asks for is the caller's to carry out. */
  #step(event: TargetEvent, cause?: MigrationError): readonly HandoverEffect[] {
    const { state, decide, effects } = stepTarget(this.#state, event);
    if (decide !== undefined) this.#record(decide, state.epoch);
    const isNew = state.phase !== this.#state.phase;
    this.#state = state;
    if (!isNew) return effects;
    clearTimeout(this.#grace);
    // Not in this turn: the guest stands still, and whoever writes a log takes time.
    setTimeout(() => this.#options.onPhase?.(this.guest.manifest.id, state.epoch, state.phase, cause), TELL_MS);
    if (state.phase !== "prepared") void this.#options.reach?.(`target.${state.phase}`);
    return effects;
  }

  #record(decision: Parameters<GuestRegistry["journal"]["record"]>[2], epoch: number): void {
    const attempt = { peer: this.#peer ?? "", session: this.session };
    this.#options.registry.journal.record(this.guest.manifest.id, epoch, decision, attempt);
  }

  /** In order; one that fails does not keep the others from being done. @throws {MigrationError} the first failure, at the end */
  async #carryOut(effects: readonly HandoverEffect[], startedMs = performance.now(), cause?: MigrationError): Promise<void> {
    const failures: unknown[] = [];
    for (const effect of effects) {
      try {
        await this.#perform(effect, startedMs, cause);
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }

  async #perform(effect: HandoverEffect, startedMs: number, cause: MigrationError | undefined): Promise<void> {
    switch (effect.effect) {
      case "journal":
        return this.#record(effect.decision, effect.epoch);
      case "run":
        this.#reservation.keep(this.guest);
        this.#options.onOwned?.(this.guest.manifest.id);
        await this.guest.run(effect.epoch, true);
        this.#resumeMs = performance.now() - startedMs;
        return;
      case "free":
        try {
          await this.#pages.end();
          await this.#fetching?.end();
          await this.guest.destroy();
        } finally {
          this.#reservation.release();
        }
        return;
      case "send":
        if (effect.message === "active") this.#control.send({ type: "active", epoch: this.#admit.epoch, resumeMs: this.#resumeMs });
        // An error of ours is the peer's to know; one that came from it, or a closed channel, it knows.
        if (effect.message === "failed" && cause !== undefined)
          this.#control.send({ type: "failed", code: cause.code, message: cause.message.slice(0, 1000) });
    }
  }

  /** After the guest runs, and outside the pause. */
  async #settle(): Promise<void> {
    if (!this.isFetching) await this.#pages.end();
    await this.#options.registry.journal.sync(this.guest.manifest.id);
  }
}

/** A source that listens on every address of its host is reached at the one that it came from. */
function reachableFrom(said: string, cameFrom: string | undefined): string | undefined {
  try {
    const address = parseAddress(said);
    const isAny = address.host === "0.0.0.0" || address.host === "::";
    return isAny && cameFrom !== undefined ? formatAddress({ ...address, host: cameFrom }) : formatAddress(address);
  } catch {
    return undefined; // informative only
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
