import { createSocket } from "node:dgram";
import type { Socket } from "node:dgram";
import { lookup } from "node:dns/promises";
import { once } from "node:events";
import { hostNowMs } from "@precopy/guest";
import { DatagramKind, MigrationError, NO_GUEST_TAG, decodeDatagram, formatAddress, formatMac } from "@precopy/protocol";
import type { Address, Datagram } from "@precopy/protocol";

export const SWITCH_PORTS_MAX = 256;
export const SWITCH_MACS_MAX = 4096;
/** Guests whose epoch is remembered. They are not forgotten with their port: an old owner may come back after any time. */
export const SWITCH_GUESTS_MAX = 4096;
/** A port that sent nothing for this long is gone; a card says hello every second. */
export const PORT_AGE_MS = 10_000;
/** How often it looks for such ports, as long as there are datagrams. */
const SWEEP_MS = 1000;
const BUFFER_BYTES = 2 ** 20;
/** Datagrams the system has not taken yet; more are dropped. */
const UNDER_WAY_MAX = 4096;

/** Datagrams, but for the first three: what is known now. */
export interface SwitchStatistics {
  readonly ports: number;
  readonly macs: number;
  readonly guests: number;
  readonly received: number;
  /** Sent, each copy of a flooded frame counted. */
  readonly sent: number;
  /** Not ours, or with a source address that is no station's. */
  readonly droppedMalformed: number;
  /** Of a guest that has been seen at a newer epoch. */
  readonly droppedStaleEpoch: number;
  /** From a port that claims the address of a guest somewhere else. */
  readonly droppedForeignMac: number;
  /** Beyond the bounds above. */
  readonly droppedFull: number;
}

export interface SwitchPort extends Address {
  readonly lastSeenMs: number;
}
interface Station {
  readonly port: string;
  readonly guestTag: string;
  readonly epoch: number;
}
type DropReason = "droppedMalformed" | "droppedStaleEpoch" | "droppedForeignMac" | "droppedFull";

/** What a switch has learnt, and where a datagram goes by it. No I/O: the time comes from outside. */
export class ForwardingTable {
  readonly #ports = new Map<string, SwitchPort>();
  readonly #stations = new Map<string, Station>();
  /** Guest tag to the newest epoch seen. */
  readonly #epochs = new Map<string, number>();
  readonly #dropped: Record<DropReason, number> = { droppedMalformed: 0, droppedStaleEpoch: 0, droppedForeignMac: 0, droppedFull: 0 };
  #sweptMs = 0;

