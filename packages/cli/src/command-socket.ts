import { linkSync, lstatSync, mkdirSync, renameSync, rmSync, statSync } from "node:fs";
import { connect, createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { dirname, join } from "node:path";
import { userOf } from "@precopy/linux";
import {
  COMPRESSIONS,
  MODES,
  MigrationError,
  OBSERVER_BACKLOG_BYTES_MAX,
  THROTTLES,
  TIMEOUT_ACTIONS,
  fillParameters,
  isErrorCode,
} from "@precopy/protocol";
import type {
  DirtyRate,
  LiveParameters,
  MigrationParameters,
  MigrationPlanReport,
  MigrationReport,
  Ownership,
  ProgressEvent,
} from "@precopy/protocol";
import * as z from "zod";
import type { AgentStatus } from "./render.js";

/**
 * How the command line talks to an agent of this host: JSON lines over a Unix socket, one request a connection.
 *
 *   precopy migrate, status, ...               agent
 *     | {command, ...} -------------------------> |  within 5 s, at most 64 KiB
 *     | <------------------------- {event} ...... |  zero or more
 *     | <----------------- {ok} or {error}, end   |  exactly one
 */
const REQUEST_BYTES_MAX = 2 ** 16;
/** An agent is trusted with more: its report has a row for every round. */
const ANSWER_BYTES_MAX = 2 ** 24;
const CONNECTIONS_MAX = 32;
const REQUEST_TIMEOUT_MS = 5000;
/** How long `close` waits for clients to read what was already answered. */
const LINGER_MS = 500;

const name = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/);
const live = {
  downtimeLimitMs: z.number().exactOptional(),
  maxBandwidthBytesPerSecond: z.number().exactOptional(),
  isPauseBeforeSwitchoverOn: z.boolean().exactOptional(),
  throttle: z.enum(THROTTLES).exactOptional(),
  throttleTriggerThresholdPercent: z.number().exactOptional(),
  cpuThrottleInitialPercent: z.number().exactOptional(),
  cpuThrottleIncrementPercent: z.number().exactOptional(),
  maxCpuThrottlePercent: z.number().exactOptional(),
  vcpuDirtyLimitBytesPerSecond: z.number().exactOptional(),
  timeoutMs: z.number().exactOptional(),
  timeoutAction: z.enum(TIMEOUT_ACTIONS).exactOptional(),
} satisfies { [Name in keyof LiveParameters]: z.ZodType };
const parameters = z.strictObject({
  ...live,
  mode: z.enum(MODES).exactOptional(),
  multifdChannels: z.number().exactOptional(),
  multifdCompression: z.enum(COMPRESSIONS).exactOptional(),
  isXbzrleOn: z.boolean().exactOptional(),
  xbzrleCacheBytes: z.number().exactOptional(),
  isHoldBackOn: z.boolean().exactOptional(),
  maxPostcopyBandwidthBytesPerSecond: z.number().exactOptional(),
  isDigestOn: z.boolean().exactOptional(),
  isAuditOn: z.boolean().exactOptional(),
  pump: z.enum(["auto", "direct", "portable"]).exactOptional(),
  congestionControl: z.string().exactOptional(),
}) satisfies z.ZodType<Partial<MigrationParameters>>;
const migrate = z.strictObject({ command: z.literal("migrate"), to: z.string().min(1).max(300), guest: name.exactOptional(), parameters });
const plan = z.strictObject({ command: z.literal("plan"), to: z.string().min(1).max(300), guest: name.exactOptional(), parameters });
const request = z.discriminatedUnion("command", [
  migrate,
  plan,
  z.strictObject({ command: z.literal("dirty-rate"), guest: name.exactOptional() }),
  z.strictObject({ command: z.literal("status") }),
  z.strictObject({ command: z.literal("cancel") }),
  z.strictObject({ command: z.literal("postcopy") }),
  z.strictObject({ command: z.literal("postcopy-recover") }),
  z.strictObject({ command: z.literal("set"), parameters: z.strictObject(live) }),
  z.strictObject({
    command: z.literal("resolve"),
    guest: name,
    way: z.enum(["take-back", "give-up"]),
    isOtherSideFenced: z.boolean(),
    isRollbackAccepted: z.boolean(),
  }),
  z.strictObject({ command: z.literal("who-owns"), guest: name.exactOptional(), peer: z.string().min(1).max(300).exactOptional() }),
]);
const answer = z.union([
  z.strictObject({ event: z.looseObject({ type: z.string() }) }),
  z.strictObject({ ok: z.unknown() }),
  z.strictObject({ error: z.object({ code: z.string(), message: z.string(), cause: z.string().exactOptional() }) }),
]);

