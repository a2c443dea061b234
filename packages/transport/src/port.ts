import { createServer as createHttpServer, request } from "node:http";
import type { IncomingMessage, Server as HttpServer, ServerResponse } from "node:http";
import { Socket, createServer } from "node:net";
import type { Server } from "node:net";
import type { Duplex } from "node:stream";
import { WebSocketServer } from "ws";
import type WebSocket from "ws";
import * as z from "zod";
import { isLinuxAvailable } from "@precopy/linux";
import {
  CHANNELS_MAX,
  CONTROL_CHANNELS_MAX,
  CONTROL_MESSAGE_BYTES_MAX,
  HANDSHAKE_TIMEOUT_MS,
  HEARTBEAT_MS,
  HTTP_HEADER_BYTES_MAX,
  MigrationError,
  OBSERVERS_MAX,
  OBSERVER_BACKLOG_BYTES_MAX,
  PENDING_CONNECTIONS_MAX,
  PROTOCOL_VERSION,
  formatAddress,
} from "@precopy/protocol";
import type { Address, ProgressEvent } from "@precopy/protocol";
import { readFirstBytes } from "@precopy/security";
import type { TlsIdentity } from "@precopy/security";
import type { ChannelThreads } from "./channel-threads.js";
import { CONTROL_PATH, ControlChannel } from "./control-channel.js";
import { OPEN, connectTo, proveToken, whileWanted } from "./dial.js";
import type { Security } from "./dial.js";
import { formatHead } from "./http-head.js";
import { FAULTS_PATH, FAULTS_PROTOCOL, KEY_HEADER, PAGES_PATH, PAGES_PROTOCOL } from "./page-channel.js";
import type { ChannelName, ChannelSocket, FaultChannelName } from "./page-channel.js";
import { PendingConnections } from "./pending-connections.js";
import { refusalAnswer, refusalHeaders, refusalIn } from "./refusal.js";
import { SecuredSocket } from "./secured-socket.js";
import { TlsDoor, peerOf } from "./tls-door.js";
import { AGENT_PATH, PROOF_HEADER, TokenDesk } from "./token-exchange.js";

const EVENTS_PATH = "/v1/events";

/** What an Upgrade to a channel shows. */
export interface ShownKey {
  /** Of a ChannelKey; empty if there was none. */
  readonly key: string;
}

export interface PortHandlers {
  /** A peer opened a control channel. Nothing is known of it but what the port's Security has seen. */
  onControl(channel: ControlChannel): void;
  /** A peer asks for a page channel. True: the handler owns the socket now; false answers 409. @throws {MigrationError} what else it is to be refused with */
  onPageChannel(name: ChannelName & ShownKey, socket: ChannelSocket): boolean;
  /** A peer offers to answer faults; as onPageChannel. */
  onFaultChannel(name: FaultChannelName & ShownKey, socket: ChannelSocket): boolean;
  /** False: no channel can be meant for this agent now, and no thread is to be kept busy with one. Default true. */
  isExpectingChannels?(): boolean;
  /** Somebody was not let in, or told us why they will not have us. */
  onRefused?(peer: string, error: MigrationError): void;
}

export interface PortOptions {
  /** Default: anybody is let in. */
  readonly security?: Security;
  /** Where page channels are shaken hands with; undefined: on this thread. */
  readonly threads?: ChannelThreads;
}

const faultQuery = z.object({
  session: z.uuid(),
  generation: z.coerce
    .number()
    .int()
    .min(1)
    .max(2 ** 31),
});
const channelQuery = faultQuery.extend({
  channel: z.coerce
    .number()
    .int()
    .min(0)
    .max(CHANNELS_MAX - 1),
});

/** What a client of a channel asks for, by HTTP of Node's or in a thread. */
interface ChannelRequest {
  readonly url: URL | undefined;
  readonly protocol: string | undefined;
  readonly key: string;
}

/** As Node answers by itself where nobody listens. */
const STATUS_OF_BROKEN: Readonly<Record<string, string>> = {
  HPE_HEADER_OVERFLOW: "431 Request Header Fields Too Large",
  ERR_HTTP_REQUEST_TIMEOUT: "408 Request Timeout",
};

