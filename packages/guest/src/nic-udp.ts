import { createSocket } from "node:dgram";
import type { RemoteInfo, Socket } from "node:dgram";
import { lookup } from "node:dns/promises";
import { once } from "node:events";
import { DatagramKind, MigrationError, decodeDatagram, encodeDatagram, formatAddress } from "@precopy/protocol";
import type { Address, Datagram } from "@precopy/protocol";
import type { FrameBackend } from "./nic.js";

/** How often a port says that it is there; a switch forgets it after ten times that. */
const HELLO_MS = 1000;
/** Room for the frames of a busy moment; the kernel grants what net.core.rmem_max allows. */
const RECEIVE_BUFFER_BYTES = 2 ** 20;
/** Datagrams the system has not taken yet; more are dropped, as a card does. */
const UNDER_WAY_MAX = 1024;

/**
 * The `udp` back end: frames in datagrams (protocol/frame.ts) to one switch and back. The socket is connected, so the kernel delivers
 * datagrams of that address and port only. A switch that is down costs frames, not the guest: that a datagram could not be delivered is no
 * error here. `send` hands over at the end of this turn of the event loop (node:dgram has no synchronous send): what was sent before a
 * `stop` is out before anything that a later turn does.
 */
export class UdpBackend implements FrameBackend {
  readonly #socket: Socket;
  readonly #switch: RemoteInfo | { readonly address: string; readonly port: number };
  readonly #guestTag: string;
  #epoch = 0;
  #onFrame: ((frame: Buffer, datagram: Datagram) => void) | undefined;
  #hello: NodeJS.Timeout | undefined;
  #underWay = 0;
  #isClosed = false;

  private constructor(socket: Socket, guestTag: string) {
    this.#socket = socket;
    this.#switch = socket.remoteAddress();
    this.#guestTag = guestTag;
    socket.on("message", (bytes, from) => this.#receive(bytes, from));
    socket.on("error", () => {}); // an ICMP answer to an earlier datagram: the switch is down, and the frame is lost as on any network
  }

  /**
   * Resolves the switch's name, once. Nothing is sent before `start`.
   * @param guestTag see protocol/frame.ts; NO_GUEST_TAG for a port that is no guest.
   * @throws {MigrationError} ERR_DEVICE_UNAVAILABLE
   */
  static async open(target: Address, guestTag: string): Promise<UdpBackend> {
    let socket: Socket | undefined;
    try {
      const { address, family } = await lookup(target.host);
      socket = createSocket({ type: family === 6 ? "udp6" : "udp4", recvBufferSize: RECEIVE_BUFFER_BYTES });
      const connected = once(socket, "connect");
      socket.connect(target.port, address);
      await connected;
      return new UdpBackend(socket, guestTag);
    } catch (cause) {
      socket?.close();
      throw new MigrationError("ERR_DEVICE_UNAVAILABLE", `No UDP socket to the switch at ${formatAddress(target)}`, { cause });
    }
  }

  /** @param onFrame gets the frame, and the datagram that it came in. */
  start(epoch: number, onFrame: (frame: Buffer, datagram: Datagram) => void): void {
    if (this.#isClosed) throw new MigrationError("ERR_INTERNAL", "start() after close()");
    this.#epoch = epoch;
    this.#onFrame = onFrame;
    clearInterval(this.#hello);
    this.#hello = setInterval(() => this.#sayHello(), HELLO_MS);
    this.#sayHello();
  }

  stop(): void {
    clearInterval(this.#hello);
    this.#onFrame = undefined;
  }

  send(frame: Uint8Array): boolean {
    if (this.#onFrame === undefined || this.#underWay >= UNDER_WAY_MAX) return false;
    this.#transmit(DatagramKind.Frame, frame);
    return true;
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.stop();
    this.#socket.close();
  }

  #sayHello(): void {
    this.#transmit(DatagramKind.Hello, new Uint8Array(0));
  }

  #transmit(kind: DatagramKind, frame: Uint8Array): void {
    this.#underWay++;
    // the callback comes with or without an error; the error is that of an earlier datagram, see above
    this.#socket.send(encodeDatagram(kind, this.#guestTag, this.#epoch, frame), () => this.#underWay--);
  }

  /** Checks the sender although the socket is connected: a datagram may have been queued before it was. */
  #receive(bytes: Buffer, from: RemoteInfo): void {
    if (from.address !== this.#switch.address || from.port !== this.#switch.port) return;
    const datagram = decodeDatagram(bytes);
    if (datagram?.kind === DatagramKind.Frame) this.#onFrame?.(datagram.frame, datagram);
  }
}
