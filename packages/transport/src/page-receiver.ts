import type { HashTable, SharedMemory } from "@precopy/guest";
import { MigrationError } from "@precopy/protocol";
import type { SharedPostcopy } from "./channel-end.js";
import { lanesOfBits } from "./lane-table.js";
import type { LanePoint, LaneTable } from "./lane-table.js";
import type { ChannelThreads } from "./channel-threads.js";
import { PageChannel, switching } from "./page-channel.js";
import type { ChannelSocket } from "./page-channel.js";
import type { PumpKind } from "./pump.js";

/** Where page channels store, and how. */
export interface ReceiverOptions {
  readonly lanes: LaneTable;
  readonly threads: ChannelThreads;
  readonly pump: PumpKind;
  readonly memory: SharedMemory;
  /** Undefined with the digest off. */
  readonly hashes: HashTable | undefined;
  /** Words of the bitmap of pages that may be other than zero. */
  readonly populated: Uint32Array;
  /** Where the migration may come to post-copy. */
  readonly postcopy?: SharedPostcopy | undefined;
}

/** One generation of one channel. */
export interface ChannelLife {
  readonly channel: number;
  readonly generation: number;
}
/** What the latest generation of a channel has delivered: all up to this FLUSH is stored. */
export interface Delivered extends ChannelLife {
  readonly round: number;
  /** Since this generation began, the FLUSH included. */
  readonly packets: number;
}

const add = (sum: bigint | undefined, share: bigint | undefined): bigint | undefined =>
  sum === undefined || share === undefined ? undefined : BigInt.asUintN(64, sum + share);

interface Slot {
  /** The latest that was asked for; 0 before the first. */
  generation: number;
  /** Asked for, and not open yet. */
  waiting: ChannelSocket | undefined;
  open: PageChannel | undefined;
  delivered: Delivered | undefined;
  /** The latest generation ended by itself, or never came to open. */
  isLost: boolean;
  /** Share of the open one as of its last FLUSH. */
  share: bigint | undefined;
  /** One change at a time. */
  turn: Promise<void>;
}

/**
 * The page channels of one guest at the target, through all their generations. A later generation replaces an earlier one, and a lane moves to
 * another channel, only when the end that carried it has ended: no two threads ever store pages of one lane.
 */
export class PageReceiver {
  readonly #options: ReceiverOptions;
  readonly #slots: readonly Slot[];
  /** Of each lane the last round that was ended by a FLUSH, as told by its thread: the lane table may be written at this moment. */
  readonly #endedRounds = new Map<number, number>();
  /** Of all that have ended; undefined without hashes, and once a share was lost with its thread. */
  #endedShares: bigint | undefined;
  #isEnded = false;
  onDelivered: (delivered: Delivered) => void = () => {};
  /** A generation ended without being told to, or never came to open. Its channel may be asked for again. */
  onLost: (life: ChannelLife, error: MigrationError) => void = () => {};

