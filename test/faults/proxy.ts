import { once } from "node:events";
import { connect, createServer } from "node:net";
import type { AddressInfo, Server, Socket } from "node:net";
import { ALPN_CHANNEL, readFirstBytes } from "@precopy/security";
import { Boundaries } from "./boundaries.js";
import type { Framing } from "./boundaries.js";

/** `other`: none of these, or not known yet. With TLS `pages` are faults, too. */
export type Channel = "control" | "pages" | "faults" | "other";
/** up: towards the agent behind the proxy, down: back to whoever connected. */
export type Direction = "up" | "down";

/** What happens to a connection, or with `isLink` to all that are open. */
export type Effect =
  | { readonly type: "cut"; readonly how: "rst" | "fin"; readonly isLink: boolean }
  /** No byte, no FIN and no reset passes for `ms`; what came meanwhile arrives afterwards. */
  | { readonly type: "stall"; readonly ms: number; readonly directions: "both" | "one"; readonly isLink: boolean }
  /** From here on every byte of the connection is `ms` late, in both directions. */
  | { readonly type: "delay"; readonly ms: number; readonly isLink: boolean }
  /** Of one byte, so the unit has to be `byte`. */
  | { readonly type: "flip"; readonly bit: number };

/** A fault that strikes once, where a count over all connections of a channel is reached. */
export interface WireFault {
  readonly channel: Channel | "any";
  readonly direction: Direction;
  /** message: behind the Nth one from 0, HTTP heads and packets included. byte: before the Nth one from 0, HTTP heads included. */
  readonly unit: "message" | "byte";
  readonly at: number;
  readonly effect: Effect;
}

interface Armed {
  readonly fault: WireFault;
  /** Messages or bytes that have passed since it was armed. */
  passed: number;
}

const CONTROL_START = "GET /v1/control";
const PAGES_START = "GET /v1/pages";
const FAULTS_START = "GET /v1/faults";
/** With a token that is asked for before the channel is, on the same connection. */
const TOKEN_START = "GET /v1/agent";
const START_BYTES = CONTROL_START.length;
/** What a late or stalled lane keeps for later; beyond, its sender has to wait. */
const KEPT_BYTES_MAX = 2 ** 22;
const RELISTEN_MS = 20;

/** Undefined: too little to tell. */
function channelOf(bytes: Buffer): Channel | undefined {
  const first = readFirstBytes(bytes);
  if (first.kind === "tls") return first.protocols.includes(ALPN_CHANNEL) ? "pages" : "control";
  if (first.kind === "more" || bytes.byteLength < START_BYTES) return undefined;
  const head = bytes.toString("latin1", 0, START_BYTES);
  if (head.startsWith(CONTROL_START) || head.startsWith(TOKEN_START)) return "control";
  if (head.startsWith(FAULTS_START)) return "faults";
  return head.startsWith(PAGES_START) ? "pages" : "other";
}

/**
 * An abortive close and no more: `resetAndDestroy` sends a FIN first, because it ends the stream before it resets it. Where an end is under way
 * already a plain close has to do: to libuv a reset is an error then, after which Node never closes the handle.
 */
export function reset(socket: Socket): void {
  if (!socket.writableEnded) Reflect.set(socket, "resetAndClosing", true); // what `resetAndDestroy` sets for `destroy`
  socket.destroy();
}

/** One direction of one connection: bytes in order, late or not at all, with backpressure from end to end. */
class Lane {
  readonly direction: Direction;
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #connection: Connection;
  readonly #kept: { readonly bytes: Buffer; readonly dueMs: number }[] = [];
  #keptBytes = 0;
  #boundaries: Boundaries | undefined;
  #timer: NodeJS.Timeout | undefined;
  #isEnding = false;
  #isFull = false;
  /** Whoever holds it up: the link's silence, and stalls. */
  #holders = 0;
  delayMs = 0;

  constructor(direction: Direction, from: Socket, to: Socket, connection: Connection) {
    this.direction = direction;
    this.#from = from;
    this.#to = to;
    this.#connection = connection;
    from.on("data", (chunk: Buffer) => this.#take(chunk));
    from.on("end", () => {
      this.#isEnding = true;
      this.#pump();
    });
    const goOn = (): void => {
      this.#isFull = false;
      this.#pump();
    };
    to.on("drain", goOn);
    if (!to.connecting) return;
    this.#isFull = true;
    to.once("connect", goOn);
  }

  get isHeld(): boolean {
    return this.#holders > 0;
  }

  hold(): void {
    this.#holders++;
    this.#pump();
  }

  release(): void {
    this.#holders = Math.max(0, this.#holders - 1);
    this.#pump();
  }

  heal(): void {
    this.#holders = 0;
    this.delayMs = 0;
    this.#pump();
  }

  #take(arrived: Buffer): void {
    // Whoever connected speaks first: what comes back belongs to a channel that is known.
    const chunk = this.direction === "up" ? this.#connection.recognise(arrived) : arrived;
    if (chunk === undefined) return;
    this.#boundaries ??= new Boundaries(this.#framing());
    const ends = this.#boundaries.feed(chunk);
    let done = 0;
    for (const { offset, effect } of this.#connection.strikes(this.direction, chunk.byteLength, ends)) {
      if (effect.type === "flip") {
        chunk[offset]! ^= 1 << effect.bit;
        continue;
      }
      this.#forward(chunk.subarray(done, offset));
      done = offset;
      this.#connection.suffer(effect, this);
      if (this.#connection.isCut) return;
    }
    this.#forward(chunk.subarray(done));
  }

  #framing(): Framing {
    const { channel, isOpaque } = this.#connection;
    if (isOpaque) return "opaque";
    if (channel === "control") return "websocket";
    return channel === "pages" && this.direction === "up" ? "packets" : "opaque";
  }

