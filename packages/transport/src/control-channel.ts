import type { IncomingMessage } from "node:http";
import WebSocket from "ws";
import { CONTROL_MESSAGE_BYTES_MAX, HEARTBEAT_MS, MigrationError, PEER_DEAD_MS, formatAddress, isErrorCode } from "@precopy/protocol";
import { decodeControl, encodeControl } from "@precopy/protocol/control";
import type { Address, ControlMessage, ControlType, Message } from "@precopy/protocol";
import { OPEN, connectTo, proveToken, whileWanted } from "./dial.js";
import type { Security } from "./dial.js";
import { refusalIn } from "./refusal.js";

export const CONTROL_PATH = "/v1/control";

/** What may wait in our buffers for a peer that does not read. */
const BACKLOG_BYTES_MAX = 4 * CONTROL_MESSAGE_BYTES_MAX;

interface Waiter {
  readonly types: readonly ControlType[];
  readonly resolve: (message: ControlMessage) => void;
  readonly reject: (error: MigrationError) => void;
}

/**
 * Ordered control messages between two agents, with a heartbeat: a peer that is silent for PEER_DEAD_MS is dead, whatever its socket
 * says. Closes itself on the first message that is not one.
 */
export class ControlChannel {
  readonly #socket: WebSocket;
  readonly #waiters = new Set<Waiter>();
  readonly #heartbeat: NodeJS.Timeout;
  readonly #pings = new Map<number, number>();
  /** The peer's address, at the accepting end only. */
  readonly remoteHost: string | undefined;
  #heardAt = performance.now();
  #ping = 0;
  #closed: MigrationError | undefined;
  /** Shortest round trip seen, ms; undefined before the first. */
  rttMs: number | undefined;
  /** Every message that nobody expects. */
  onMessage: (message: ControlMessage) => void = () => {};
  onClose: (reason: MigrationError) => void = () => {};

