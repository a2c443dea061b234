import { allocateHashTable, joinDigests } from "@precopy/guest";
import type { Bitmap, GuestMemory } from "@precopy/guest";
import { MigrationError } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import { LaneTable, PageChannel, connectPageChannel } from "@precopy/transport";
import type { LanePoint, LaneStart } from "@precopy/transport";
import type { PageTarget, WireOptions } from "./page-wire.js";

/** One generation of one channel. */
interface Life {
  readonly channel: number;
  readonly generation: number;
  readonly sender: PageChannel;
  /** Where the target said its lanes stood when it began. */
  readonly stored: readonly LanePoint[];
  /** What the target has acknowledged of it, and what waits for more. */
  packets: number;
  look: (() => void)[];
  isLost: boolean;
  /** Once, for all that it was sending. */
  after: Promise<Life | undefined> | undefined;
}

export interface ResumingOptions extends WireOptions {
  /** Undefined: a channel that dies is made again. Else the one that carries its lanes from then on, or its heir if that is gone, too. */
  heirOf(channel: number, generation: number): number | undefined;
}

/** A source that goes on after a channel died, as the agent's does, with as little else as a test needs. Acknowledgements come straight from the target. */
export class ResumingSource {
  readonly lanes: LaneTable;
  readonly #memory: GuestMemory;
  readonly #to: Address;
  readonly #target: PageTarget;
  readonly #options: ResumingOptions;
  readonly #hashes;
  readonly #shares: (bigint | undefined)[] = [];
  readonly #lives = new Map<number, Life>();
  /** Pages that were handed to a socket and had not been stored when it died. */
  resentPages = 0;

  constructor(memory: GuestMemory, to: Address, target: PageTarget, options: ResumingOptions) {
    this.#memory = memory;
    this.#to = to;
    this.#target = target;
    this.#options = options;
    this.lanes = LaneTable.allocate(options.channels);
    this.#hashes = allocateHashTable(memory.pages);
    target.onDelivered = ({ channel, generation, packets }) => {
      const life = this.#lives.get(channel);
      if (life?.generation !== generation) return;
      life.packets = packets;
      for (const look of life.look) look();
    };
    target.onFailure = (_, { channel, generation }) => {
      const life = this.#lives.get(channel);
      if (life?.generation === generation) this.#lose(life);
    };
  }

  #lose(life: Life): void {
    life.isLost = true;
    for (const look of life.look) look();
  }

  async open(): Promise<void> {
    for (let channel = 0; channel < this.#options.channels; channel++) await this.#open(channel, 1);
  }

  async #open(channel: number, generation: number): Promise<Life> {
    const { threads, pump, compression = "none", xbzrleCacheBytes = 0 } = this.#options;
    const name = { session: this.#target.session, channel, generation };
    const { socket, stored } = await connectPageChannel(this.#to, name, new AbortController().signal);
    const sender = await PageChannel.open(socket, threads, {
      type: "send",
      pump,
      channel,
      generation,
      lanes: this.lanes.share(),
      memory: this.#memory.share(),
      hashes: this.#hashes,
      compression,
      xbzrleCacheBytes,
    });
    const life: Life = { channel, generation, sender, stored, packets: 0, look: [], isLost: false, after: undefined };
    sender.onFailure = () => this.#lose(life);
    this.#lives.set(channel, life);
    return life;
  }

  /** Sends `pages`; resolves when the target has stored them, however often a channel dies on the way. */
  async round(round: number, pages: Bitmap): Promise<void> {
    await Promise.all(
      [...this.#lives.values()].map((life) => this.#deliver(life, round, pages, startsOf(this.lanes.lanesOf(life.channel)))),
    );
  }

  async #deliver(life: Life, round: number, pages: Bitmap, from: readonly LaneStart[]): Promise<void> {
    if (from.length === 0) return;
    try {
      const { packets } = await life.sender.sendRound(round, pages.words, 0, from);
      await this.#acknowledged(life, packets);
    } catch {
      await this.#goOn(life, round, pages, from);
    }
  }

  #acknowledged(life: Life, packets: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        if (life.packets >= packets) resolve();
        else if (life.isLost) reject(new MigrationError("ERR_LINK_LOST", "The channel died"));
      };
      life.look.push(look);
      look();
    });
  }

  /** What is left of these lanes, on the channel's next generation, or on another channel. */
  async #goOn(life: Life, round: number, pages: Bitmap, from: readonly LaneStart[]): Promise<void> {
    life.after ??= this.#bury(life);
    const next = await life.after;
    if (next !== undefined) {
      // A lane that is not named was moved there after the answer: the generation that died never carried it, so it stands where it was moved from.
      const points = from.map(({ lane, page }) => next.stored.find((one) => one.lane === lane) ?? { lane, round, page });
      for (const point of points) this.#countResent(life, round, pages, point);
      return this.#deliver(
        next,
        round,
        pages,
        points.map((point) => startAt(point, round)),
      );
    }
    const heir = this.#heirOf(life);
    await Promise.all(
      from.map(async ({ lane }) => {
        const point = { lane, ...(await this.#target.receiver.carry(lane, heir.channel)) };
        this.lanes.move(lane, heir.channel);
        this.#countResent(life, round, pages, point);
        await this.#deliver(heir, round, pages, [startAt(point, round)]);
      }),
    );
  }

  #heirOf({ channel, generation }: Life): Life {
    let heir = this.#options.heirOf(channel, generation);
    while (heir !== undefined && !this.#lives.has(heir)) heir = this.#options.heirOf(heir, 1);
    const life = this.#lives.get(heir ?? -1);
    if (life === undefined) throw new MigrationError("ERR_INTERNAL", "No channel is left");
    return life;
  }

  /** Ends this generation; resolves with the next one if there is to be one. */
  async #bury(life: Life): Promise<Life | undefined> {
    await life.sender.end();
    this.#shares.push(life.sender.digest);
    if (this.#options.heirOf(life.channel, life.generation) === undefined) return this.#open(life.channel, life.generation + 1);
    this.#lives.delete(life.channel);
    // All that it carried, also what it had delivered in this round: the next one must find it.
    for (let [lane] = this.lanes.lanesOf(life.channel); lane !== undefined; [lane] = this.lanes.lanesOf(life.channel)) {
      const heir = this.#heirOf(life);
      await this.#target.receiver.carry(lane, heir.channel);
      if (this.#lives.get(heir.channel) === heir) this.lanes.move(lane, heir.channel); // else it died meanwhile, and gave its lanes away
    }
    return undefined;
  }

  #countResent({ sender }: Life, round: number, pages: Bitmap, point: LanePoint): void {
    const { page } = startAt(point, round);
    const { lanes } = this.lanes;
    if (sender.position?.round !== round) return;
    this.resentPages += Math.max(0, pages.count(point.lane, lanes, page) - pages.count(point.lane, lanes, sender.position.page));
  }

  /** Ends every channel. @returns the digest of the image as it was sent, over every generation there was. */
  async end(): Promise<string> {
    for (const { sender } of this.#lives.values()) {
      await sender.end();
      this.#shares.push(sender.digest);
    }
    return joinDigests(this.#shares.map((share) => share ?? 0n));
  }
}

const startsOf = (lanes: readonly number[]): LaneStart[] => lanes.map((lane) => ({ lane, page: 0 }));
const startAt = (point: LanePoint, round: number): LaneStart => ({ lane: point.lane, page: point.round === round ? point.page : 0 });
