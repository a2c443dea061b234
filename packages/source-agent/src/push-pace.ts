import { PAGE_BYTES, STRIPE_PAGES } from "@precopy/protocol";
import { LINK_BOUND, linkLimitedMs } from "@precopy/transport";
import type { LinkState } from "@precopy/transport";

/** A stretch of pages that the target has stored. */
export interface StoredStretch {
  /** With data. */
  readonly pages: number;
  /** On the wire. */
  readonly bytes: number;
  /** ms, monotonic. */
  readonly beganAt: number;
  readonly storedAt: number;
  /** When its last byte was taken; undefined where nobody can tell. */
  readonly link: LinkState | undefined;
}

/** A stretch lasts about so long, or a round trip: short enough that the next one begins where the guest is by then. */
const STRETCH_MS = 25;
const STRETCH_PAGES_MAX = (64 * 2 ** 20) / PAGE_BYTES;
/** With a page that the guest stops at go as many beside it as the link takes in so long: no more than it costs to ask for one. */
const AROUND_MS = 0.05;

/** What waits longer on its way than this makes a fault many times as long as it would be. */
const QUEUE_MS = 1.5;
/** So many stretches in a row have to say that what is pushed fills a link's queues. */
const LOOK_STRETCHES = 4;
/** Of what the link carries, what is pushed then, for so many stretches. The rest empties the queues, and is left to the guest's requests. */
const HELD_SHARE = 0.9;
const HELD_STRETCHES = 40;
/** A link that carries less than this of what is allowed has become slower. */
const AS_KNOWN = 0.75;

/**
 * How much of what is missing is pushed at a time, and how fast. As fast as the link takes it, but where it is the link that limits, and not a processor at
 * either end, what is pushed would stand in its queues, and the answer to a fault behind it: there a tenth of the link is left free. Once a second nothing
 * is held back for four stretches, to learn what the link carries by now.
 */
export class PushPace {
  readonly #maxBandwidth: number;
  /** Of the last stretches, each counting half of the one after it. */
  #pages = 0;
  #ms = 0;
  #storedAt = 0;
  #linkMs: number | undefined;
  /** Since queues are seen to fill; the latest LOOK_STRETCHES at most. */
  readonly #look: { readonly bytes: number; readonly ms: number; readonly linkMs: number }[] = [];
  /** Bytes/s; 0 while nothing is held back. */
  #held = 0;
  #heldStretches = 0;

  /** @param maxBandwidth the operator's, bytes/s, 0 for none. */
  constructor(maxBandwidth: number) {
    this.#maxBandwidth = maxBandwidth;
  }

  /** For what is pushed next, bytes/s; 0 for none. */
  get bandwidth(): number {
    return this.#maxBandwidth === 0 || (this.#held > 0 && this.#held < this.#maxBandwidth) ? this.#held : this.#maxBandwidth;
  }

  /** Pages of the next stretch. */
  room(channels: number, roundTripMs: number): number {
    const least = channels * STRIPE_PAGES;
    return Math.min(Math.max(this.#pagesPerMs * Math.max(STRETCH_MS, roundTripMs), least), STRETCH_PAGES_MAX);
  }

  /** Pages that go with one that is asked for. */
  get around(): number {
    return this.#pagesPerMs * AROUND_MS;
  }

  get #pagesPerMs(): number {
    return this.#ms === 0 ? 0 : this.#pages / this.#ms;
  }

  /** In the order in which they were sent; one may have begun before the one ahead of it was stored. */
  stored({ pages, bytes, beganAt, storedAt, link }: StoredStretch): void {
    const ms = storedAt - Math.max(beganAt, this.#storedAt);
    this.#storedAt = storedAt;
    this.#pages = this.#pages / 2 + pages;
    this.#ms = this.#ms / 2 + ms;
    const linkMs = this.#linkMsOf(link);
    const isQueueing = linkMs !== undefined && link !== undefined && link.queueMs > QUEUE_MS;
    if (this.#held === 0) this.#lookAt(isQueueing ? { bytes, ms, linkMs } : undefined);
    else if (--this.#heldStretches === 0 || (isQueueing && (bytes * 1000) / ms < AS_KNOWN * this.#held)) this.#held = 0;
  }

  /** Of the time since the last stretch was stored, for which it was the link that was waited for; undefined where nobody can tell. */
  #linkMsOf(link: LinkState | undefined): number | undefined {
    const before = this.#linkMs;
    this.#linkMs = link && linkLimitedMs(link);
    if (this.#linkMs === undefined || before === undefined || this.#linkMs < before) return undefined; // less: a channel was made again
    return this.#linkMs - before;
  }

  #lookAt(stretch: { readonly bytes: number; readonly ms: number; readonly linkMs: number } | undefined): void {
    const look = this.#look;
    if (stretch === undefined) look.length = 0;
    else look.push(stretch);
    if (look.length < LOOK_STRETCHES) return;
    const sum = (name: "bytes" | "ms" | "linkMs"): number => look.reduce((total, one) => total + one[name], 0);
    if (sum("linkMs") < LINK_BOUND * sum("ms")) return void look.shift();
    this.#held = (HELD_SHARE * sum("bytes") * 1000) / sum("ms");
    this.#heldStretches = HELD_STRETCHES;
    look.length = 0;
  }
}
