import { MigrationError, REJOIN_AGAIN_MS, REJOIN_GRACE_MS } from "@precopy/protocol";
import type { Address, ControlMessage, ControlType, Message } from "@precopy/protocol";
import { ControlChannel } from "@precopy/transport";
import type { Security } from "@precopy/transport";

/** The attempt that a control channel speaks for. */
export interface Attempt {
  readonly guest: string;
  readonly epoch: number;
  readonly session: string;
}

/** A peer that answers with these knows the attempt no more, or never did: asking on is of no use. */
const FINAL: readonly string[] = ["ERR_NO_MIGRATION", "ERR_PROTOCOL_VERSION", "ERR_INTERNAL"];

/**
 * The control channel of one attempt. While the guest runs (`isLasting`) a channel that breaks is joined again within REJOIN_GRACE_MS; at any
 * other time its end is the link's end.
 */
export class ControlLink {
  readonly #to: Address;
  readonly #attempt: Attempt;
  readonly #security: Security | undefined;
  #channel: ControlChannel;
  #isLasting = false;
  readonly #ended = new AbortController();
  #joined: Promise<void> = Promise.resolve();
  /** Times it was joined again. */
  rejoins = 0;
  onMessage: (message: ControlMessage) => void = () => {};
  /** It broke; it may come back. */
  onLost: (reason: MigrationError) => void = () => {};
  /** It is back, with what may have been missed. `wasSilent`: nothing was heard for long, so the page channels are suspect, too. */
  onRejoined: (missed: Message<"rejoined">, wasSilent: boolean) => void = () => {};
  /** It broke for good. */
  onDead: (reason: MigrationError) => void = () => {};

  /** Rejects when it is closed, or dead. */
  readonly #end: Promise<never>;

  constructor(channel: ControlChannel, to: Address, attempt: Attempt, security?: Security) {
    this.#end = new Promise((_, reject) => {
      this.#ended.signal.addEventListener("abort", () => reject(MigrationError.from(this.#ended.signal.reason)), { once: true });
    });
    this.#end.catch(() => {}); // it is raced against; by itself it concerns nobody
    this.#channel = channel;
    this.#to = to;
    this.#attempt = attempt;
    this.#security = security;
    this.#watch();
  }

  /** The channel as it is now; open or not. */
  get channel(): ControlChannel {
    return this.#channel;
  }

  /** True while a break may be mended: the guest runs, so there is time. */
  setLasting(isLasting: boolean): void {
    this.#isLasting = isLasting;
  }

  /** Resolves when the channel is there. @throws {MigrationError} why it never will be. */
  async ready(): Promise<void> {
    this.#ended.signal.throwIfAborted();
    await Promise.race([this.#joined, this.#end]);
    this.#ended.signal.throwIfAborted();
  }

  get #isClosed(): boolean {
    return this.#ended.signal.aborted;
  }

  /** Dropped if the channel is down; what must arrive is told again by whoever joins. */
  send(message: ControlMessage): void {
    this.#channel.send(message);
  }

  expect<T extends ControlType>(types: readonly T[], timeoutMs: number, timeoutError: () => MigrationError): Promise<Message<T>> {
    return this.#channel.expect(types, timeoutMs, timeoutError);
  }

  close(reason: MigrationError): void {
    if (!this.#isClosed) this.#ended.abort(reason);
    this.#channel.close(reason);
  }

  #watch(): void {
    const channel = this.#channel;
    channel.onMessage = (message) => this.onMessage(message);
    channel.onClose = (reason) => this.#broke(reason);
    if (channel.closed !== undefined) this.#broke(channel.closed);
  }

  #broke(reason: MigrationError): void {
    if (this.#isClosed) return;
    if (!this.#isLasting) return this.#die(reason);
    this.onLost(reason);
    this.#joined = this.#rejoin(reason);
    this.#joined.catch((error: unknown) => this.#die(MigrationError.from(error)));
  }

  #die(reason: MigrationError): void {
    if (this.#isClosed) return;
    this.#ended.abort(reason);
    this.onDead(reason);
  }

  async #rejoin(reason: MigrationError): Promise<void> {
    const until = performance.now() + REJOIN_GRACE_MS;
    for (;;) {
      try {
        await this.#joinOnce(reason.code === "ERR_PEER_DEAD", Math.max(Math.ceil(until - performance.now()), 1));
        return;
      } catch (thrown) {
        const error = MigrationError.from(thrown);
        if (this.#isClosed || performance.now() >= until) throw reason;
        if (FINAL.includes(error.code)) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, REJOIN_AGAIN_MS));
      if (this.#isClosed) throw reason;
    }
  }

  async #joinOnce(wasSilent: boolean, withinMs: number): Promise<void> {
    const signal = AbortSignal.any([AbortSignal.timeout(withinMs), this.#ended.signal]);
    const channel = await ControlChannel.connect(this.#to, signal, this.#security);
    try {
      const answered = channel.expect(
        ["rejoined"],
        withinMs,
        () => new MigrationError("ERR_PEER_DEAD", "The target did not answer the rejoin"),
      );
      // What comes right behind the answer, such as an acknowledgement, must not fall between two listeners.
      channel.onMessage = (message) => this.onMessage(message);
      channel.send({ type: "rejoin", ...this.#attempt });
      const missed = await Promise.race([answered, this.#end]);
      this.#ended.signal.throwIfAborted();
      this.#channel = channel;
      this.rejoins++;
      this.#watch();
      this.onRejoined(missed, wasSilent);
    } catch (thrown) {
      const error = MigrationError.from(thrown);
      // The target may have taken us back already, and would keep what it has for a source that has ended the attempt.
      if (this.#isClosed) channel.send({ type: "abort", code: error.code, message: error.message.slice(0, 1000) });
      channel.close(error);
      throw error;
    }
  }
}
