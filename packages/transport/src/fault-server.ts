import type { Socket } from "node:net";
import { Bitmap, pageKernels } from "@precopy/guest";
import type { GuestMemory, PageKernels } from "@precopy/guest";
import { BlockingSocket } from "@precopy/linux";
import {
  FAULT_AROUND_PAGES_MAX,
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
  /**
   * Bits of pages that are still to be sent. Whoever takes one out sends it, so each is sent once; one that is asked for is sent in any case, since it
   * may have been taken out by somebody whose connection then broke.
   */
  readonly due: Uint32Array;
  /** The page that was asked for last, plus one: a guest that needs it needs what lies around it next. */
  readonly last: Float64Array;
  /** Requests so far. */
  readonly requests: Float64Array;
  /** With a page that is asked for go the others of its block of so many pages that are due; under 2 none. */
  readonly around: Float64Array;
  /** Sent so far, asked for or beside one that was. */
  readonly pages: Float64Array;
}

export function allocateServedPages(pages: number): ServedPages {
  const number = (): Float64Array => new Float64Array(new SharedArrayBuffer(8));
  const due = new Uint32Array(new SharedArrayBuffer(Math.ceil(pages / 32) * 4));
  return { due, last: number(), requests: number(), around: number(), pages: number() };
}

/** Answers requests for pages of a guest that runs elsewhere: its memory here is as it was at the pause, and nobody writes to it. */
class FaultServer {
  readonly #memory: GuestMemory;
  readonly #kernels: readonly PageKernels[];
  readonly #pump: SendPump;
  readonly #served: ServedPages;
  readonly #due: Bitmap;
  readonly #head = Buffer.alloc(HEADER_BYTES + FAULT_AROUND_PAGES_MAX * RUN_BYTES);
  #sequence = 0;
  #requests = 0;

  constructor({ memory, served }: FaultService, pump: SendPump) {
    this.#memory = memory;
    this.#kernels = pageKernels(memory);
    this.#pump = pump;
    this.#served = served;
    this.#due = new Bitmap(memory.pages, served.due);
  }

  /** A packet of nothing: from here on requests are read. Any that came before would be in a buffer of Node's. */
  greet(): Promise<void> | undefined {
    return this.#pump.sendBytes(this.#head.subarray(0, this.#encode(0, 0, 0)), undefined);
  }

  /** @throws {MigrationError} for a request that no peer of ours makes, and ERR_LINK_LOST */
  answer(request: Buffer): Promise<void> | undefined {
    const page = decodeFaultRequest(request, this.#requests++, this.#memory.pages);
    const { last, requests, around } = this.#served;
    this.#due.takeShared(page >>> 5, 1 << (page & 31));
    last[0] = page + 1;
    requests[0]!++;
    const slow = this.#send(page, 1, 1); // by itself: the guest goes on with it while the others are placed
    const size = blockSize(around[0]!);
    if (size < 2) return slow;
    return slow === undefined ? this.#sendBlock(page, size) : slow.then(() => this.#sendBlock(page, size));
  }

  #sendBlock(page: number, size: number): Promise<void> | undefined {
    const first = page - (page % size);
    const shift = first & 31; // a block lies in one word
    const taken = this.#due.takeShared(first >>> 5, ((1 << size) - 1) << shift);
    if (taken !== 0) return this.#send(first, size, taken >>> shift);
  }

  /** @param taken bit 0 for page `first`, and so on. Pages of data in front, zero pages behind, each in order. */
  #send(first: number, size: number, taken: number): Promise<void> | undefined {
    let zeros = 0;
    let dataPages = 0;
    for (let at = 0; at < size; at++) {
      if (((taken >>> at) & 1) === 0) continue;
      this.#served.pages[0]!++;
      if (this.#isZero(first + at)) zeros |= 1 << at;
      else dataPages++;
    }
    const dataRuns = this.#writeRuns(first, taken & ~zeros, 0);
    const runs = this.#writeRuns(first, zeros, dataRuns);
    const head = this.#head.subarray(0, this.#encode(dataRuns, runs - dataRuns, dataPages));
    return dataRuns === 0 ? this.#pump.sendBytes(head, undefined) : this.#pump.sendPages(head, dataRuns);
  }

  #isZero(page: number): boolean {
    return this.#kernels[this.#memory.segmentOf(page)]?.isZero(this.#memory.offsetOf(page)) === 1;
  }

  /** @returns the runs that are written, those before `run` included */
  #writeRuns(first: number, bits: number, run: number): number {
    for (let at = 0; bits >>> at !== 0; run++) {
      while (((bits >>> at) & 1) === 0) at++;
      const from = at;
      while (((bits >>> at) & 1) === 1) at++;
      this.#head.writeUInt32LE(first + from, HEADER_BYTES + run * RUN_BYTES);
      this.#head.writeUInt32LE(at - from, HEADER_BYTES + run * RUN_BYTES + 4);
    }
    return run;
  }

  #encode(dataRuns: number, zeroRuns: number, dataPages: number): number {
    const sequence = this.#sequence++;
    const payloadBytes = dataPages * PAGE_BYTES;
    const kind = PacketKind.Pages;
    return encodeHeader(this.#head, { kind, encoding: PageEncoding.Raw, round: 0, sequence, dataRuns, zeroRuns, payloadBytes, lanes: 0 });
  }
}

/** The power of two that has no more than this many pages. */
const blockSize = (pages: number): number => 2 ** Math.floor(Math.log2(Math.min(Math.max(pages, 1), FAULT_AROUND_PAGES_MAX)));

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
