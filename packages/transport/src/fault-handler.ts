import { createHistogram } from "node:perf_hooks";
import { receiveMessageOnPort } from "node:worker_threads";
import type { MessagePort } from "node:worker_threads";
import { Bitmap, GuestMemory } from "@precopy/guest";
import type { HashTable, SharedMemory } from "@precopy/guest";
import { Bell, FaultReader, PagePlacing, Poll, PolledSocket } from "@precopy/linux";
import { FAULT_REQUEST_BYTES, MigrationError, PAGE_BYTES, PacketDecoder, encodeFaultRequest } from "@precopy/protocol";
import type { ErrorCode, FaultStatistics } from "@precopy/protocol";
import { PagePlacer } from "./page-placer.js";

/** First message: what there is to know of the guest that will run here. */
export interface HandleFaults {
  readonly type: "handle-faults";
  /** Of UserFaults. */
  readonly descriptor: number;
  /** Rung for each of the other messages. */
  readonly bell: number;
  readonly memory: SharedMemory;
  readonly table: HashTable | undefined;
  readonly missing: Uint32Array;
  readonly populated: Uint32Array;
  /** The vCPUs' threads, by their numbers for the system. */
  readonly threads: readonly number[];
}
export type ToFaultHandler =
  | HandleFaults
  /** A connection to the source; the earlier one is done with. answer: sent first. */
  | { readonly type: "fault-channel"; readonly generation: number; readonly fd: number; readonly answer: Uint8Array }
  | { readonly type: "end" };
export type FromFaultHandler =
  /** Nothing of that connection is used any more. */
  | { readonly type: "fault-channel-lost"; readonly generation: number; readonly code: ErrorCode; readonly message: string }
  | { readonly type: "faults-ended"; readonly faults: FaultStatistics; readonly error: { code: ErrorCode; message: string } | undefined };

interface Waiting {
  readonly thread: number;
  readonly since: number;
}
interface Connection {
  readonly generation: number;
  readonly socket: PolledSocket;
  readonly decoder: PacketDecoder;
  sequence: number;
  /** The source has said that it reads. */
  isHeard: boolean;
}

const POLL_MS = 1000;
/** A page that somebody waits for may come by another way, of which nothing tells. */
const WAITING_POLL_MS = 1;
const READ_BYTES = 64 * 1024;
const DISTRIBUTION = 32;

/**
 * Stands at the guest's missing pages: asks the source for each that a vCPU needs, and places what comes. Pages that were never other than zero are
 * placed at once. Without a connection the vCPUs wait; the next one is asked for all that they wait for.
 */
export class FaultHandler {
  readonly #port: MessagePort;
  readonly #memory: GuestMemory;
  readonly #starts: readonly { readonly address: number; readonly end: number; readonly page: number }[];
  readonly #missing: Bitmap;
  readonly #placing: PagePlacing;
  readonly #faults: FaultReader;
  readonly #bell: Bell;
  readonly #order: HandleFaults;
  readonly #waiting = new Map<number, Waiting[]>();
  readonly #latencies = createHistogram(); // ns
  readonly #distribution = new Array<number>(DISTRIBUTION).fill(0);
  readonly #blocked = new Map<number, number>();
  readonly #request = Buffer.alloc(FAULT_REQUEST_BYTES);
  readonly #bytes = Buffer.alloc(READ_BYTES);
  #connection: Connection | undefined;
  #poll: Poll;
  #zeros = 0;
  #requests = 0;

