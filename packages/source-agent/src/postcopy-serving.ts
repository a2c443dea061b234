import type { SourceHandover } from "@precopy/engine";
import { Bitmap } from "@precopy/guest";
import { MigrationError, PAGE_BYTES, RECOVER_AGAIN_MS, STRIPE_PAGES, STRIPE_WORDS, TIMER_MS_MAX, joinPiece } from "@precopy/protocol";
import type { ControlMessage, FaultStatistics, Message } from "@precopy/protocol";
import { ControlChannel, FaultServing, connectFaultChannel } from "@precopy/transport";
import type { PumpKind, ServedPages } from "@precopy/transport";
import { ControlLink } from "./control-link.js";
import type { LinkEvent, PageLink } from "./page-link.js";
import { PushPace } from "./push-pace.js";
import { channelAccess, makePageLink, silence } from "./transfer.js";
import type { Admitted, Transfer } from "./transfer.js";

/** On their way at the same time, so that nobody waits for an acknowledgement before there is more to send. */
const STRETCHES = 2;

export interface ServingPorts {
  readonly transfer: Transfer;
  readonly pump: PumpKind;
  readonly admitted: Admitted;
  readonly handover: SourceHandover;
  /** Of all lives of the fault channel. */
  readonly served: ServedPages;
  onEvent(event: LinkEvent): void;
}

/** What it came to. */
export interface PostcopyResult {
  /** Of pages that nobody had asked for, on the page channels with their headers. */
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
  readonly pace: PushPace;
  readonly broken: Promise<never>;
  fail: (error: MigrationError) => void = () => {};
  /** The target may have all, and then it lets go of the fault channel. */
  isFinishing = false;
  faultsEnded: MigrationError | undefined;

  /** @param maxBandwidth of what is pushed, bytes/s, 0 for none. */
  constructor(control: ControlLink, link: PageLink, faults: FaultServing, maxBandwidth: number) {
    this.pace = new PushPace(maxBandwidth);
    this.control = control;
    this.link = link;
    this.faults = faults;
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
  /** Pages that the target misses and that are not on their way; the fault channel's thread takes some out, too. */
  readonly #due: Bitmap;
  /** What the target says that it misses, piece by piece. */
  readonly #told: Bitmap;
  #life: Life | undefined;
  #generation = 1;
  #abandoned: MigrationError | undefined;
  #wake: () => void = () => {};
  #pushedBytes = 0;
  #pushedPages = 0;
  #pagesOnTheWay = 0;
  #round = FIRST_ROUND;
  #pauses = 0;
  #isRecovering = false;
  /** Why the link is gone. */
  reason: MigrationError | undefined;

  /** @param missing at the target, all of it. */
  constructor(ports: ServingPorts, missing: Bitmap) {
    this.#ports = ports;
    this.#due = new Bitmap(missing.pages, ports.served.due);
    this.#due.copy(missing); // what is asked for at this moment may be sent twice: it is the target's to drop
    this.#told = new Bitmap(missing.pages);
  }

  /** Pages that nobody knows to be at the target yet. */
  get remainingPages(): number {
    return this.#due.count() + this.#pagesOnTheWay;
  }

  /** What the guest stopped at and asked for. */
  get requests(): number {
    return this.#ports.served.requests[0]!;
  }

  get pushedBytes(): number {
    return this.#pushedBytes + this.#neighbours * PAGE_BYTES;
  }

  /** Pages that went with one that was asked for. */
  get #neighbours(): number {
    return this.#ports.served.pages[0]! - this.requests;
  }

  /** The link is being made again at this moment. */
  get isRecovering(): boolean {
    return this.#isRecovering;
  }

