import type { Socket } from "node:net";
import { hasAead, isLinuxAvailable } from "@precopy/linux";
import type { NativeThread, SocketHandle } from "@precopy/linux";
import { CHANNELS_MAX, MigrationError, formatAddress } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import { ALPN_CHANNEL } from "@precopy/security";
import type { ChannelKey } from "@precopy/security";
import { ChannelEnd } from "./channel-end.js";
import type { ChannelRemains, FromChannel, ToChannel } from "./channel-end.js";
import type { ChannelThreads } from "./channel-threads.js";
import { OPEN, connectTcp, shakeHands, whileWanted } from "./dial.js";
import type { Security } from "./dial.js";
import { formatHead, readHead } from "./http-head.js";
import type { HttpHead } from "./http-head.js";
import type { LanePoint } from "./lane-table.js";
import type { LaneStart, RoundSent, SendPosition } from "./page-packer.js";
import { setCongestionControl } from "./pump.js";
import type { PumpKind } from "./pump.js";
import { refusalIn } from "./refusal.js";
import { SecuredSocket } from "./secured-socket.js";
import { closedTooEarly, mayTakeDescriptor, takeDescriptor } from "./take-descriptor.js";

export const PAGES_PATH = "/v1/pages";
export const PAGES_PROTOCOL = "precopy-pages/1";
export const FAULTS_PATH = "/v1/faults";
export const FAULTS_PROTOCOL = "precopy-faults/1";
const STORED_HEADER = "Precopy-Stored";
/** Shows that an Upgrade comes from whoever was admitted; see ChannelKey. */
export const KEY_HEADER = "Precopy-Key";

/** The target's answer to the Upgrade, with what it holds of the lanes the channel carries; the channel's thread sends it when it is ready to read. */
export function switching(stored: readonly LanePoint[]): Buffer {
  const points = stored.map(({ lane, round, page }) => `${lane}:${round}:${page}`).join(",");
  return switchingTo(PAGES_PROTOCOL, points === "" ? "" : `${STORED_HEADER}: ${points}\r\n`);
}

/** The same of a fault channel. */
export const switchingToFaults = (): Buffer => switchingTo(FAULTS_PROTOCOL, "");

