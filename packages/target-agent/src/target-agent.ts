import { isLeaseOver } from "@precopy/guest";
import type { MemoryService } from "@precopy/guest";
import { HANDSHAKE_TIMEOUT_MS, MigrationError, ownerAnswer } from "@precopy/protocol";
import type { ControlMessage, Message, OwnerAnswer, Ownership } from "@precopy/protocol";
import { peerError } from "@precopy/transport";
import type { ChannelName, ChannelSocket, ControlChannel, FaultChannelName, ShownKey } from "@precopy/transport";
import { CAPABILITIES, checkAdmission } from "./admission.js";
import { IncomingMigration } from "./incoming-migration.js";
import type { TargetAgentOptions } from "./incoming-migration.js";

/** Messages of one peer that wait for the one before; a source of ours sends the next when it has the answer. */
const MESSAGES_WAITING_MAX = 16;
const HOPS = 3;

/** An operator's word on a copy that waits for COMMIT here. */
export interface TargetResolveRequest {
  readonly way: "take-back" | "give-up";
  readonly isOtherSideFenced: boolean;
  readonly isRollbackAccepted: boolean;
}
export interface TargetResolution {
  readonly outcome: "claimed" | "discarded";
  readonly epoch: number;
  /** When the copy that runs now was complete, ms since 1970. */
  readonly copyAt: number | undefined;
}

/** The role that receives a guest: admits, receives, verifies, and runs it on COMMIT. */
export class TargetAgent {
  readonly #options: TargetAgentOptions;
  #incoming: IncomingMigration | undefined;
  /** The channel that speaks for it. */
  #control: ControlChannel | undefined;
  #isAdmitting = false;
  #isClosing = false;

  constructor(options: TargetAgentOptions) {
    this.#options = options;
  }

