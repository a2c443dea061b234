import { once } from "node:events";
import { createConnection } from "node:net";
import type { Socket } from "node:net";
import { NativeThread, isLinuxAvailable } from "@precopy/linux";
import type { SocketHandle } from "@precopy/linux";
import { CHANNELS_MAX, CONNECT_TIMEOUT_MS, HTTP_HEADER_BYTES_MAX, MigrationError, formatAddress } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import { ChannelEnd } from "./channel-end.js";
import type { ChannelRemains, FromChannel, ToChannel } from "./channel-end.js";
import type { LanePoint } from "./lane-table.js";
import type { LaneStart, RoundSent, SendPosition } from "./page-packer.js";
import type { PumpKind } from "./pump.js";
import { closedTooEarly, takeDescriptor } from "./take-descriptor.js";

export const PAGES_PATH = "/v1/pages";
export const PAGES_PROTOCOL = "precopy-pages/1";
export const FAULTS_PATH = "/v1/faults";
export const FAULTS_PROTOCOL = "precopy-faults/1";
const STORED_HEADER = "Precopy-Stored";

/** The target's answer to the Upgrade, with what it holds of the lanes the channel carries; the channel's thread sends it when it is ready to read. */
export function switching(stored: readonly LanePoint[]): Buffer {
  const points = stored.map(({ lane, round, page }) => `${lane}:${round}:${page}`).join(",");
  return switchingTo(PAGES_PROTOCOL, points === "" ? "" : `${STORED_HEADER}: ${points}\r\n`);
}

/** The same of a fault channel. */
export const switchingToFaults = (): Buffer => switchingTo(FAULTS_PROTOCOL, "");

