/**
 * Two ways for packets to cross a connection, one codec. Direct: blocking system calls straight from and into guest memory, on Linux.
 * Portable: Node's own sockets, anywhere.
 */
export type PumpKind = "direct" | "portable";

/** The sending end of one channel. A promise is returned only when the peer is slower than we are. */
export interface SendPump {
  /** Sends header and run table (`head`), then the raw pages of its data runs from guest memory. @throws {MigrationError} ERR_LINK_LOST */
  sendPages(head: Buffer, dataRuns: number): Promise<void> | undefined;
  /** Sends `head`, then `payload`; both are the caller's again when this returns. */
  sendBytes(head: Buffer, payload: Buffer | undefined): Promise<void> | undefined;
  /** Bytes a second from now on; 0 lifts the limit. */
  setPacing(bytesPerSecond: number): void;
  close(): void;
}