/** `to` is HOST:PORT; `parameters` holds only what was asked for. */
export type MigrateRequest = z.infer<typeof migrate>;
export type PlanRequest = z.infer<typeof plan>;
export type AgentRequest = z.infer<typeof request>;

/** An operator's decision about a guest that nobody else can decide about. */
export interface ResolveRequest {
  readonly guest: string;
  /** take-back: it is to run here. give-up: what is here of it is to go. */
  readonly way: "take-back" | "give-up";
  /** The operator's word that the other side cannot run the guest, now or later. */
  readonly isOtherSideFenced: boolean;
  /** Losing what the guest did since the copy here was made is accepted. */
  readonly isRollbackAccepted: boolean;
}

export interface Resolution {
  readonly guest: string;
  readonly epoch: number;
  /** taken-back, claimed: it runs here now. given-up, discarded: what was here is gone. completed: it runs at the target, who said so when asked. */
  readonly outcome: "taken-back" | "claimed" | "given-up" | "discarded" | "completed";
  /** Operations after `copyAt` are or may be lost. */
  readonly isRolledBack: boolean;
  /** ISO 8601 time of the copy that runs now; null unless rolled back. */
  readonly copyAt: string | null;
}

export interface WhoOwnsAnswer {
  readonly here: Ownership;
  /** Null if the other side is not known or could not be asked. */
  readonly there: Ownership | null;
  /** Why the other side could not be asked. */
  readonly thereError: { readonly code: string; readonly message: string } | null;
}

/** What an agent does when it is asked to. Whatever is thrown becomes the answer. */
export interface Handlers {
  /** Runs to the end even if the client leaves; nobody reads its events then. */
  migrate(request: MigrateRequest, onEvent: (event: ProgressEvent) => void): Promise<MigrationReport>;
  plan(request: PlanRequest): Promise<MigrationPlanReport>;
  /** @param guest undefined: the one that the agent holds. */
  dirtyRate(guest: string | undefined): Promise<DirtyRate>;
  status(): AgentStatus;
  cancel(): Promise<void>;
  /** The migration in progress goes to post-copy after the round under way. */
  startPostcopy(): void;
  /** Tries at once to make the broken link of a post-copy migration again. */
  recoverPostcopy(): void;
  /** Changes the migration in progress; returns all its parameters as they are then. */
  set(changes: Partial<LiveParameters>): MigrationParameters;
  resolve(request: ResolveRequest): Promise<Resolution>;
  /** @param guest undefined: the one that the agent holds. @param peer HOST:PORT; undefined: the other side of the last hand-over. */
  whoOwns(guest: string | undefined, peer: string | undefined): Promise<WhoOwnsAnswer>;
}

