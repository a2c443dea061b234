import { once } from "node:events";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LedgerClient } from "@precopy/lab";
import { guestTag } from "@precopy/protocol";
import { askStatus } from "./agent-call.js";
import type { Status } from "./agent-call.js";
import { AgentProcess } from "./agent-process.js";
import type { Flavour, Name } from "./fault-case.js";
import { Hub } from "./hub.js";
import { FaultProxy } from "./proxy.js";

const SMALL_GUEST = [
  ...["--workload", "ledger,random-writer"],
  ...["--memory", "32MiB"],
  ...["--fill", "12MiB"],
  ...["--working-set", "2MiB"],
  ...["--dirty-rate", "2000"],
];
const FLAVOURS: Readonly<Record<Flavour, readonly string[]>> = {
  mmu: ["--dirty-log", "auto", "--pump", "auto"],
  barrier: ["--dirty-log", "barrier", "--pump", "portable"],
};
const REQUESTS_PER_SECOND = 250;
/** An outage may last for a minute here, and several labs share a host: more repeats would leave a guest nothing else to answer. */
const OPEN_REQUESTS_MAX = 50;
const REPEAT_MS = 250;
const LOG_BYTES_MAX = 2 ** 23;
/** Below the range from which systems take ports for outgoing connections: a port that is free for a moment must stay free. */
const PORTS_FROM = 20_000;
const PORTS = 12_000;

export const other = (name: Name): Name => (name === "a" ? "b" : "a");

const portsGiven = new Set<number>();

