import { once } from "node:events";
import { Socket } from "node:net";
import { pipeline } from "node:stream/promises";
import { connect as connectTls, createServer } from "node:tls";
import type { TLSSocket } from "node:tls";
import { CONNECT_TIMEOUT_MS, HANDSHAKE_TIMEOUT_MS, MigrationError } from "@precopy/protocol";
import type { ErrorCode } from "@precopy/protocol";
import { ALPN_CHANNEL, TlsIdentity, takeClientSecret, isCipherSuite } from "@precopy/security";
import type { TlsSettings, TrafficSecret } from "@precopy/security";
import { handshakeFailure, tellPeer } from "./dial.js";
import { readHead } from "./http-head.js";
import type { HttpHead } from "./http-head.js";
import { refusalAnswer } from "./refusal.js";
import { closedTooEarly } from "./take-descriptor.js";
import { RECORD_OVERHEAD_BYTES } from "./tls-records.js";

/** What a channel's thread does of TLS before its channel begins. Every descriptor is the thread's own, and closed by it. */
export type ToTlsEnd =
  /** hello: what has come already. peer: who, for messages. Answered by `tls-head`, the request. */
  | { readonly type: "tls-accept"; readonly fd: number; readonly hello: Uint8Array; readonly settings: TlsSettings; readonly peer: string }
  /** Answered by `tls-head`, the answer to the request. */
  | {
      readonly type: "tls-connect";
      readonly fd: number;
      readonly host: string;
      readonly peer: string;
      readonly request: string;
      readonly settings: TlsSettings;
      readonly session: Uint8Array | undefined;
    }
  /** The last word of a connection. */
  | { readonly type: "tls-answer"; readonly answer: string }
  /** What comes is written there, and what comes from there is sent. */
  | { readonly type: "tls-relay"; readonly fd: number }
  | { readonly type: "tls-close" };
export type FromTlsEnd =
  | { readonly type: "tls-head"; readonly head: HttpHead }
  /** The connection is over, and nothing of it left. */
  | { readonly type: "tls-ended"; readonly code: ErrorCode | undefined; readonly message: string };

/** A connection with TLS on which nothing but the Upgrade has passed, and what becomes of it: one of two. */
export class SecuredConnection {
  readonly socket: TLSSocket;
  readonly #raw: Socket;
  readonly #secret: TrafficSecret | undefined;
  readonly #written: number | undefined;

  /** @param secret what the client's records are sealed with. @param written at the client, bytes that Node has written of them, to the end of the request */
  constructor(socket: TLSSocket, raw: Socket, secret: TrafficSecret | undefined, written: number | undefined) {
    this.socket = socket;
    this.#raw = raw;
    this.#secret = secret;
    this.#written = written;
  }

  /** It stays with Node. */
  keep(): TLSSocket {
    this.#secret?.secret.fill(0);
    return this.socket;
  }

  /**
   * Ends Node's hold on the connection, whose descriptor somebody else has, too: it may be blocked on then.
   * @param last of the server, written in the same turn of the loop: nothing of what the client says to it has been read.
   * @returns what the client's next record is sealed with
   * @throws {MigrationError} ERR_LINK_LOST if there is no such secret, or if Node has sealed more than it was given. Whoever is on the way can make it
   *   say goodbye, by the end of a stream, or an alert, by noise: a record of ours with the number of that one would give away what is in both.
   */
  async letGo(last?: Uint8Array): Promise<TrafficSecret> {
    const written = last === undefined ? this.#written : this.#raw.bytesWritten + last.byteLength + RECORD_OVERHEAD_BYTES;
    if (last !== undefined && !this.socket.destroyed) this.socket.write(last);
    this.socket.destroy();
    if (!this.socket.closed) await once(this.socket, "close");
    if (this.#secret !== undefined && this.#raw.bytesWritten === written) return this.#secret;
    this.#secret?.secret.fill(0);
    throw closedTooEarly();
  }
}

/** TLS of one connection, in the thread that will carry its channel. */
export class TlsEnd {
  readonly #reply: (message: FromTlsEnd) => void;
  #socket: TLSSocket | undefined;
  #raw: Socket | undefined;
  #secret: Buffer | undefined;
  #written: number | undefined;
  #isEnded = false;

  constructor(reply: (message: FromTlsEnd) => void) {
    this.#reply = reply;
  }

  handle(message: ToTlsEnd): void {
    if (message.type === "tls-close") this.#end(undefined);
    else if (message.type === "tls-answer") this.#answer(message.answer);
    else this.#serve(message).catch((error: unknown) => this.#end(MigrationError.from(error)));
  }

