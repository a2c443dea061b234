import { SLICE_PAGES } from "@precopy/guest";
import type { GuestMemory, VisitPages } from "@precopy/guest";
import { BlockingSocket, Pieces, addressOf } from "@precopy/linux";
import type { LinkState } from "@precopy/linux";
import {
  HEADER_BYTES,
  MigrationError,
  PACKET_DATA_RUNS_MAX,
  PACKET_PAGES_MAX,
  PACKET_PAYLOAD_BYTES_MAX,
  PAGE_BYTES,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
  SOCKET_DEAD_MS,
  SOCKET_POLL_MS,
  TABLE_BYTES_MAX,
  checkRunTable,
  checkSequence,
  decodeHeader,
} from "@precopy/protocol";
import type { PacketHeader } from "@precopy/protocol";
import type { TrafficSecret } from "@precopy/security";
import { ChannelStopped } from "./page-store.js";
import type { ChannelStore } from "./page-store.js";
import { decodeInto } from "./pump.js";
import type { SendPump } from "./pump.js";
import { RecordOpener, RecordSealer } from "./tls-records.js";

/** What a system call failed with; an error that says more stays what it is. */
const connectionLost = (cause: unknown): MigrationError =>
  cause instanceof MigrationError && cause.code !== "ERR_SYSTEM_CALL"
    ? cause
    : new MigrationError("ERR_LINK_LOST", "A page channel broke", { cause });

const firstOf = (head: Buffer, run: number): number => head.readUInt32LE(HEADER_BYTES + run * RUN_BYTES);
const pagesOf = (head: Buffer, run: number): number => head.readUInt32LE(HEADER_BYTES + run * RUN_BYTES + 4);

/** Of a channel's client everything before its pages is one record: the request. */
const FIRST_RECORD_OF_PAGES = 1;

/** `writev` from guest memory: a page is never copied in user space. With TLS it is sealed from there. */
export class DirectSendPump implements SendPump {
  readonly #socket: BlockingSocket;
  readonly #sealer: RecordSealer | undefined;
  readonly #memory: GuestMemory;
  readonly #pieces = new Pieces(PACKET_DATA_RUNS_MAX + 1);

  /** @param fd connected; blocking from now on, and the main thread's to close. @param secret of the client, where there is TLS; the pump's from now on */
  constructor(fd: number, memory: GuestMemory, mayGoOn: () => boolean, secret?: TrafficSecret) {
    const socket = new BlockingSocket(fd, SOCKET_POLL_MS, SOCKET_DEAD_MS, mayGoOn);
    this.#socket = socket;
    this.#sealer = secret && new RecordSealer(secret, FIRST_RECORD_OF_PAGES, (records) => socket.write(records));
    this.#memory = memory;
  }

  sendPages(head: Buffer, dataRuns: number, after?: VisitPages): undefined {
    this.#pieces.set(0, Number(addressOf(head)), head.byteLength);
    let pieces = 1;
    let run = 0;
    let page = 0; // in that run
    while (run < dataRuns) {
      const [fromRun, fromPage] = [run, page];
      for (let room = after === undefined ? PACKET_PAGES_MAX : SLICE_PAGES; run < dataRuns && room > 0; ) {
        const left = pagesOf(head, run) - page;
        const pages = Math.min(left, room);
        this.#pieces.set(pieces++, this.#memory.addressOf(firstOf(head, run) + page), pages * PAGE_BYTES);
        room -= pages;
        page = pages === left ? 0 : page + pages;
        if (pages === left) run++;
      }
      this.#write(pieces);
      pieces = 0;
      if (after === undefined) continue;
      for (let one = fromRun, at = fromPage; one < run || (one === run && at < page); one++, at = 0)
        after(firstOf(head, one) + at, (one < run ? pagesOf(head, one) : page) - at);
    }
  }

  sendBytes(head: Buffer, payload: Buffer | undefined): undefined {
    this.#pieces.set(0, Number(addressOf(head)), head.byteLength);
    if (payload !== undefined) this.#pieces.set(1, Number(addressOf(payload)), payload.byteLength);
    this.#write(payload === undefined ? 1 : 2);
  }

