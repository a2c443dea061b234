import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { JsonChild } from "@precopy/lab";
import type { JsonLine } from "@precopy/lab";
import { askStatus } from "../faults/agent-call.js";
import type { Status } from "../faults/agent-call.js";
import { FaultProxy } from "../faults/proxy.js";

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
    child.on("close", (code) => resolve({ ...outcome, code }));
  });
}

export interface AgentHandle {
  readonly child: JsonChild;
  readonly name: string;
  readonly listen: string;
  readonly socket: string;
}

/** Switch, agents and client of one test, in a folder of their own. */
export class Lab {
  readonly #folder = mkdtempSync(join(tmpdir(), "precopy-e2e-"));
  readonly #children: JsonChild[] = [];
  readonly #links: FaultProxy[] = [];
  #switch = "";

  start(name: string, args: readonly string[], environment: readonly string[] = []): JsonChild {
    const child = new JsonChild(name, ["env", ...environment, process.execPath, PRECOPY, ...args, "--json"]);
    this.#children.push(child);
    return child;
  }

  async startSwitch(): Promise<void> {
    this.#switch = String((await this.start("switch", ["switch", "--listen", "127.0.0.1:0"]).expect("listening"))["listen"]);
  }

  /**
   * Without the rehearsal: hundreds of agents are started here, and nobody measures them.
   * @param fault PRECOPY_FAULT for that process: POINT=hold:MS or POINT=kill.
   */
  async agent(role: "source" | "target", name: string, args: readonly string[] = [], fault = ""): Promise<AgentHandle> {
    const socket = join(this.#folder, `${name}.sock`);
    const network = this.#switch === "" ? [] : ["--switch", this.#switch];
    const common = ["--listen", "127.0.0.1:0", "--name", name, "--socket", socket, "--state-dir", join(this.#folder, name), ...network];
    const environment = ["PRECOPY_WITHOUT=rehearsal", `PRECOPY_FAULT=${fault}`];
    const child = this.start(name, [role, ...common, ...args, "--fault-points"], environment);
    const { listen } = await child.expect("listening");
    if (role === "source") await child.expect("running");
    return { child, name, listen: String(listen), socket };
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

  /** A client at a fifth of its usual rate: a thousand requests a second are half a processor for client, switch and guest. */
  async client(): Promise<JsonChild> {
    const client = this.start("client", ["client", "--switch", this.#switch, "--guest", "g", "--rate", "200"]);
    await client.expect("connected");
    return client;
  }

  migrate(from: AgentHandle, to: string, args: readonly string[] = []): JsonChild {
    return this.start("migrate", ["migrate", to, "--socket", from.socket, ...args]);
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

  /** The guest never left its first owner: it answers, and the client's ledger is right. */
  async runsOnAt(source: AgentHandle, client: JsonChild): Promise<void> {
    let answers = 0;
    for (let turn = 0; turn < 20 && answers < 100; turn++) answers += await answersWithin(client, 300);
    assert.ok(answers >= 100, `the guest answers the client: ${answers} times in 6 s`);
    await this.runsAt(source, 1);
    await isRight(client);
  }

  /** A link to an agent that can be cut. */
  async link(to: string): Promise<FaultProxy> {
    const link = await FaultProxy.to(to);
    this.#links.push(link);
    return link;
  }

  async end(): Promise<void> {
    for (const link of this.#links) link.close();
    for (const child of this.#children) child.kill("SIGKILL"); // how agents end has tests of its own
    await Promise.all(this.#children.map((child) => child.exited));
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

/** Ends the client: nothing acknowledged is lost or doubled, no older owner has answered. */
export async function isRight(client: JsonChild): Promise<void> {
  client.write("finish");
  const report = await client.expect("report");
  assert.deepEqual([report["lost"], report["doubled"], report["staleEpochAnswers"], report["isVerified"]], [0, 0, 0, true]);
}

/** Marks the client's window, lets `ms` pass, and returns how many answers came in it. */
export async function answersWithin(client: JsonChild, ms: number): Promise<number> {
  client.write("mark");
  await client.expect("mark");
  await sleep(ms);
  client.write("mark");
  return Number((await client.expect("mark"))["acknowledged"]);
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