/** Cuts a byte stream into lines; each byte is looked at once. `onTooLong` is called once, and nothing after it. */
function readLines(socket: Socket, bytesMax: number, onLine: (line: string) => void, onTooLong: () => void): void {
  let pieces: Buffer[] = [];
  let bytes = 0;
  let isOver = false;
  socket.on("data", (chunk: Buffer) => {
    for (let from = 0; from < chunk.length && !isOver; ) {
      const newline = chunk.indexOf(10, from);
      const piece = chunk.subarray(from, newline < 0 ? chunk.length : newline);
      from += piece.length + 1;
      bytes += piece.length;
      if (bytes > bytesMax) {
        isOver = true;
        pieces = [];
        return onTooLong();
      }
      pieces.push(piece);
      if (newline < 0) return;
      const line = Buffer.concat(pieces).toString("utf8");
      pieces = [];
      bytes = 0;
      onLine(line);
    }
  });
}

function parseLine<T>(line: string, schema: z.ZodType<T>): T {
  let raw: unknown;
  try {
    raw = JSON.parse(line);
  } catch (cause) {
    throw new MigrationError("ERR_BAD_MESSAGE", "A line is not JSON", { cause });
  }
  const parsed = schema.safeParse(raw);
  if (!parsed.success) throw new MigrationError("ERR_BAD_MESSAGE", z.prettifyError(parsed.error).slice(0, 500));
  return parsed.data;
}

const errorAnswer = (thrown: unknown): object => {
  const { code, message, remedy, cause } = MigrationError.from(thrown);
  return { error: { code, message, remedy, ...(cause instanceof Error && { cause: cause.message }) } };
};

/** Why nobody answered at `path`, or undefined if somebody did. */
const probe = (path: string): Promise<NodeJS.ErrnoException | undefined> =>
  new Promise((resolve) => {
    const socket = connect(path);
    socket.once("error", resolve);
    socket.once("connect", () => {
      socket.destroy();
      resolve(undefined);
    });
  });

/** Binds and listens at once: the file is there, and its mode is 0600, before anybody can connect. */
function listenAt(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const umask = process.umask(0o177);
    try {
      server.once("error", reject);
      server.listen(path, () => {
        server.off("error", reject);
        resolve();
      });
    } finally {
      process.umask(umask);
    }
  });
}

const hasCode = (thrown: unknown, code: string): boolean => thrown instanceof Error && "code" in thrown && thrown.code === code;

/** Others may have made `<tmpdir>/precopy-<uid>` first. @throws {MigrationError} ERR_PARAMETER */
function makeFolder(folder: string): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const { uid } = statSync(folder);
  if (process.getuid !== undefined && uid !== process.getuid() && uid !== 0)
    throw new MigrationError("ERR_PARAMETER", `${folder} belongs to user ${uid}, who could replace the command socket in it`);
}

/**
 * Removes the file of an agent that is no more. It is moved aside first: of two agents that start at once, one finds the other's new
 * socket in its hands, and puts it back.
 * @throws {MigrationError} ERR_NAME_IN_USE if somebody listens there, ERR_PARAMETER if it is not a socket.
 */
async function removeStale(path: string): Promise<void> {
  const inUse = (cause?: Error): MigrationError =>
    new MigrationError("ERR_NAME_IN_USE", `An agent listens at ${path}`, cause === undefined ? undefined : { cause });
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw new MigrationError("ERR_PARAMETER", `${path} is there and is no socket`);
  const failure = await probe(path);
  if (hasCode(failure, "ENOENT")) return;
  if (!hasCode(failure, "ECONNREFUSED")) throw inUse(failure);
  const aside = join(dirname(path), `.${process.pid}.stale`);
  try {
    renameSync(path, aside);
  } catch (error) {
    if (hasCode(error, "ENOENT")) return;
    throw error;
  }
  const isAlive = !hasCode(await probe(aside), "ECONNREFUSED");
  if (isAlive) linkSync(aside, path);
  rmSync(aside);
  if (isAlive) throw inUse();
}

/** An agent's end of the command socket. Only its owner can connect: mode 0600, in a folder that is 0700 if it was made here. */
export class CommandSocket {
  readonly path: string;
  readonly #server: Server;
  readonly #handlers: Handlers;
  /** Each open connection, and whether its request still runs. */
  readonly #connections = new Map<Socket, { isRunning: boolean }>();