  #write(count: number): void {
    let isWritten: boolean;
    try {
      isWritten = (this.#sealer ?? this.#socket).writeAll(this.#pieces, count);
    } catch (cause) {
      throw connectionLost(cause);
    }
    if (!isWritten) throw new ChannelStopped();
  }

  setPacing(bytesPerSecond: number): void {
    this.#socket.setPacing(bytesPerSecond);
  }

  backlogBytes(): number | undefined {
    return this.#socket.backlogBytes();
  }

  linkState(): LinkState | undefined {
    return this.#socket.linkState();
  }

  /** The main thread owns the descriptor. */
  close(): void {
    this.#sealer?.close();
  }
}

interface Scratch {
  readonly head: Buffer;
  readonly pieces: Pieces;
  readonly payload: Buffer;
}
let kept: Scratch | undefined;
/** This thread's buffers for receiving. A thread serves one channel after another, and does not return to where the collector would see to it. */
function scratch(): Scratch {
  kept ??= {
    head: Buffer.alloc(HEADER_BYTES + TABLE_BYTES_MAX),
    pieces: new Pieces(PACKET_DATA_RUNS_MAX),
    payload: Buffer.alloc(PACKET_PAYLOAD_BYTES_MAX),
  };
  return kept;
}

/**
 * Reads packets until the connection ends or `mayGoOn` says no; blocks its thread all the while. Calls `onFlush` after each FLUSH.
 * @param answer sent first, when everything is ready to read. @throws {MigrationError} what packet.ts refuses, ERR_LINK_LOST
 */
export function receiveDirect(
  fd: number,
  answer: Uint8Array,
  store: ChannelStore,
  mayGoOn: () => boolean,
  onFlush: (header: PacketHeader) => void,
): void {
  const socket = new BlockingSocket(fd, SOCKET_POLL_MS, SOCKET_DEAD_MS, mayGoOn);
  const { head, pieces, payload } = scratch();
  const need = (isThere: boolean): void => {
    if (!isThere) throw new ChannelStopped();
  };
  try {
    need(socket.write(answer));
    for (let sequence = 0; ; sequence++) {
      need(socket.read(head, 0, HEADER_BYTES));
      const header = decodeHeader(head);
      checkSequence(header, sequence);
      need(socket.read(head, HEADER_BYTES, HEADER_BYTES + (header.dataRuns + header.zeroRuns) * RUN_BYTES));
      const dataPages = checkRunTable(head, header, store.bounds);
      store.begin(header, head, dataPages);
      if (header.encoding === PageEncoding.Raw)
        for (let count = store.nextPieces(pieces); count > 0; count = store.nextPieces(pieces)) need(socket.readAll(pieces, count));
      else {
        need(socket.read(payload, 0, header.payloadBytes));
        store.payload(payload.subarray(0, header.payloadBytes));
      }
      store.end();
      if (header.kind === PacketKind.Flush) onFlush(header);
    }
  } catch (error) {
    throw connectionLost(error);
  }
}

/**
 * The same of a connection with TLS, whose handshake, Upgrade and answer are done.
 * @param secret of the client; this function's from now on. @throws {MigrationError} as receiveDirect
 */
export function receiveSealed(
  fd: number,
  secret: TrafficSecret,
  store: ChannelStore,
  mayGoOn: () => boolean,
  onFlush: (header: PacketHeader) => void,
): void {
  const opener = new RecordOpener(secret, FIRST_RECORD_OF_PAGES);
  try {
    const socket = new BlockingSocket(fd, SOCKET_POLL_MS, SOCKET_DEAD_MS, mayGoOn);
    const decoder = decodeInto(store, onFlush);
    while (!opener.isEnded) {
      const got = socket.readSome(opener.room);
      if (got === 0) throw new ChannelStopped();
      decoder.push(opener.open(got));
    }
  } catch (error) {
    throw connectionLost(error);
  } finally {
    opener.close();
  }
}
