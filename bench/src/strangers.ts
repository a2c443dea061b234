import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createConnection } from "node:net";
import type { Socket } from "node:net";
import type { Address } from "@precopy/protocol";

/** How many connections are held open, a byte a second each. */
const HELD = 200;
const HELD_BYTE_MS = 1000;
/** How often one of each kind comes. */
const GARBAGE_MS = 20;
const GARBAGE_BYTES_MAX = 4096;
const PROGRAM_MS = 200;

/** What came to the port. */
export interface Annoyance {
  held: number;
  garbage: number;
  programs: number;
}

const isThere = (command: string): Promise<boolean> =>
  new Promise((resolve) => {
    spawn(command, ["--version"], { stdio: "ignore" })
      .on("error", () => resolve(false))
      .on("close", () => resolve(true));
  });

/** Everybody who has no business at a port: browsers, scanners, noise, and connections that are held open and say next to nothing. */
export class Strangers {
  readonly #at: Address;
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #children = new Set<ReturnType<typeof spawn>>();
  readonly annoyance: Annoyance = { held: 0, garbage: 0, programs: 0 };
  #isEnded = false;

  constructor(at: Address) {
    this.#at = at;
  }

  async begin(): Promise<void> {
    const { host, port } = this.#at;
    for (let at = 0; at < HELD; at++) this.#hold();
    this.#timers.push(setInterval(() => this.#sockets.forEach((socket) => socket.write("G")), HELD_BYTE_MS));
    this.#timers.push(setInterval(() => this.#throw(), GARBAGE_MS));
    const programs: (readonly [string, ...string[]])[] = [
      ["curl", "--silent", "--max-time", "2", `http://${host}:${port}/`],
      ["curl", "--silent", "--insecure", "--max-time", "2", `https://${host}:${port}/v1/agent`],
      ["openssl", "s_client", "-connect", `${host}:${port}`, "-tls1_3"],
    ];
    const found = await Promise.all(programs.map(async ([command]) => isThere(command)));
    const runnable = programs.filter((_, at) => found[at]);
    let turn = 0;
    if (runnable.length > 0) this.#timers.push(setInterval(() => this.#run(runnable[turn++ % runnable.length]!), PROGRAM_MS));
  }

  #connect(): Socket {
    const socket = createConnection(this.#at);
    socket.on("error", () => {}).resume();
    return socket;
  }

  /** And again when it was hung up on. */
  #hold(): void {
    if (this.#isEnded) return;
    const socket = this.#connect();
    this.annoyance.held++;
    this.#sockets.add(socket);
    socket.once("close", () => {
      this.#sockets.delete(socket);
      setTimeout(() => this.#hold(), HELD_BYTE_MS).unref();
    });
  }

  #throw(): void {
    const socket = this.#connect();
    this.annoyance.garbage++;
    const bytes = randomBytes(1 + Math.floor(Math.random() * GARBAGE_BYTES_MAX));
    if (Math.random() < 0.5) bytes[0] = 22; // as if it were TLS
    socket.end(bytes);
  }

  #run([command, ...args]: readonly [string, ...string[]]): void {
    const child = spawn(command, args, { stdio: "ignore" });
    this.annoyance.programs++;
    this.#children.add(child);
    child.on("error", () => {}).on("close", () => this.#children.delete(child));
  }

  end(): void {
    this.#isEnded = true;
    for (const timer of this.#timers) clearInterval(timer);
    for (const socket of this.#sockets) socket.destroy();
    for (const child of this.#children) child.kill();
  }
}
