import type { SourceHandover } from "@precopy/engine";
import { Bitmap } from "@precopy/guest";
import { MigrationError, PAGE_BYTES, RECOVER_AGAIN_MS, STRIPE_PAGES, TIMER_MS_MAX, joinPiece } from "@precopy/protocol";
import type { ControlMessage, FaultStatistics, Message } from "@precopy/protocol";
import { ControlChannel, FaultServing, allocateServedPages, connectFaultChannel } from "@precopy/transport";
import type { PumpKind, ServedPages } from "@precopy/transport";
import { ControlLink } from "./control-link.js";
import type { LinkEvent, PageLink } from "./page-link.js";
import { makePageLink, silence } from "./transfer.js";
import type { Admitted, Transfer } from "./transfer.js";

/** A stretch of pushing lasts about so long: short enough that the next one begins where the guest is by then. */
const STRETCH_MS = 25;
const STRETCH_PAGES_MAX = (64 * 2 ** 20) / PAGE_BYTES;

export interface ServingPorts {
  readonly transfer: Transfer;
  readonly pump: PumpKind;
  readonly admitted: Admitted;
  readonly handover: SourceHandover;
  onEvent(event: LinkEvent): void;
}

/** What it came to. */
export interface PostcopyResult {
  /** On the page channels since the guest ran at the target, headers included. */
  readonly pushedBytes: number;
  readonly pushedPages: number;
  /** Times that the link was gone. */
  readonly pauses: number;
  /** The target's digest of its whole image; null with the digest off. */
  readonly digest: string | null;
  readonly faults: FaultStatistics;
  /** From the guest running at the target until the last page was there. */
  readonly fetchMs: number;
}

/** Everything that serves the target, over one connection of each kind; what breaks any of it ends it. */
class Life {
  readonly control: ControlLink;
  readonly link: PageLink;
  readonly faults: FaultServing;
  readonly served: ServedPages;
  readonly broken: Promise<never>;
  fail: (error: MigrationError) => void = () => {};
  /** The target may have all, and then it lets go of the fault channel. */
  isFinishing = false;
  faultsEnded: MigrationError | undefined;

  constructor(control: ControlLink, link: PageLink, faults: FaultServing, served: ServedPages) {
    this.control = control;
    this.link = link;
    this.faults = faults;
    this.served = served;
    this.broken = new Promise((_, reject) => {
      this.fail = reject;
    });
    this.broken.catch(() => {}); // it is raced against
    control.onDead = (reason) => this.fail(reason);
    faults.onFailure = (reason) => {
      this.faultsEnded = reason;
      if (!this.isFinishing) this.fail(reason);
    };
    if (faults.failure !== undefined) faults.onFailure(faults.failure); // in the pause, say
    control.ready().catch((error: unknown) => this.fail(MigrationError.from(error))); // it died before anybody listened
  }

  async end(reason: MigrationError): Promise<void> {
    await Promise.allSettled([this.link.stop(reason), this.faults.end()]);
    this.control.close(reason);
  }
}

/**
 * The source in post-copy: the guest runs at the target, and what is missing there is here. Answers what the guest stops at, pushes the rest
 * in the order of the guest's own steps, and comes back after every break of the link: the target then says anew what it misses. Ends when nothing does.
 */
export class PostcopyServing {
  readonly #ports: ServingPorts;
  #missing: Bitmap;
  /** As the target tells it, piece by piece. */
  #told: Bitmap;
  #life: Life | undefined;
  #generation = 1;
  #abandoned: MigrationError | undefined;
  #wake: () => void = () => {};
  #pushedBytes = 0;
  #pushedPages = 0;
  #requests = 0;
  #pauses = 0;
  #isRecovering = false;
  /** Why the link is gone. */
  reason: MigrationError | undefined;

  /** @param missing at the target, all of it. */
  constructor(ports: ServingPorts, missing: Bitmap) {
    this.#ports = ports;
    this.#missing = missing;
    this.#told = new Bitmap(missing.pages);
  }

