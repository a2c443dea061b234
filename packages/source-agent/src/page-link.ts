import { joinDigests } from "@precopy/guest";
import type { Bitmap } from "@precopy/guest";
import type { LinkPort, RoundTransfer } from "@precopy/engine";
import { CHANNEL_LOSSES_MAX, CHANNEL_RETRIES, MigrationError, REJOIN_AGAIN_MS, REJOIN_GRACE_MS, addXbzrle } from "@precopy/protocol";
import type { Message, ProgressEvent, XbzrleCounts } from "@precopy/protocol";
import { holdCompiler, peerError } from "@precopy/transport";
import type { LanePoint, LaneTable, LinkState, PageChannel, RoundSent } from "@precopy/transport";

export type LinkEvent = Omit<Extract<ProgressEvent, { type: "link" }>, "type" | "atMs">;

export interface PageLinkPorts {
  /** Opens one generation of a channel; says what the target holds of the lanes it carries. @throws {MigrationError} */
  open(channel: number, generation: number, signal: AbortSignal): Promise<{ channel: PageChannel; stored: readonly LanePoint[] }>;
  /** Lets another channel carry a lane; resolves with what the target holds of it, when the old one has ended there. */
  carry(lane: number, channel: number): Promise<LanePoint>;
  /** Resolves when control messages get through. @throws {MigrationError} they never will. */
  ready(): Promise<void>;
  /** Measures the round trip once more. */
  ping(): void;
  /** The shortest so far. */
  roundTripMs(): number;
  /** It cannot go on. */
  fail(error: MigrationError): void;
  onEvent(event: LinkEvent): void;
}

/** One sendRound of a channel: acknowledged when the target has stored that many packets of this generation. */
interface Sending {
  readonly round: Round;
  readonly lanes: readonly number[];
  packets: number | undefined;
}

/** A channel and its present life. */
interface Carrier {
  readonly channel: number;
  generation: number;
  /** Undefined while it is being made again, or when its lanes were given to others. */
  end: PageChannel | undefined;
  /** It is being made again, or its lanes are being given away: whatever it carries by the end of that is seen to. */
  mending: Promise<void> | undefined;
  /** The last generation whose other end is known to have ended; its news may come before ours is open. */
  lost: number;
  sendings: Sending[];
  /** Highest count that the target acknowledged of this generation. */
  stored: number;
  /** This generation's share of the image digest, as of its last round. */
  digest: bigint;
  /** Of this generation, after what it sent last. */
  state: LinkState | undefined;
}

interface Round {
  readonly round: number;
  readonly pages: Bitmap;
  /** The guest stands still: no cap holds. */
  readonly isLast: boolean;
  readonly unsent: Set<number>;
  readonly unacknowledged: Set<number>;
  readonly totals: { normalPages: number; zeroPages: number; bytes: number; xbzrle?: XbzrleCounts };
  /** Of the cap, each lane's; all together 1. Undefined until there is a cap to be shared. */
  shares: readonly number[] | undefined;
}

/**
 * Of an equal share of the cap, what a lane gets at least, however few pages it has in a round. A socket paced at next to nothing stays so for the
 * first segment of the next round, or of the pause: the kernel raises its rate at the next acknowledgement only, and 64 KiB at a thousandth of a
 * gigabit a second take half a second.
 */
const SHARE_MIN = 1 / 8;

/**
 * The page channels of one migration, as one link. A channel that dies is made again; what the target has stored by then is not sent twice. One
 * that cannot be made again has its lanes carried by another, so fewer channels are slower and no failure.
 */