  #forward(bytes: Buffer): void {
    if (bytes.byteLength === 0) return;
    if (this.#kept.length === 0 && this.#holders === 0 && this.delayMs === 0) {
      this.#isFull = !this.#to.write(bytes) || this.#isFull;
    } else {
      this.#kept.push({ bytes, dueMs: performance.now() + this.delayMs });
      this.#keptBytes += bytes.byteLength;
    }
    this.#pump();
  }

  /** Sends what is due, and lets the sender go on or wait. */
  #pump(): void {
    if (this.#from.destroyed && this.#to.destroyed) return;
    while (this.#holders === 0 && !this.#isFull) {
      const [next] = this.#kept;
      if (next === undefined) break;
      const inMs = next.dueMs - performance.now();
      if (inMs > 0) {
        this.#timer ??= setTimeout(() => {
          this.#timer = undefined;
          this.#pump();
        }, Math.ceil(inMs));
        break;
      }
      this.#kept.shift();
      this.#keptBytes -= next.bytes.byteLength;
      this.#isFull = !this.#to.write(next.bytes);
    }
    if (this.#isEnding && this.#kept.length === 0 && this.#holders === 0) this.#to.end();
    if (this.#holders > 0 || this.#isFull || this.#keptBytes >= KEPT_BYTES_MAX) this.#from.pause();
    else this.#from.resume();
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#kept.length = 0;
  }
}

/** One connection through the proxy. */
class Connection {
  channel: Channel = "other";
  isOpaque = false;
  isCut = false;
  readonly #near: Socket;
  readonly #far: Socket;
  readonly #proxy: FaultProxy;
  readonly #up: Lane;
  readonly #down: Lane;
  readonly #stalls = new Set<NodeJS.Timeout>();
  #head: Buffer | undefined = Buffer.alloc(0);

