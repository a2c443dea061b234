import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import type { JsonChild, LedgerClient } from "@precopy/lab";
import { Lab, answersWithin, isRight, untilPhase } from "./lab.js";
import type { AgentHandle } from "./lab.js";
import type { FaultProxy } from "../faults/proxy.js";

interface Running {
  readonly lab: Lab;
  readonly here: AgentHandle;
  readonly there: AgentHandle;
  readonly client: LedgerClient;
  /** Of the guest, before the test. */
  readonly epoch: number;
}

/** 30 s: a target that receives notices a silent source after 5 s, and gives it 15 s more. */
const SETTLE_TRIES = 120;

/** Two agents, a guest at one of them, and its client, for test after test: to start them takes longer than most tests. */
export class Pair {
  readonly #args: readonly string[];
  #running: Running | undefined;

  /** @param args for both agents */
  constructor(args: readonly string[] = []) {
    this.#args = args;
  }

  /** Starts them if they are not there. */
  async start(): Promise<void> {
    if (this.#running !== undefined) return;
    const lab = new Lab();
    try {
      await lab.startSwitch();
      const [here, there] = await Promise.all([lab.source("a", this.#args), lab.agent("target", "b", this.#args)]);
      this.#running = { lab, here, there, client: await lab.client(), epoch: 1 };
    } catch (error) {
      await lab.end();
      throw error;
    }
  }

  get #now(): Running {
    assert.ok(this.#running, "the pair was started");
    return this.#running;
  }

  get lab(): Lab {
    return this.#now.lab;
  }
  /** Where the guest is when a test begins. */
  get here(): AgentHandle {
    return this.#now.here;
  }
  get there(): AgentHandle {
    return this.#now.there;
  }
  get client(): LedgerClient {
    return this.#now.client;
  }

  /** From here to there. */
  migrate(args: readonly string[] = []): JsonChild {
    return this.lab.migrate(this.here, this.there.listen, args);
  }

  /** The same over a link that can be cut. */
  async migrateOverLink(args: readonly string[] = []): Promise<{ readonly link: FaultProxy; readonly migration: JsonChild }> {
    const link = await this.lab.link(this.there.listen);
    return { link, migration: this.lab.migrate(this.here, link.address, args) };
  }

  /** As `migrateOverLink`, up to where the guest runs there and fetches the rest of its 32 MiB. */
  async fetching(bandwidth = "60Mbit"): Promise<{ readonly link: FaultProxy; readonly migration: JsonChild }> {
    const under = await this.migrateOverLink(["--mode", "postcopy", "--max-postcopy-bandwidth", bandwidth]);
    await untilPhase(under.migration, "postcopy-active");
    return under;
  }

  /** The guest never left: it answers, and the client's ledger is right. */
  async runsOnHere(): Promise<void> {
    const { lab, here, client, epoch } = this.#now;
    let answers = 0;
    for (let turn = 0; turn < 20 && answers < 25; turn++) answers += await answersWithin(client, 300);
    assert.ok(answers >= 25, `the guest answers the client: ${answers} times in 6 s`);
    await lab.runsAt(here, epoch);
    await isRight(client);
  }

  /**
   * After each test: an agent that died is started anew, and `here` is where the guest is by now.
   * @throws if it is not at one of the two alone; the next test has a new pair then
   */
  async settle(): Promise<void> {
    const { lab, client } = this.#now;
    lab.closeLinks(); // or a target would wait for a peer that it cannot hear any more
    const agents: AgentHandle[] = [];
    for (const agent of [this.here, this.there]) {
      lab.setFault(agent, "");
      agents.push(agent.child.hasExited ? await lab.restart(agent, this.#args) : agent);
    }
    let seen = "";
    for (let tries = 0; tries < SETTLE_TRIES; tries++) {
      const guests = await Promise.all(agents.map((agent) => lab.guestAt(agent)));
      const at = guests.findIndex((guest) => guest?.phase === "running");
      const guest = guests[at];
      if (guest !== undefined && guest !== null && guests[1 - at] === null) {
        this.#running = { lab, here: agents[at]!, there: agents[1 - at]!, client, epoch: guest.epoch };
        return;
      }
      seen = guests.map((one) => one?.phase ?? "no guest").join(" and ");
      await sleep(250);
    }
    await this.end();
    await this.start();
    throw new Error(`The test left the pair with ${seen}`);
  }

  async end(): Promise<void> {
    await this.#running?.lab.end();
    this.#running = undefined;
  }
}