  /** Pages that nobody knows to be at the target yet. */
  get remainingPages(): number {
    return this.#missing.count();
  }

  /** What the guest stopped at and asked for. */
  get requests(): number {
    return this.#requests + (this.#life?.served.requests[0] ?? 0);
  }

  get pushedBytes(): number {
    return this.#pushedBytes;
  }

  /** The link is being made again at this moment. */
  get isRecovering(): boolean {
    return this.#isRecovering;
  }

  /** What was opened before the guest ran at the target is used first. */
  async run(control: ControlLink, link: PageLink, faults: FaultServing, served: ServedPages): Promise<PostcopyResult | undefined> {
    const { handover } = this.#ports;
    const startedAt = performance.now();
    let next: Life | Message<"placed"> | undefined = new Life(control, link, faults, served);
    while (!handover.isOver) {
      if (this.#abandoned !== undefined) throw this.#abandoned;
      if (next instanceof Life) next = await this.#serve(next);
      if (next !== undefined) {
        handover.step("placed");
        const { digest, faults: answered } = next;
        const [pushedBytes, pushedPages, pauses] = [this.#pushedBytes, this.#pushedPages, this.#pauses];
        return { pushedBytes, pushedPages, pauses, digest, faults: answered, fetchMs: performance.now() - startedAt };
      }
      await this.#rest();
      if (!handover.isOver && this.#abandoned === undefined) next = await this.#recover();
    }
    return undefined; // an operator has ended it
  }

  /** Tries at once to make the link again. */
  recover(): void {
    this.#wake();
  }

  /** The process ends. What is missing at the target then is nowhere any more. */
  abandon(): void {
    this.#abandoned = new MigrationError("ERR_IN_DOUBT", "The agent ended before every page was at the target");
    this.#life?.fail(this.#abandoned);
    this.#wake();
  }

  /** The operator's word came. */
  stop(): void {
    this.#wake();
  }

  onMessage(message: ControlMessage): void {
    if (message.type === "missing") joinPiece(this.#told.words, this.#told.pages, message);
  }

  /** The link of the life in use cannot be mended. */
  fail(error: MigrationError): void {
    this.#life?.fail(error);
  }

  /** Undefined if the link broke. */
  async #serve(life: Life): Promise<Message<"placed"> | undefined> {
    const { handover } = this.#ports;
    this.#life = life;
    try {
      const placed = await Promise.race([this.#pushAll(life), life.broken]);
      await life.end(new MigrationError("ERR_LINK_LOST", "Every page is at the target"));
      return placed;
    } catch (thrown) {
      this.reason = MigrationError.from(thrown);
      this.#pauses++;
      const { code, message } = this.reason;
      this.#ports.onEvent({ what: "postcopy-paused", channel: null, code, message });
      if (!handover.isOver) handover.step("silence");
      await life.end(this.reason);
      return undefined;
    } finally {
      this.#requests += life.served.requests[0] ?? 0;
      this.#life = undefined;
    }
  }

  async #pushAll(life: Life): Promise<Message<"placed">> {
    const { attempt, parameters } = this.#ports.transfer;
    const { control, link } = life;
    link.setMaxBandwidth(parameters.maxPostcopyBandwidthBytesPerSecond);
    let round = FIRST_ROUND;
    for (;;) {
      await this.#push(life, () => round++);
      const answered = control.expect(["serving", "placed"], TIMER_MS_MAX, silence("that all was sent"));
      this.#told.clear();
      life.isFinishing = true;
      control.send({ type: "all-sent", epoch: attempt.epoch });
      const answer = await answered;
      if (answer.type === "placed") return answer;
      life.isFinishing = false;
      if (life.faultsEnded !== undefined) throw life.faultsEnded;
      this.#adopt(life.served); // an answer to a fault was lost, or is on its way still
    }
  }

  /** The target has said what it misses. */
  #adopt(served: ServedPages): void {
    [this.#missing, this.#told] = [this.#told, this.#missing];
    served.pages.fill(0);
  }

  async #push({ link, served }: Life, nextRound: () => number): Promise<void> {
    const { multifdChannels: channels } = this.#ports.transfer.parameters;
    const asked = new Bitmap(this.#missing.pages, served.pages);
    const stretch = new Bitmap(this.#missing.pages);
    let room = channels * STRIPE_PAGES;
    let stripe = 0;
    for (;;) {
      this.#missing.remove(asked); // these are on their way, or there
      if (served.last[0] !== 0) stripe = Math.floor((served.last[0]! - 1) / STRIPE_PAGES);
      served.last[0] = 0;
      stretch.clear();
      stripe = takeStripes(this.#missing, stretch, stripe, room);
      if (stretch.count() === 0) return;
      const { bytes, normalPages, zeroPages, ms } = await link.sendRound(nextRound(), stretch);
      this.#missing.remove(stretch);
      this.#pushedBytes += bytes;
      this.#pushedPages += normalPages + zeroPages;
      const pages = ((normalPages + zeroPages) / Math.max(ms, 0.1)) * STRETCH_MS;
      room = Math.min(Math.max(pages, channels * STRIPE_PAGES), STRETCH_PAGES_MAX);
    }
  }

  async #rest(): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, RECOVER_AGAIN_MS);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Undefined if it did not come back; or the target has all by now. */
  async #recover(): Promise<Life | Message<"placed"> | undefined> {
    const { handover } = this.#ports;
    this.#isRecovering = true;
    try {
      const next = await this.#open();
      if (!(next instanceof Life)) return next;
      // An operator may have decided meanwhile.
      if (handover.state.phase === "postcopy-paused" && this.#abandoned === undefined) {
        handover.step("resumed");
        return next;
      }
      await next.end(new MigrationError("ERR_LINK_LOST", "The guest is the source's again, or given up"));
      return undefined;
    } catch (thrown) {
      this.reason = MigrationError.from(thrown);
      return undefined;
    } finally {
      this.#isRecovering = false;
    }
  }

  async #open(): Promise<Life | Message<"placed">> {
    const { transfer, pump, admitted, onEvent } = this.#ports;
    const { to, attempt, guest, options } = transfer;
    const control = new ControlLink(await ControlChannel.connect(to), to, attempt);
    const link = makePageLink(control, transfer, pump, undefined, admitted, {
      fail: (error) => this.fail(error),
      onEvent,
      onMessage: (message) => this.onMessage(message),
    });
    try {
      const answered = control.expect(["serving", "placed"], TIMER_MS_MAX, silence("the offer to serve"));
      this.#told.clear();
      control.send({ type: "serve", ...attempt });
      const answer = await answered;
      if (answer.type === "placed") {
        control.close(new MigrationError("ERR_LINK_LOST", "Every page is at the target"));
        return answer;
      }
      const served = allocateServedPages(guest.memory.pages);
      this.#adopt(served);
      await link.open();
      const { session } = attempt;
      const socket = await connectFaultChannel(to, { session, generation: ++this.#generation }, AbortSignal.timeout(TIMER_MS_MAX));
      return new Life(control, link, await FaultServing.open(socket, options.threads, pump, guest.memory.share(), served), served);
    } catch (thrown) {
      const error = MigrationError.from(thrown);
      await link.stop(error);
      control.close(error);
      throw error;
    }
  }
}

/** Rounds of pre-copy and of the pause have lower numbers. */
const FIRST_ROUND = 1_000_000;

/** Moves on from `stripe`, and once around, adding stripes of `from` to `into` until there are so many pages. @returns the stripe to go on from */
function takeStripes(from: Bitmap, into: Bitmap, stripe: number, pages: number): number {
  let taken = 0;
  let at = stripe;
  for (let seen = 0; seen < from.stripes && taken < pages; seen++, at = (at + 1) % from.stripes) {
    const count = from.countStripe(at);
    if (count === 0) continue;
    from.forEachRunOfStripe(at, (first, run) => into.setRun(first, run));
    taken += count;
  }
  return at;
}
