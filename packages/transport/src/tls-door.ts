import { Socket } from "node:net";
import { createServer } from "node:tls";
import type { Server, TLSSocket } from "node:tls";
import { MigrationError } from "@precopy/protocol";
import { ALPN_CHANNEL, ALPN_HTTP, readFirstBytes } from "@precopy/security";
import type { TlsIdentity } from "@precopy/security";
import { handshakeFailure } from "./dial.js";
import { refusalAnswer } from "./refusal.js";

export interface DoorHandlers {
  /** A peer whose certificate is in order wants to speak HTTP. @param raw what it came by */
  onHttp(socket: TLSSocket, raw: Socket): void;
  /** A connection for a channel, not even shaken hands with. @param hello what was read of it. False: it is to come in like any other. */
  onChannel(raw: Socket, hello: Buffer): boolean;
  onRefused(peer: string, error: MigrationError): void;
}

/** Who somebody is, for a log. */
export const peerOf = ({ remoteAddress, remotePort }: Socket): string => `${remoteAddress ?? "somebody"}:${remotePort ?? "?"}`;

/** What a TLSSocket of a server was made from. Node keeps it there. */
const rawOf = (socket: TLSSocket): Socket => {
  const parent: unknown = Reflect.get(socket, "_parent");
  return parent instanceof Socket ? parent : socket;
};

/** The door of a port that takes TLS only: looks at the first bytes of each connection, without an answer, and says where it belongs. */
export class TlsDoor {
  readonly #identity: TlsIdentity;
  readonly #handlers: DoorHandlers;
  readonly #server: Server;

  /** @throws {MigrationError} ERR_TLS_CREDENTIALS without a server's certificate */
  constructor(identity: TlsIdentity, handlers: DoorHandlers) {
    this.#identity = identity;
    this.#handlers = handlers;
    const options = identity.serverOptions(ALPN_HTTP);
    // Where no thread takes channels they come in here, too.
    this.#server = createServer({ ...options, ALPNProtocols: [ALPN_HTTP, ALPN_CHANNEL] });
    this.#server.on("secureConnection", (socket) => this.#judge(socket));
    this.#server.on("tlsClientError", (cause, socket) => {
      const peer = peerOf(rawOf(socket));
      handlers.onRefused(peer, handshakeFailure(cause, peer, false));
    });
  }

  enter(raw: Socket): void {
    const peer = peerOf(raw); // from here on the socket remembers it, closed as well
    let bytes = Buffer.alloc(0);
    const look = (): void => {
      for (let chunk: unknown = raw.read(); Buffer.isBuffer(chunk); chunk = raw.read()) bytes = Buffer.concat([bytes, chunk]);
      const first = readFirstBytes(bytes);
      if (first.kind === "more") return;
      raw.off("readable", look);
      if (first.kind === "other") return this.#turnAway(raw, peer);
      if (first.protocols.includes(ALPN_CHANNEL) && this.#handlers.onChannel(raw, bytes)) return;
      raw.unshift(bytes);
      this.#server.emit("connection", raw);
    };
    raw.on("readable", look);
    raw.on("error", () => {}); // it closes then
  }

  #turnAway(raw: Socket, peer: string): void {
    const error = new MigrationError("ERR_TLS_REQUIRED", "This port takes TLS only");
    raw.end(refusalAnswer(error));
    raw.resume();
    this.#handlers.onRefused(peer, new MigrationError("ERR_TLS_REQUIRED", `${peer} came without TLS`));
  }

  #judge(socket: TLSSocket): void {
    const raw = rawOf(socket);
    const peer = peerOf(raw);
    const why = this.#identity.whyNotClient(socket, peer);
    if (why === undefined) return this.#handlers.onHttp(socket, raw);
    socket.on("error", () => {}); // it may have gone
    socket.end(refusalAnswer(why));
    socket.resume(); // what it says still must not be in the way of what it is told
    this.#handlers.onRefused(peer, why);
  }
}
