import type { VisitPages } from "@precopy/guest";
import { isLinuxAvailable, mayUseCongestionControl } from "@precopy/linux";
import type { LinkState, SocketHandle } from "@precopy/linux";
import { MigrationError, PacketDecoder, PacketKind, PageEncoding } from "@precopy/protocol";
import type { PacketHeader } from "@precopy/protocol";
import type { ChannelStore } from "./page-store.js";
import { dropped } from "./young-garbage.js";

export type { LinkState } from "@precopy/linux";

/** For how long, since the connection was made, something was on its way that the peer had room for: it was the link that was waited for. ms */
export const linkLimitedMs = ({ busyMs, peerLimitedMs }: LinkState): number => busyMs - peerLimitedMs;
/**
 * Of the time: less, and it is a processor at either end that limits. Over 1 Gbit/s it was 0.94 and more; over loopback and unshaped links, both agents
 * and the guest on two processors, 0.2 to 0.85.
 */
export const LINK_BOUND = 0.9;

/**
 * Two ways for packets to cross a connection, one codec. Direct: blocking system calls straight from and into guest memory, on Linux.
 * Portable: Node's own sockets, anywhere.
 */
export type PumpKind = "direct" | "portable";

/** What `auto` asks for: loopback and most data centres carry about twice as much with it as with BBR, where the kernel lets us have it. */
const CONGESTION_CONTROL = "cubic";

const congestionControlRefused = (name: string): MigrationError =>
  new MigrationError(
    "ERR_CAPABILITY",
    `The kernel here refuses congestion control ${name}: load its module, and add it to net.ipv4.tcp_allowed_congestion_control`,
  );

/** @param wanted a name, or `auto`. @throws {MigrationError} ERR_CAPABILITY if page channels of this host cannot have it. */
export function checkCongestionControl(wanted: string): void {
  if (wanted === "auto") return;
  if (!isLinuxAvailable)
    throw new MigrationError("ERR_CAPABILITY", `Congestion control ${wanted} cannot be set here: it takes Linux and koffi`);
  if (!mayUseCongestionControl(wanted)) throw congestionControlRefused(wanted);
}

/** @returns the name of what it is now, if that was ours to choose. @throws {MigrationError} ERR_CAPABILITY if the kernel refuses the one that was named */
export function setCongestionControl(socket: SocketHandle, wanted = "auto"): string | undefined {
  const name = wanted === "auto" ? CONGESTION_CONTROL : wanted;
  const isSet = socket.tryCongestionControl(name);
  if (!isSet && wanted !== "auto") throw congestionControlRefused(wanted);
  return isSet ? name : undefined;
}

/** The sending end of one channel. A promise is returned only when the peer is slower than we are. */
export interface SendPump {
  /**
   * Sends header and run table (`head`), then the raw pages of its data runs from guest memory.
   * @param after told of all of them, SLICE_PAGES at most at a time, each right after it was copied from: it is in the processor's cache then.
   * @throws {MigrationError} ERR_LINK_LOST
   */
  sendPages(head: Buffer, dataRuns: number, after?: VisitPages): Promise<void> | undefined;
  /** Sends `head`, then `payload`; both are the caller's again when this returns. */
  sendBytes(head: Buffer, payload: Buffer | undefined): Promise<void> | undefined;
  /** Bytes a second from now on; 0 lifts the limit. */
  setPacing(bytesPerSecond: number): void;
  /** Bytes that were taken and not acknowledged by the peer's system; undefined where nobody can tell. */
  backlogBytes(): number | undefined;
  /** Undefined where nobody can tell. */
  linkState(): LinkState | undefined;
  close(): void;
}

/** What turns a channel's bytes into pages of `store`, however they are cut; tells of each FLUSH. */
export function decodeInto(store: ChannelStore, onFlush: (header: PacketHeader) => void): PacketDecoder {
  let current: PacketHeader | undefined;
  return new PacketDecoder(store.bounds, {
    begin: (header, head, dataPages) => {
      current = header;
      store.begin(header, head, dataPages);
      if (header.encoding !== PageEncoding.Raw) dropped(header.payloadBytes); // the decoder's buffer of it
    },
    payload: (bytes) => store.payload(bytes),
    end: () => {
      store.end();
      if (current?.kind === PacketKind.Flush) onFlush(current);
    },
  });
}