  /** @param remoteHost the peer's address, at the accepting end. */
  constructor(socket: WebSocket, remoteHost?: string) {
    this.#socket = socket;
    this.remoteHost = remoteHost;
    socket.on("message", (data: Buffer) => this.#receive(data));
    socket.on("error", (cause) => this.close(new MigrationError("ERR_LINK_LOST", "The control channel broke", { cause })));
    socket.on("close", () => this.close(new MigrationError("ERR_LINK_LOST", "The peer closed the control channel")));
    this.#heartbeat = setInterval(() => this.#beat(), HEARTBEAT_MS);
    this.#beat();
  }

  /** @throws {MigrationError} ERR_UNREACHABLE, ERR_NOT_AN_AGENT, and why the agent there does not let us in, or is not to be trusted */
  static async connect(to: Address, signal?: AbortSignal, security: Security = OPEN): Promise<ControlChannel> {
    const peer = formatAddress(to);
    const connected = await connectTo(to, security, signal);
    const proof = await proveToken(connected, to, security, CONTROL_PATH);
    const socket = new WebSocket(`ws://${peer}${CONTROL_PATH}`, {
      perMessageDeflate: false,
      maxPayload: CONTROL_MESSAGE_BYTES_MAX,
      createConnection: () => connected,
      ...(proof !== undefined && { headers: { authorization: proof.authorization } }),
    });
    try {
      // In the turn of the event itself: what the peer sent right behind its answer finds the channel's listeners there.
      const opened = new Promise<ControlChannel>((resolve, reject) => {
        let answer: IncomingMessage | undefined;
        socket.once("upgrade", (upgraded) => (answer = upgraded));
        socket.once("unexpected-response", (_request, response) => {
          const refused = refusalIn((name) => [response.headers[name]].flat()[0], peer);
          reject(refused ?? new MigrationError("ERR_NOT_AN_AGENT", `${peer} answered ${response.statusCode ?? ""} to a control channel`));
        });
        socket.once("error", reject);
        socket.once("open", () => {
          try {
            proof?.check(answer?.headers ?? {});
            resolve(new ControlChannel(socket));
          } catch (error) {
            reject(MigrationError.from(error));
          }
        });
      });
      return await whileWanted(connected, signal, () => opened);
    } catch (cause) {
      socket.on("error", () => {}); // terminate() reports once more that it was not open
      socket.terminate();
      if (cause instanceof MigrationError) throw cause;
      const code = cause instanceof Error && "code" in cause ? String(cause.code) : "";
      const isHttp = cause instanceof Error && /Parse Error|Invalid/i.test(`${cause.message} ${code}`);
      if (isHttp || code.startsWith("HPE_")) throw new MigrationError("ERR_NOT_AN_AGENT", `${peer} does not speak our protocol`, { cause });
      throw new MigrationError("ERR_UNREACHABLE", `Cannot reach ${peer}`, { cause });
    }
  }

  /** Why it is closed, or undefined while it is open. */
  get closed(): MigrationError | undefined {
    return this.#closed;
  }

  /** Dropped silently if the channel is closed: `onClose` has told why. */
  send(message: ControlMessage): void {
    const bytes = encodeControl(message);
    if (this.#closed !== undefined) return;
    if (this.#socket.bufferedAmount > BACKLOG_BYTES_MAX) this.close(new MigrationError("ERR_PEER_DEAD", "The peer does not read"));
    else this.#socket.send(bytes);
  }

  /**
   * The next message of one of these types. `refused`, `failed` and `abort` from the peer reject with the peer's code unless they are
   * among the types. @throws {MigrationError} the peer's code, `timeoutError`, or why the channel closed.
   */
  expect<T extends ControlType>(types: readonly T[], timeoutMs: number, timeoutError: () => MigrationError): Promise<Message<T>> {
    if (this.#closed !== undefined) return Promise.reject(this.#closed);
    const answered = new Promise<Message<T>>((resolve, reject) => {
      const settle = (): void => {
        clearTimeout(timer);
        this.#waiters.delete(waiter);
      };
      const waiter: Waiter = {
        types,
        resolve: (message) => {
          settle();
          resolve(message as Message<T>); // #receive hands over only these types
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      };
      const timer = setTimeout(() => waiter.reject(timeoutError()), timeoutMs);
      this.#waiters.add(waiter);
    });
    answered.catch(() => {}); // whoever asked may fail before it comes to wait for the answer
    return answered;
  }

  /** Measures the round trip once more: what an answer waited for on a busy host is no part of it, so the shortest counts. */
  ping(): void {
    this.#pings.set(++this.#ping, performance.now());
    this.send({ type: "ping", id: this.#ping });
  }

  close(reason: MigrationError): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    clearInterval(this.#heartbeat);
    // A peer that went silent would never finish the closing handshake.
    if (reason.code === "ERR_PEER_DEAD") this.#socket.terminate();
    else this.#socket.close();
    const kill = setTimeout(() => this.#socket.terminate(), HEARTBEAT_MS).unref();
    this.#socket.once("close", () => clearTimeout(kill));
    for (const waiter of [...this.#waiters]) waiter.reject(reason);
    this.onClose(reason);
  }

  #beat(): void {
    if (performance.now() - this.#heardAt > PEER_DEAD_MS)
      return this.close(new MigrationError("ERR_PEER_DEAD", `Nothing heard from the peer for ${PEER_DEAD_MS / 1000} s`));
    if (this.#pings.size > PEER_DEAD_MS / HEARTBEAT_MS) this.#pings.clear();
    this.ping();
  }

  #receive(data: Buffer): void {
    if (this.#closed !== undefined) return; // what a peer sent behind a broken message, or before it saw us close
    this.#heardAt = performance.now();
    let message: ControlMessage;
    try {
      message = decodeControl(data);
    } catch (thrown) {
      const error = MigrationError.from(thrown);
      // What was damaged on the way is the link's fault, and the peer may join again; what makes no sense is the peer's.
      if (error.code !== "ERR_PACKET_CHECKSUM") this.send({ type: "failed", code: error.code, message: error.message });
      return this.close(error);
    }
    if (message.type === "ping") return this.send({ type: "pong", id: message.id });
    if (message.type === "pong") {
      const sentAt = this.#pings.get(message.id);
      this.#pings.delete(message.id);
      if (sentAt !== undefined) this.rttMs = Math.min(this.rttMs ?? Number.POSITIVE_INFINITY, this.#heardAt - sentAt);
      return;
    }
    const { type } = message;
    const waiter = [...this.#waiters].find(({ types }) => types.includes(type));
    if (waiter !== undefined) return waiter.resolve(message);
    if (type === "refused" || type === "failed" || type === "abort") {
      const error = peerError(message);
      for (const one of [...this.#waiters]) one.reject(error);
    }
    this.onMessage(message);
  }
}

/** The peer's reason as our error: its code if we know it, with our remedy for it. */
export const peerError = ({ code, message }: { readonly code: string; readonly message: string }): MigrationError =>
  new MigrationError(isErrorCode(code) ? code : "ERR_INTERNAL", isErrorCode(code) ? message : `${code}: ${message}`);