  constructor(port: MessagePort, order: HandleFaults) {
    this.#port = port;
    this.#order = order;
    this.#memory = new GuestMemory(order.memory);
    let page = 0;
    this.#starts = this.#memory.ranges().map(({ address, bytes }) => {
      const start = { address: Number(address), end: Number(address) + bytes, page };
      page += bytes / PAGE_BYTES;
      return start;
    });
    this.#missing = new Bitmap(this.#memory.pages, order.missing);
    this.#placing = new PagePlacing(order.descriptor);
    this.#faults = new FaultReader(order.descriptor);
    this.#bell = new Bell(order.bell);
    this.#poll = this.#pollOf();
  }

  /** Until it is told to end. Blocks its thread; tells of its end itself. */
  run(): void {
    let error: MigrationError | undefined;
    try {
      for (let isAsked = true; isAsked; ) {
        const poll = this.#poll; // another one takes its place with each connection
        poll.wait(this.#waiting.size === 0 ? POLL_MS : WAITING_POLL_MS);
        if (poll.isReady(0)) this.#faults.read((address, thread) => this.#fault(this.#pageAt(address), thread));
        if (this.#connection !== undefined && poll.isReady(2)) this.#receive(this.#connection);
        if (poll.isReady(1)) {
          this.#bell.quiet(); // before it is heard: what is said from here on rings again
          isAsked = this.#hear();
        }
        this.#settle();
      }
    } catch (thrown) {
      error = MigrationError.from(thrown);
    }
    const failure = error && { code: error.code, message: error.message };
    this.#port.postMessage({ type: "faults-ended", faults: this.#statistics(), error: failure } satisfies FromFaultHandler);
  }

  /** What the main thread has to say. False: the end. */
  #hear(): boolean {
    for (let heard = receiveMessageOnPort(this.#port); heard !== undefined; heard = receiveMessageOnPort(this.#port)) {
      const message: ToFaultHandler = heard.message;
      if (message.type === "end") return false;
      if (message.type === "fault-channel") this.#connect(message);
    }
    return true;
  }

  #connect({ generation, fd, answer }: ToFaultHandler & { type: "fault-channel" }): void {
    this.#lose(new MigrationError("ERR_STALE_GENERATION", "Another connection took its place"));
    const { table, populated, descriptor } = this.#order;
    const placer = new PagePlacer({
      memory: this.#memory,
      table,
      missing: this.#missing,
      populated: new Bitmap(this.#memory.pages, populated),
      descriptor,
      progress: undefined,
    });
    this.#connection = {
      generation,
      socket: new PolledSocket(fd),
      decoder: new PacketDecoder(placer.bounds, placer),
      sequence: 0,
      isHeard: false,
    };
    this.#poll = this.#pollOf(fd);
    this.#use(({ socket }) => socket.write(answer));
  }

  #pollOf(...connection: number[]): Poll {
    return new Poll([this.#order.descriptor, this.#order.bell, ...connection]);
  }

  /** The connection may break under whatever is done with it. */
  #use(work: (connection: Connection) => boolean): void {
    const connection = this.#connection;
    if (connection === undefined) return;
    try {
      if (!work(connection)) this.#lose(new MigrationError("ERR_LINK_LOST", "The source closed the fault channel"));
    } catch (error) {
      this.#lose(MigrationError.from(error));
    }
  }

  #lose({ code, message }: MigrationError): void {
    if (this.#connection === undefined) return;
    const { generation } = this.#connection;
    this.#connection = undefined;
    this.#poll = this.#pollOf();
    this.#port.postMessage({ type: "fault-channel-lost", generation, code, message } satisfies FromFaultHandler);
  }

  #fault(page: number, thread: number): void {
    // A bit is cleared when the page is there, so one that is clear means a page of zeros, or one that has just come.
    if (!this.#missing.has(page)) {
      if (this.#placing.zero(this.#memory.addressOf(page), PAGE_BYTES) === 0) this.#placing.wake(this.#memory.addressOf(page), PAGE_BYTES);
      this.#zeros++;
      return;
    }
    const waiting = this.#waiting.get(page);
    this.#waiting.set(page, [...(waiting ?? []), { thread, since: performance.now() }]);
    if (waiting === undefined) this.#ask(page);
  }

  #ask(page: number): void {
    this.#use((connection) => {
      if (!connection.isHeard) return true; // it is asked for all of them then
      encodeFaultRequest(this.#request, page, connection.sequence++);
      this.#requests++;
      return connection.socket.write(this.#request);
    });
  }

  #receive(receiving: Connection): void {
    // Once a turn: a source that sends and sends must not keep it from the faults.
    this.#use(({ socket, decoder }) => {
      const bytes = socket.read(this.#bytes);
      if (bytes === undefined) return true;
      if (bytes === 0) return false;
      decoder.push(this.#bytes.subarray(0, bytes));
      if (!receiving.isHeard) {
        receiving.isHeard = true;
        this.#settle();
        for (const page of this.#waiting.keys()) this.#ask(page);
      }
      return true;
    });
  }

  /** Whoever waited for a page that is there by now goes on. */
  #settle(): void {
    const now = performance.now();
    for (const [page, waiting] of this.#waiting) {
      if (this.#missing.has(page)) continue;
      this.#waiting.delete(page);
      for (const { thread, since } of waiting) {
        const ms = now - since;
        this.#latencies.record(Math.max(1, Math.round(ms * 1e6)));
        const bucket = Math.min(Math.max(0, Math.ceil(Math.log2(ms * 1000))), DISTRIBUTION - 1);
        this.#distribution[bucket]!++;
        this.#blocked.set(thread, (this.#blocked.get(thread) ?? 0) + ms);
      }
    }
  }

  #pageAt(address: number): number {
    const found = this.#starts.find(({ address: start, end }) => address >= start && address < end);
    if (found === undefined) throw new MigrationError("ERR_INTERNAL", `A fault at ${address}, outside the guest's memory`);
    return found.page + (address - found.address) / PAGE_BYTES;
  }

  #statistics(): FaultStatistics {
    const isAny = this.#latencies.count > 0;
    const us = (ns: number): number => (isAny ? ns / 1000 : 0);
    return {
      requests: this.#requests,
      zeros: this.#zeros,
      medianUs: us(this.#latencies.percentile(50)),
      p99Us: us(this.#latencies.percentile(99)),
      maxUs: us(this.#latencies.max),
      distribution: this.#distribution,
      vcpuBlockedMs: this.#order.threads.map((thread) => this.#blocked.get(thread) ?? 0),
    };
  }
}