function finish(socket: Duplex, answer: string): void {
  socket.on("error", () => {}); // the peer may be gone already, and nobody else listens on this socket
  // Nobody reads this socket any more, so a peer that keeps its end open would keep the connection, and the port, for ever.
  const kill = setTimeout(() => socket.destroy(), HEARTBEAT_MS);
  socket.once("close", () => clearTimeout(kill));
  socket.end(answer);
}

const refuseUpgrade = (socket: Duplex, status: string): void =>
  finish(socket, formatHead(`HTTP/1.1 ${status}`, ["Connection: close", "Content-Length: 0"]));

/** The URL is the peer's: a base makes every string one, and only known paths are served. */
const parseUrl = (text: string): URL | undefined => (URL.canParse(text, "http://agent") ? new URL(text, "http://agent") : undefined);

/** One listener for everything: control and events by WebSocket, page channels by Upgrade, a word about itself by GET; with TLS, or without. */
export class AgentPort {
  /** Speaks HTTP; listens itself where there is no TLS. */
  readonly #http: HttpServer;
  readonly #listener: Server;
  readonly #pending = new PendingConnections();
  readonly #open = new Set<Socket>();
  readonly #sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false, maxPayload: CONTROL_MESSAGE_BYTES_MAX });
  readonly #observers = new Set<WebSocket>();
  readonly #handlers: PortHandlers;
  readonly #release: string;
  readonly #threads: ChannelThreads | undefined;
  readonly #desk: TokenDesk | undefined;
  #controls = 0;
  /** Channels that are being shaken hands with in threads. */
  #accepting = 0;

