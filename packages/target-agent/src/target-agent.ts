import { HANDSHAKE_TIMEOUT_MS, MigrationError } from "@precopy/protocol";
import type { ControlMessage, Message } from "@precopy/protocol";
import { peerError } from "@precopy/transport";
import type { ChannelName, ChannelSocket, ControlChannel } from "@precopy/transport";
import { checkAdmission } from "./admission.js";
import { IncomingMigration } from "./incoming-migration.js";
import type { TargetAgentOptions } from "./incoming-migration.js";

/** Messages of one peer that wait for the one before; a source of ours sends the next when it has the answer. */
const MESSAGES_WAITING_MAX = 16;

/** The role that receives a guest: admits, receives, verifies, and runs it on COMMIT. */
export class TargetAgent {
  readonly #options: TargetAgentOptions;
  #incoming: IncomingMigration | undefined;
  /** The channel that speaks for it. */
  #control: ControlChannel | undefined;
  /** Highest epoch that ran in this process, by guest: what a source in doubt has to be told. */
  readonly #ranHere = new Map<string, number>();
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

  onPageChannel(name: ChannelName, socket: ChannelSocket): boolean {
    return this.#incoming?.session === name.session && this.#incoming.openChannel(name, socket);
  }

  /** The guest that is on its way here, or waits for COMMIT. */
  get incoming(): IncomingMigration | undefined {
    return this.isReceiving ? this.#incoming : undefined;
  }

  /** True while a guest is on its way here. */
  get isReceiving(): boolean {
    const phase = this.#incoming?.state.phase;
    return this.#isAdmitting || phase === "receiving" || phase === "prepared";
  }

  /** The operator's word: what is on its way, or waits here for COMMIT, is discarded for good. @throws {MigrationError} ERR_NO_MIGRATION */
  async cancel(): Promise<void> {
    if (this.#incoming === undefined || !this.isReceiving) throw new MigrationError("ERR_NO_MIGRATION", "No guest is on its way here");
    await this.#incoming.discard(new MigrationError("ERR_CANCELLED", "Cancelled by the operator of the target"));
  }

  async close(): Promise<void> {
    this.#isClosing = true;
    await this.#incoming?.discard(new MigrationError("ERR_SHUTTING_DOWN", "The target agent is shutting down"));
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
      case "state":
        return this.#own(control).prepare(message);
      case "commit": {
        const incoming = this.#own(control);
        await incoming.commit(message);
        this.#ranHere.set(incoming.guest.manifest.id, message.epoch);
        return;
      }
      case "abort":
        return this.#own(control).discard(peerError(message));
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
      checkAdmission(admit, guests.workloads);
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
      if (control.closed !== undefined) return await this.#incoming.discard(control.closed); // it left while we prepared
      const hopStarted = performance.now();
      await guests.memory.stop(); // a no-op there and back: what a thread hop costs on this host now
      control.send({ type: "admitted", session: admit.session, release, pump, probeMs: 2 * (performance.now() - hopStarted) });
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
    await older.discard(new MigrationError("ERR_EPOCH", `Offered again at epoch ${epoch}`)); // waits for one that is ending already
  }

  /** A source in doubt asks who owns the guest at an epoch. `unknown` is not a refusal: it says that we cannot tell. */
  #answer({ guest, epoch, session }: Message<"ask">, control: ControlChannel): void {
    const incoming = this.#incoming;
    if (incoming !== undefined && incoming.guest.manifest.id === guest && incoming.state.epoch === epoch && incoming.session === session) {
      if (incoming.state.phase === "prepared") {
        incoming.join(control);
        this.#control = control;
      }
      control.send({ type: "owner", epoch, phase: incoming.state.phase });
      return;
    }
    const entries = this.#options.registry.journal.read(guest).filter((entry) => entry.epoch === epoch);
    const phase =
      (this.#ranHere.get(guest) ?? 0) >= epoch
        ? "active"
        : entries.some(({ decision }) => decision === "refused")
          ? "discarded"
          : "unknown";
    control.send({ type: "owner", epoch, phase });
  }
}