  constructor(options: ReceiverOptions) {
    this.#options = options;
    this.#endedShares = options.hashes === undefined ? undefined : 0n;
    this.#slots = Array.from({ length: options.lanes.lanes }, () => ({
      generation: 0,
      waiting: undefined,
      open: undefined,
      delivered: undefined,
      isLost: false,
      share: 0n,
      turn: Promise.resolve(),
    }));
  }

  /**
   * Takes a connection for a channel. False, and the socket stays the caller's, if there is no such channel, a generation as late was seen, all
   * its lanes were moved away, or everything has ended.
   */
  accept({ channel, generation }: ChannelLife, socket: ChannelSocket): boolean {
    const slot = this.#slots[channel];
    if (slot === undefined || this.#isEnded || generation <= slot.generation || this.#pointsOf(channel).length === 0) return false;
    slot.waiting?.destroy(); // at most one waits: a peer that asks and asks holds nothing more
    slot.generation = generation;
    slot.isLost = false;
    slot.waiting = socket;
    socket.on("error", () => {}); // it may break while it waits; opening it tells
    this.#inTurn(slot, () => this.#open(slot, { channel, generation }, socket)).catch((error: unknown) =>
      this.#lose(slot, { channel, generation }, MigrationError.from(error)),
    );
    return true;
  }

  async #open(slot: Slot, life: ChannelLife, socket: ChannelSocket): Promise<void> {
    await this.#retire(slot);
    const stored = this.#pointsOf(life.channel); // final: nobody stores on these lanes now
    if (slot.waiting === socket) slot.waiting = undefined;
    if (this.#isEnded || slot.generation !== life.generation || stored.length === 0) {
      socket.destroy();
      return;
    }
    const { lanes, threads, ...to } = this.#options;
    const opened = await PageChannel.open(socket, threads, {
      type: "receive",
      ...life,
      ...to,
      lanes: lanes.share(),
      answer: switching(stored),
    });
    slot.open = opened;
    slot.share = 0n;
    slot.delivered = undefined;
    opened.onFlushed = ({ round, lanes: bits, packets, digest }) => {
      for (const lane of lanesOfBits(bits)) this.#endedRounds.set(lane, round);
      slot.share = digest;
      slot.delivered = { ...life, round, packets };
      this.onDelivered(slot.delivered);
    };
    opened.onFailure = (error) => {
      this.#leave(slot, opened);
      this.#lose(slot, life, error);
    };
  }

  #lose(slot: Slot, life: ChannelLife, error: MigrationError): void {
    if (slot.generation === life.generation) slot.isLost = true;
    this.onLost(life, error);
  }

  /** The channels whose latest generation is lost. */
  get lost(): readonly ChannelLife[] {
    return this.#slots.flatMap(({ isLost, generation }, channel) => (isLost ? [{ channel, generation }] : []));
  }

  #pointsOf(channel: number): LanePoint[] {
    const { lanes } = this.#options;
    return lanes.lanesOf(channel).map((lane) => ({ lane, ...lanes.storedAt(lane) }));
  }

  /** Ends what is open; nothing of it touches guest memory afterwards, and where its lanes stand is final. */
  async #retire(slot: Slot): Promise<void> {
    const { open } = slot;
    if (open === undefined) return;
    await open.end();
    this.#leave(slot, open);
  }

  #leave(slot: Slot, ended: PageChannel): void {
    if (slot.open !== ended) return; // it failed while it was being ended
    slot.open = undefined;
    this.#endedShares = add(this.#endedShares, ended.digest);
  }

  /**
   * Lets `channel` carry a lane, once the end that carried it has ended; resolves with where the lane stands. Asked again, it answers again.
   * @throws {MigrationError} ERR_BAD_MESSAGE
   */
  async carry(lane: number, channel: number): Promise<Omit<LanePoint, "lane">> {
    const { lanes } = this.#options;
    if (lane >= lanes.lanes || channel >= lanes.lanes)
      throw new MigrationError("ERR_BAD_MESSAGE", `Channel ${channel} to carry lane ${lane}; there are ${lanes.lanes}`);
    for (let old = lanes.carrierOf(lane); old !== channel; old = lanes.carrierOf(lane)) {
      const from = old;
      const slot = this.#slots[from]!;
      await this.#inTurn(slot, async () => {
        await this.#retire(slot);
        if (lanes.carrierOf(lane) === from) lanes.move(lane, channel);
      });
    }
    return lanes.storedAt(lane);
  }

  /** What each channel's latest generation has delivered; none for one that has delivered nothing. */
  get delivered(): readonly Delivered[] {
    return this.#slots.flatMap(({ delivered }) => (delivered === undefined ? [] : [delivered]));
  }

  /** True if all of this round is stored, on every lane; 0 is before the first. */
  hasDelivered(round: number): boolean {
    return this.#slots.every((_, lane) => (this.#endedRounds.get(lane) ?? 0) === round);
  }

  /** The image digest as of the last FLUSH on every channel; undefined without hashes, and if a share was lost with its thread. */
  get digest(): bigint | undefined {
    return this.#slots.filter(({ open }) => open !== undefined).reduce((sum, { share }) => add(sum, share), this.#endedShares);
  }

  /** Ends every channel for good. After this nothing of it touches guest memory. */
  async end(): Promise<void> {
    this.#isEnded = true;
    for (const { waiting } of this.#slots) waiting?.destroy();
    await Promise.all(this.#slots.map((slot) => this.#inTurn(slot, () => this.#retire(slot))));
  }

  async #inTurn(slot: Slot, change: () => Promise<void>): Promise<void> {
    const done = slot.turn.then(change);
    slot.turn = done.catch(() => {}); // whoever asked for it hears it
    await done;
  }
}
