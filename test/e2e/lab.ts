import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { JsonChild, LedgerClient, Switch } from "@precopy/lab";
import type { JsonLine } from "@precopy/lab";
import { formatAddress } from "@precopy/protocol";
import { askStatus } from "../faults/agent-call.js";
import type { Status } from "../faults/agent-call.js";
import { FaultProxy } from "../faults/proxy.js";
import { leaveNoOrphan } from "../orphans.js";

export const PRECOPY = fileURLToPath(new URL("../../../packages/cli/bin/precopy.js", import.meta.url));

/** Slow enough that a fault finds the first round under way. */
export const SLOW = ["--max-bandwidth", "120Mbit"];

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs one command to its end. @param signalAt on standard output: interrupts it as Ctrl-C does, once. */
export function precopy(
  args: readonly string[],
  { signalAt, env = {} }: { signalAt?: string; env?: Record<string, string> } = {},
): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [PRECOPY, ...args], { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...env } });
    const isOver = leaveNoOrphan(child);
    const outcome = { code: null as number | null, stdout: "", stderr: "" };
    let isInterrupted = signalAt === undefined;
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      outcome.stdout += text;
      if (isInterrupted || !outcome.stdout.includes(signalAt ?? "")) return;
      isInterrupted = true;
      child.kill("SIGINT");
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      outcome.stderr += text;
    });
    child.on("close", (code) => {
      isOver();
      resolve({ ...outcome, code });
    });
  });
}

export interface AgentHandle {
  readonly child: JsonChild;
  readonly name: string;
  readonly listen: string;
  readonly socket: string;
}

/** Agents of one test, in a folder of their own; switch, client and links in this process. */
export class Lab {
  readonly #folder = mkdtempSync(join(tmpdir(), "precopy-e2e-"));
  readonly #children: JsonChild[] = [];
  readonly #links: FaultProxy[] = [];
  readonly #clients: LedgerClient[] = [];
  #switch: Switch | undefined;

  start(name: string, args: readonly string[], environment: readonly string[] = []): JsonChild {
    const child = new JsonChild(name, ["env", ...environment, process.execPath, PRECOPY, ...args, "--json"]);
    this.#children.push(child);
    void child.exited.then(leaveNoOrphan(child));
    return child;
  }

  async startSwitch(): Promise<void> {
    this.#switch = await Switch.listen({ host: "127.0.0.1", port: 0 });
  }