  private constructor(path: string, handlers: Handlers) {
    this.path = path;
    this.#handlers = handlers;
    // allowHalfOpen: a client that has said all it wanted (`echo ... | nc -U`) still gets its answer
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket));
  }

  /**
   * Main thread only: a worker may not set the file mode mask.
   * @throws {MigrationError} ERR_NAME_IN_USE, ERR_PARAMETER if `path` is something else, ERR_SYSTEM_CALL
   */
  static async listen(path: string, handlers: Handlers): Promise<CommandSocket> {
    const socket = new CommandSocket(path, handlers);
    try {
      makeFolder(dirname(path));
      await removeStale(path);
      await listenAt(socket.#server, path);
      socket.#server.on("error", () => {}); // an accept failed, for want of descriptors: that client is refused, the guest runs on
    } catch (cause) {
      if (cause instanceof MigrationError) throw cause;
      if (hasCode(cause, "EADDRINUSE")) throw new MigrationError("ERR_NAME_IN_USE", `An agent listens at ${path}`, { cause });
      throw new MigrationError("ERR_SYSTEM_CALL", `Cannot listen at ${path}`, { cause });
    }
    return socket;
  }

  #accept(socket: Socket): void {
    socket.on("error", () => socket.destroy()); // the client left; what it asked for goes on
    // The file's mode says so already; where somebody has changed it, this holds.
    const user = userOf(socket);
    if (user !== undefined && user !== 0 && user !== process.getuid?.())
      return this.#finish(socket, errorAnswer(new MigrationError("ERR_NOT_PERMITTED", `User ${user} may not command this agent`)));
    if (this.#connections.size >= CONNECTIONS_MAX) {
      this.#finish(socket, errorAnswer(new MigrationError("ERR_BUSY", `${CONNECTIONS_MAX} command connections are open already`)));
      return;
    }
    const state = { isRunning: false };
    this.#connections.set(socket, state);
    const refuse = (message: string): void => this.#finish(socket, errorAnswer(new MigrationError("ERR_BAD_MESSAGE", message)));
    const timer = setTimeout(() => refuse(`No request within ${REQUEST_TIMEOUT_MS} ms`), REQUEST_TIMEOUT_MS);
    socket.once("close", () => {
      clearTimeout(timer);
      this.#connections.delete(socket);
    });
    socket.once("end", () => {
      if (!state.isRunning) this.#finish(socket);
    });
    readLines(
      socket,
      REQUEST_BYTES_MAX,
      (line) => {
        if (state.isRunning || socket.writableEnded) return; // one request a connection
        clearTimeout(timer);
        state.isRunning = true;
        void this.#serve(socket, line).finally(() => {
          state.isRunning = false;
        });
      },
      () => refuse(`A request has more than ${REQUEST_BYTES_MAX} B`),
    );
  }

  async #serve(socket: Socket, line: string): Promise<void> {
    let result: object;
    try {
      result = { ok: await this.#run(socket, line) };
    } catch (error) {
      result = errorAnswer(error);
    }
    this.#finish(socket, result);
  }

  async #run(socket: Socket, line: string): Promise<unknown> {
    const asked = parseLine(line, request);
    switch (asked.command) {
      case "migrate":
        fillParameters(asked.parameters); // refuses what is out of range
        return this.#handlers.migrate(asked, (event) => this.#send(socket, event));
      case "plan":
        fillParameters(asked.parameters); // as for `migrate`
        return this.#handlers.plan(asked);
      case "dirty-rate":
        return this.#handlers.dirtyRate(asked.guest);
      case "status":
        return this.#handlers.status();
      case "cancel":
        await this.#handlers.cancel();
        return null;
      case "postcopy":
        this.#handlers.startPostcopy();
        return null;
      case "postcopy-recover":
        this.#handlers.recoverPostcopy();
        return null;
      case "set":
        return this.#handlers.set(asked.parameters);
      case "resolve": {
        const { command: _command, ...decision } = asked;
        return this.#handlers.resolve(decision);
      }
      case "who-owns":
        return this.#handlers.whoOwns(asked.guest, asked.peer);
    }
  }

  /** A client that does not read is dropped, and the migration goes on. */
  #send(socket: Socket, event: ProgressEvent): void {
    if (!socket.writable) return;
    socket.write(`${JSON.stringify({ event })}\n`);
    if (socket.writableLength > OBSERVER_BACKLOG_BYTES_MAX) socket.destroy();
  }

  /** The last line of a connection. */
  #finish(socket: Socket, last?: object): void {
    if (!socket.writable) return;
    if (last !== undefined) socket.write(`${JSON.stringify(last)}\n`);
    socket.destroySoon();
  }

  /** Answers what still runs with ERR_SHUTTING_DOWN, ends all connections and unlinks the socket. Nothing it serves is stopped by this. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    rmSync(this.path, { force: true });
    await new Promise(setImmediate); // answers that were decided in this turn go out first
    const error = errorAnswer(new MigrationError("ERR_SHUTTING_DOWN", "The agent is ending"));
    for (const [socket, { isRunning }] of this.#connections) this.#finish(socket, isRunning ? error : undefined);
    const timer = setTimeout(() => {
      for (const socket of this.#connections.keys()) socket.destroy();
    }, LINGER_MS);
    await closed;
    clearTimeout(timer);
  }
}

/**
 * Asks the agent at `path` and resolves with its result: a MigrationReport, MigrationPlanReport, DirtyRate, AgentStatus, MigrationParameters, Resolution or
 * WhoOwnsAnswer; null for cancel.
 * @param onEvent of the migration that was asked for.
 * @throws {MigrationError} ERR_NO_AGENT if nobody answers, ERR_BAD_MESSAGE, and whatever the agent refuses or fails with.
 */