/** A port that nobody listens on now, and that nobody here was given before. */
async function freePort(): Promise<number> {
  for (;;) {
    const port = PORTS_FROM + Math.floor(Math.random() * PORTS);
    if (portsGiven.has(port)) continue;
    portsGiven.add(port);
    const server = createServer().listen(port, "127.0.0.1");
    const isFree = await once(server, "listening").then(
      () => true,
      () => false, // somebody has it
    );
    if (!isFree) continue;
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
}

/** One decision of an agent's journal (docs/wire-format.md, 10). */
export interface JournalLine {
  readonly epoch: number;
  readonly decision: string;
}

/** An agent that keeps its name, port and journal over all its processes, and the link to it. */
export class Side {
  readonly name: Name;
  readonly proxy: FaultProxy;
  readonly #folder: string;
  readonly #port: number;
  readonly #arguments: readonly string[];
  process: AgentProcess | undefined;

  constructor(name: Name, folder: string, port: number, proxy: FaultProxy, extra: readonly string[]) {
    this.name = name;
    this.proxy = proxy;
    this.#folder = folder;
    this.#port = port;
    this.#arguments = extra;
  }

  get socket(): string {
    return join(this.#folder, `${this.name}.sock`);
  }

  get log(): string {
    return join(this.#folder, `${this.name}.log`);
  }

  get #faultFile(): string {
    return join(this.#folder, `${this.name}.faults`);
  }

  /** @param until the line by which it is ready. */
  async start(role: "source" | "target", until: string, extra: readonly string[] = []): Promise<AgentProcess> {
    const args = [
      role,
      ...["--listen", `127.0.0.1:${this.#port}`],
      ...["--name", this.name],
      ...["--socket", this.socket],
      ...["--state-dir", join(this.#folder, this.name)],
      ...["--log-level", "debug", "--fault-points", "--json"],
      ...this.#arguments,
      ...extra,
    ];
    // Without the rehearsal: it is two of three seconds of an agent's start, and nobody measures anything here.
    const environment = { PRECOPY_FAULT: `@${this.#faultFile}`, PRECOPY_WITHOUT: "rehearsal" };
    this.process = await AgentProcess.start(args, environment, this.log, until);
    return this.process;
  }

  /** What the agent does at its fault points from now on; "" for nothing. */
  setFaults(text: string): void {
    writeFileSync(this.#faultFile, text);
  }

  /** Undefined while it does not answer. */
  async status(): Promise<Status | undefined> {
    const answer = await askStatus(this.socket);
    return answer.type === "ok" ? answer.value : undefined;
  }

  /** What its journal says of a guest, oldest first. */
  journal(guest: string): JournalLine[] {
    const file = join(this.#folder, this.name, `${guest}.journal`);
    if (!existsSync(file)) return [];
    return readFileSync(file, "utf8")
      .split("\n")
      .flatMap((line) => (line.endsWith("}") ? [JSON.parse(line) as JournalLine] : [])); // a line cut short has no end
  }
}

/**
 * Two agents, a link to each that can fail, a network that hides nothing, and a client that counts. It lives through many cases: what is
 * killed is started again, and a guest that is lost is booted anew under a new id.
 */
export class FaultLab {
  readonly flavour: Flavour;
  readonly folder: string;
  readonly sides: Readonly<Record<Name, Side>>;
  readonly #hub: Hub;
  #client: LedgerClient | undefined;
  #guests = 0;
  /** Where the guest runs; undefined if there is none, or nobody knows. */
  home: Name | undefined;

  private constructor(flavour: Flavour, folder: string, hub: Hub, sides: Record<Name, Side>) {
    this.flavour = flavour;
    this.folder = folder;
    this.#hub = hub;
    this.sides = sides;
  }

  static async open(flavour: Flavour, extra: readonly string[] = []): Promise<FaultLab> {
    const folder = mkdtempSync(join(tmpdir(), "precopy-faults-"));
    const hub = await Hub.open();
    const side = async (name: Name): Promise<Side> => {
      const port = await freePort();
      const proxy = await FaultProxy.to(`127.0.0.1:${port}`, await freePort());
      return new Side(name, folder, port, proxy, ["--switch", `127.0.0.1:${hub.address.port}`, ...FLAVOURS[flavour], ...extra]);
    };
    return new FaultLab(flavour, folder, hub, { a: await side("a"), b: await side("b") });
  }

  get guest(): string {
    return `g${this.#guests}`;
  }

  get client(): LedgerClient {
    if (this.#client === undefined) throw new Error("No guest was booted yet");
    return this.#client;
  }

  /** Newest epoch that sent a frame. */
  get epochSeen(): number {
    return this.#hub.epochOf(guestTag(this.guest));
  }

  takeFinding(): string | undefined {
    return this.#hub.takeFinding(guestTag(this.guest));
  }

  /** Starts both agents anew, whatever they do, the one at `home` with a new guest; and a client for it. */
  async boot(home: Name, guest: readonly string[] = SMALL_GUEST): Promise<void> {
    this.home = undefined;
    this.#client?.close();
    this.#client = undefined;
    this.#guests++;
    for (const side of Object.values(this.sides)) {
      side.setFaults("");
      await side.proxy.comeBack();
    }
    const bystander = this.sides[other(home)];
    const isBystanderFine = bystander.process?.exit === undefined && (await bystander.status())?.guest === null;
    await Promise.all([this.sides[home].process?.end(3000), isBystanderFine ? undefined : bystander.process?.end(3000)]);
    await Promise.all([
      this.sides[home].start("source", "running", ["--guest", this.guest, ...guest]),
      isBystanderFine ? undefined : bystander.start("target", "listening"),
    ]);
    await this.renewClient();
    this.home = home;
  }

  /** A client that knows nothing of what was acknowledged before: for a guest that was rolled back by its operator. */
  async renewClient(): Promise<void> {
    this.#client?.close();
    this.#client = undefined;
    const options = { rate: REQUESTS_PER_SECOND, spanIds: OPEN_REQUESTS_MAX, repeatMs: REPEAT_MS };
    this.#client = await LedgerClient.connect({ target: this.#hub.address, guestId: this.guest, ...options });
  }

  /** Marks in both logs where something begins. */
  markLogs(text: string): void {
    for (const { log } of Object.values(this.sides)) {
      if (existsSync(log) && statSync(log).size > LOG_BYTES_MAX) truncateSync(log, 0);
      writeFileSync(log, `=== ${text}\n`, { flag: "a" });
    }
  }

  /** Copies logs and journals of both agents. */
  keepLogs(folder: string): void {
    mkdirSync(folder, { recursive: true });
    for (const side of Object.values(this.sides)) {
      if (existsSync(side.log)) copyFileSync(side.log, join(folder, `${side.name}.log`));
      writeFileSync(
        join(folder, `${side.name}.journal`),
        side
          .journal(this.guest)
          .map((line) => `${JSON.stringify(line)}\n`)
          .join(""),
      );
    }
  }

  async close(): Promise<void> {
    this.#client?.close();
    for (const side of Object.values(this.sides)) {
      side.proxy.close();
      await side.process?.end(3000);
    }
    this.#hub.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