  constructor(near: Socket, far: Socket, proxy: FaultProxy) {
    this.#near = near;
    this.#far = far;
    this.#proxy = proxy;
    this.#up = new Lane("up", near, far, this);
    this.#down = new Lane("down", far, near, this);
    for (const [one, other, lane] of [[near, far, this.#up] as const, [far, near, this.#down] as const]) {
      one.setNoDelay(true);
      one.on("error", () => {
        if (!lane.isHeld) reset(other); // else its end stays its own affair, as if a cable were out
      });
      one.on("close", () => {
        if (near.destroyed && far.destroyed) this.#end();
        else if (!lane.isHeld && !one.readableEnded) other.destroySoon();
      });
    }
  }

  /** What may pass now that `chunk` came: nothing until the first bytes say what the connection is. */
  recognise(chunk: Buffer): Buffer | undefined {
    if (this.#head === undefined) return chunk;
    const bytes = Buffer.concat([this.#head, chunk]);
    const channel = channelOf(bytes);
    this.#head = channel === undefined ? bytes : undefined;
    if (channel === undefined) return undefined;
    this.channel = channel;
    this.isOpaque = bytes[0] === 22 || bytes.toString("latin1", 0, START_BYTES).startsWith(TOKEN_START);
    return bytes;
  }

  strikes(direction: Direction, bytes: number, ends: readonly number[]): { readonly offset: number; readonly effect: Effect }[] {
    return this.#proxy.strikes(this.channel, direction, bytes, ends);
  }

  suffer(effect: Exclude<Effect, { type: "flip" }>, lane: Lane): void {
    const all = effect.isLink ? this.#proxy.connections : [this];
    for (const one of all) {
      if (effect.type === "cut") one.cut(effect.how);
      else if (effect.type === "delay") one.#delay(effect.ms);
      else one.#stall(effect.ms, effect.directions === "both" ? [one.#up, one.#down] : [lane.direction === "up" ? one.#up : one.#down]);
    }
  }

  hold(): void {
    this.#up.hold();
    this.#down.hold();
  }

  /** What it missed while the link was silent arrives now: bytes, or that the other side is gone. */
  release(): void {
    this.#up.release();
    this.#down.release();
    if (this.#near.destroyed || this.#far.destroyed) this.cut("rst");
  }

  #stall(ms: number, lanes: readonly Lane[]): void {
    for (const lane of lanes) lane.hold();
    const timer = setTimeout(() => {
      this.#stalls.delete(timer);
      for (const lane of lanes) lane.release();
      if (this.#near.destroyed || this.#far.destroyed) this.cut("rst");
    }, ms);
    this.#stalls.add(timer);
  }

  #delay(ms: number): void {
    this.#up.delayMs = ms;
    this.#down.delayMs = ms;
  }

  heal(): void {
    for (const timer of this.#stalls) clearTimeout(timer);
    this.#stalls.clear();
    this.#up.heal();
    this.#down.heal();
    if (this.#near.destroyed || this.#far.destroyed) this.cut("rst");
  }

  /** fin: the end comes behind what was written before. rst: an abortive close. */
  cut(how: "rst" | "fin"): void {
    this.isCut = true;
    for (const socket of [this.#near, this.#far]) {
      if (how === "fin") socket.destroySoon();
      else reset(socket);
    }
    this.#end();
  }

  destroy(): void {
    this.#near.destroy();
    this.#far.destroy();
    this.#end();
  }

  #end(): void {
    for (const timer of this.#stalls) clearTimeout(timer);
    this.#up.stop();
    this.#down.stop();
    this.#proxy.connections.delete(this);
  }
}

/**
 * A TCP link to an agent that can fail in every way a network does: connections cut, stalled, late or damaged at a message boundary or a
 * byte, silent as if a cable were out, or refused. Without a fault it only relays, with backpressure.
 */
export class FaultProxy {
  readonly #server: Server;
  readonly #port: number;
  #armed: Armed[] = [];
  #isSilent = false;
  /** Being refused is not being silent: nobody listens. */
  #isListening = true;
  /** Of the connections that are open. */
  readonly connections = new Set<Connection>();
  /** Told at each fault that strikes. */
  onStrike: (fault: WireFault) => void = () => {};

  private constructor(server: Server, port: number) {
    this.#server = server;
    this.#port = port;
  }

  /** @param address of the agent. @param port to listen on; 0 lets the system choose. */
  static async to(address: string, port = 0): Promise<FaultProxy> {
    const agentPort = Number(address.split(":").at(-1));
    const server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    const proxy = new FaultProxy(server, (server.address() as AddressInfo).port); // it listens on TCP
    server.on("connection", (near) => proxy.#accept(near, agentPort));
    return proxy;
  }

  get address(): string {
    return `127.0.0.1:${this.#port}`;
  }

  #accept(near: Socket, port: number): void {
    const far = connect({ port, host: "127.0.0.1", noDelay: true, allowHalfOpen: true });
    const connection = new Connection(near, far, this);
    this.connections.add(connection);
    if (this.#isSilent) connection.hold();
  }

  /** One more fault that waits for its place. */
  arm(fault: WireFault): void {
    this.#armed.push({ fault, passed: 0 });
  }

  /** Faults of a chunk in the order of their places in it; they are armed no more. */
  strikes(channel: Channel, direction: Direction, bytes: number, ends: readonly number[]): { offset: number; effect: Effect }[] {
    if (this.#armed.length === 0) return [];
    const found: { offset: number; effect: Effect }[] = [];
    this.#armed = this.#armed.filter((armed) => {
      const { fault } = armed;
      if (fault.direction !== direction || (fault.channel !== "any" && fault.channel !== channel)) return true;
      const size = fault.unit === "byte" ? bytes : ends.length;
      const within = fault.at - armed.passed;
      armed.passed += size;
      if (within >= size) return true;
      found.push({ offset: fault.unit === "byte" ? within : (ends[within] ?? bytes), effect: fault.effect });
      this.onStrike(fault);
      return false;
    });
    return found.toSorted((one, other) => one.offset - other.offset);
  }

  /** Breaks what is open now. */
  cut(how: "rst" | "fin", channel: Channel | "any" = "any"): void {
    for (const one of this.connections) if (channel === "any" || one.channel === channel) one.cut(how);
  }

  /** From now on nothing passes, in either direction, and nobody is told: connections stay open, also new ones. */
  fallSilent(): void {
    if (this.#isSilent) return;
    this.#isSilent = true;
    for (const one of this.connections) one.hold();
  }

  /** From now on new connections are refused. Those that are open stay as they are. */
  refuse(): void {
    if (!this.#isListening) return;
    this.#isListening = false;
    this.#server.close();
  }

  /** The link is as it should be, and no fault waits any more: what stood in its buffers arrives. */
  async comeBack(): Promise<void> {
    this.#armed = [];
    if (this.#isSilent) {
      this.#isSilent = false;
      for (const one of this.connections) one.release();
    }
    for (const one of this.connections) one.heal();
    while (!this.#isListening) {
      this.#server.listen(this.#port, "127.0.0.1");
      this.#isListening = await once(this.#server, "listening").then(
        () => true,
        () => false, // somebody's outgoing connection has the port for the moment
      );
      if (!this.#isListening) await new Promise((resolve) => setTimeout(resolve, RELISTEN_MS));
    }
  }

  close(): void {
    this.#armed = [];
    for (const one of this.connections) one.destroy();
    this.#server.close();
  }
}
