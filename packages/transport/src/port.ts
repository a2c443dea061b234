import { createServer } from "node:http";
import type { IncomingMessage, Server } from "node:http";
import { request } from "node:http";
import { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { WebSocketServer } from "ws";
import type WebSocket from "ws";
import * as z from "zod";
import {
  CHANNELS_MAX,
  CONNECT_TIMEOUT_MS,
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
import { CONTROL_PATH, ControlChannel } from "./control-channel.js";
import { FAULTS_PATH, FAULTS_PROTOCOL, PAGES_PATH, PAGES_PROTOCOL } from "./page-channel.js";
import type { ChannelName, FaultChannelName } from "./page-channel.js";

const EVENTS_PATH = "/v1/events";
const AGENT_PATH = "/v1/agent";

export interface PortHandlers {
  /** A peer opened a control channel. Nothing is known of it yet. */
  onControl(channel: ControlChannel): void;
  /** A peer asks for a page channel. True: the handler owns the socket now; false answers 409. */
  onPageChannel(name: ChannelName, socket: Socket): boolean;
  /** A peer offers to answer faults; as onPageChannel. */
  onFaultChannel(name: FaultChannelName, socket: Socket): boolean;
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

function refuseUpgrade(socket: Duplex, status: string): void {
  socket.on("error", () => {}); // the peer may be gone already, and nobody else listens on this socket
  // Nobody reads this socket any more, so a peer that keeps its end open would keep the connection, and the port, for ever.
  const kill = setTimeout(() => socket.destroy(), HEARTBEAT_MS);
  socket.once("close", () => clearTimeout(kill));
  socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
}

/** Gives the socket to whoever knows the channel that it asks for. */
function handOver<T>(query: z.ZodType<T>, url: URL, socket: Duplex, head: Buffer, take: (name: T, socket: Socket) => boolean): void {
  const name = query.safeParse(Object.fromEntries(url.searchParams));
  // Bytes before our answer would be in Node's buffer, lost to the thread that reads the descriptor.
  if (!name.success || head.byteLength > 0 || !(socket instanceof Socket)) refuseUpgrade(socket, "400 Bad Request");
  else if (!take(name.data, socket)) refuseUpgrade(socket, "409 No Such Channel");
}

/** One listener for everything: control and events by WebSocket, page channels by Upgrade, a word about itself by GET. */
export class AgentPort {
  readonly #server: Server;
  readonly #sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false, maxPayload: CONTROL_MESSAGE_BYTES_MAX });
  readonly #observers = new Set<WebSocket>();
  readonly #handlers: PortHandlers;
  readonly #release: string;

  private constructor(server: Server, handlers: PortHandlers, release: string) {
    this.#server = server;
    this.#handlers = handlers;
    this.#release = release;
    server.on("upgrade", (incoming, socket, head) => this.#upgrade(incoming, socket, head));
    server.on("request", (incoming, response) => {
      response.shouldKeepAlive = false;
      if (incoming.method === "GET" && incoming.url === AGENT_PATH) {
        response.setHeader("Content-Type", "application/json");
        response.end(`${JSON.stringify({ product: "precopy", release: this.#release, protocol: PROTOCOL_VERSION })}\n`);
      } else {
        response.statusCode = 404;
        response.end("This is a precopy agent. It speaks to other agents.\n");
      }
    });
  }

  /** @throws {MigrationError} ERR_PORT_IN_USE, ERR_ADDRESS */
  static async listen(at: Address, handlers: PortHandlers, release: string): Promise<AgentPort> {
    const server = createServer({
      maxHeaderSize: HTTP_HEADER_BYTES_MAX,
      headersTimeout: HANDSHAKE_TIMEOUT_MS,
      requestTimeout: HANDSHAKE_TIMEOUT_MS,
      connectionsCheckingInterval: 1000,
      noDelay: true,
    });
    server.maxConnections = PENDING_CONNECTIONS_MAX + OBSERVERS_MAX + 2 * CHANNELS_MAX;
    const port = new AgentPort(server, handlers, release);
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
    const at = this.#server.address();
    if (at === null || typeof at === "string") throw new MigrationError("ERR_INTERNAL", "The listener has no address");
    return { host: at.address, port: at.port };
  }

  #upgrade(incoming: IncomingMessage, socket: Duplex, head: Buffer): void {
    // Only a browser sends an Origin, and no web page has any business with an agent, least of all one on its reader's own host.
    if (incoming.headers.origin !== undefined) return refuseUpgrade(socket, "403 Forbidden");
    // The URL is the peer's: a base makes every string one, and only known paths are served.
    const url = URL.canParse(incoming.url ?? "", "http://agent") ? new URL(incoming.url ?? "", "http://agent") : undefined;
    if (url?.pathname === CONTROL_PATH) {
      this.#sockets.handleUpgrade(incoming, socket, head, (ws) =>
        this.#handlers.onControl(new ControlChannel(ws, incoming.socket.remoteAddress)),
      );
    } else if (url?.pathname === EVENTS_PATH) {
      if (this.#observers.size >= OBSERVERS_MAX) return refuseUpgrade(socket, "503 Too Many Observers");
      this.#sockets.handleUpgrade(incoming, socket, head, (ws) => this.#observe(ws));
    } else if (url?.pathname === PAGES_PATH && incoming.headers.upgrade === PAGES_PROTOCOL)
      handOver(channelQuery, url, socket, head, (name, taken) => this.#handlers.onPageChannel(name, taken));
    else if (url?.pathname === FAULTS_PATH && incoming.headers.upgrade === FAULTS_PROTOCOL)
      handOver(faultQuery, url, socket, head, (name, taken) => this.#handlers.onFaultChannel(name, taken));
    else refuseUpgrade(socket, "404 Not Found");
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
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}

const agentAnswer = z.object({ product: z.literal("precopy"), release: z.string(), protocol: z.number() });

/** Asks whether an agent listens there. @throws {MigrationError} ERR_UNREACHABLE, ERR_NOT_AN_AGENT, ERR_PROTOCOL_VERSION */
export async function greetAgent(at: Address): Promise<void> {
  const text = await new Promise<string>((resolve, reject) => {
    const asked = request({ host: at.host, port: at.port, path: AGENT_PATH, timeout: CONNECT_TIMEOUT_MS, agent: false }, (response) => {
      let body = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => {
        body += chunk;
        if (body.length > HTTP_HEADER_BYTES_MAX) response.destroy();
      });
      response.on("close", () => resolve(body));
    });
    asked.on("timeout", () => asked.destroy(new Error(`no answer for ${CONNECT_TIMEOUT_MS / 1000} s`)));
    asked.on("error", (cause: NodeJS.ErrnoException) =>
      reject(
        cause.code?.startsWith("HPE_")
          ? new MigrationError("ERR_NOT_AN_AGENT", `${formatAddress(at)} does not speak our protocol`, { cause })
          : new MigrationError("ERR_UNREACHABLE", `Cannot reach ${formatAddress(at)}`, { cause }),
      ),
    );
    asked.end();
  });
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
