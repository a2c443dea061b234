import { randomBytes } from "node:crypto";
import { LEDGER_WINDOW_IDS, LedgerKind, UdpBackend, decodeLedgerFrame, encodeLedgerFrame, hostNowMs } from "@precopy/guest";
import type { LedgerFrame } from "@precopy/guest";
import { MigrationError, NO_GUEST_TAG, formatAddress, guestTag, macOf } from "@precopy/protocol";
import type { Address, Datagram } from "@precopy/protocol";

const RATE_DEFAULT = 1000;
const TICK_MS = 1;
const REPEAT_MS_DEFAULT = 50;
/** Repeats a tick, so that the end of an outage is no flood. */
const REPEATS_A_TICK = 64;
/** Below the ledger's window, so that no id is forgotten before it is answered. */
const SPAN_IDS_MAX = 60_000;
/** At the end: how long the counter is asked for even if the time for the answers is up. */
const COUNTER_TIMEOUT_MS = 2000;

export interface ClientOptions {
  /** Where the switch is. */
  readonly target: Address;
  readonly guestId: string;
  /** Requests a second, default 1000: one a millisecond. */
  readonly rate?: number;
  /** u32, default random: two clients of one ledger need two numbers. */
  readonly client?: number;
  /** How long the guest may take to answer the first time, default 10,000 ms. */
  readonly connectTimeoutMs?: number;
  /** Ids from the oldest unanswered one to the newest, default 60,000, which is the most: each of them is repeated as long as an outage lasts. */
  readonly spanIds?: number;
  /** An unanswered request is sent again this long after it was sent last, default 50 ms. On a crowded host few repeats leave more time for answers. */
  readonly repeatMs?: number;
}

export interface ClientStatistics {
  /** Requests with an id of their own. */
  readonly issued: number;
  /** Ids answered with a result. */
  readonly acknowledged: number;
  /** Sent again. */
  readonly repeated: number;
  /** Ids the ledger refused: one client too many, or an id it has forgotten. */
  readonly refused: number;
  /** Ids without a result, refused ones among them. */
  readonly unanswered: number;
  /** Answers from an older epoch of the guest after one from a newer: two owners answered. */
  readonly staleEpochAnswers: number;
  /** Longest time without an answer, one that lasts still included, in ms. */
  readonly longestGapMs: number;
}

export interface ClientReport extends ClientStatistics {
  /** Acknowledged requests whose increment is not in the counter. */
  readonly lost: number;
  /** Increments beyond one an id, or ids answered with two different results. */
  readonly doubled: number;
  /** The ledger's counter at the end; undefined if it did not say. */
  readonly counter: number | undefined;
  /** Every issued id was answered, and the ledger applied each exactly once, at one owner at a time. */
  readonly isVerified: boolean;
  /** From when a request was due to its answer, within 1 %; undefined without an answer. */
  readonly p50Ms: number | undefined;
  readonly p99Ms: number | undefined;
}

/** A request without an answer yet. */
interface Sent {
  readonly dueMs: number;
  sentMs: number;
}

/** Latencies in buckets each 1 % wider than the one before, from 0.01 ms on: constant memory. */
class Latencies {
  readonly #buckets = new Uint32Array(2048);
  #count = 0;

  add(ms: number): void {
    const bucket = Math.floor(Math.log(Math.max(ms, 0.01) / 0.01) / Math.log(1.01));
    this.#buckets[Math.min(bucket, this.#buckets.length - 1)]!++;
    this.#count++;
  }

  /** @param share 0 to 1 */
  percentile(share: number): number | undefined {
    let left = Math.ceil(this.#count * share);
    if (left === 0) return undefined;
    const bucket = this.#buckets.findIndex((count) => (left -= count) <= 0);
    return 0.01 * 1.01 ** (bucket + 1);
  }
}

/** Which counter values have been somebody's result: one bit each, grown as needed. */
class Results {
  #bits = new Uint8Array(8192);

