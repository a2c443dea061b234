import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";
import { MigrationError } from "@precopy/protocol";

export type JsonLine = { readonly type: string } & Record<string, unknown>;
const isJsonLine = (value: unknown): value is JsonLine =>
  typeof value === "object" && value !== null && "type" in value && typeof value.type === "string";

/** A process of ours that prints JSON lines, one event a line, each with a `type`. */
export class JsonChild {
  readonly #process: ChildProcess;
  readonly #name: string;
  readonly #seen: JsonLine[] = [];
  readonly #waiting = new Map<string, (line: JsonLine) => void>();
  readonly #exited: Promise<number | null>;
  #stderr = "";
  onLine: (line: JsonLine) => void = () => {};

  /** @param command program and arguments. What it prints on standard error is kept for the case that it fails. */
  constructor(name: string, command: readonly string[]) {
    const [program = "", ...rest] = command;
    this.#name = name;
    // A group of its own: Ctrl-C reaches the starter, and the starter ends its children in order.
    this.#process = spawn(program, rest, { stdio: ["pipe", "pipe", "pipe"], detached: true });
    this.#exited = new Promise((resolve) => {
      this.#process.once("close", (code) => resolve(code)); // unlike `exit`: behind its last line
      this.#process.once("error", () => resolve(null));
    });
    this.#process.stdin?.on("error", () => {}); // it ended: `exited` tells
    this.#process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-4000);
    });
    if (this.#process.stdout !== null) createInterface({ input: this.#process.stdout }).on("line", (text) => this.#receive(text));
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  #receive(text: string): void {
    let line: unknown;
    try {
      line = JSON.parse(text);
    } catch {
      return; // not for us
    }
    if (!isJsonLine(line)) return;
    this.onLine(line);
    const waiting = this.#waiting.get(line.type);
    this.#waiting.delete(line.type);
    if (waiting === undefined) this.#seen.push(line);
    else waiting(line);
  }

  /** The next line of a type, one that came before included. @throws {MigrationError} ERR_INTERNAL if the process ends first. */
  async expect(type: string): Promise<JsonLine> {
    const at = this.#seen.findIndex((line) => line.type === type);
    const [seen] = at < 0 ? [] : this.#seen.splice(at, 1);
    if (seen !== undefined) return seen;
    const line = new Promise<JsonLine>((resolve) => this.#waiting.set(type, resolve));
    const ended = this.#exited.then((code) => {
      throw new MigrationError("ERR_INTERNAL", `${this.#name} ended (${String(code)}) before it said ${type}: ${this.#stderr.trim()}`);
    });
    return Promise.race([line, ended]);
  }

  write(line: string): void {
    this.#process.stdin?.write(`${line}\n`);
  }

  /** What it printed on standard error, its end at most. */
  get stderr(): string {
    return this.#stderr;
  }

  /** Exit code, or null after a signal. */
  get exited(): Promise<number | null> {
    return this.#exited;
  }

  get hasExited(): boolean {
    return this.#process.exitCode !== null || this.#process.signalCode !== null;
  }

  kill(signal: NodeJS.Signals): void {
    this.#process.kill(signal);
  }

  /** Asks it to end, its guest included, insists after a while, and resolves when it is gone. */
  async end(): Promise<number | null> {
    void this.expect("held").then(
      () => this.#process.kill("SIGTERM"), // an agent with a guest wants to be told twice
      () => {}, // it ended
    );
    this.#process.kill("SIGTERM");
    const insist = setTimeout(() => this.#process.kill("SIGKILL"), 8000);
    const code = await this.#exited;
    clearTimeout(insist);
    return code;
  }
}