const switchingTo = (protocol: string, header: string): Buffer =>
  Buffer.from(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n${header}\r\n`);

/** A connection on which nothing but the Upgrade has passed; a SecuredSocket where TLS and a thread for it are. */
export type ChannelSocket = Socket | SecuredSocket;

/** Which channel of which attempt an Upgrade asks for. A generation is one life of a channel; a later one replaces an earlier. */
export interface ChannelName {
  readonly session: string;
  readonly channel: number;
  readonly generation: number;
}
/** The fault channel of an attempt, in one of its lives. */
export type FaultChannelName = Omit<ChannelName, "channel">;

/**
 * direct where this host can take descriptors over and, with TLS, seal by itself what goes through them; else portable.
 * @throws {MigrationError} ERR_CAPABILITY if `wanted` cannot be had.
 */
export function choosePump(wanted: "auto" | PumpKind, { tls }: Security = OPEN): PumpKind {
  if (wanted === "portable") return wanted;
  const missing = !isLinuxAvailable
    ? "needs Linux and koffi"
    : tls !== undefined && !hasAead()
      ? "has no OpenSSL to call in this Node"
      : undefined;
  if (missing === undefined) return "direct";
  if (wanted === "direct") throw new MigrationError("ERR_CAPABILITY", `The direct pump ${missing}`);
  return "portable";
}

/** A page channel as the source gets it. */
export interface ConnectedChannel {
  readonly socket: ChannelSocket;
  /** What the target holds of the lanes that this channel carries. */
  readonly stored: readonly LanePoint[];
}

/** How a channel gets into an agent. */
export interface ChannelAccess {
  /** Of the admission; undefined where the target wants none. */
  readonly key?: ChannelKey | undefined;
  readonly security?: Security | undefined;
  /** With TLS the connection is made in one of them; undefined: on this thread. */
  readonly threads?: ChannelThreads | undefined;
}

/**
 * Opens a connection and asks for a page channel. Resolves at the 101 with nothing read beyond it: the target sends nothing more.
 * @throws {MigrationError} ERR_UNREACHABLE, ERR_NOT_AN_AGENT, ERR_STALE_GENERATION, ERR_CHANNEL_KEY, ERR_TLS_...
 */
export async function connectPageChannel(
  to: Address,
  name: ChannelName,
  signal: AbortSignal,
  access: ChannelAccess = {},
): Promise<ConnectedChannel> {
  const { session, channel, generation } = name;
  const path = `${PAGES_PATH}?session=${session}&channel=${channel}&generation=${generation}`;
  const { socket, answer } = await upgrade(to, path, PAGES_PROTOCOL, access.key?.keyFor({ kind: "pages", ...name }), signal, access);
  try {
    return { socket, stored: parseStored(answer) };
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** Asks for the fault channel in the same way: the target's requests come after the 101. @throws {MigrationError} as connectPageChannel */
export async function connectFaultChannel(
  to: Address,
  name: FaultChannelName,
  signal: AbortSignal,
  access: ChannelAccess = {},
): Promise<ChannelSocket> {
  const { session, generation } = name;
  const key = access.key?.keyFor({ kind: "faults", channel: 0, ...name });
  return (await upgrade(to, `${FAULTS_PATH}?session=${session}&generation=${generation}`, FAULTS_PROTOCOL, key, signal, access)).socket;
}

async function upgrade(
  to: Address,
  path: string,
  protocol: string,
  key: string | undefined,
  signal: AbortSignal,
  { security = OPEN, threads }: ChannelAccess,
): Promise<{ socket: ChannelSocket; answer: HttpHead }> {
  const peer = formatAddress(to);
  const lines = [`Host: ${peer}`, "Connection: Upgrade", `Upgrade: ${protocol}`, ...(key === undefined ? [] : [`${KEY_HEADER}: ${key}`])];
  const { socket, answer } = await ask(to, formatHead(`GET ${path} HTTP/1.1`, lines), signal, security, threads);
  const isSwitched = answer.start.startsWith("HTTP/1.1 101");
  if (isSwitched) return { socket, answer };
  socket.destroy();
  const refused = refusalIn((name) => answer.headers.get(name), peer);
  if (refused !== undefined) throw refused;
  if (answer.start.startsWith("HTTP/1.1 409")) throw new MigrationError("ERR_STALE_GENERATION", `${peer} knows no such channel`);
  throw new MigrationError("ERR_NOT_AN_AGENT", `${peer} answered ${answer.start}`);
}

async function ask(
  to: Address,
  request: string,
  signal: AbortSignal,
  security: Security,
  threads: ChannelThreads | undefined,
): Promise<{ socket: ChannelSocket; answer: HttpHead }> {
  const { tls } = security;
  const raw = await connectTcp(to, signal);
  try {
    if (tls !== undefined && threads !== undefined && isLinuxAvailable) {
      const { secured, head } = await SecuredSocket.connect(raw, to, request, tls, threads, signal);
      return { socket: secured, answer: head };
    }
    const socket = tls === undefined ? raw : await shakeHands(raw, to, tls, ALPN_CHANNEL, signal);
    socket.write(request);
    return { socket, answer: await whileWanted(socket, signal, () => readHead(socket)) };
  } catch (error) {
    raw.destroy();
    if (error instanceof MigrationError) throw error;
    throw new MigrationError("ERR_UNREACHABLE", `No channel to ${formatAddress(to)}`, { cause: error });
  }
}

/** Strictly: what was misread here would be pages never sent. @throws {MigrationError} ERR_NOT_AN_AGENT */
function parseStored({ headers }: HttpHead): LanePoint[] {
  const value = headers.get(STORED_HEADER.toLowerCase());
  const points = value === undefined ? [] : value.split(",").map(parsePoint);
  if (points.length > CHANNELS_MAX || new Set(points.map(({ lane }) => lane)).size < points.length)
    throw new MigrationError("ERR_NOT_AN_AGENT", `${STORED_HEADER} names a lane twice, or too many`);
  return points;
}

function parsePoint(text: string): LanePoint {
  const [, lane, round, page] = /^(\d{1,2}):(\d{1,10}):(\d{1,10})$/.exec(text)?.map(Number) ?? [];
  if (lane === undefined || round === undefined || page === undefined || lane >= CHANNELS_MAX || round >= 2 ** 32 || page > 2 ** 32)
    throw new MigrationError("ERR_NOT_AN_AGENT", `${STORED_HEADER} with ${JSON.stringify(text.slice(0, 50))}`);
  return { lane, round, page };
}

type Beginning = Extract<ToChannel, { type: "send" | "receive" }>;
type Ours = "fd" | "isSecured" | "stop";
/** What the maker of a channel says; the rest of it is added here. */
export type ChannelOrder =
  | (Omit<Extract<Beginning, { type: "send" }>, Ours | "sentPages"> & {
      /** Default auto. */
      readonly congestionControl?: string;
    })
  | Omit<Extract<Beginning, { type: "receive" }>, Ours>;

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

  private constructor(
    threads: ChannelThreads,
    thread: NativeThread | undefined,
    handle: SocketHandle | undefined,
    socket: Socket | undefined,
    generation: number,
  ) {
    this.generation = generation;
    this.#threads = threads;
    this.#handle = handle;
    this.#ended = new Promise((resolve) => {
      this.#markEnded = resolve;
    });
    if (thread === undefined) {
      this.#local = new ChannelEnd((message) => setImmediate(() => this.#receive(message)), socket);
      this.#socket = socket;
      return;
    }
    this.#thread = thread;
    this.#thread.on("message", this.#onMessage).on("error", this.#onError);
  }

  /**
   * Gives a connected socket to a channel thread; without system calls it stays on this thread.
   * @param socket nothing must have been read from it or sent on it beyond the Upgrade. @throws {MigrationError} ERR_LINK_LOST
   */
  static async open(socket: ChannelSocket, threads: ChannelThreads, order: ChannelOrder): Promise<PageChannel> {
    if (socket.destroyed) throw closedTooEarly(); // it tells nobody any more
    if (socket instanceof SecuredSocket) return PageChannel.#openSecured(socket, threads, order);
    const handle = mayTakeDescriptor(socket) ? await takeDescriptor(socket) : undefined;
    const channel = new PageChannel(threads, handle && threads.take(), handle, socket, order.generation);
    // The portable pump's socket closes its descriptor, so it gets one of its own.
    channel.#begin(order, handle === undefined ? undefined : order.pump === "direct" ? handle.fd : handle.duplicate());
    return channel;
  }

  static #openSecured(socket: SecuredSocket, threads: ChannelThreads, order: ChannelOrder): PageChannel {
    const { thread, handle } = socket.release();
    const channel = new PageChannel(threads, thread, handle, undefined, order.generation);
    channel.#begin(order, order.pump === "direct" ? handle.fd : undefined, true);
    return channel;
  }

  #begin(order: ChannelOrder, fd: number | undefined, isSecured = false): void {
    const shared = { fd, isSecured, stop: this.#stop };
    if (order.type === "receive") return this.#tell({ ...order, ...shared });
    const { congestionControl, ...setup } = order;
    this.congestionControl = this.#handle && setCongestionControl(this.#handle, congestionControl);
    this.#isBlocking = order.pump === "direct";
    this.#tell({ ...setup, ...shared, sentPages: this.#sentPages });
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