  /** What was opened before the guest ran at the target is used first. */
  async run(control: ControlLink, link: PageLink, faults: FaultServing): Promise<PostcopyResult | undefined> {
    const { handover, transfer } = this.#ports;
    const startedAt = performance.now();
    const { maxPostcopyBandwidthBytesPerSecond: maxBandwidth } = transfer.parameters;
    let next: Life | Message<"placed"> | undefined = new Life(control, link, faults, maxBandwidth);
    while (!handover.isOver) {
      if (this.#abandoned !== undefined) throw this.#abandoned;
      if (next instanceof Life) next = await this.#serve(next);
      if (next !== undefined) {
        handover.step("placed");
        const { digest, faults: answered } = next;
        return {
          pushedBytes: this.pushedBytes,
          pushedPages: this.#pushedPages + this.#neighbours,
          pauses: this.#pauses,
          digest,
          faults: answered,
          fetchMs: performance.now() - startedAt,
        };
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
      this.#life = undefined;
    }
  }

  async #pushAll(life: Life): Promise<Message<"placed">> {
    const { attempt } = this.#ports.transfer;
    const { control, link } = life;
    link.setMaxBandwidth(life.pace.bandwidth);
    for (;;) {
      await this.#push(life);
      const answered = control.expect(["serving", "placed"], TIMER_MS_MAX, silence("that all was sent"));
      this.#told.clear();
      life.isFinishing = true;
      control.send({ type: "all-sent", epoch: attempt.epoch });
      const answer = await answered;
      if (answer.type === "placed") return answer;
      life.isFinishing = false;
      if (life.faultsEnded !== undefined) throw life.faultsEnded;
      this.#due.copy(this.#told); // an answer to a fault was lost, or is on its way still
    }
  }

  /** Resolves when nothing is due, and all of it is stored. */
  async #push(life: Life): Promise<void> {
    const { link, pace } = life;
    const stretches = Array.from({ length: STRETCHES }, () => new Bitmap(this.#due.pages));
    const underWay: Promise<void>[] = [];
    this.#pagesOnTheWay = 0;
    let stripe = 0;
    for (let count = 0; ; count++) {
      if (underWay.length === STRETCHES) await underWay.shift(); // they end in their order, so the bitmap is ours again
      const { last } = this.#ports.served;
      if (last[0] !== 0) stripe = Math.floor((last[0]! - 1) / STRIPE_PAGES);
      last[0] = 0;
      const stretch = stretches[count % STRETCHES]!;
      stretch.clear();
      const { multifdChannels: channels } = this.#ports.transfer.parameters;
      const taken = takeStripes(this.#due, stretch, stripe, pace.room(channels, link.roundTripMs()));
      if (taken.pages === 0) break;
      stripe = taken.stripe;
      const sending = this.#send(life, stretch, taken.pages);
      sending.catch(() => {}); // it is awaited
      underWay.push(sending);
    }
    await Promise.all(underWay);
  }

  async #send({ link, pace }: Life, stretch: Bitmap, taken: number): Promise<void> {
    const beganAt = performance.now();
    this.#pagesOnTheWay += taken;
    const { bytes, normalPages, zeroPages } = await link.pushRound(this.#round++, stretch);
    const { bandwidth } = pace;
    pace.stored({ pages: normalPages, bytes, beganAt, storedAt: performance.now(), link: link.state });
    if (pace.bandwidth !== bandwidth) link.setMaxBandwidth(pace.bandwidth);
    this.#ports.served.around[0] = pace.around;
    this.#pagesOnTheWay -= taken;
    this.#pushedBytes += bytes;
    this.#pushedPages += normalPages + zeroPages;
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
    const { transfer, pump, admitted, served, onEvent } = this.#ports;
    const { to, attempt, guest, options } = transfer;
    const { security } = options;
    const control = new ControlLink(await ControlChannel.connect(to, undefined, security), to, attempt, security);
    const here = { ...admitted }; // each life has a secret of its own, which comes with the answer
    const link = makePageLink(control, transfer, pump, undefined, here, {
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
      here.channelSecret = answer.channelSecret;
      this.#due.copy(this.#told);
      await link.open();
      const { session } = attempt;
      const access = channelAccess(here, options);
      const socket = await connectFaultChannel(to, { session, generation: ++this.#generation }, AbortSignal.timeout(TIMER_MS_MAX), access);
      const faults = await FaultServing.open(socket, options.threads, pump, guest.memory.share(), served);
      return new Life(control, link, faults, transfer.parameters.maxPostcopyBandwidthBytesPerSecond);
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

/**
 * Moves pages of whole stripes from `due` to `into`, from `stripe` on and once around, until there are so many. @returns how many there are, and the
 * stripe to go on from
 */
function takeStripes(due: Bitmap, into: Bitmap, stripe: number, pages: number): { readonly pages: number; readonly stripe: number } {
  let taken = 0;
  let at = stripe;
  for (let left = due.stripes; left > 0 && taken < pages; ) {
    const filled = due.skipEmpty(at);
    left -= filled - at;
    at = filled % due.stripes;
    if (left <= 0 || filled !== at) continue;
    for (let word = at * STRIPE_WORDS; word < Math.min((at + 1) * STRIPE_WORDS, due.words.length); word++)
      if (due.words[word] !== 0) into.words[word] = due.takeShared(word, -1);
    taken += into.countStripe(at);
    at = (at + 1) % due.stripes;
    left--;
  }
  return { pages: taken, stripe: at };
}
