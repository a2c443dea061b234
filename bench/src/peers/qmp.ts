import type { Socket } from "node:net";
import { within } from "./within.js";

/** A line of the QEMU Machine Protocol (docs/interop/qmp-spec in QEMU), from QEMU. */
export type QmpMessage =
  | { readonly type: "greeting" }
  | { readonly type: "return"; readonly id: number; readonly value: unknown }
  | { readonly type: "error"; readonly id: number | undefined; readonly description: string }
  | QmpEvent;

export interface QmpEvent {
  readonly type: "event";
  readonly name: string;
  /** By QEMU's wall clock, ms since 1970 with microseconds behind the point. */
  readonly atMs: number;
  readonly data: Readonly<Record<string, unknown>>;
}

/** The longest answer to what we ask has 3 KB. */
export const QMP_LINE_MAX = 2 ** 20;
const COMMAND_LIMIT_MS = 30_000;

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);

/** @throws {Error} if the line is not one of these messages */
export function parseQmpLine(line: string): QmpMessage {
  const unexpected = (cause?: unknown): Error => new Error(`QEMU said something that is not QMP: ${line.slice(0, 200)}`, { cause });
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw unexpected(cause);
  }
  if (!isRecord(value)) throw unexpected();
  const { id, error, event, timestamp, data = {} } = value;
  if ("QMP" in value) return { type: "greeting" };
  if ("return" in value && typeof id === "number") return { type: "return", id, value: value["return"] };
  if (isRecord(error) && typeof error["desc"] === "string" && (id === undefined || typeof id === "number"))
    return { type: "error", id, description: error["desc"] };
  if (typeof event === "string" && isRecord(timestamp) && isRecord(data)) {
    const { seconds, microseconds } = timestamp;
    if (typeof seconds === "number" && typeof microseconds === "number")
      return { type: "event", name: event, atMs: seconds * 1000 + microseconds / 1000, data };
  }
  throw unexpected();
}

/** Chunks in, messages out. */
export class QmpDecoder {
  #rest = "";

  /** @throws {Error} if a line is no message, or has more than QMP_LINE_MAX characters */
  push(chunk: string): QmpMessage[] {
    const lines = (this.#rest + chunk).split("\n");
    this.#rest = lines.pop() ?? "";
    if (this.#rest.length > QMP_LINE_MAX) throw new Error(`QEMU sent a line of more than ${QMP_LINE_MAX} characters`);
    return lines.filter((line) => line.trim() !== "").map(parseQmpLine);
  }
}

interface Waiting<T> {
  resolve(value: T): void;
  reject(cause: Error): void;
}

/** One QMP connection: commands with their answers, and every event since the beginning. */
export class QmpClient {
  readonly #socket: Socket;
  readonly #commands = new Map<number, Waiting<unknown>>();
  readonly #watchers = new Set<Waiting<QmpEvent> & { isWanted(event: QmpEvent): boolean }>();
  readonly #events: QmpEvent[] = [];
  #nextId = 1;
  #failure: Error | undefined;

  /** @param socket just connected; QEMU has yet to greet. It becomes this client's. */
  constructor(socket: Socket) {
    this.#socket = socket;
    const decoder = new QmpDecoder();
    socket.setEncoding("utf8").on("data", (chunk: string) => {
      try {
        for (const message of decoder.push(chunk)) this.#receive(message);
      } catch (cause) {
        this.#fail(cause instanceof Error ? cause : new Error(String(cause)));
      }
    });
    socket.on("error", () => {}); // `close` follows
    socket.on("close", () => this.#fail(new Error("QEMU closed its monitor")));
  }

  #receive(message: QmpMessage): void {
    switch (message.type) {
      case "greeting":
        return;
      case "return":
        this.#take(message.id)?.resolve(message.value);
        return;
      case "error":
        if (message.id === undefined) throw new Error(`QEMU refused a line: ${message.description}`);
        this.#take(message.id)?.reject(new Error(message.description));
        return;
      case "event":
        this.#events.push(message);
        for (const watcher of this.#watchers) {
          if (!watcher.isWanted(message)) continue;
          this.#watchers.delete(watcher);
          watcher.resolve(message);
        }
    }
  }

  #take(id: number): Waiting<unknown> | undefined {
    const waiting = this.#commands.get(id);
    this.#commands.delete(id);
    return waiting;
  }

  #fail(cause: Error): void {
    this.#failure ??= cause;
    for (const waiting of [...this.#commands.values(), ...this.#watchers]) waiting.reject(this.#failure);
    this.#commands.clear();
    this.#watchers.clear();
    this.#socket.destroy();
  }

  /** What QEMU returned. @throws {Error} its refusal, or no answer within 30 s */
  async execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    const id = this.#nextId++;
    const answer = new Promise<unknown>((resolve, reject) => {
      if (this.#failure !== undefined) return reject(this.#failure);
      this.#commands.set(id, { resolve, reject });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
    try {
      return await within(COMMAND_LIMIT_MS, "its answer", answer);
    } catch (cause) {
      throw new Error(`${command} failed`, { cause });
    }
  }

  /** The first event of that name with such data, one that came before included. @throws {Error} if the connection ends first */
  event(name: string, isWanted: (data: QmpEvent["data"]) => boolean = () => true): Promise<QmpEvent> {
    const isIt = (event: QmpEvent): boolean => event.name === name && isWanted(event.data);
    return new Promise((resolve, reject) => {
      const seen = this.#events.find(isIt);
      if (seen !== undefined) resolve(seen);
      else if (this.#failure !== undefined) reject(this.#failure);
      else this.#watchers.add({ isWanted: isIt, resolve, reject });
    });
  }
}