  /**
   * Without the rehearsal: hundreds of agents are started here, and nobody measures them.
   * @param fault as `setFault`
   */
  async agent(role: "source" | "target", name: string, args: readonly string[] = [], fault = ""): Promise<AgentHandle> {
    const socket = join(this.#folder, `${name}.sock`);
    const network = this.#switch === undefined ? [] : ["--switch", formatAddress(this.#switch.address)];
    const common = ["--listen", "127.0.0.1:0", "--name", name, "--socket", socket, "--state-dir", join(this.#folder, name), ...network];
    this.setFault({ name }, fault);
    const environment = ["PRECOPY_WITHOUT=rehearsal", `PRECOPY_FAULT=@${this.#faultFile(name)}`];
    const child = this.start(name, [role, ...common, ...args, "--fault-points"], environment);
    const { listen } = await child.expect("listening");
    if (role === "source") await child.expect("running");
    return { child, name, listen: String(listen), socket };
  }

  /** What PRECOPY_FAULT says for that agent from now on: POINT=hold:MS or POINT=kill. */
  setFault({ name }: Pick<AgentHandle, "name">, fault: string): void {
    writeFileSync(this.#faultFile(name), fault);
  }

  #faultFile(name: string): string {
    return join(this.#folder, `${name}.fault`);
  }

  /** Where it keeps journal and history. */
  stateDir({ name }: AgentHandle): string {
    return join(this.#folder, name);
  }

  /** The agent anew, after it died: the same name, journal and port, and no guest. */
  async restart({ name, listen }: AgentHandle, args: readonly string[] = []): Promise<AgentHandle> {
    return this.agent("target", name, ["--listen", listen, ...args]);
  }

  /** A guest of `memory` whose first vCPU answers the client, at a source agent. */
  source(name: string, args: readonly string[] = [], fault?: string): Promise<AgentHandle> {
    const guest = [
      "--guest",
      "g",
      "--workload",
      "ledger,random-writer",
      "--memory",
      "96MiB",
      "--fill",
      "32MiB",
      "--working-set",
      "4MiB",
      "--dirty-rate",
      "2000",
    ];
    return this.agent("source", name, [...guest, ...args], fault);
  }

  /** A client at a twentieth of its usual rate: it counts, and nobody measures it here. */
  async client(): Promise<LedgerClient> {
    assert.ok(this.#switch);
    const client = await LedgerClient.connect({ target: this.#switch.address, guestId: "g", rate: 50 });
    this.#clients.push(client);
    return client;
  }

  /** With time for what happens in the pause, however busy the host is: PREPARED has to come within twice the downtime limit. */
  migrate(from: AgentHandle, to: string, args: readonly string[] = []): JsonChild {
    const patient = args.includes("--downtime-limit") ? [] : ["--downtime-limit", "2s"];
    return this.start("migrate", ["migrate", to, "--socket", from.socket, ...patient, ...args]);
  }

  /** The guest as `precopy status` tells it; null if there is none. Asked without a process of its own. */
  async guestAt(agent: AgentHandle): Promise<Status["guest"]> {
    const answer = await askStatus(agent.socket);
    assert.ok(answer.type === "ok", `${agent.name} answers ${JSON.stringify(answer)}`);
    return answer.value.guest;
  }

  /** Waits until `precopy status` at the agent tells of a guest that runs, at this epoch. */
  async runsAt(agent: AgentHandle, epoch: number): Promise<void> {
    for (let tries = 0; ; tries++) {
      const guest = await this.guestAt(agent);
      if (guest?.phase === "running") return assert.equal(guest.epoch, epoch);
      assert.ok(tries < 60, `guest at ${agent.name}: ${JSON.stringify(guest)}`);
      await sleep(250);
    }
  }

  /** A link to an agent that can be cut. */
  async link(to: string): Promise<FaultProxy> {
    const link = await FaultProxy.to(to);
    this.#links.push(link);
    return link;
  }

  /** Every connection over them ends. */
  closeLinks(): void {
    for (const link of this.#links.splice(0)) link.close();
  }

  async end(): Promise<void> {
    this.closeLinks();
    for (const client of this.#clients) client.close();
    for (const child of this.#children) child.kill("SIGKILL"); // how agents end has tests of its own
    await Promise.all(this.#children.map((child) => child.exited));
    await this.#switch?.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** Runs a command against an agent and reads what it prints as JSON. */
export async function ask(agent: AgentHandle, ...args: string[]): Promise<Outcome & { readonly json: Record<string, unknown> }> {
  const outcome = await precopy([...args, "--socket", agent.socket, "--json"]);
  return { ...outcome, json: outcome.stdout === "" ? {} : JSON.parse(outcome.stdout) };
}

/** The conclusion of `precopy who-owns`. */
export const ownerBy = async (agent: AgentHandle, ...args: string[]): Promise<unknown> =>
  ((await ask(agent, ...args)).json["verdict"] as { readonly owner: string }).owner;

/** The report of a migration that must complete. */
export async function reportOf(migration: JsonChild): Promise<JsonLine> {
  const { report } = await migration.expect("done");
  assert.equal(await migration.exited, 0, migration.stderr);
  return report as JsonLine;
}

/** What a report tells of post-copy. */
export const postcopyOf = (report: JsonLine) =>
  report["postcopy"] as { readonly requests: number; readonly pauses: number; readonly "pushed-pages": number };

/** Nothing acknowledged is lost or doubled, no older owner has answered. */
export async function isRight(client: LedgerClient): Promise<void> {
  const { lost, doubled, staleEpochAnswers, isVerified } = await client.settle({ timeoutMs: 10_000 });
  assert.deepEqual([lost, doubled, staleEpochAnswers, isVerified], [0, 0, 0, true]);
}

/** How many answers come in `ms`. */
export async function answersWithin(client: LedgerClient, ms: number): Promise<number> {
  client.mark();
  await sleep(ms);
  return client.mark().acknowledged;
}

/** Resolves when the child has printed a phase event with this phase. */
export async function untilPhase(child: JsonChild, phase: string): Promise<void> {
  for (;;) {
    const line = await child.expect("phase");
    if (line["phase"] === phase) return;
  }
}

/** Resolves when the guest at `agent` has said so on standard error; its first step there may come after the source has ended. */
export async function untilSaid(agent: AgentHandle, pattern: RegExp): Promise<RegExpExecArray> {
  for (let left = 1000; left > 0; left--) {
    const said = pattern.exec(agent.child.stderr);
    if (said !== null) return said;
    await sleep(20);
  }
  throw new Error(`${String(pattern)} is not in: ${agent.child.stderr}`);
}

/** For what is measured: a busy host spoils it now and then, and what never is as it should be is a fault. */
export async function onceIn(tries: number, check: () => Promise<void>): Promise<void> {
  for (let left = tries - 1; ; left--)
    try {
      return await check();
    } catch (error) {
      if (left === 0) throw error;
    }
}