  /** For the channel that begins: from here on the socket is its. Undefined if it has ended already. */
  take(): SecuredConnection | undefined {
    const [socket, raw, secret] = [this.#socket, this.#raw, this.#secret];
    if (this.#isEnded || socket === undefined || raw === undefined) return undefined;
    this.#isEnded = true;
    const suite = socket.destroyed ? "" : socket.getCipher().standardName;
    return new SecuredConnection(socket, raw, secret && isCipherSuite(suite) ? { suite, secret } : undefined, this.#written);
  }

  readonly #onKeyLog = (line: Buffer): void => {
    this.#secret = takeClientSecret(line) ?? this.#secret;
  };

  async #serve(message: Exclude<ToTlsEnd, { type: "tls-close" | "tls-answer" }>): Promise<void> {
    if (message.type === "tls-relay") return this.#relay(message.fd);
    const raw = new Socket({ fd: message.fd, readable: true, writable: true });
    this.#raw = raw;
    raw.setNoDelay(true);
    const isAccepting = message.type === "tls-accept";
    const timer = setTimeout(() => raw.destroy(), isAccepting ? HANDSHAKE_TIMEOUT_MS : CONNECT_TIMEOUT_MS);
    try {
      const socket = isAccepting ? await accept(raw, message, this.#onKeyLog) : await connect(raw, message, this.#onKeyLog);
      this.#socket = socket;
      if (!isAccepting) {
        socket.write(message.request);
        this.#written = raw.bytesWritten;
      }
      socket.on("error", () => socket.destroy()); // Node does not for noise; that it has ended is told
      const head = await readHead(socket).catch((cause: unknown) => {
        if (cause instanceof MigrationError) throw cause;
        throw new MigrationError(isAccepting ? "ERR_LINK_LOST" : "ERR_UNREACHABLE", `${message.peer} left before it said anything`, {
          cause,
        });
      });
      this.#reply({ type: "tls-head", head });
      if (socket.destroyed) return this.#end(undefined);
      socket.once("close", this.#onClose);
    } finally {
      clearTimeout(timer);
    }
  }

  readonly #onClose = (): void => this.#end(undefined);

  #answer(answer: string): void {
    const socket = this.#socket;
    if (socket === undefined) return this.#end(undefined);
    socket.end(answer);
    socket.resume(); // what the peer says still must not be in the way of what it is told
    setTimeout(() => socket.destroy(), HANDSHAKE_TIMEOUT_MS).unref();
  }

  async #relay(fd: number): Promise<void> {
    const near = new Socket({ fd, readable: true, writable: true });
    const socket = this.#socket;
    if (socket === undefined) return void near.destroy();
    socket.off("close", this.#onClose);
    // Whichever way is broken, both are.
    await Promise.allSettled([pipeline(socket, near), pipeline(near, socket)]);
    near.destroy();
    this.#end(undefined);
  }

  #end(failure: MigrationError | undefined): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#socket?.destroy();
    this.#raw?.destroy();
    this.#secret?.fill(0);
    const cause = failure?.cause instanceof Error ? ` (${failure.cause.message})` : "";
    this.#reply({ type: "tls-ended", code: failure?.code, message: failure === undefined ? "" : `${failure.message}${cause}` });
  }
}

type OnKeyLog = (line: Buffer) => void;

/** @throws {MigrationError} what is wrong with the client, which is told */
async function accept(raw: Socket, { hello, settings, peer }: ToTlsEnd & { type: "tls-accept" }, onKeyLog: OnKeyLog): Promise<TLSSocket> {
  const identity = new TlsIdentity(settings);
  const server = createServer(identity.serverOptions(ALPN_CHANNEL)).on("keylog", onKeyLog);
  const settled = new Promise<TLSSocket>((resolve, reject) => {
    server.once("secureConnection", resolve);
    server.once("tlsClientError", (cause) => reject(handshakeFailure(cause, peer, false)));
    raw.once("close", () => reject(new MigrationError("ERR_TLS_HANDSHAKE", `${peer} left in the TLS handshake`)));
  });
  raw.unshift(Buffer.from(hello));
  server.emit("connection", raw);
  const socket = await settled;
  const why = identity.whyNotClient(socket, peer);
  if (why === undefined) return socket;
  socket.on("error", () => {});
  socket.end(refusalAnswer(why));
  socket.resume();
  await Promise.race([once(socket, "close"), new Promise((resolve) => setTimeout(resolve, HANDSHAKE_TIMEOUT_MS).unref())]);
  throw why;
}

/** @throws {MigrationError} what is wrong with the server, which is told */
async function connect(
  raw: Socket,
  { host, peer, settings, session }: ToTlsEnd & { type: "tls-connect" },
  onKeyLog: OnKeyLog,
): Promise<TLSSocket> {
  const identity = new TlsIdentity(settings);
  const socket = connectTls({ ...identity.connectOptions(host, ALPN_CHANNEL, session), socket: raw }).on("keylog", onKeyLog);
  try {
    await Promise.race([
      once(socket, "secureConnect"),
      once(socket, "close").then(() => Promise.reject(new Error("closed in the handshake"))),
    ]);
  } catch (cause) {
    throw handshakeFailure(cause, peer, true);
  }
  const why = identity.whyNotServer(socket, host);
  if (why !== undefined) {
    tellPeer(socket, peer, why);
    throw why;
  }
  return socket;
}