  /** Learns from a datagram and says which ports get it: none if it is dropped. Undefined `datagram`: it was malformed. */
  accept(datagram: Datagram | undefined, from: Address, nowMs: number): readonly SwitchPort[] {
    if (nowMs - this.#sweptMs >= SWEEP_MS) this.sweep(nowMs);
    const isGroup = datagram?.kind === DatagramKind.Frame && (datagram.frame[6]! & 1) !== 0; // nobody sends from a group's address
    if (datagram === undefined || isGroup) return this.#drop("droppedMalformed");
    if (!this.#isCurrent(datagram)) return this.#drop("droppedStaleEpoch");
    const port = formatAddress(from);
    const isFull =
      (!this.#ports.has(port) && this.#ports.size >= SWITCH_PORTS_MAX) ||
      (datagram.guestTag !== NO_GUEST_TAG && !this.#epochs.has(datagram.guestTag) && this.#epochs.size >= SWITCH_GUESTS_MAX);
    if (isFull) return this.#drop("droppedFull");
    if (datagram.guestTag !== NO_GUEST_TAG) this.#epochs.set(datagram.guestTag, datagram.epoch);
    this.#ports.set(port, { ...from, lastSeenMs: nowMs });
    return datagram.kind === DatagramKind.Hello ? [] : this.#forward(datagram, port);
  }

  /** Forgets ports that were silent for PORT_AGE_MS, and what was learnt there. */
  sweep(nowMs: number): void {
    this.#sweptMs = nowMs;
    for (const [key, { lastSeenMs }] of this.#ports) if (nowMs - lastSeenMs >= PORT_AGE_MS) this.#ports.delete(key);
    for (const [mac, { port }] of this.#stations) if (!this.#ports.has(port)) this.#stations.delete(mac);
  }

  counts(): Omit<SwitchStatistics, "received" | "sent"> {
    return { ports: this.#ports.size, macs: this.#stations.size, guests: this.#epochs.size, ...this.#dropped };
  }

  #forward(datagram: Datagram, from: string): readonly SwitchPort[] {
    const { frame, guestTag, epoch } = datagram;
    const source = formatMac(frame.subarray(6));
    const known = this.#stations.get(source);
    if (known === undefined && this.#stations.size >= SWITCH_MACS_MAX) return this.#drop("droppedFull");
    if (known !== undefined && known.port !== from && !mayMove(known, datagram)) return this.#drop("droppedForeignMac");
    if (known === undefined || mayMove(known, datagram)) this.#stations.set(source, { port: from, guestTag, epoch });
    const target = this.#locate(formatMac(frame));
    if (target === undefined) return [...this.#ports].filter(([key]) => key !== from).map(([, port]) => port);
    const port = this.#ports.get(target);
    return target === from || port === undefined ? [] : [port];
  }

  /** The port of an address; not known any more if its guest was since heard of at a newer epoch, even if nothing announced it there. */
  #locate(mac: string): string | undefined {
    const station = this.#stations.get(mac);
    return station === undefined || station.epoch < (this.#epochs.get(station.guestTag) ?? 0) ? undefined : station.port;
  }

  #isCurrent({ guestTag, epoch }: Datagram): boolean {
    return guestTag === NO_GUEST_TAG || epoch >= (this.#epochs.get(guestTag) ?? 0);
  }

  #drop(reason: DropReason): readonly SwitchPort[] {
    this.#dropped[reason]++;
    return [];
  }
}

/** A guest's address goes where that guest is, and an older epoch of it was dropped before; any other goes where it was heard last. */
const mayMove = (known: Station, { guestTag }: Datagram): boolean => known.guestTag === NO_GUEST_TAG || known.guestTag === guestTag;

/**
 * A small learning switch for frames in UDP datagrams (protocol/frame.ts). A port is the address and port that datagrams come from. Frames
 * go to the port where their target address was heard, else to all others. What a guest's former owner still sends is dropped.
 * It trusts its network: whoever can send to it can claim addresses and epochs that are not taken yet.
 */
export class Switch {
  readonly #socket: Socket;
  readonly #table = new ForwardingTable();
  #received = 0;
  #sent = 0;
  #overrun = 0;
  #underWay = 0;
  #isClosed = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("message", (bytes, { address, port }) => this.#receive(bytes, { host: address, port }));
    socket.on("error", () => {}); // an ICMP answer to an earlier datagram: that port is gone, and ages out
  }

  /** @throws {MigrationError} ERR_PORT_IN_USE, ERR_ADDRESS if this host has no such address or the port is not ours to take. */
  static async listen({ host, port }: Address): Promise<Switch> {
    let socket: Socket | undefined;
    try {
      const { address, family } = await lookup(host);
      socket = createSocket({
        type: family === 6 ? "udp6" : "udp4",
        recvBufferSize: BUFFER_BYTES,
        sendBufferSize: BUFFER_BYTES,
        lookup: (known, _options, found) => found(null, known, family), // ports are known by number: nothing to resolve a datagram
      });
      const listening = once(socket, "listening");
      socket.bind({ address, port, exclusive: true });
      await listening;
      return new Switch(socket);
    } catch (cause) {
      socket?.close();
      const isTaken = cause instanceof Error && "code" in cause && cause.code === "EADDRINUSE";
      throw new MigrationError(isTaken ? "ERR_PORT_IN_USE" : "ERR_ADDRESS", `Cannot listen on UDP ${formatAddress({ host, port })}`, {
        cause,
      });
    }
  }

  get address(): Address {
    const { address, port } = this.#socket.address();
    return { host: address, port };
  }

  statistics(): SwitchStatistics {
    this.#table.sweep(hostNowMs());
    const counts = this.#table.counts();
    return { ...counts, droppedFull: counts.droppedFull + this.#overrun, received: this.#received, sent: this.#sent };
  }

  /** Idempotent. Resolves when the port is free again. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await new Promise<void>((resolve) => this.#socket.close(resolve));
  }

  #receive(bytes: Buffer, from: Address): void {
    this.#received++;
    for (const { host, port } of this.#table.accept(decodeDatagram(bytes), from, hostNowMs())) this.#send(bytes, host, port);
  }

  #send(bytes: Buffer, host: string, port: number): void {
    if (this.#underWay >= UNDER_WAY_MAX) {
      this.#overrun++;
      return;
    }
    this.#underWay++;
    this.#sent++;
    this.#socket.send(bytes, port, host, () => this.#underWay--); // an undeliverable datagram is lost, as on any network
  }
}
