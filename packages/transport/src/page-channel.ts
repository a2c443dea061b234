import { once } from "node:events";
import { createConnection } from "node:net";
import type { Socket } from "node:net";
import { Worker } from "node:worker_threads";
import { SocketHandle, isLinuxAvailable } from "@precopy/linux";
import { CONNECT_TIMEOUT_MS, HTTP_HEADER_BYTES_MAX, MigrationError, formatAddress } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import { ChannelEnd } from "./channel-end.js";
import type { FromChannel, ToChannel } from "./channel-end.js";
import type { RoundSent } from "./page-packer.js";
import type { PumpKind } from "./pump.js";

export const PAGES_PATH = "/v1/pages";
export const PAGES_PROTOCOL = "precopy-pages/1";
/** The target's answer to the Upgrade; the channel's thread sends it when it is ready to read. */
export const SWITCHING = Buffer.from(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${PAGES_PROTOCOL}\r\n\r\n`);

/** A connected socket on which nothing but the Upgrade has passed. */
export type ChannelSocket = Socket;

/** Which channel of which attempt an Upgrade asks for. A generation is one life of a channel; a later one replaces an earlier. */
export interface ChannelName {
  readonly session: string;
  readonly channel: number;
  readonly generation: number;
}

/** direct where this host can take descriptors over, else portable. @throws {MigrationError} ERR_CAPABILITY if `wanted` cannot be had. */
export function choosePump(wanted: "auto" | PumpKind): PumpKind {
  if (wanted === "direct" && !isLinuxAvailable) throw new MigrationError("ERR_CAPABILITY", "The direct pump needs Linux and koffi");
  return wanted === "auto" ? (isLinuxAvailable ? "direct" : "portable") : wanted;
}

/** Threads that wait for a channel: starting one takes 30 to 50 ms. */
export class ChannelThreads {
  readonly #idle: Worker[] = [];

  async prepare(count: number): Promise<void> {
    const fresh = Array.from({ length: Math.max(0, count - this.#idle.length) }, () => this.#start());
    this.#idle.push(...fresh);
    await Promise.all(fresh.map((worker) => once(worker, "message")));
  }

  #start(): Worker {
    // Pages pass through buffers outside the heap; without a bound, V8 keeps up to 48 MiB of young generation for each thread.
    return new Worker(new URL("./channel-thread.js", import.meta.url), { resourceLimits: { maxYoungGenerationSizeMb: 4 } });
  }

  take(): Worker {
    return this.#idle.pop() ?? this.#start();
  }

  /** Only after its channel has ended. */
  give(worker: Worker): void {
    this.#idle.push(worker);
  }

  async end(): Promise<void> {
    await Promise.all(this.#idle.splice(0).map((worker) => worker.terminate()));
  }
}

/**
 * Opens a connection and asks for a page channel. Resolves at the 101 with nothing read beyond it: the target sends nothing more.
 * @throws {MigrationError} ERR_UNREACHABLE, ERR_NOT_AN_AGENT, ERR_STALE_GENERATION
 */
export async function connectPageChannel(to: Address, { session, channel, generation }: ChannelName, signal: AbortSignal): Promise<Socket> {
  const socket = createConnection({ host: to.host, port: to.port, noDelay: true, signal });
  const timer = setTimeout(() => socket.destroy(new Error("timed out")), CONNECT_TIMEOUT_MS);
  try {
    await once(socket, "connect");
    socket.write(
      `GET ${PAGES_PATH}?session=${session}&channel=${channel}&generation=${generation} HTTP/1.1\r\nHost: ${formatAddress(to)}\r\n` +
        `Connection: Upgrade\r\nUpgrade: ${PAGES_PROTOCOL}\r\n\r\n`,
    );
    const answer = await readAnswer(socket);
    if (answer.startsWith("HTTP/1.1 101")) return socket;
    if (answer.startsWith("HTTP/1.1 409")) throw new MigrationError("ERR_STALE_GENERATION", `${formatAddress(to)} knows no such channel`);
    throw new MigrationError("ERR_NOT_AN_AGENT", `${formatAddress(to)} answered ${answer.split("\r\n", 1)[0] ?? ""}`);
  } catch (error) {
    socket.destroy();
    if (error instanceof MigrationError) throw error;
    throw new MigrationError("ERR_UNREACHABLE", `No page channel to ${formatAddress(to)}`, { cause: error });
  } finally {
    clearTimeout(timer);
  }
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

/** Takes the descriptor of a connected socket over. Resolves when Node has let go of it: only then may it be made blocking. */
async function takeDescriptor(socket: Socket): Promise<SocketHandle> {
  // Node keeps the handle there for every TCP socket; without a descriptor in it there is nothing to take over.
  const fd: unknown = Reflect.get(Reflect.get(socket, "_handle") ?? {}, "fd");
  if (typeof fd !== "number" || fd < 0) throw new MigrationError("ERR_LINK_LOST", "The connection was closed before its channel began");
  const handle = new SocketHandle(fd);
  const closed = once(socket, "close");
  socket.destroy();
  await closed;
  return handle;
}

type Beginning = Extract<ToChannel, { type: "send" | "receive" }>;
/** What the maker of a channel says; descriptor and stop word are added here. */
export type ChannelOrder =
  | Omit<Extract<Beginning, { type: "send" }>, "fd" | "stop">
  | Omit<Extract<Beginning, { type: "receive" }>, "fd" | "stop">;

/** The main thread's hold on one end of a page channel. */
export class PageChannel {
  readonly #threads: ChannelThreads;
  readonly #worker: Worker | undefined;
  readonly #handle: SocketHandle | undefined;
  readonly #local: ChannelEnd | undefined;
  readonly #socket: Socket | undefined;
  readonly #stop = new Int32Array(new SharedArrayBuffer(4));
  readonly #ended: Promise<void>;
  #markEnded: () => void = () => {};
  #sent: { resolve: (sent: RoundSent) => void; reject: (error: Error) => void } | undefined;
  #isEnding = false;
  #isThreadGone = false;
  #failure: MigrationError | undefined;
  /** A FLUSH arrived: all before it is stored. */
  onFlushed: (flushed: FromChannel & { type: "flushed" }) => void = () => {};
  /** It ended without being told to. */
  onFailure: (error: MigrationError) => void = () => {};
  congestionControl: string | undefined;

  private constructor(threads: ChannelThreads, handle: SocketHandle | undefined, socket: Socket | undefined) {
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
    this.#worker = threads.take();
    this.#worker.on("message", (message: FromChannel) => this.#receive(message));
    this.#worker.on("error", (cause) => {
      this.#isThreadGone = true;
      this.#receive({ type: "ended", code: "ERR_INTERNAL", message: cause.message });
    });
  }

  /**
   * Gives a connected socket to a channel thread; without system calls it stays on this thread.
   * @param socket nothing must have been read from it or sent on it beyond the Upgrade.
   */
  static async open(socket: Socket, threads: ChannelThreads, order: ChannelOrder): Promise<PageChannel> {
    const handle = isLinuxAvailable ? await takeDescriptor(socket) : undefined;
    const channel = new PageChannel(threads, handle, socket);
    // The portable pump's socket closes its descriptor, so it gets one of its own.
    const fd = handle === undefined ? undefined : order.pump === "direct" ? handle.fd : handle.duplicate();
    channel.#tell({ ...order, fd, stop: channel.#stop });
    return channel;
  }

  /** @param words one round's bitmap; this channel's until the promise settles. @param pacing bytes/s, 0 for none. */
  sendRound(round: number, words: Uint32Array, pacing: number): Promise<RoundSent> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#sent = { resolve, reject };
      this.#tell({ type: "round", round, words, pacing });
    });
  }

  /** Ends it wherever it stands. After this nothing of it touches guest memory. */
  async end(): Promise<void> {
    if (!this.#isEnding) {
      this.#isEnding = true;
      Atomics.store(this.#stop, 0, 1);
      this.#tell({ type: "end" });
      this.#handle?.shutdown();
      this.#socket?.destroy();
    }
    await this.#ended;
  }

  #tell(message: ToChannel): void {
    if (this.#worker === undefined) this.#local?.handle(message);
    else this.#worker.postMessage(message);
  }

  #receive(message: FromChannel): void {
    switch (message.type) {
      case "ready":
        this.congestionControl = message.congestionControl;
        break;
      case "sent":
        this.#sent?.resolve(message);
        this.#sent = undefined;
        break;
      case "flushed":
        this.onFlushed(message);
        break;
      case "ended":
        this.#release();
        this.#fail(new MigrationError(message.code ?? "ERR_LINK_LOST", message.message || "The page channel was closed"));
    }
  }

  #release(): void {
    this.#handle?.close();
    if (this.#worker !== undefined) {
      this.#worker.removeAllListeners("message").removeAllListeners("error");
      if (!this.#isThreadGone) this.#threads.give(this.#worker);
    }
    this.#markEnded();
  }

  #fail(error: MigrationError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#sent?.reject(error);
    this.#sent = undefined;
    if (!this.#isEnding) this.onFailure(error);
  }
}
