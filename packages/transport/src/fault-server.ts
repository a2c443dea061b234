import type { Socket } from "node:net";
import { Bitmap, pageKernels } from "@precopy/guest";
import type { GuestMemory, PageKernels } from "@precopy/guest";
import { BlockingSocket } from "@precopy/linux";
import {
  FAULT_REQUEST_BYTES,
  HEADER_BYTES,
  MigrationError,
  PAGE_BYTES,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
  SOCKET_DEAD_MS,
  SOCKET_POLL_MS,
  decodeFaultRequest,
  encodeHeader,
} from "@precopy/protocol";
import { ChannelStopped } from "./page-store.js";
import { DirectSendPump } from "./pump-direct.js";
import { PortableSendPump } from "./pump-portable.js";
import type { SendPump } from "./pump.js";

/** What the thread that serves and the one that pushes know of each other; shared words. */
export interface ServedPages {
  /** Bits of pages that were asked for and sent. */
  readonly pages: Uint32Array;
  /** The page that was asked for last, plus one: a guest that needs it needs what lies around it next. */
  readonly last: Float64Array;
  /** Requests so far. */
  readonly requests: Float64Array;
}

export const allocateServedPages = (pages: number): ServedPages => ({
  pages: new Uint32Array(new SharedArrayBuffer(Math.ceil(pages / 32) * 4)),
  last: new Float64Array(new SharedArrayBuffer(8)),
  requests: new Float64Array(new SharedArrayBuffer(8)),
});

/** Answers requests for pages of a guest that runs elsewhere: its memory here is as it was at the pause, and nobody writes to it. */
class FaultServer {
  readonly #memory: GuestMemory;
  readonly #kernels: readonly PageKernels[];
  readonly #pump: SendPump;
  readonly #served: ServedPages;
  readonly #sent: Bitmap;
  readonly #head = Buffer.alloc(HEADER_BYTES + RUN_BYTES);
  #sequence = 0;
  #requests = 0;

  constructor({ memory, served }: FaultService, pump: SendPump) {
    this.#memory = memory;
    this.#kernels = pageKernels(memory);
    this.#pump = pump;
    this.#served = served;
    this.#sent = new Bitmap(memory.pages, served.pages);
  }

  /** A packet of nothing: from here on requests are read. Any that came before would be in a buffer of Node's. */
  greet(): Promise<void> | undefined {
    return this.#pump.sendBytes(this.#head.subarray(0, this.#encode(0, 0)), undefined);
  }

  /** @throws {MigrationError} for a request that no peer of ours makes, and ERR_LINK_LOST */
  answer(request: Buffer): Promise<void> | undefined {
    const page = decodeFaultRequest(request, this.#requests++, this.#memory.pages);
    const isZero = this.#kernels[this.#memory.segmentOf(page)]?.isZero(this.#memory.offsetOf(page)) === 1;
    this.#head.writeUInt32LE(page, HEADER_BYTES);
    this.#head.writeUInt32LE(1, HEADER_BYTES + 4);
    this.#encode(isZero ? 0 : 1, isZero ? 1 : 0);
    this.#sent.setRunShared(page, 1);
    this.#served.last[0] = page + 1;
    this.#served.requests[0]!++;
    return isZero ? this.#pump.sendBytes(this.#head, undefined) : this.#pump.sendPages(this.#head, 1);
  }

  #encode(dataRuns: number, zeroRuns: number): number {
    const sequence = this.#sequence++;
    const payloadBytes = dataRuns * PAGE_BYTES;
    const kind = PacketKind.Pages;
    return encodeHeader(this.#head, { kind, encoding: PageEncoding.Raw, round: 0, sequence, dataRuns, zeroRuns, payloadBytes, lanes: 0 });
  }
}

/** What is served: a guest's frozen memory. */
export interface FaultService {
  readonly memory: GuestMemory;
  readonly served: ServedPages;
}

/**
 * Answers requests until the connection ends or `mayGoOn` says no; blocks its thread all the while.
 * @throws {MigrationError} what decodeFaultRequest refuses, ERR_LINK_LOST
 */
export function serveFaultsDirect(fd: number, service: FaultService, mayGoOn: () => boolean): void {
  const socket = new BlockingSocket(fd, SOCKET_POLL_MS, SOCKET_DEAD_MS, mayGoOn);
  const server = new FaultServer(service, new DirectSendPump(fd, service.memory, mayGoOn));
  const request = Buffer.alloc(FAULT_REQUEST_BYTES);
  try {
    void server.greet();
    while (socket.read(request, 0, FAULT_REQUEST_BYTES)) void server.answer(request);
  } catch (error) {
    if (error instanceof MigrationError && error.code !== "ERR_SYSTEM_CALL") throw error;
    throw new MigrationError("ERR_LINK_LOST", "The fault channel broke", { cause: error });
  }
}

/** The same over Node's socket. Resolves at the end of the stream. @throws {MigrationError} as serveFaultsDirect */
export function serveFaultsPortable(socket: Socket, service: FaultService, mayGoOn: () => boolean): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = (failure: MigrationError): void => (failure instanceof ChannelStopped ? resolve() : reject(failure));
    const server = new FaultServer(service, new PortableSendPump(socket, service.memory, mayGoOn, end));
    server.greet()?.catch(() => {}); // the pump tells of its end
    let left = Buffer.alloc(0);
    const answerAll = async (): Promise<void> => {
      for (; left.byteLength >= FAULT_REQUEST_BYTES; left = left.subarray(FAULT_REQUEST_BYTES))
        await server.answer(left.subarray(0, FAULT_REQUEST_BYTES));
    };
    socket.on("data", (chunk: Buffer) => {
      left = Buffer.concat([left, chunk]);
      socket.pause(); // whoever does not read answers is read no requests of
      answerAll().then(
        () => socket.resume(),
        (error: unknown) => {
          reject(MigrationError.from(error));
          socket.destroy();
        },
      );
    });
  });
}