export class PageLink implements LinkPort {
  readonly #lanes: LaneTable;
  readonly #ports: PageLinkPorts;
  #maxBandwidth: number;
  readonly #carriers: readonly Carrier[];
  readonly #endedShares: bigint[] = [];
  /** Of generations that have ended. */
  #endedPages = 0;
  #round: Round | undefined;
  readonly #waiting = new Set<() => void>();
  readonly #mending = new Set<Promise<void>>();
  readonly #stop = new AbortController();
  /** Channels that died, once for each death. */
  losses = 0;
  /** Pages that had been handed to a socket and were not stored when it died. */
  resentPages = 0;
  /** @param maxBandwidth bytes/s for all channels together, 0 for none. */
  constructor(lanes: LaneTable, maxBandwidth: number, ports: PageLinkPorts) {
    this.#lanes = lanes;
    this.#maxBandwidth = maxBandwidth;
    this.#ports = ports;
    this.#carriers = Array.from({ length: lanes.lanes }, (_, channel) => fresh(channel));
  }

  /** What the page channels' sockets use where they are ours to set; null where the system's choice holds. */
  get congestionControl(): string | null {
    return this.#carriers.find(({ end }) => end?.congestionControl !== undefined)?.end?.congestionControl ?? null;
  }

  /** Opens every channel. @throws {MigrationError} if not one can be had. */
  async open(): Promise<void> {
    const opening = await Promise.allSettled(
      this.#carriers.map(async (carrier) => {
        const { channel } = await this.#ports.open(carrier.channel, ++carrier.generation, this.#stop.signal);
        if (this.#isStopped) return channel.end();
        this.#adopt(carrier, channel);
        if (carrier.lost === carrier.generation) this.#lose(carrier, new MigrationError("ERR_LINK_LOST", "It ended at the target"));
      }),
    );
    const failed = opening.flatMap((one, channel) =>
      one.status === "rejected" ? [{ channel, error: MigrationError.from(one.reason) }] : [],
    );
    const [first] = failed;
    if (first === undefined) return;
    if (failed.length === opening.length) throw first.error;
    for (const { channel, error } of failed) this.#lose(this.#carriers[channel]!, error);
  }

  async sendRound(round: number, pages: Bitmap): Promise<RoundTransfer> {
    const started = performance.now();
    this.#ports.ping();
    const sent = await this.pushRound(round, pages);
    holdCompiler(); // the guest may stand still next
    await this.#ports.ready(); // the guest is not paused for a target that cannot be told
    return { ...sent, ms: performance.now() - started };
  }

  /**
   * Post-copy: one may follow another that is on its way still. What a channel that breaks had left of an earlier one is not sent again: a target that
   * fetches says itself what it misses in the end.
   */
  async pushRound(round: number, pages: Bitmap): Promise<RoundTransfer> {
    const started = performance.now();
    const sending = this.#begin(round, pages, false);
    await this.#until(() => sending.unsent.size + sending.unacknowledged.size === 0);
    return { ...sending.totals, ms: performance.now() - started };
  }

  async sendLast(round: number, pages: Bitmap): Promise<RoundTransfer> {
    const started = performance.now();
    const sending = this.#begin(round, pages, true);
    await this.#until(() => sending.unsent.size === 0);
    return { ...sending.totals, ms: performance.now() - started };
  }

  /** Resolves when the target has stored the last round. */
  lastStored(): Promise<void> {
    const last = this.#round;
    return this.#until(() => (last?.unacknowledged.size ?? 0) === 0);
  }

  /** Of the image as sent so far; null with the digest off. */
  digest(isOn: boolean): string | null {
    return isOn ? joinDigests([...this.#endedShares, ...this.#carriers.map(({ digest }) => digest)]) : null;
  }

  roundTripMs(): number {
    return this.#ports.roundTripMs();
  }

  /** As of what each channel sent last: the longest queue, and the mean of the times; undefined where nobody can tell. */
  get state(): LinkState | undefined {
    const states = this.#carriers.flatMap(({ state }) => state ?? []);
    if (states.length === 0) return undefined;
    const mean = (name: "busyMs" | "peerLimitedMs"): number => states.reduce((sum, state) => sum + state[name], 0) / states.length;
    return { busyMs: mean("busyMs"), peerLimitedMs: mean("peerLimitedMs"), queueMs: Math.max(...states.map(({ queueMs }) => queueMs)) };
  }

  sentPages(): number {
    return this.#carriers.reduce((sum, { end }) => sum + (end?.sentPages ?? 0), this.#endedPages);
  }

  /** The cap on all channels, bytes/s, from now on, in the middle of a round too; 0 for none. */
  setMaxBandwidth(bytesPerSecond: number): void {
    this.#maxBandwidth = bytesPerSecond;
    const sending = this.#round;
    if (sending === undefined || sending.isLast) return;
    for (const carrier of this.#carriers) carrier.end?.setPacing(this.#pacing(sending, this.#lanesOf(carrier)));
  }

  /** The target has stored a FLUSH and all before it. */
  onFlushed({ channel, generation, packets }: Omit<Message<"flushed">, "type">): void {
    const carrier = this.#carriers[channel];
    if (carrier === undefined || carrier.generation !== generation) return;
    carrier.stored = Math.max(carrier.stored, packets);
    this.#acknowledge(carrier);
  }

  /** The target's end of a channel ended. Ours would notice, sooner or later. */
  onLost({ channel, generation, code, message }: Omit<Message<"lost">, "type">): void {
    const carrier = this.#carriers[channel];
    if (carrier?.generation !== generation) return;
    carrier.lost = generation;
    if (carrier.end !== undefined) this.#lose(carrier, peerError({ code, message }));
  }

  /** Nothing was heard of the target for long: whatever stands in the sockets may never arrive. */
  suspectAll(reason: MigrationError): void {
    for (const carrier of this.#carriers) if (carrier.end !== undefined) this.#lose(carrier, reason);
  }

  /** Ends every channel; whatever waits for one rejects. */
  async stop(reason: MigrationError): Promise<void> {
    if (!this.#isStopped) this.#stop.abort(reason);
    this.#progress();
    await Promise.allSettled([...this.#mending, ...this.#carriers.map(({ end }) => end?.end())]);
  }

  #begin(round: number, pages: Bitmap, isLast: boolean): Round {
    const all = [...Array(this.#lanes.lanes).keys()];
    const totals: Totals = { normalPages: 0, zeroPages: 0, bytes: 0 };
    const sending: Round = { round, pages, isLast, unsent: new Set(all), unacknowledged: new Set(all), totals, shares: undefined };
    // Only the latest is sent by a channel that is made again.
    for (const carrier of this.#carriers) if (carrier.end === undefined) this.#giveUp(this.#round, this.#lanesOf(carrier));
    this.#round = sending;
    for (const carrier of this.#carriers) if (carrier.end !== undefined) this.#send(carrier, this.#lanesOf(carrier), []);
    this.#progress();
    return sending;
  }

  /** These lanes of a round are not waited for any more. */
  #giveUp(round: Round | undefined, lanes: readonly number[]): void {
    for (const lane of lanes) {
      round?.unsent.delete(lane);
      round?.unacknowledged.delete(lane);
    }
  }

  /** The cap is a total: each channel gets the share of the round's pages that it has to carry, so all end together. Bytes/s; 0 for none. */
  #pacing(sending: Round, lanes: readonly number[]): number {
    if (sending.isLast || this.#maxBandwidth === 0) return 0;
    sending.shares ??= this.#share(sending.pages);
    return Math.ceil(this.#maxBandwidth * lanes.reduce((total, lane) => total + sending.shares![lane]!, 0));
  }

  #share(pages: Bitmap): number[] {
    const all = this.#lanes.lanes;
    const sum = pages.count();
    const shares = Array.from({ length: all }, (_, lane) => Math.max(sum === 0 ? 1 : pages.count(lane, all) / sum, SHARE_MIN / all));
    const total = shares.reduce((one, other) => one + other, 0);
    return shares.map((share) => share / total);
  }

  #lanesOf({ channel }: Carrier): readonly number[] {
    return this.#lanes.lanesOf(channel);
  }

  /** Sends what is left of the round on these lanes. @param stored what the target holds of them already. */
  #send(carrier: Carrier, lanes: readonly number[], stored: readonly LanePoint[]): void {
    const sending = this.#round;
    const left = lanes.filter((lane) => sending?.unacknowledged.has(lane));
    if (sending === undefined || carrier.end === undefined || left.length === 0) return;
    const from = left.map((lane) => {
      const point = stored.find((one) => one.lane === lane);
      return { lane, page: point?.round === sending.round ? point.page : 0 };
    });
    for (const lane of left) sending.unsent.add(lane);
    const one: Sending = { round: sending, lanes: left, packets: undefined };
    carrier.sendings.push(one);
    const { end } = carrier;
    end.sendRound(sending.round, sending.pages.words, this.#pacing(sending, left), from).then(
      (sent) => {
        if (carrier.end !== end) return; // it died since, and what it sent is asked of the target
        one.packets = sent.packets;
        this.#count(sending, left, sent);
        carrier.digest = sent.digest ?? 0n;
        carrier.state = sent.link;
        this.#acknowledge(carrier);
        this.#progress();
      },
      () => {}, // onFailure tells, too
    );
  }

  #count({ totals, unsent }: Round, lanes: readonly number[], sent: RoundSent): void {
    add(totals, sent);
    for (const lane of lanes) unsent.delete(lane);
  }

  /** The acknowledgement may come before our own thread says what it sent, or after. */
  #acknowledge(carrier: Carrier): void {
    for (let first = carrier.sendings[0]; first?.packets !== undefined && carrier.stored >= first.packets; first = carrier.sendings[0]) {
      carrier.sendings.shift();
      for (const lane of first.lanes) first.round.unacknowledged.delete(lane);
    }
    this.#progress();
  }

  get #isStopped(): boolean {
    return this.#stop.signal.aborted;
  }

  #until(isDone: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        if (this.#isStopped) reject(MigrationError.from(this.#stop.signal.reason));
        else if (isDone()) resolve();
        else return;
        this.#waiting.delete(look);
      };
      this.#waiting.add(look);
      look();
    });
  }

  #progress(): void {
    for (const look of [...this.#waiting]) look();
  }

  #adopt(carrier: Carrier, end: PageChannel): void {
    carrier.end = end;
    carrier.sendings = [];
    carrier.stored = 0;
    carrier.digest = 0n;
    carrier.state = undefined;
    end.onFailure = (error) => {
      if (carrier.end === end) this.#lose(carrier, error);
    };
  }

  /** Takes a channel out, once, and has it made again. */
  #lose(carrier: Carrier, error: MigrationError): void {
    if (this.#isStopped) return;
    const { end } = carrier;
    const wasSending = carrier.sendings.some(({ packets }) => packets === undefined);
    carrier.end = undefined;
    for (const { round, lanes } of carrier.sendings.splice(0)) if (round !== this.#round) this.#giveUp(round, lanes);
    this.#progress();
    this.losses++;
    this.#ports.onEvent({ what: "channel-lost", channel: carrier.channel, code: error.code, message: error.message });
    const isTooMany = this.losses > CHANNEL_LOSSES_MAX;
    const mending = (isTooMany ? Promise.resolve(end?.end()) : this.#mend(carrier, end, wasSending, error))
      .catch((thrown: unknown) => {
        if (!this.#isStopped) this.#ports.fail(MigrationError.from(thrown));
      })
      .finally(() => {
        this.#mending.delete(mending);
        if (carrier.mending === mending) carrier.mending = undefined; // else it was lost again meanwhile
      });
    this.#mending.add(mending);
    carrier.mending = mending;
    if (isTooMany) this.#ports.fail(error);
  }

  async #mend(carrier: Carrier, old: PageChannel | undefined, wasSending: boolean, why: MigrationError): Promise<void> {
    await old?.end();
    // What it sent before it died crossed the wire, too; a round that it had finished was counted then.
    if (wasSending && old?.position?.round === this.#round?.round && this.#round !== undefined) add(this.#round.totals, old?.position);
    this.#endedPages += old?.sentPages ?? 0;
    // The thread that hashed is gone with its share only if it crashed; then the image cannot be proven any more, and PREPARED will say so.
    if (old?.digest !== undefined) this.#endedShares.push(old.digest);
    carrier.digest = 0n;
    const until = performance.now() + REJOIN_GRACE_MS;
    for (let tries = 1; !this.#isStopped; tries++) {
      await this.#ports.ready();
      try {
        const { channel, stored } = await this.#ports.open(carrier.channel, ++carrier.generation, this.#stop.signal);
        if (this.#isStopped) return await channel.end();
        this.#adopt(carrier, channel);
        if (carrier.lost === carrier.generation) return this.#lose(carrier, new MigrationError("ERR_LINK_LOST", "It ended at the target"));
        this.#ports.onEvent({
          what: "channel-made-again",
          channel: carrier.channel,
          code: null,
          message: `generation ${carrier.generation}`,
        });
        return this.#resume(carrier, this.#lanesOf(carrier), stored, old);
      } catch (thrown) {
        const isAlone = this.#carriers.every(({ end }) => end === undefined);
        if (tries >= CHANNEL_RETRIES && !isAlone) return await this.#handOver(carrier, old, until);
        if (performance.now() >= until) throw MigrationError.from(thrown).code === "ERR_UNREACHABLE" ? why : thrown;
      }
      await sleep(REJOIN_AGAIN_MS);
    }
  }

  /** Gives the lanes of a dead channel to the living one that carries the fewest. Asked once, it is asked until it is answered: the target may have heard. */
  async #handOver(carrier: Carrier, old: PageChannel | undefined, until: number): Promise<void> {
    for (let [lane] = this.#lanesOf(carrier); lane !== undefined && !this.#isStopped; [lane] = this.#lanesOf(carrier)) {
      const living = this.#carriers.filter(({ end }) => end !== undefined);
      const heir = living.toSorted((one, other) => this.#lanesOf(one).length - this.#lanesOf(other).length)[0];
      try {
        await this.#ports.ready();
        if (heir === undefined) throw new MigrationError("ERR_LINK_LOST", "No page channel is left");
        const point = await this.#ports.carry(lane, heir.channel);
        // It may have died meanwhile, and given its lanes away: nobody would make it again for this one.
        if (heir.end === undefined && heir.mending === undefined)
          throw new MigrationError("ERR_LINK_LOST", "The page channel that was to carry more broke");
        this.#lanes.move(lane, heir.channel);
        this.#ports.onEvent({
          what: "lane-carried",
          channel: heir.channel,
          code: null,
          message: `the pages of channel ${carrier.channel}`,
        });
        this.#resume(heir, [lane], [point], old);
      } catch (error) {
        if (performance.now() >= until) throw error;
        await sleep(REJOIN_AGAIN_MS);
      }
    }
  }

  #resume(carrier: Carrier, lanes: readonly number[], stored: readonly LanePoint[], old: PageChannel | undefined): void {
    const sending = this.#round;
    if (sending === undefined) return;
    const position = old?.position;
    if (position?.round === sending.round)
      for (const lane of lanes) {
        const point = stored.find((one) => one.lane === lane);
        const from = point?.round === sending.round ? point.page : 0;
        const { lanes: all } = this.#lanes;
        this.resentPages += Math.max(0, sending.pages.count(lane, all, from) - sending.pages.count(lane, all, position.page));
      }
    this.#send(carrier, lanes, stored);
  }
}

type Totals = Round["totals"];
function add(totals: Totals, sent: (Omit<Totals, "xbzrle"> & { readonly xbzrle?: XbzrleCounts | undefined }) | undefined): void {
  totals.normalPages += sent?.normalPages ?? 0;
  totals.zeroPages += sent?.zeroPages ?? 0;
  totals.bytes += sent?.bytes ?? 0;
  if (sent?.xbzrle !== undefined) totals.xbzrle = addXbzrle(totals.xbzrle, sent.xbzrle);
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const fresh = (channel: number): Carrier => ({
  channel,
  generation: 0,
  end: undefined,
  mending: undefined,
  lost: 0,
  sendings: [],
  stored: 0,
  digest: 0n,
  state: undefined,
});
