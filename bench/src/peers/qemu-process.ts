import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { join } from "node:path";
import { processorSeconds } from "./processor-time.js";
import { QmpClient } from "./qmp.js";
import { TickLog } from "./ticks.js";

/** One QEMU. It connects to us, so that there is nothing to poll for: its monitor and the debug port of its guest. */
export class QemuProcess {
  readonly ticks = new TickLog();
  readonly #name: string;
  readonly #process: ChildProcess;
  readonly #servers: readonly Server[];
  readonly #sockets: Socket[] = [];
  readonly #exited: Promise<string>;
  /** Its monitor, ready for commands. Stays pending if QEMU ends before it has connected: `failure` tells. */
  readonly monitor: Promise<QmpClient>;
  /** Rejects when it ends. */
  readonly failure: Promise<never>;
  #stderr = "";

  /** Starts it. @param folder for its two sockets, which are named after `name` @param command QEMU and its arguments, wherever they run */
  constructor(name: string, folder: string, command: readonly string[]) {
    this.#name = name;
    const listen = (path: string): Server =>
      createServer((socket) => {
        this.#sockets.push(socket);
        socket.on("error", () => {}); // it ended: `exited` tells
      }).listen(path);
    const [monitorPath, ticksPath] = [join(folder, `${name}.qmp`), join(folder, `${name}.ticks`)];
    const [monitor, ticks] = [listen(monitorPath), listen(ticksPath)];
    this.#servers = [monitor, ticks];
    ticks.on("connection", (socket) => socket.on("data", (bytes: Buffer) => this.ticks.push(bytes, performance.now())));
    this.monitor = new Promise<Socket>((resolve) => monitor.once("connection", resolve)).then(async (socket) => {
      const client = new QmpClient(socket);
      await client.execute("qmp_capabilities");
      return client;
    });
    const sockets = [
      ...["-chardev", `socket,id=monitor,path=${monitorPath}`, "-mon", "chardev=monitor,mode=control"],
      ...["-chardev", `socket,id=ticks,path=${ticksPath}`, "-device", "isa-debugcon,iobase=0xe9,chardev=ticks"],
    ];
    // A group of its own: Ctrl-C reaches the bench, and the bench ends its processes.
    const [program = "", ...args] = command;
    this.#process = spawn(program, [...args, ...sockets], { stdio: ["ignore", "ignore", "pipe"], detached: true });
    this.#exited = new Promise((resolve) => {
      this.#process.once("exit", (code, signal) => resolve(`ended (${String(code ?? signal)})`));
      this.#process.once("error", (error) => resolve(error.message));
    });
    this.failure = this.#exited.then((how) => {
      throw new Error(`The ${name} ${how}`);
    });
    for (const promise of [this.monitor, this.failure]) promise.catch(() => {}); // whoever waits for it gets it
    this.#process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-4000);
    });
  }

  /** What it printed on standard error, its end at most. */
  get stderr(): string {
    return this.#stderr.trim();
  }

  /** Since it started, s. */
  get processorSeconds(): number {
    if (this.#process.pid === undefined) throw new Error(`${this.#name} never started`);
    return processorSeconds(this.#process.pid);
  }

  kill(): void {
    this.#process.kill("SIGKILL");
  }

  /** Kills it. Resolves when it is gone. */
  async end(): Promise<void> {
    this.kill();
    await this.#exited;
    for (const socket of this.#sockets) socket.destroy();
    for (const server of this.#servers) server.close();
  }
}