export function callAgent(path: string, request: AgentRequest, onEvent: (event: ProgressEvent) => void = () => {}): Promise<unknown> {
  return new Promise((resolve, reject) => {
    let isConnected = false;
    const socket = connect(path, () => {
      isConnected = true;
      socket.write(`${JSON.stringify(request)}\n`);
    });
    const fail = (error: unknown): void => {
      reject(error);
      socket.destroy();
    };
    const tooLong = (): void =>
      fail(new MigrationError("ERR_BAD_MESSAGE", `The agent at ${path} sent a line of more than ${ANSWER_BYTES_MAX} B`));
    const read = (line: string): void => {
      const said = parseLine(line, answer);
      if ("event" in said) return onEvent(said.event as ProgressEvent); // written by an agent of this release and this user
      if ("error" in said) reject(rebuilt(said.error));
      else resolve(said.ok);
      socket.end();
    };
    readLines(
      socket,
      ANSWER_BYTES_MAX,
      (line) => {
        try {
          read(line);
        } catch (error) {
          fail(error);
        }
      },
      tooLong,
    );
    const silence = (): string => (isConnected ? `The agent at ${path} ended without an answer` : `No agent answers at ${path}`);
    socket.once("error", (cause) => reject(new MigrationError("ERR_NO_AGENT", silence(), { cause })));
    socket.once("close", () => reject(new MigrationError("ERR_NO_AGENT", silence()))); // harmless after an answer
  });
}

/** The agent's error as it was there; a code that this release does not know is internal. */
function rebuilt({ code, message, cause }: { readonly code: string; readonly message: string; readonly cause?: string }): MigrationError {
  const options = cause === undefined ? undefined : { cause: new Error(cause) };
  return isErrorCode(code)
    ? new MigrationError(code, message, options)
    : new MigrationError("ERR_INTERNAL", `${code}: ${message}`, options);
}
