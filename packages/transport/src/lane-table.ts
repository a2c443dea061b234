import { CHANNELS_MAX, MigrationError, laneOfPage } from "@precopy/protocol";

/** Where a lane stands: every page of `round` below `page` is stored, and every round before it. Round 0: nothing yet. */
export interface LanePoint {
  readonly lane: number;
  readonly round: number;
  /** The guest's number of pages: the whole round, FLUSH included. */
  readonly page: number;
}

/** Lanes as a FLUSH names them: one bit each. */
export const bitsOfLanes = (lanes: readonly number[]): number => lanes.reduce((bits, lane) => bits | (1 << lane), 0);
export const lanesOfBits = (bits: number): number[] =>
  Array.from({ length: CHANNELS_MAX }, (_, lane) => lane).filter((lane) => ((bits >>> lane) & 1) === 1);

/** What a thread needs to see the same table; goes through postMessage without a copy. */
export interface SharedLanes {
  /** The channel that carries each lane. */
  readonly carrier: Int32Array;
  /** Two a lane: round, next page. Doubles: the last page of the largest guest ends at 2^32. */
  readonly stored: Float64Array;
}

/**
 * Which channel carries each lane, and at the target how far each is stored. One table an end, shared with its channel threads.
 *
 * Concurrency. `carrier` is the main thread's to write: it moves a lane only when the thread that carried it has ended, and the new carrier
 * gets no page of the lane before its peer knows of the move; it reads with Atomics what it may have waited for in `readv`.
 * `stored` of a lane is written by one thread at a time, the one whose channel carries it. Another reads it when that thread has said
 * `ended`, and that message orders both; at any other time it is a hint, whose round and page may be of two moments.
 */
export class LaneTable {
  readonly lanes: number;
  readonly #carrier: Int32Array;
  readonly #stored: Float64Array;

  constructor({ carrier, stored }: SharedLanes) {
    this.lanes = carrier.length;
    this.#carrier = carrier;
    this.#stored = stored;
  }

  /** A fresh table: channel `i` carries lane `i`, and nothing is stored. */
  static allocate(lanes: number): LaneTable {
    const table = new LaneTable({
      carrier: new Int32Array(new SharedArrayBuffer(lanes * 4)),
      stored: new Float64Array(new SharedArrayBuffer(lanes * 16)),
    });
    for (let lane = 0; lane < lanes; lane++) table.move(lane, lane);
    return table;
  }

  share(): SharedLanes {
    return { carrier: this.#carrier, stored: this.#stored };
  }

  laneOf(page: number): number {
    return laneOfPage(page, this.lanes);
  }

  carrierOf(lane: number): number {
    return Atomics.load(this.#carrier, lane);
  }

  /** Lets `channel` carry the lane from now on. @throws {MigrationError} ERR_RUN_OUT_OF_RANGE */
  move(lane: number, channel: number): void {
    this.#check(lane);
    this.#check(channel); // there are as many channels as lanes
    Atomics.store(this.#carrier, lane, channel);
  }

  /** In ascending order. */
  lanesOf(channel: number): number[] {
    return [...this.#carrier.keys()].filter((lane) => this.carrierOf(lane) === channel);
  }

  /** @throws {MigrationError} ERR_RUN_OUT_OF_RANGE */
  storedAt(lane: number): Omit<LanePoint, "lane"> {
    this.#check(lane);
    return { round: this.#stored[2 * lane]!, page: this.#stored[2 * lane + 1]! };
  }

  /** Everything of this round below `page`. @throws {MigrationError} ERR_RUN_OUT_OF_RANGE */
  markStored(lane: number, round: number, page: number): void {
    this.#check(lane);
    this.#stored[2 * lane] = round;
    this.#stored[2 * lane + 1] = page;
  }

  #check(number: number): void {
    if (!Number.isInteger(number) || number < 0 || number >= this.lanes)
      throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `Lane or channel ${number} of ${this.lanes}`);
  }
}
