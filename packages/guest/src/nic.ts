import { BROADCAST_MAC, ETHERNET_HEADER_BYTES, MigrationError, announceFrame, formatMac } from "@precopy/protocol";
import type { Device } from "./device.js";
import type { MemoryAccess } from "./memory-access.js";
import { NicRings, RING_SLOTS } from "./nic-ring.js";

/** Where a card's frames go to and come from. Frames are Ethernet, without checksum. Nothing here touches guest memory. */
export interface FrameBackend {
  /** Lets frames in, and out at `epoch`, until `stop`; a second call renews both. `frame` is the callee's for the length of the call. */
  start(epoch: number, onFrame: (frame: Uint8Array) => void): void;
  /** After it no frame comes in and none is accepted. */
  stop(): void;
  /** False if the frame was dropped: stopped, or more under way than its bound. The frame may be changed once this returns. */
  send(frame: Uint8Array): boolean;
  /** Idempotent. */
  close(): void;
}

/**
 * When an address is announced after a move, in ms after the one before: QEMU's announce-initial 50, announce-step 100, announce-max 550
 * and announce-rounds 5 (migration/options.c; the first at once and the formula of qemu_announce_timer_step() in net/announce.c).
 */
const ANNOUNCE = { initialMs: 50, stepMs: 100, maxMs: 550, rounds: 5 } as const;
export const ANNOUNCE_DELAYS_MS: readonly number[] = Array.from({ length: ANNOUNCE.rounds }, (_, round) =>
  round === 0 ? 0 : Math.min(ANNOUNCE.initialMs + (round - 1) * ANNOUNCE.stepMs, ANNOUNCE.maxMs),
);

export interface NicOptions {
  /** Guest memory with the guest's dirty log. */
  readonly access: MemoryAccess;
  /** Guest address of the rings. */
  readonly at: number;
  readonly mac: string;
  /** Becomes the card's own: it closes it. */
  readonly backend: FrameBackend;
  /** Tells the guest that a frame has arrived. */
  readonly wakeGuest: () => void;
}

/** Frames; for people, nothing depends on them. */
export interface NicStatistics {
  readonly received: number;
  readonly sent: number;
  /** Either way: ring full, back end full, or not a frame. */
  readonly dropped: number;
}
const isStatistics = (value: unknown): value is NicStatistics =>
  typeof value === "object" &&
  value !== null &&
  "received" in value &&
  "sent" in value &&
  "dropped" in value &&
  [value.received, value.sent, value.dropped].every((count) => Number.isSafeInteger(count) && Number(count) >= 0);

/** The guest's network card: rings in guest memory, a back end outside. */
export class Nic implements Device {
  readonly #rings: NicRings;
  readonly #mac: string;
  readonly #backend: FrameBackend;
  readonly #wakeGuest: () => void;
  #epoch: number | undefined;
  #isRunning = false;
  #announcing: NodeJS.Timeout | undefined;
  #received = 0;
  #sent = 0;
  #dropped = 0;

  constructor({ access, at, mac, backend, wakeGuest }: NicOptions) {
    this.#rings = new NicRings(access, at);
    this.#mac = mac;
    this.#backend = backend;
    this.#wakeGuest = wakeGuest;
  }

  /** Announces its address: on QEMU's schedule after a move, once on first boot and at a new epoch. Harmless while it runs. */
  start(epoch: number, isMoved: boolean): void {
    const isNews = this.#epoch !== epoch;
    this.#epoch = epoch;
    this.#isRunning = true;
    this.#backend.start(epoch, (frame) => this.#receive(frame));
    if (isMoved || isNews) this.#announce(isMoved ? 0 : ANNOUNCE.rounds - 1);
    this.#drain();
  }

  kick(): void {
    if (this.#isRunning) this.#drain();
  }

  /** Sends what the guest has already put into the transmit ring: its vCPUs stand still, and this side still owns it. */
  quiesce(): void {
    if (this.#isRunning) this.#drain();
    this.#stop();
  }

  statistics(): NicStatistics {
    return { received: this.#received, sent: this.#sent, dropped: this.#dropped };
  }

  save(): NicStatistics {
    return this.statistics();
  }

  /** @throws {MigrationError} ERR_BAD_MESSAGE */
  load(state: unknown): void {
    if (!isStatistics(state)) throw new MigrationError("ERR_BAD_MESSAGE", "This is not the state of a network card");
    this.#received = state.received;
    this.#sent = state.sent;
    this.#dropped = state.dropped;
  }

  close(): void {
    this.#stop();
    this.#backend.close();
  }

  #stop(): void {
    this.#isRunning = false;
    clearTimeout(this.#announcing);
    this.#backend.stop();
  }

  /** As a card does that is not in promiscuous mode: what was only flooded here takes no slot. */
  #receive(frame: Uint8Array): void {
    if (!this.#isRunning || frame.byteLength < ETHERNET_HEADER_BYTES) return;
    const target = formatMac(frame);
    if (target !== this.#mac && target !== BROADCAST_MAC) return;
    if (this.#rings.deliver(frame)) this.#received++;
    else this.#dropped++;
    this.#wakeGuest();
  }

  /** One ring at most: a guest that lies about its counters costs no more, and an honest one kicks again after each frame. */
  #drain(): void {
    for (let taken = 0; taken < RING_SLOTS; taken++) {
      const frame = this.#rings.takeSent();
      if (frame === undefined) return;
      this.#send(frame);
    }
  }

  #send(frame: Uint8Array): void {
    if (frame.byteLength >= ETHERNET_HEADER_BYTES && this.#backend.send(frame)) this.#sent++;
    else this.#dropped++;
  }

  #announce(round: number): void {
    clearTimeout(this.#announcing);
    this.#send(announceFrame(this.#mac));
    const delayMs = ANNOUNCE_DELAYS_MS[round + 1];
    if (delayMs !== undefined) this.#announcing = setTimeout(() => this.#announce(round + 1), delayMs);
  }
}
