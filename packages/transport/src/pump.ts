import type { VisitPages } from "@precopy/guest";
import { mayUseCongestionControl } from "@precopy/linux";
import type { LinkState } from "@precopy/linux";
import { MigrationError } from "@precopy/protocol";

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

export const congestionControlRefused = (name: string): MigrationError =>
  new MigrationError(
    "ERR_CAPABILITY",
    `The kernel here refuses congestion control ${name}: load its module, and add it to net.ipv4.tcp_allowed_congestion_control`,
  );

/** @param wanted a name, or `auto`. @throws {MigrationError} ERR_CAPABILITY if page channels of this host cannot have it with that pump. */
export function checkCongestionControl(wanted: string, pump: PumpKind): void {
  if (wanted === "auto") return;
  if (pump !== "direct")
    throw new MigrationError("ERR_CAPABILITY", `Congestion control ${wanted} needs the direct pump: the ${pump} one cannot set it`);
  if (!mayUseCongestionControl(wanted)) throw congestionControlRefused(wanted);
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
