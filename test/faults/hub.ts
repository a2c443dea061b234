import { createSocket } from "node:dgram";
import type { Socket } from "node:dgram";
import { once } from "node:events";
import { DatagramKind, NO_GUEST_TAG, decodeDatagram, formatAddress } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";

const PORT_AGE_MS = 10_000;

/** The newest owner of a guest that has sent a frame. */
interface Owner {
  readonly epoch: number;
  readonly port: string;
}

/**
 * A network that hides nothing: every frame goes to every other port. A switch would drop what a former owner sends, and send it no requests
 * that it could answer; here two owners both get each request, and the second one's first frame is a finding.
 */
export class Hub {
  readonly #socket: Socket;
  readonly #ports = new Map<string, { readonly address: Address; lastSeenMs: number }>();
  readonly #owners = new Map<string, Owner>();
  /** By guest tag; what a former owner sent after a newer one had. */
  readonly #findings = new Map<string, string>();

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("message", (bytes, { address, port }) => this.#relay(bytes, { host: address, port }));
    socket.on("error", () => {}); // a port that is gone
  }

  static async open(): Promise<Hub> {
    const socket = createSocket({ type: "udp4", recvBufferSize: 2 ** 20, sendBufferSize: 2 ** 20 });
    socket.bind(0, "127.0.0.1");
    await once(socket, "listening");
    return new Hub(socket);
  }

  get address(): Address {
    const { address, port } = this.#socket.address();
    return { host: address, port };
  }

  /** Epoch of the latest frame of a guest; 0 if it sent none. */
  epochOf(guestTag: string): number {
    return this.#owners.get(guestTag)?.epoch ?? 0;
  }

  /** What shows that two sides ran the guest; undefined as it should be. Forgets it. */
  takeFinding(guestTag: string): string | undefined {
    const finding = this.#findings.get(guestTag);
    this.#findings.delete(guestTag);
    return finding;
  }

  close(): void {
    this.#socket.close();
  }

  #relay(bytes: Buffer, address: Address): void {
    const datagram = decodeDatagram(bytes);
    if (datagram === undefined) return;
    const nowMs = performance.now();
    const from = formatAddress(address);
    this.#ports.set(from, { address, lastSeenMs: nowMs });
    if (datagram.kind !== DatagramKind.Frame) return;
    if (datagram.guestTag !== NO_GUEST_TAG) this.#check(datagram.guestTag, { epoch: datagram.epoch, port: from });
    for (const [name, port] of this.#ports) {
      if (nowMs - port.lastSeenMs > PORT_AGE_MS) this.#ports.delete(name);
      else if (name !== from) this.#socket.send(bytes, port.address.port, port.address.host, () => {}); // or it is lost, as on any network
    }
  }

  /** An epoch belongs to one card: a second one at the same epoch is a second owner as well. */
  #check(tag: string, now: Owner): void {
    const known = this.#owners.get(tag);
    if (known === undefined || now.epoch > known.epoch) this.#owners.set(tag, now);
    else if (now.epoch < known.epoch) this.#findings.set(tag, `a frame of epoch ${now.epoch} after one of epoch ${known.epoch}`);
    else if (now.port !== known.port) this.#findings.set(tag, `two cards sent frames at epoch ${now.epoch}`);
  }
}
