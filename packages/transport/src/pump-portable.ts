import type { Socket } from "node:net";
import { SLICE_PAGES } from "@precopy/guest";
import type { GuestMemory, VisitPages } from "@precopy/guest";
import { HEADER_BYTES, MigrationError, PAGE_BYTES, RUN_BYTES, SOCKET_POLL_MS } from "@precopy/protocol";
import type { PacketHeader } from "@precopy/protocol";
import { ChannelStopped } from "./page-store.js";
import type { ChannelStore } from "./page-store.js";
import { decodeInto } from "./pump.js";
import type { SendPump } from "./pump.js";
import { TokenBucket } from "./token-bucket.js";
import { dropped } from "./young-garbage.js";

/** Copies pages out of guest memory and hands them to Node's socket. */
export class PortableSendPump implements SendPump {
  readonly #socket: Socket;
  readonly #memory: GuestMemory;
  readonly #bucket = new TokenBucket();
  readonly #mayGoOn: () => boolean;
  #failure: MigrationError | undefined;

  /** @param mayGoOn asked while it waits for its turn. @param onLost once it is closed, in the middle of a round or between two. */
  constructor(socket: Socket, memory: GuestMemory, mayGoOn: () => boolean, onLost: (failure: MigrationError) => void) {
    this.#socket = socket;
    this.#memory = memory;
    this.#mayGoOn = mayGoOn;
    socket.setNoDelay(true);
    socket.on("error", (cause) => {
      this.#failure ??= new MigrationError("ERR_LINK_LOST", "A page channel broke", { cause });
    });
    socket.on("close", () => {
      this.#failure ??= new ChannelStopped();
      onLost(this.#failure);
    });
    // The peer sends nothing: what is read here is that it has gone.
    socket.on("end", () => socket.destroy()).resume();
  }

  sendPages(head: Buffer, dataRuns: number, after?: VisitPages): Promise<void> | undefined {
    let bytes = head.byteLength;
    for (let run = 0, at = HEADER_BYTES; run < dataRuns; run++, at += RUN_BYTES) bytes += head.readUInt32LE(at + 4) * PAGE_BYTES;
    const packet = Buffer.allocUnsafe(bytes);
    packet.set(head);
    for (let run = 0, at = HEADER_BYTES, to = head.byteLength; run < dataRuns; run++, at += RUN_BYTES) {
      let first = head.readUInt32LE(at);
      for (const end = first + head.readUInt32LE(at + 4); first < end; ) {
        const pages = Math.min(end - first, SLICE_PAGES);
        packet.set(this.#memory.view(first, pages), to);
        after?.(first, pages);
        to += pages * PAGE_BYTES;
        first += pages;
      }
    }
    return this.#write(packet);
  }

  sendBytes(head: Buffer, payload: Buffer | undefined): Promise<void> | undefined {
    return this.#write(payload === undefined ? Buffer.from(head) : Buffer.concat([head, payload])); // both are used again by the caller
  }

  #write(bytes: Buffer): Promise<void> | undefined {
    if (this.#failure !== undefined) throw this.#failure;
    const isTaken = this.#socket.write(bytes);
    dropped(bytes.byteLength);
    const waitMs = this.#bucket.take(bytes.byteLength);
    return isTaken && waitMs === 0 ? undefined : this.#wait(isTaken);
  }

  async #wait(isTaken: boolean): Promise<void> {
    if (!isTaken)
      await new Promise<void>((resolve) => {
        const settle = (): void => {
          this.#socket.off("drain", settle).off("close", settle);
          resolve();
        };
        this.#socket.on("drain", settle).on("close", settle);
      });
    // Asked anew each time: another rate may have been set meanwhile.
    for (let waitMs = this.#bucket.take(0); waitMs > 0 && this.#failure === undefined; waitMs = this.#bucket.take(0)) {
      await new Promise((resolve) => setTimeout(resolve, Math.min(waitMs, SOCKET_POLL_MS)));
      if (!this.#mayGoOn()) throw new ChannelStopped();
    }
    if (this.#failure !== undefined) throw this.#failure;
  }

  setPacing(bytesPerSecond: number): void {
    this.#bucket.setRate(bytesPerSecond);
  }

  /** Of what Node has handed on nobody can be asked. */
  backlogBytes(): undefined {
    return undefined;
  }

  linkState(): undefined {
    return undefined;
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** Reads packets from Node's socket until it ends. Resolves at the end of the stream. @throws {MigrationError} as receiveDirect */
export function receivePortable(
  socket: Socket,
  answer: Uint8Array,
  store: ChannelStore,
  onFlush: (header: PacketHeader) => void,
): Promise<void> {
  const decoder = decodeInto(store, onFlush);
  return new Promise((resolve, reject) => {
    const fail = (error: unknown): void => {
      reject(error);
      socket.destroy();
    };
    socket.setNoDelay(true);
    socket.on("error", (cause) => fail(new MigrationError("ERR_LINK_LOST", "A page channel broke", { cause })));
    socket.on("end", () => socket.destroy()); // one that came from the listener would stay half open
    socket.on("close", () => resolve());
    socket.on("data", (chunk: Buffer) => {
      try {
        decoder.push(chunk);
        dropped(chunk.byteLength);
      } catch (error) {
        fail(error);
      }
    });
    socket.write(answer);
  });
}
