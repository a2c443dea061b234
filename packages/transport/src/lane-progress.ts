import { MigrationError, PacketKind, STRIPE_PAGES } from "@precopy/protocol";
import type { PacketHeader, RunBounds } from "@precopy/protocol";
import { lanesOfBits } from "./lane-table.js";
import type { LaneTable } from "./lane-table.js";

/** Which pages a channel may bring to the target, and how far it came on each lane; packet by packet. */
export class LaneProgress {
  readonly bounds: RunBounds;
  readonly #lanes: LaneTable;
  readonly #channel: number;
  readonly #pages: number;
  readonly #ends: Float64Array; // by lane: where the packet's last page of it ends; 0 without one

  /** @param pages of the guest */
  constructor(lanes: LaneTable, channel: number, pages: number) {
    this.#lanes = lanes;
    this.#channel = channel;
    this.#pages = pages;
    this.#ends = new Float64Array(lanes.lanes);
    this.bounds = {
      pages,
      mayCarry: (first, count) =>
        Math.floor(first / STRIPE_PAGES) === Math.floor((first + count - 1) / STRIPE_PAGES) &&
        lanes.carrierOf(lanes.laneOf(first)) === channel,
    };
  }

  /** @throws {MigrationError} ERR_RUN_OUT_OF_RANGE for a FLUSH of a lane that its channel does not carry. */
  begin({ kind, lanes: bits, round }: PacketHeader): void {
    if (kind !== PacketKind.Flush) return;
    for (const lane of lanesOfBits(bits))
      if (lane >= this.#lanes.lanes || this.#lanes.carrierOf(lane) !== this.#channel)
        throw new MigrationError(
          "ERR_RUN_OUT_OF_RANGE",
          `FLUSH of round ${round} for lane ${lane}, which channel ${this.#channel} does not carry`,
        );
  }

  /** Pages of the packet, of one stripe, are where they belong up to `end`. */
  reach(first: number, end: number): void {
    const lane = this.#lanes.laneOf(first);
    if (end > this.#ends[lane]!) this.#ends[lane] = end;
  }

  /** All of the packet is. */
  end({ kind, round, lanes: bits }: PacketHeader): void {
    for (let lane = 0; lane < this.#ends.length; lane++) if (this.#ends[lane]! > 0) this.#lanes.markStored(lane, round, this.#ends[lane]!);
    this.#ends.fill(0);
    // Only the lanes it names: one that was moved here since it was sent stands where its old carrier left it.
    if (kind === PacketKind.Flush) for (const lane of lanesOfBits(bits)) this.#lanes.markStored(lane, round, this.#pages);
  }
}