  /** @param value from 1; `limit` bounds what is kept, so that an absurd result costs no memory. */
  add(value: number, limit: number): void {
    if (value > limit) return;
    if (value >>> 3 >= this.#bits.length) {
      const grown = new Uint8Array(Math.max(this.#bits.length * 2, (value >>> 3) + 1));
      grown.set(this.#bits);
      this.#bits = grown;
    }
    this.#bits[value >>> 3]! |= 1 << (value & 7);
  }

  /** Different values from 1 to `last`. */
  countTo(last: number): number {
    let count = 0;
    for (let value = 1; value <= last && value >>> 3 < this.#bits.length; value++) count += (this.#bits[value >>> 3]! >>> (value & 7)) & 1;
    return count;
  }
}

/**
 * Open-loop client of the ledger workload, through a switch: a request falls due every 1/rate seconds whether or not the guest answers, and
 * is repeated by its id until it does, so the answers show an outage in full and the counter shows each request that was lost or applied
 * twice. It must be the ledger's only client while it runs. Memory: 65,536 ids and one bit a request.
 */
export class LedgerClient {
  readonly #backend: UdpBackend;
  readonly #client: number;
  readonly #mac: string;
  readonly #guestMac: string;
  readonly #guestTag: string;
  readonly #intervalMs: number;
  readonly #spanIds: number;
  readonly #repeatMs: number;
  readonly #timer: NodeJS.Timeout;
  /** By id; in the order of sending, because what is sent again goes to the end. */
  readonly #open = new Map<number, Sent>();
  /** The last answer to id `n` at `n` modulo the window. */
  readonly #answeredIds = new Uint32Array(LEDGER_WINDOW_IDS);
  readonly #answers = new Uint32Array(LEDGER_WINDOW_IDS);
  readonly #results = new Results();
  readonly #latencies = new Latencies();
  #counterAtStart = 0;
  #nextDueMs = Number.POSITIVE_INFINITY;
  #oldestOpenId = 1;
  #issued = 0;
  #acknowledged = 0;
  #repeated = 0;
  #refused = 0;
  #contradicted = 0;
  #newestEpoch = 0;
  #staleEpochAnswers = 0;
  #lastAnswerMs = 0;
  #longestGapMs = 0;
  #longestGapSinceMarkMs = 0;
  #acknowledgedAtMark = 0;
  #reads = 0;
  #reading: { readonly id: number; sentMs: number; counter?: number } | undefined;
  #isClosed = false;
  #waiting: { readonly isMet: () => boolean; readonly untilMs: number; readonly resolve: () => void } | undefined;

  private constructor(backend: UdpBackend, options: ClientOptions) {
    const { guestId, rate = RATE_DEFAULT, client = randomBytes(4).readUInt32LE() } = options;
    const { spanIds = SPAN_IDS_MAX, repeatMs = REPEAT_MS_DEFAULT } = options;
    this.#backend = backend;
    this.#repeatMs = repeatMs;
    this.#spanIds = Math.min(spanIds, SPAN_IDS_MAX);
    this.#client = client;
    this.#mac = macOf(`client ${client}`);
    this.#guestMac = macOf(guestId);
    this.#guestTag = guestTag(guestId);
    this.#intervalMs = 1000 / rate;
    backend.start(0, (frame, datagram) => this.#receive(decodeLedgerFrame(frame), datagram));
    this.#timer = setInterval(() => this.#tick(hostNowMs()), TICK_MS);
  }

  /**
   * Reads the counter, and issues requests from then on.
   * @throws {MigrationError} ERR_PARAMETER, ERR_DEVICE_UNAVAILABLE if the switch's name does not resolve or the guest does not answer.
   */
  static async connect(options: ClientOptions): Promise<LedgerClient> {
    const { target, guestId, rate = RATE_DEFAULT, connectTimeoutMs = 10_000 } = options;
    if (!(rate > 0)) throw new MigrationError("ERR_PARAMETER", `Rate ${rate}: give requests a second, above 0`);
    const client = new LedgerClient(await UdpBackend.open(target, NO_GUEST_TAG), options);
    const counter = await client.#read(hostNowMs() + connectTimeoutMs);
    if (counter === undefined) {
      client.close();
      const message = `No ledger of guest "${guestId}" answered behind the switch at ${formatAddress(target)} in ${connectTimeoutMs} ms`;
      throw new MigrationError("ERR_DEVICE_UNAVAILABLE", message);
    }
    client.#counterAtStart = counter;
    client.#lastAnswerMs = client.#nextDueMs = hostNowMs();
    return client;
  }

  statistics(): ClientStatistics {
    return {
      issued: this.#issued,
      acknowledged: this.#acknowledged,
      repeated: this.#repeated,
      refused: this.#refused,
      unanswered: this.#issued - this.#acknowledged,
      staleEpochAnswers: this.#staleEpochAnswers,
      longestGapMs: Math.max(this.#longestGapMs, this.#openGapMs()),
    };
  }

  /** Since the last mark. A gap that is open now is in it as far as it got, and whole in the mark after it ends. */
  mark(): { readonly longestGapMs: number; readonly acknowledged: number } {
    const longestGapMs = Math.max(this.#longestGapSinceMarkMs, this.#openGapMs());
    const acknowledged = this.#acknowledged - this.#acknowledgedAtMark;
    this.#longestGapSinceMarkMs = 0;
    this.#acknowledgedAtMark = this.#acknowledged;
    return { longestGapMs, acknowledged };
  }

  /** Issues no more, waits at most `timeoutMs` for the answers, reads the counter and settles accounts; then it issues on. One at a time. */
  async settle({ timeoutMs }: { readonly timeoutMs: number }): Promise<ClientReport> {
    const untilMs = hostNowMs() + timeoutMs;
    this.#nextDueMs = Number.POSITIVE_INFINITY;
    await this.#until(() => this.#open.size === 0, untilMs);
    const counter = await this.#read(Math.max(untilMs, hostNowMs() + COUNTER_TIMEOUT_MS));
    const statistics = this.statistics();
    this.#nextDueMs = hostNowMs();
    return {
      ...statistics,
      ...this.#settle(counter, statistics),
      counter,
      p50Ms: this.#latencies.percentile(0.5),
      p99Ms: this.#latencies.percentile(0.99),
    };
  }

  /** Settles accounts as `settle` does, and closes. */
  async finish(options: { readonly timeoutMs: number }): Promise<ClientReport> {
    const report = await this.settle(options);
    this.close();
    return report;
  }

  /** Idempotent. A `finish` under way reports what is known. */
  close(): void {
    this.#isClosed = true;
    clearInterval(this.#timer);
    this.#backend.close();
    this.#waiting?.resolve();
  }

  /**
   * Each counter value from the start on is one request's increment. A result that no other request got and that the counter has reached is
   * that request's; values left over are increments of unanswered requests, or doubled ones.
   */
  #settle(
    counter: number | undefined,
    { unanswered, staleEpochAnswers }: ClientStatistics,
  ): Pick<ClientReport, "lost" | "doubled" | "isVerified"> {
    const increments = counter === undefined ? this.#plausibleResult : (counter - this.#counterAtStart) >>> 0;
    const owned = this.#results.countTo(increments);
    const lost = this.#acknowledged - owned;
    const doubled = Math.max(counter === undefined ? 0 : increments - owned - unanswered, this.#contradicted);
    return { lost, doubled, isVerified: counter !== undefined && lost + doubled + unanswered + staleEpochAnswers === 0 };
  }

  /** No result of a ledger that applied every request twice is above this; beyond, it is lost. */
  get #plausibleResult(): number {
    return 2 * this.#issued + LEDGER_WINDOW_IDS;
  }

  /** Since the last answer, as long as one is owed. */
  #openGapMs(): number {
    return this.#open.size === 0 ? 0 : hostNowMs() - this.#lastAnswerMs;
  }

  #tick(nowMs: number): void {
    this.#issue(nowMs);
    this.#repeat(nowMs);
    const { isMet, untilMs, resolve } = this.#waiting ?? {};
    if (isMet?.() === true || nowMs >= (untilMs ?? Number.POSITIVE_INFINITY)) resolve?.();
  }

  /** All that fell due, however late this tick is. With the span full, what falls due is not issued, and not made up for. */
  #issue(nowMs: number): void {
    while (this.#nextDueMs <= nowMs) {
      while (this.#oldestOpenId <= this.#issued && !this.#open.has(this.#oldestOpenId)) this.#oldestOpenId++;
      if (this.#issued + 1 - this.#oldestOpenId >= this.#spanIds) {
        this.#nextDueMs = nowMs + this.#intervalMs;
        return;
      }
      const id = ++this.#issued;
      this.#open.set(id, { dueMs: this.#nextDueMs, sentMs: nowMs });
      this.#send(LedgerKind.Apply, id);
      this.#nextDueMs += this.#intervalMs;
    }
  }

  #repeat(nowMs: number): void {
    if (this.#reading !== undefined && this.#reading.counter === undefined && nowMs - this.#reading.sentMs >= this.#repeatMs) {
      this.#reading.sentMs = nowMs;
      this.#send(LedgerKind.Read, this.#reading.id);
    }
    let left = REPEATS_A_TICK;
    for (const [id, sent] of this.#open) {
      if (nowMs - sent.sentMs < this.#repeatMs || left-- === 0) return;
      sent.sentMs = nowMs;
      this.#open.delete(id);
      this.#open.set(id, sent);
      this.#repeated++;
      this.#send(LedgerKind.Apply, id);
    }
  }

  #send(kind: LedgerKind, id: number): void {
    const addresses = { targetMac: this.#guestMac, sourceMac: this.#mac };
    this.#backend.send(encodeLedgerFrame({ ...addresses, kind, client: this.#client, id, value: kind === LedgerKind.Apply ? 1 : 0 }));
  }

  #receive(reply: LedgerFrame | undefined, datagram: Datagram): void {
    if (reply === undefined || datagram.guestTag !== this.#guestTag || reply.sourceMac !== this.#guestMac) return;
    if (reply.targetMac !== this.#mac || reply.client !== this.#client) return;
    if (this.#reading?.counter !== undefined) return; // what comes after the counter may have been applied after it
    if (datagram.epoch < this.#newestEpoch) this.#staleEpochAnswers++;
    this.#newestEpoch = Math.max(this.#newestEpoch, datagram.epoch);
    if (reply.kind === LedgerKind.Value && reply.id === this.#reading?.id) this.#reading.counter ??= reply.value;
    if (reply.kind === LedgerKind.Applied) this.#applied(reply);
    if (reply.kind === LedgerKind.Refused && this.#answered(reply.id)) this.#refused++;
  }

  #applied({ id, value }: LedgerFrame): void {
    const slot = id % LEDGER_WINDOW_IDS;
    const sent = this.#answered(id);
    if (sent !== undefined) {
      this.#latencies.add(this.#lastAnswerMs - sent.dueMs);
      this.#acknowledged++;
      this.#answeredIds[slot] = id;
      this.#answers[slot] = value;
      this.#results.add((value - this.#counterAtStart) >>> 0, this.#plausibleResult);
    } else if (this.#answeredIds[slot] === id && this.#answers[slot] !== value) {
      this.#contradicted++;
      this.#answeredIds[slot] = 0; // once an id
    }
  }

  /** An answer came. Returns the request if this is the first one to it. */
  #answered(id: number): Sent | undefined {
    const nowMs = hostNowMs();
    const gapMs = nowMs - this.#lastAnswerMs;
    this.#lastAnswerMs = nowMs;
    this.#longestGapMs = Math.max(this.#longestGapMs, gapMs);
    this.#longestGapSinceMarkMs = Math.max(this.#longestGapSinceMarkMs, gapMs);
    const sent = this.#open.get(id);
    this.#open.delete(id);
    return sent;
  }

  /** The ledger's counter, or undefined if it did not say until then. */
  async #read(untilMs: number): Promise<number | undefined> {
    const reading: { readonly id: number; sentMs: number; counter?: number } = { id: ++this.#reads, sentMs: hostNowMs() };
    this.#reading = reading;
    this.#send(LedgerKind.Read, reading.id);
    await this.#until(() => reading.counter !== undefined, untilMs);
    this.#reading = undefined;
    return reading.counter;
  }

  /** Resolves at the tick at which the condition holds or the time is up, and when the client closes. */
  async #until(isMet: () => boolean, untilMs: number): Promise<void> {
    if (!this.#isClosed) await new Promise<void>((resolve) => (this.#waiting = { isMet, untilMs, resolve }));
    this.#waiting = undefined;
  }
}
