import { FRAME_BYTES_MAX } from "@precopy/protocol";
import type { MemoryAccess } from "./memory-access.js";

/**
 * The card's rings in guest memory. From the card's address on, little-endian u32 counters, each in its own 64 bytes:
 *   0 rxProduced, by the device | 64 rxConsumed, by the guest | 128 txProduced, by the guest | 192 txConsumed, by the device
 * then, from the next page on, RING_SLOTS receive slots and as many transmit slots of SLOT_BYTES: length u32, frame.
 * Counters only grow (modulo 2^32); slot `n` is counter modulo RING_SLOTS. One producer and one consumer each, who store the slot
 * first and the counter (atomically) second, so a counter that was read covers slots that are complete.
 */
export const RING_SLOTS = 128;
export const SLOT_BYTES = 2048;
const RX_PRODUCED = 0;
const RX_CONSUMED = 64;
const TX_PRODUCED = 128;
const TX_CONSUMED = 192;
const SLOTS_AT = 4096;
/** Guest memory that one card takes. */
export const NIC_BYTES = SLOTS_AT + 2 * RING_SLOTS * SLOT_BYTES;

/** One direction of the card: a ring with its two counters. */
class Ring {
  readonly #memory: MemoryAccess;
  readonly #producedAt: number;
  readonly #consumedAt: number;
  readonly #slotsAt: number;

  constructor(memory: MemoryAccess, producedAt: number, consumedAt: number, slotsAt: number) {
    this.#memory = memory;
    this.#producedAt = producedAt;
    this.#consumedAt = consumedAt;
    this.#slotsAt = slotsAt;
  }

  /** False if the ring is full or the frame too long: a card drops, it never waits. */
  put(frame: Uint8Array): boolean {
    const produced = this.#memory.loadU32(this.#producedAt);
    if ((produced - this.#memory.loadU32(this.#consumedAt)) >>> 0 >= RING_SLOTS || frame.byteLength > FRAME_BYTES_MAX) return false;
    const slot = this.#slotsAt + (produced % RING_SLOTS) * SLOT_BYTES;
    this.#memory.write(slot + 4, frame);
    this.#memory.storeU32(slot, frame.byteLength);
    this.#memory.storeU32(this.#producedAt, produced + 1);
    return true;
  }

  /** The oldest frame, a copy, or undefined if there is none. A length from guest memory is not believed. */
  take(): Uint8Array | undefined {
    const consumed = this.#memory.loadU32(this.#consumedAt);
    if (this.#memory.loadU32(this.#producedAt) === consumed) return undefined;
    const slot = this.#slotsAt + (consumed % RING_SLOTS) * SLOT_BYTES;
    const frame = new Uint8Array(Math.min(this.#memory.loadU32(slot), FRAME_BYTES_MAX));
    this.#memory.read(slot + 4, frame);
    this.#memory.storeU32(this.#consumedAt, consumed + 1);
    return frame;
  }
}

const receiveRing = (memory: MemoryAccess, at: number): Ring => new Ring(memory, at + RX_PRODUCED, at + RX_CONSUMED, at + SLOTS_AT);
const transmitRing = (memory: MemoryAccess, at: number): Ring =>
  new Ring(memory, at + TX_PRODUCED, at + TX_CONSUMED, at + SLOTS_AT + RING_SLOTS * SLOT_BYTES);

/** The guest's side: what a program sends and receives with. */
export class NicDriver {
  readonly #receive: Ring;
  readonly #transmit: Ring;
  readonly #kick: () => void;

  /** @param kick tells the device that there is something to send. */
  constructor(memory: MemoryAccess, at: number, kick: () => void) {
    this.#receive = receiveRing(memory, at);
    this.#transmit = transmitRing(memory, at);
    this.#kick = kick;
  }

  receive(): Uint8Array | undefined {
    return this.#receive.take();
  }

  /** False if the transmit ring is full: keep the frame and try again later. */
  send(frame: Uint8Array): boolean {
    const isSent = this.#transmit.put(frame);
    this.#kick();
    return isSent;
  }
}

/** The device's side, outside the guest. */
export class NicRings {
  readonly #receive: Ring;
  readonly #transmit: Ring;

  constructor(memory: MemoryAccess, at: number) {
    this.#receive = receiveRing(memory, at);
    this.#transmit = transmitRing(memory, at);
  }

  /** False if the guest is too slow and the frame was dropped. */
  deliver(frame: Uint8Array): boolean {
    return this.#receive.put(frame);
  }

  takeSent(): Uint8Array | undefined {
    return this.#transmit.take();
  }
}