  private constructor(handlers: PortHandlers, release: string, { security = OPEN, threads }: PortOptions) {
    this.#handlers = handlers;
    this.#release = release;
    this.#threads = threads;
    this.#desk = security.token && new TokenDesk(security.token, (socket) => this.#left(socket));
    this.#http = createHttpServer({
      maxHeaderSize: HTTP_HEADER_BYTES_MAX,
      headersTimeout: HANDSHAKE_TIMEOUT_MS,
      requestTimeout: HANDSHAKE_TIMEOUT_MS,
      connectionsCheckingInterval: 1000,
      noDelay: true,
    });
    this.#http.on("upgrade", (incoming, socket, head) => this.#upgrade(incoming, socket, head));
    this.#http.on("request", (incoming, response) => this.#request(incoming, response));
    this.#http.on("clientError", (cause, socket) => this.#broken(cause, socket));
    this.#sockets.on("headers", (headers, incoming) => {
      const proof = this.#proofs.get(incoming);
      if (proof !== undefined) headers.push(`${PROOF_HEADER}: ${proof}`);
    });
    this.#listener = security.tls === undefined ? this.#http : this.#tlsListener(security.tls);
    this.#listener.maxConnections = PENDING_CONNECTIONS_MAX + CONTROL_CHANNELS_MAX + OBSERVERS_MAX + 2 * CHANNELS_MAX;
    this.#listener.on("connection", (socket: Socket) => {
      this.#open.add(socket);
      socket.once("close", () => this.#open.delete(socket));
      this.#pending.enter(socket);
    });
  }

  readonly #proofs = new WeakMap<IncomingMessage, string>();

  #tlsListener(tls: TlsIdentity): Server {
    const door = new TlsDoor(tls, {
      onHttp: (socket, raw) => {
        this.#raws.set(socket, raw);
        this.#http.emit("connection", socket);
      },
      onChannel: (raw, hello) => this.#secureChannel(tls, raw, hello),
      onRefused: (peer, error) => this.#handlers.onRefused?.(peer, error),
    });
    return createServer({ noDelay: true, pauseOnConnect: false }, (socket) => door.enter(socket));
  }
  /** What came in by which connection. */
  readonly #raws = new WeakMap<Duplex, Socket>();

  /** @throws {MigrationError} ERR_PORT_IN_USE, ERR_ADDRESS, ERR_TLS_CREDENTIALS */
  static async listen(at: Address, handlers: PortHandlers, release: string, options: PortOptions = {}): Promise<AgentPort> {
    const port = new AgentPort(handlers, release, options);
    const server = port.#listener;
    await new Promise<void>((resolve, reject) => {
      server.once("error", (cause: NodeJS.ErrnoException) =>
        reject(
          new MigrationError(cause.code === "EADDRINUSE" ? "ERR_PORT_IN_USE" : "ERR_ADDRESS", `Cannot listen on ${formatAddress(at)}`, {
            cause,
          }),
        ),
      );
      server.listen(at.port, at.host, resolve);
    });
    server.on("error", () => {}); // a connection that could not be accepted, for want of descriptors: its peer will notice
    return port;
  }

  /** Where it listens, with the port the system chose if it was 0. */
  get address(): Address {
    const at = this.#listener.address();
    if (at === null || typeof at === "string") throw new MigrationError("ERR_INTERNAL", "The listener has no address");
    return { host: at.address, port: at.port };
  }

  /** Of the connection behind what HTTP is spoken on. */
  #letIn(socket: Duplex): void {
    const raw = this.#raws.get(socket) ?? socket;
    if (raw instanceof Socket) this.#pending.letIn(raw);
  }

  #left(socket: Socket): void {
    const peer = peerOf(socket);
    this.#refused(peer, new MigrationError("ERR_TOKEN_REQUIRED", `${peer} was asked for the token, and left`));
  }

  #refused(peer: string, error: MigrationError): void {
    this.#handlers.onRefused?.(peer, error);
  }

  #broken(cause: NodeJS.ErrnoException & { readonly rawPacket?: Buffer }, socket: Duplex): void {
    const peer = socket instanceof Socket ? peerOf(socket) : "somebody";
    if (cause.rawPacket !== undefined && readFirstBytes(cause.rawPacket).kind === "tls") {
      this.#refused(peer, new MigrationError("ERR_TLS_NOT_OFFERED", `${peer} came with TLS, and this port has none`));
      return finish(socket, refusalAnswer(new MigrationError("ERR_TLS_NOT_OFFERED", "This port has no TLS")));
    }
    if (cause.code === "ECONNRESET" || !socket.writable) return void socket.destroy();
    refuseUpgrade(socket, STATUS_OF_BROKEN[cause.code ?? ""] ?? "400 Bad Request");
  }

  #request(incoming: IncomingMessage, response: ServerResponse): void {
    const peer = peerOf(incoming.socket);
    const told = refusalIn((name) => textOf(incoming.headers[name]), peer);
    response.shouldKeepAlive = false;
    if (told !== undefined) {
      this.#refused(peer, told);
      response.end();
    } else if (incoming.method !== "GET" || incoming.url !== AGENT_PATH) {
      response.statusCode = 404;
      response.end("This is a precopy agent. It speaks to other agents.\n");
    } else if (this.#desk !== undefined && incoming.headers.authorization === undefined) {
      // The proof comes on the same connection.
      response.shouldKeepAlive = true;
      response.statusCode = 401;
      for (const line of refusalHeaders(new MigrationError("ERR_TOKEN_REQUIRED", "This agent asks for a token"))) setLine(response, line);
      response.setHeader("WWW-Authenticate", this.#desk.challenge(incoming.socket));
      response.setHeader("Content-Length", 0);
      response.end();
    } else {
      try {
        const proof = this.#desk?.check(incoming, AGENT_PATH);
        if (proof !== undefined) response.setHeader(PROOF_HEADER, proof);
        response.setHeader("Content-Type", "application/json");
        response.end(`${JSON.stringify({ product: "precopy", release: this.#release, protocol: PROTOCOL_VERSION })}\n`);
      } catch (thrown) {
        const error = MigrationError.from(thrown);
        this.#refused(peer, error);
        finish(incoming.socket, refusalAnswer(error));
      }
    }
  }

  #upgrade(incoming: IncomingMessage, socket: Duplex, head: Buffer): void {
    // Only a browser sends an Origin, and no web page has any business with an agent, least of all one on its reader's own host.
    if (incoming.headers.origin !== undefined) return refuseUpgrade(socket, "403 Forbidden");
    const url = parseUrl(incoming.url ?? "");
    const path = url?.pathname;
    if (path === PAGES_PATH || path === FAULTS_PATH) {
      // Bytes before our answer would be in Node's buffer, lost to the thread that reads the descriptor.
      if (head.byteLength > 0 || !(socket instanceof Socket)) return refuseUpgrade(socket, "400 Bad Request");
      const answer = this.#takeChannel(
        { url, protocol: incoming.headers.upgrade, key: textOf(incoming.headers[KEY_HEADER.toLowerCase()]) ?? "" },
        socket,
        peerOf(incoming.socket),
      );
      if (answer === undefined) this.#letIn(socket);
      else finish(socket, answer);
    } else if (path === CONTROL_PATH || path === EVENTS_PATH) this.#upgradeToMessages(path, incoming, socket, head);
    else refuseUpgrade(socket, "404 Not Found");
  }

  #upgradeToMessages(path: string, incoming: IncomingMessage, socket: Duplex, head: Buffer): void {
    const peer = peerOf(incoming.socket);
    try {
      const proof = this.#desk?.check(incoming, path);
      if (proof !== undefined) this.#proofs.set(incoming, proof);
    } catch (thrown) {
      const error = MigrationError.from(thrown);
      this.#refused(peer, error);
      return finish(socket, refusalAnswer(error));
    }
    const isControl = path === CONTROL_PATH;
    if (isControl ? this.#controls >= CONTROL_CHANNELS_MAX : this.#observers.size >= OBSERVERS_MAX)
      return refuseUpgrade(socket, isControl ? "503 Too Many Control Channels" : "503 Too Many Observers");
    this.#sockets.handleUpgrade(incoming, socket, head, (ws) => {
      this.#letIn(socket);
      if (!isControl) return this.#observe(ws);
      this.#controls++;
      ws.once("close", () => this.#controls--);
      this.#handlers.onControl(new ControlChannel(ws, incoming.socket.remoteAddress));
    });
  }

  /** @returns the answer to a request that is refused; undefined if the socket has been taken. */
  #takeChannel({ url, protocol, key }: ChannelRequest, socket: ChannelSocket, peer: string): string | undefined {
    const isPages = url?.pathname === PAGES_PATH && protocol === PAGES_PROTOCOL;
    const isFaults = url?.pathname === FAULTS_PATH && protocol === FAULTS_PROTOCOL;
    if (url === undefined || (!isPages && !isFaults))
      return formatHead("HTTP/1.1 404 Not Found", ["Connection: close", "Content-Length: 0"]);
    const query = Object.fromEntries(url.searchParams);
    try {
      const isTaken = isPages
        ? this.#handlers.onPageChannel({ ...channelQuery.parse(query), key }, socket)
        : this.#handlers.onFaultChannel({ ...faultQuery.parse(query), key }, socket);
      return isTaken ? undefined : refusalAnswer(new MigrationError("ERR_STALE_GENERATION", "No such channel is expected here"));
    } catch (thrown) {
      if (thrown instanceof z.ZodError) return refusalAnswer(new MigrationError("ERR_BAD_MESSAGE", "Not the name of a channel"));
      const error = MigrationError.from(thrown);
      this.#refused(peer, error);
      return refusalAnswer(error);
    }
  }

  /** False where no thread can take it, or is to: nobody has seen yet who it is. */
  #secureChannel(tls: TlsIdentity, raw: Socket, hello: Buffer): boolean {
    const threads = this.#threads;
    const isExpected = this.#handlers.isExpectingChannels?.() ?? true;
    if (threads === undefined || !isLinuxAvailable || !isExpected || this.#accepting >= CHANNELS_MAX) return false;
    const peer = peerOf(raw);
    this.#accepting++;
    const accepted = SecuredSocket.accept(raw, hello, peer, tls, threads).finally(() => this.#accepting--);
    accepted.then(
      ({ secured, head: { start, headers, isFollowed } }) => {
        const [, path] = /^GET (\S+) HTTP\/1\.1$/.exec(start) ?? [];
        const told = refusalIn((name) => headers.get(name), peer);
        if (told !== undefined) {
          this.#refused(peer, told);
          return secured.destroy();
        }
        const request = { url: parseUrl(path ?? ""), protocol: headers.get("upgrade"), key: headers.get(KEY_HEADER.toLowerCase()) ?? "" };
        const answer = isFollowed
          ? formatHead("HTTP/1.1 400 Bad Request", ["Connection: close", "Content-Length: 0"])
          : this.#takeChannel(request, secured, peer);
        if (answer !== undefined) secured.refuse(answer);
      },
      (thrown: unknown) => {
        const error = MigrationError.from(thrown);
        if (error.code !== "ERR_LINK_LOST") this.#refused(peer, error); // it left before anything was said
      },
    );
    return true;
  }

  #observe(socket: WebSocket): void {
    this.#observers.add(socket);
    socket.on("close", () => this.#observers.delete(socket));
    socket.on("error", () => socket.terminate());
  }

  /** To every observer of `/v1/events`, as JSON. One that does not keep up is dropped. */
  publish(event: ProgressEvent): void {
    if (this.#observers.size === 0) return;
    const text = JSON.stringify(event);
    for (const socket of this.#observers) {
      if (socket.bufferedAmount > OBSERVER_BACKLOG_BYTES_MAX) socket.terminate();
      else socket.send(text);
    }
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets.clients) socket.terminate();
    for (const socket of this.#observers) socket.terminate();
    const closed = new Promise<void>((resolve) => this.#listener.close(() => resolve()));
    for (const socket of this.#open) socket.destroy();
    await closed;
  }
}

const textOf = (header: string | readonly string[] | undefined): string | undefined =>
  typeof header === "string" ? header : header?.join(", ");

function setLine(response: ServerResponse, line: string): void {
  const colon = line.indexOf(": ");
  response.setHeader(line.slice(0, colon), line.slice(colon + 2));
}

const agentAnswer = z.object({ product: z.literal("precopy"), release: z.string(), protocol: z.number() });

/** Asks whether an agent listens there. @throws {MigrationError} ERR_UNREACHABLE, ERR_NOT_AN_AGENT, ERR_PROTOCOL_VERSION, and why it does not let us in */
export async function greetAgent(at: Address, security: Security = OPEN): Promise<void> {
  const socket = await connectTo(at, security);
  const peer = formatAddress(at);
  const proof = await proveToken(socket, at, security, AGENT_PATH);
  const headers = proof === undefined ? {} : { authorization: proof.authorization };
  const answered = new Promise<string>((resolve, reject) => {
    const asked = request({ host: at.host, port: at.port, path: AGENT_PATH, createConnection: () => socket, headers });
    asked.on("response", (response) => {
      const refused = refusalIn((name) => textOf(response.headers[name]), peer);
      try {
        if (refused !== undefined) throw refused;
        proof?.check(response.headers);
      } catch (error) {
        reject(MigrationError.from(error));
      }
      let body = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => {
        body += chunk;
        if (body.length > HTTP_HEADER_BYTES_MAX) response.destroy();
      });
      response.on("close", () => resolve(body));
    });
    asked.on("error", (cause: NodeJS.ErrnoException) =>
      reject(
        cause.code?.startsWith("HPE_")
          ? new MigrationError("ERR_NOT_AN_AGENT", `${peer} does not speak our protocol`, { cause })
          : new MigrationError("ERR_UNREACHABLE", `Cannot reach ${peer}`, { cause }),
      ),
    );
    asked.end();
  });
  const text = await whileWanted(socket, undefined, () => answered);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new MigrationError("ERR_NOT_AN_AGENT", `${formatAddress(at)} does not speak our protocol`, { cause });
  }
  const answer = agentAnswer.safeParse(json);
  if (!answer.success) throw new MigrationError("ERR_NOT_AN_AGENT", `${formatAddress(at)} does not speak our protocol`);
  if (answer.data.protocol !== PROTOCOL_VERSION)
    throw new MigrationError(
      "ERR_PROTOCOL_VERSION",
      `${formatAddress(at)} speaks version ${answer.data.protocol}, we speak ${PROTOCOL_VERSION}`,
    );
}