  /** A peer's control channel; its first message says what it wants. */
  onControl(control: ControlChannel): void {
    const idle = setTimeout(() => control.close(new MigrationError("ERR_BAD_MESSAGE", "The peer said nothing")), HANDSHAKE_TIMEOUT_MS);
    let chain = Promise.resolve();
    let waiting = 0;
    control.onMessage = (message) => {
      clearTimeout(idle);
      if (++waiting > MESSAGES_WAITING_MAX)
        return control.close(new MigrationError("ERR_BAD_MESSAGE", "The peer does not wait for answers"));
      // One after the other, in the order they came.
      chain = chain
        .then(() => this.#handle(message, control))
        .catch((error: unknown) => this.#refuse(control, MigrationError.from(error)))
        .finally(() => waiting--);
    };
  }

  /** @throws {MigrationError} ERR_CHANNEL_KEY, ERR_KEY_REPLAYED */
  onPageChannel(name: ChannelName & ShownKey, socket: ChannelSocket): boolean {
    return this.#incoming?.session === name.session && this.#incoming.openChannel(name, socket);
  }

  /** @throws {MigrationError} ERR_CHANNEL_KEY, ERR_KEY_REPLAYED */
  onFaultChannel(name: FaultChannelName & ShownKey, socket: ChannelSocket): boolean {
    return this.#incoming?.session === name.session && this.#incoming.openFaultChannel(name, socket);
  }

  /** A channel may come for the guest that is on its way here, or fetches its memory. */
  get isExpectingChannels(): boolean {
    return this.#incoming?.isUndecided === true || this.#incoming?.isFetching === true;
  }

  /** The guest that runs here and fetches some of its memory; undefined if there is none. */
  get fetching(): IncomingMigration | undefined {
    return this.#incoming?.isFetching === true ? this.#incoming : undefined;
  }

  /** The guest that is on its way here, or waits for COMMIT. */
  get incoming(): IncomingMigration | undefined {
    return this.isReceiving ? this.#incoming : undefined;
  }

  /** True while a guest is on its way here. */
  get isReceiving(): boolean {
    return this.#isAdmitting || this.#incoming?.isUndecided === true;
  }

  /** Resolves when nothing of a hand-over that came to its end here touches the guest any more. */
  async settled(): Promise<void> {
    await this.#incoming?.settled();
  }

  /** The operator's word: what is on its way, or waits here for COMMIT, is discarded for good. @throws {MigrationError} ERR_NO_MIGRATION */
  async cancel(): Promise<void> {
    if (this.#incoming === undefined || !this.isReceiving) throw new MigrationError("ERR_NO_MIGRATION", "No guest is on its way here");
    await this.#incoming.discard(new MigrationError("ERR_CANCELLED", "Cancelled by the operator of the target"), "cancel");
  }

  /**
   * Ends the wait of a prepared copy by the operator's word: it is discarded, or runs here, one epoch above the attempt's.
   * @param source what the other side says of the guest; undefined if it cannot be asked.
   * @throws {MigrationError} ERR_NOTHING_TO_RESOLVE, ERR_OWNED_ELSEWHERE, ERR_NOT_FENCED, ERR_ROLLBACK
   */
  async resolve(guest: string, request: TargetResolveRequest, source: Ownership | undefined): Promise<TargetResolution> {
    const incoming = this.#incoming;
    if (incoming?.state.phase !== "prepared" || incoming.guest.manifest.id !== guest)
      throw new MigrationError("ERR_NOTHING_TO_RESOLVE", `No copy of guest ${guest} waits here`);
    const { epoch } = incoming.state;
    // A source whose lease is over has stopped the guest by itself: nobody has to fence it.
    const isOtherSideFenced = request.isOtherSideFenced || (await this.#isReleased(guest));
    if (request.way === "give-up") {
      checkGiveUp(guest, { ...request, isOtherSideFenced }, source);
      await incoming.discard(new MigrationError("ERR_CANCELLED", "Given up by the operator of the target"), "cancel");
      return { outcome: "discarded", epoch, copyAt: undefined };
    }
    checkClaim(guest, { ...request, isOtherSideFenced }, source, incoming.preparedAt);
    await incoming.claim();
    return { outcome: "claimed", epoch: incoming.state.epoch, copyAt: incoming.preparedAt };
  }

  /** True if nobody owns the guest by the arbiter's book. */
  async #isReleased(guest: string): Promise<boolean> {
    const record = await this.#options.arbiter?.arbiter.read(guest);
    return record !== undefined && isLeaseOver(record, Date.now());
  }

  async close(): Promise<void> {
    this.#isClosing = true;
    await this.#incoming?.stopFetching();
    await this.#incoming?.discard(new MigrationError("ERR_SHUTTING_DOWN", "The target agent is shutting down"), "cancel");
  }

  #refuse(control: ControlChannel, error: MigrationError): void {
    if (this.#incoming !== undefined && control === this.#control && this.isReceiving)
      this.#incoming.discard(error).catch((failure: unknown) => control.close(MigrationError.from(failure)));
    else control.send({ type: "failed", code: error.code, message: error.message.slice(0, 1000) });
    control.close(error);
  }

  async #handle(message: ControlMessage, control: ControlChannel): Promise<void> {
    switch (message.type) {
      case "admit":
        return this.#admit(message, control);
      case "ask":
        return this.#answer(message, control);
      case "rejoin":
        return this.#rejoin(message, control);
      case "who-owns":
        return control.send({ type: "ownership", ...this.#options.ownership(message.guest) });
      case "carry":
        return this.#own(control).carry(message);
      case "state": // pages may still be on their way, on channels that have to be made again: nobody waits behind this
        this.#own(control)
          .prepare(message)
          .catch((error: unknown) => this.#refuse(control, MigrationError.from(error)));
        return;
      case "image":
        return this.#own(control).image(message);
      case "commit":
        return this.#own(control).commit(message);
      case "discard":
        return this.#own(control).discardPages(message);
      case "listen":
        return this.#own(control).listen(message);
      case "serve":
        return this.#beServed(message, control);
      case "all-sent":
        return this.#own(control).allSent(message);
      case "abort":
        return this.#own(control).discard(peerError(message), "abort");
      default:
        throw new MigrationError("ERR_BAD_MESSAGE", `A source does not send ${message.type}`);
    }
  }

  /** The migration this channel speaks for. */
  #own(control: ControlChannel): IncomingMigration {
    if (this.#incoming === undefined || control !== this.#control)
      throw new MigrationError("ERR_BAD_MESSAGE", "No admission on this channel");
    return this.#incoming;
  }

  async #admit(admit: Message<"admit">, control: ControlChannel): Promise<void> {
    const { guests, release, pump } = this.#options;
    try {
      if (this.#isClosing) throw new MigrationError("ERR_SHUTTING_DOWN", "This agent is shutting down");
      checkAdmission(admit, guests.workloads, this.#options.arbiter !== undefined);
      await this.#supersede(admit);
      // Between reserve and create there is an await: only one admission at a time.
      if (this.#isAdmitting) throw new MigrationError("ERR_AGENT_FULL", "Another guest is being admitted");
      this.#isAdmitting = true;
      try {
        this.#incoming = await IncomingMigration.admit(admit, control, this.#options);
        this.#control = control;
      } finally {
        this.#isAdmitting = false;
      }
      this.#options.onPhase?.(admit.manifest.id, admit.epoch, "receiving", undefined);
      await this.#options.reach?.("target.receiving");
      if (control.closed !== undefined) return await this.#incoming.discard(control.closed); // it left while we prepared
      control.send({
        type: "admitted",
        session: admit.session,
        release,
        pump,
        probeMs: 2 * (await hopMs(guests.memory)),
        capabilities: [...CAPABILITIES],
        channelSecret: this.#incoming.channelSecret,
      });
    } catch (thrown) {
      const error = MigrationError.from(thrown);
      if (this.#control === control) await this.#incoming?.discard(error);
      else this.#options.onPhase?.(admit.manifest.id, admit.epoch, "discarded", error);
      control.send({ type: "refused", code: error.code, message: error.message.slice(0, 1000) });
    }
  }

  /** A newer offer of the same guest shows that its source gave the older attempt up. */
  async #supersede({ manifest, epoch }: Message<"admit">): Promise<void> {
    const older = this.#incoming;
    if (older === undefined || older.guest.manifest.id !== manifest.id || older.state.epoch >= epoch) return;
    // Waits for one that is ending already; what went wrong in its clean-up is no reason to refuse the next.
    await older.discard(new MigrationError("ERR_EPOCH", `Offered again at epoch ${epoch}`), "superseded").catch(() => {});
  }

  /** The source's link broke while the guest ran there: it goes on with what is here. */
  #rejoin({ guest, epoch, session }: Message<"rejoin">, control: ControlChannel): void {
    const incoming = this.#incoming;
    if (incoming?.state.phase !== "receiving" || !isOf(incoming, guest, epoch, session)) {
      const error = new MigrationError("ERR_NO_MIGRATION", `Guest ${guest} is not on its way here at epoch ${epoch}`);
      control.send({ type: "refused", code: error.code, message: error.message });
      return;
    }
    this.#control = control;
    control.send({ type: "rejoined", epoch, ...incoming.missed });
    incoming.join(control);
  }

  /** In post-copy the source's link broke: it goes on with what is missing. */
  async #beServed({ guest, epoch, session }: Message<"serve">, control: ControlChannel): Promise<void> {
    const incoming = this.#incoming;
    if (incoming?.state.phase === "active" && isOf(incoming, guest, epoch, session)) {
      this.#control = control;
      return incoming.serve(control);
    }
    const error = new MigrationError("ERR_NO_MIGRATION", `Guest ${guest} does not run here at epoch ${epoch}`);
    control.send({ type: "refused", code: error.code, message: error.message });
  }

  /** A source in doubt asks who owns the guest at an epoch. `unknown` is not a refusal: it says that we cannot tell. */
  async #answer({ guest, epoch, session, hasImage }: Message<"ask">, control: ControlChannel): Promise<void> {
    const incoming = this.#incoming;
    if (incoming !== undefined && isOf(incoming, guest, epoch, session)) {
      if (!hasImage) await incoming.starve();
      if (incoming.isUndecided) {
        incoming.join(control);
        this.#control = control;
      }
      control.send({ type: "owner", epoch, phase: ownerAnswer(incoming.state) });
      return;
    }
    control.send({ type: "owner", epoch, phase: this.#remember(guest, epoch, session) });
  }

  /** What the journal says of an attempt that is not in this agent's memory. */
  #remember(guest: string, epoch: number, session: string): OwnerAnswer {
    const { journal } = this.#options.registry;
    const entries = journal.read(guest);
    const ours = entries.filter((entry) => entry.session === session || (entry.epoch === epoch && entry.session === undefined));
    if (ours.some(({ decision }) => decision === "owner" || decision === "claimed")) {
      // It ran here. Since then it is here, was moved on, or is about to be; else it ended with its process.
      const isHere = this.#options.registry.guest?.manifest.id === guest;
      const movedOn = entries.some((entry) => entry.epoch > epoch && entry.decision === "completed");
      if (!isHere && !movedOn && journal.departure(guest) !== undefined) return "unknown";
      return isHere || movedOn ? "active" : "gone";
    }
    return ours.some(({ decision }) => decision === "refused") ? "discarded" : "unknown";
  }
}

const isOf = (incoming: IncomingMigration, guest: string, epoch: number, session: string): boolean =>
  incoming.guest.manifest.id === guest && incoming.session === session && incoming.attemptEpoch === epoch;

/** A copy may run only if nothing else of this guest can. @throws {MigrationError} */
function checkClaim(
  guest: string,
  { isOtherSideFenced, isRollbackAccepted }: TargetResolveRequest,
  source: Ownership | undefined,
  preparedAt: number | undefined,
): void {
  if (source?.standing === "owner")
    throw new MigrationError("ERR_OWNED_ELSEWHERE", `Guest ${guest} runs at ${String(source.peer ?? "its source")}`);
  // Its process ended as the owner, or with COMMIT decided and undelivered: then the source's agent delivers it by itself, and nothing is lost.
  const isGone = source?.standing === "gone" || source?.standing === "given-up";
  if (!isGone && !isOtherSideFenced)
    throw new MigrationError(
      "ERR_NOT_FENCED",
      `The source ${source === undefined ? "does not answer" : `says "${source.standing}"`}, so guest ${guest} may run there`,
    );
  if (!isRollbackAccepted)
    throw new MigrationError(
      "ERR_ROLLBACK",
      `The copy is of ${new Date(preparedAt ?? 0).toISOString()}; what guest ${guest} did at the source since then is lost`,
    );
}

/** Discarding a copy is safe for whoever else has the guest, and final if nobody has. @throws {MigrationError} */
function checkGiveUp(guest: string, { isOtherSideFenced }: TargetResolveRequest, source: Ownership | undefined): void {
  const hasIt = source?.standing === "owner" || source?.standing === "given-up" || source?.standing === "gone";
  if (hasIt || isOtherSideFenced) return;
  throw new MigrationError(
    "ERR_NOT_FENCED",
    `The source ${source === undefined ? "does not answer" : `says "${source.standing}"`}: this may be the last copy of guest ${guest}, and COMMIT on its way`,
  );
}

/** What a message to a thread and its answer cost on this host, ms: the shortest of a few, as one may wait behind whatever else runs there. */
async function hopMs(memory: MemoryService): Promise<number> {
  let shortest = Number.POSITIVE_INFINITY;
  for (let hop = 0; hop < HOPS; hop++) {
    const started = performance.now();
    await memory.stop(); // before anything was started: there and back
    shortest = Math.min(shortest, performance.now() - started);
  }
  return shortest;
}