const switchingTo = (protocol: string, header: string): Buffer =>
  Buffer.from(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n${header}\r\n`);

/** A connected socket on which nothing but the Upgrade has passed. */
export type ChannelSocket = Socket;

/** Which channel of which attempt an Upgrade asks for. A generation is one life of a channel; a later one replaces an earlier. */
export interface ChannelName {
  readonly session: string;
  readonly channel: number;
  readonly generation: number;
}
/** The fault channel of an attempt, in one of its lives. */
export type FaultChannelName = Omit<ChannelName, "channel">;

/** direct where this host can take descriptors over, else portable. @throws {MigrationError} ERR_CAPABILITY if `wanted` cannot be had. */
export function choosePump(wanted: "auto" | PumpKind): PumpKind {
  if (wanted === "direct" && !isLinuxAvailable) throw new MigrationError("ERR_CAPABILITY", "The direct pump needs Linux and koffi");
  return wanted === "auto" ? (isLinuxAvailable ? "direct" : "portable") : wanted;
}

/** Threads that wait for a channel: starting one takes 30 to 50 ms. */
export class ChannelThreads {
  readonly #idle: NativeThread[] = [];
  #isEnded = false;

  async prepare(count: number): Promise<void> {
    const fresh = Array.from({ length: Math.max(0, count - this.#idle.length) }, () => this.#start());
    this.#idle.push(...fresh);
    await Promise.all(fresh.map((thread) => thread.up()));
  }

  #start(): NativeThread {
    // Pages pass through buffers outside the heap; without a bound, V8 keeps up to 48 MiB of young generation for each thread.
    const thread = new NativeThread(new URL("./channel-thread.js", import.meta.url), { resourceLimits: { maxYoungGenerationSizeMb: 4 } });
    // One that fails while it waits here concerns nobody, and is not lent again: an agent with a guest must not end for it.
    thread
      .on("error", () => {})
      .once("exit", () => {
        const at = this.#idle.indexOf(thread);
        if (at >= 0) this.#idle.splice(at, 1);
      });
    return thread;
  }

  take(): NativeThread {
    return this.#idle.pop() ?? this.#start();
  }

  /** Only after its channel has ended. */
  give(thread: NativeThread): void {
    if (this.#isEnded) void thread.terminate();
    else this.#idle.push(thread);
  }

  /** Ends the threads that wait here, and each that is lent as soon as it is given back. */
  async end(): Promise<void> {
    this.#isEnded = true;
    await Promise.all(this.#idle.splice(0).map((thread) => thread.terminate()));
  }
}

/** A page channel as the source gets it. */
export interface ConnectedChannel {
  readonly socket: Socket;
  /** What the target holds of the lanes that this channel carries. */
  readonly stored: readonly LanePoint[];
}

/**
 * Opens a connection and asks for a page channel. Resolves at the 101 with nothing read beyond it: the target sends nothing more.
 * @throws {MigrationError} ERR_UNREACHABLE, ERR_NOT_AN_AGENT, ERR_STALE_GENERATION
 */
export async function connectPageChannel(
  to: Address,
  { session, channel, generation }: ChannelName,
  signal: AbortSignal,
): Promise<ConnectedChannel> {
  const query = `session=${session}&channel=${channel}&generation=${generation}`;
  const { socket, answer } = await upgrade(to, `${PAGES_PATH}?${query}`, PAGES_PROTOCOL, signal);
  try {
    return { socket, stored: parseStored(answer) };
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** Asks for the fault channel in the same way: the target's requests come after the 101. @throws {MigrationError} as connectPageChannel */
export async function connectFaultChannel(to: Address, { session, generation }: FaultChannelName, signal: AbortSignal): Promise<Socket> {
  return (await upgrade(to, `${FAULTS_PATH}?session=${session}&generation=${generation}`, FAULTS_PROTOCOL, signal)).socket;
}

async function upgrade(to: Address, path: string, protocol: string, signal: AbortSignal): Promise<{ socket: Socket; answer: string }> {
  const socket = createConnection({ host: to.host, port: to.port, noDelay: true, signal });
  const timer = setTimeout(() => socket.destroy(new Error("timed out")), CONNECT_TIMEOUT_MS);
  try {
    await once(socket, "connect");
    socket.write(`GET ${path} HTTP/1.1\r\nHost: ${formatAddress(to)}\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n\r\n`);
    const answer = await readAnswer(socket);
    if (answer.startsWith("HTTP/1.1 101")) return { socket, answer };
    if (answer.startsWith("HTTP/1.1 409")) throw new MigrationError("ERR_STALE_GENERATION", `${formatAddress(to)} knows no such channel`);
    throw new MigrationError("ERR_NOT_AN_AGENT", `${formatAddress(to)} answered ${answer.split("\r\n", 1)[0] ?? ""}`);
  } catch (error) {
    socket.destroy();
    if (error instanceof MigrationError) throw error;
    throw new MigrationError("ERR_UNREACHABLE", `No channel to ${formatAddress(to)}`, { cause: error });
  } finally {
    clearTimeout(timer);
  }
}

/** Strictly: what was misread here would be pages never sent. @throws {MigrationError} ERR_NOT_AN_AGENT */
function parseStored(answer: string): LanePoint[] {
  const name = `${STORED_HEADER.toLowerCase()}:`;
  const [head = ""] = answer.split("\r\n\r\n", 1);
  const lines = head.split("\r\n").filter((line) => line.toLowerCase().startsWith(name));
  const points = lines.flatMap((line) => line.slice(name.length).trim().split(",")).map(parsePoint);
  if (lines.length > 1 || points.length > CHANNELS_MAX || new Set(points.map(({ lane }) => lane)).size < points.length)
    throw new MigrationError("ERR_NOT_AN_AGENT", `${STORED_HEADER} names a lane twice, or too many`);
  return points;
}

function parsePoint(text: string): LanePoint {
  const [, lane, round, page] = /^(\d{1,2}):(\d{1,10}):(\d{1,10})$/.exec(text)?.map(Number) ?? [];
  if (lane === undefined || round === undefined || page === undefined || lane >= CHANNELS_MAX || round >= 2 ** 32 || page > 2 ** 32)
    throw new MigrationError("ERR_NOT_AN_AGENT", `${STORED_HEADER} with ${JSON.stringify(text.slice(0, 50))}`);
  return { lane, round, page };
}

async function readAnswer(socket: Socket): Promise<string> {
  let text = "";
  const closed = once(socket, "close").then(() => Promise.reject(new Error("closed before it answered")));
  closed.catch(() => {}); // awaited only while reading
  while (!text.includes("\r\n\r\n")) {
    const chunk: unknown = socket.read();
    if (Buffer.isBuffer(chunk)) text += chunk.toString("latin1");
    else await Promise.race([once(socket, "readable"), closed]);
    if (text.length > HTTP_HEADER_BYTES_MAX) throw new MigrationError("ERR_NOT_AN_AGENT", "The answer to the Upgrade has no end");
  }
  socket.removeAllListeners("readable");
  return text;
}

type Beginning = Extract<ToChannel, { type: "send" | "receive" }>;
/** What the maker of a channel says; descriptor and stop word are added here. */
export type ChannelOrder =
  | Omit<Extract<Beginning, { type: "send" }>, "fd" | "stop" | "sentPages">
  | Omit<Extract<Beginning, { type: "receive" }>, "fd" | "stop">;

interface Sending {
  readonly resolve: (sent: RoundSent) => void;
  readonly reject: (error: Error) => void;
}

/**
 * The main thread's hold on one end of one generation of a page channel. Whoever makes a later generation, or lets another channel carry its
 * lanes, waits for `end()` first: only then nobody else stores, or hashes, the same pages.
 */
export class PageChannel {
  readonly generation: number;
  readonly #threads: ChannelThreads;
  readonly #thread: NativeThread | undefined;
  readonly #handle: SocketHandle | undefined;
  readonly #local: ChannelEnd | undefined;
  readonly #socket: Socket | undefined;
  readonly #stop = new Int32Array(new SharedArrayBuffer(4));
  readonly #sentPages = new Float64Array(new SharedArrayBuffer(8));
  readonly #ended: Promise<void>;
  #markEnded: () => void = () => {};
  /** In the order of the calls, which is the order of the answers. */
  #sending: Sending[] = [];
  #remains: ChannelRemains | undefined;
  #isEnding = false;
  #isThreadGone = false;
  /** Its thread hears nothing while it sends. */
  #isBlocking = false;
  readonly #onMessage = (message: FromChannel): void => this.#receive(message);
  readonly #onError = (cause: Error): void => {
    this.#isThreadGone = true;
    this.#receive({ type: "ended", code: "ERR_INTERNAL", message: cause.message, digest: undefined, position: undefined });
  };
  #failure: MigrationError | undefined;
  /** A FLUSH arrived: all before it is stored. */
  onFlushed: (flushed: FromChannel & { type: "flushed" }) => void = () => {};
  /** It ended without being told to. */
  onFailure: (error: MigrationError) => void = () => {};
  congestionControl: string | undefined;

  private constructor(threads: ChannelThreads, handle: SocketHandle | undefined, socket: Socket | undefined, generation: number) {
    this.generation = generation;
    this.#threads = threads;
    this.#handle = handle;
    this.#ended = new Promise((resolve) => {
      this.#markEnded = resolve;
    });
    if (handle === undefined) {
      this.#local = new ChannelEnd((message) => setImmediate(() => this.#receive(message)), socket);
      this.#socket = socket;
      return;
    }
    this.#thread = threads.take();
    this.#thread.on("message", this.#onMessage).on("error", this.#onError);
  }

  /**
   * Gives a connected socket to a channel thread; without system calls it stays on this thread.
   * @param socket nothing must have been read from it or sent on it beyond the Upgrade. @throws {MigrationError} ERR_LINK_LOST
   */
  static async open(socket: Socket, threads: ChannelThreads, order: ChannelOrder): Promise<PageChannel> {
    if (socket.destroyed) throw closedTooEarly(); // it tells nobody any more
    const handle = isLinuxAvailable ? await takeDescriptor(socket) : undefined;
    const channel = new PageChannel(threads, handle, socket, order.generation);
    // The portable pump's socket closes its descriptor, so it gets one of its own.
    const fd = handle === undefined ? undefined : order.pump === "direct" ? handle.fd : handle.duplicate();
    const shared = { fd, stop: channel.#stop };
    if (order.type === "send") channel.#isBlocking = order.pump === "direct";
    channel.#tell(order.type === "send" ? { ...order, ...shared, sentPages: channel.#sentPages } : { ...order, ...shared });
    return channel;
  }

  /** This end's final share of the image digest, once it has ended; undefined without hashes, and if its thread crashed. */
  get digest(): bigint | undefined {
    return this.#remains?.digest;
  }

  /** How far a sender came, once it has ended; undefined if it began no round, and if its thread crashed. */
  get position(): SendPosition | undefined {
    return this.#remains?.position;
  }

  /**
   * Sends these lanes of one round. Calls queue: what is left of a lane that was moved here may be asked for while the round's own lanes are
   * under way. Their FLUSH names the lanes of its call, so whichever comes first tells the target no more than is true.
   * @param words the round's bitmap; this channel's until the promise settles. @param pacing bytes/s, 0 for none.
   */
  sendRound(round: number, words: Uint32Array, pacing: number, from: readonly LaneStart[]): Promise<RoundSent> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#sending.push({ resolve, reject });
      this.#tell({ type: "round", round, words, pacing, from });
    });
  }

  /** Pages with data handed to the socket since this generation began, those of the round under way too. */
  get sentPages(): number {
    return this.#sentPages[0]!;
  }

  /** Bytes/s from now on, in the middle of a round too; 0 lifts it. The next round brings its own. */
  setPacing(bytesPerSecond: number): void {
    if (this.#remains !== undefined || this.#isEnding) return;
    if (this.#isBlocking) this.#handle?.setPacing(bytesPerSecond);
    else this.#tell({ type: "pace", pacing: bytesPerSecond });
  }

  /** Ends it wherever it stands. After this nothing of it touches guest memory. */
  async end(): Promise<void> {
    // One that has ended by itself has given its thread back: that may serve another channel by now.
    if (!this.#isEnding && this.#remains === undefined) {
      this.#isEnding = true;
      Atomics.store(this.#stop, 0, 1);
      this.#tell({ type: "end" });
      this.#handle?.shutdown();
      this.#socket?.destroy();
    }
    await this.#ended;
  }

  #tell(message: ToChannel): void {
    if (this.#thread === undefined) this.#local?.handle(message);
    else this.#thread.postMessage(message);
  }

  #receive(message: FromChannel): void {
    switch (message.type) {
      case "ready":
        this.congestionControl = message.congestionControl;
        break;
      case "sent":
        this.#sending.shift()?.resolve(message);
        break;
      case "flushed":
        this.onFlushed(message);
        break;
      case "ended":
        this.#remains = message;
        this.#release();
        this.#fail(new MigrationError(message.code ?? "ERR_LINK_LOST", message.message || "The page channel was closed"));
    }
  }

  #release(): void {
    this.#handle?.close();
    if (this.#thread !== undefined) {
      this.#thread.off("message", this.#onMessage).off("error", this.#onError);
      if (!this.#isThreadGone) this.#threads.give(this.#thread);
    }
    this.#markEnded();
  }

  #fail(error: MigrationError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    for (const { reject } of this.#sending.splice(0)) reject(error);
    if (!this.#isEnding) this.onFailure(error);
  }
}
