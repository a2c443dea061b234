import type { Bitmap, GuestState } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";
import type { Decision, MigrationError, RoundProgress, SourceEvent, SourcePhase } from "@precopy/protocol";
import { offer } from "@precopy/protocol";
import type { MigrationPorts } from "./migration.js";
import type { DirtyPort, FinalState, GuestPort, HandoverPort, LinkPort, PostcopyPort, Timer } from "./ports.js";
import { SourceHandover } from "./source-handover.js";

export type Call = "start" | "collect" | "sendRound" | "sendLast" | "pause" | "prepare" | "decide" | "commit" | "stop" | "discard";

export const EPOCH = 7;

export function pagesOf(bitmap: Bitmap): number[] {
  const pages: number[] = [];
  for (let page = 0; page < bitmap.pages; page++) if (bitmap.has(page)) pages.push(page);
  return pages;
}

export const STATE: GuestState = { registers: [], devices: [], clockMs: 5 };

/** The engine's world, for tests: says what was asked in which order, and takes the time it is told to on a clock that nothing else moves. */
export class FakePorts implements MigrationPorts {
  /** Every call, in order; a call of the dirty log with the pages it gave, of the link with the pages it got. */
  readonly calls: string[] = [];
  readonly phases: SourcePhase[] = [];
  readonly rounds: RoundProgress[] = [];
  readonly told: FinalState[] = [];
  readonly stopReasons: MigrationError[] = [];
  nowMs = 1000;
  readonly resumeMs = 1;
  /** What the dirty log gives: first at its start, then at each collection; nothing after the last. */
  finds: number[][] = [];
  costMs: Partial<Record<Call, number>> = {};
  /** On top, for each page of a round before the last. */
  pageMs = 0;
  /** Awaited inside a call after it was recorded: to look, to wait, or to throw. `nth` counts the calls of that name from 1. */
  during: (call: Call, nth: number) => Promise<void> | void = () => {};
  answer: SourceEvent = "active";
  /** The state machine of this migration. */
  readonly machine = new SourceHandover(offer(EPOCH - 1, EPOCH).state, {
    decide: (decision: Decision) => {
      this.calls.push(`decide ${decision}`);
      void this.during("decide", 1); // it can only throw: nothing here waits
    },
    onPhase: (phase) => this.phases.push(phase),
  });
  onRoundDone: (round: RoundProgress) => void = () => {};
  readonly #counts = new Map<Call, number>();
  #finds = 0;

  /** What was withheld of the vCPUs, each time anew. */
  readonly withheld: (readonly number[])[] = [];
  /** Of the one vCPU, so far. */
  dirtiedPages = 0;
  #withheldMs = 0;
  #withheldAtMs = 0;
  /** What is called every so often; a test calls it itself. */
  tick: () => void = () => {};
  readonly every: Timer = (_ms, work) => {
    this.tick = work;
    return () => {
      this.tick = () => {};
    };
  };
  #sentPages = 0;

  readonly clock = (): number => this.nowMs;

  async #call(call: Call, detail = ""): Promise<void> {
    const nth = (this.#counts.get(call) ?? 0) + 1;
    this.#counts.set(call, nth);
    this.calls.push(`${call}${detail}`);
    await this.during(call, nth);
    this.nowMs += this.costMs[call] ?? 0;
  }

  async #find(call: "start" | "collect", into: Bitmap): Promise<number> {
    const found = this.finds[this.#finds++] ?? [];
    await this.#call(call, ` ${JSON.stringify(found)}`);
    for (const page of found) into.setRun(page, 1);
    return this.costMs[call] ?? 0;
  }

  readonly dirty: DirtyPort = {
    start: (into) => this.#find("start", into),
    collect: (into) => this.#find("collect", into),
  };

  readonly link: LinkPort = {
    sendRound: async (round, pages) => {
      const normalPages = pages.count();
      await this.#call("sendRound", ` ${round} ${JSON.stringify(pagesOf(pages))}`);
      this.nowMs += normalPages * this.pageMs;
      this.#sentPages += normalPages;
      return { normalPages, zeroPages: 0, bytes: normalPages * PAGE_BYTES, ms: (this.costMs.sendRound ?? 0) + normalPages * this.pageMs };
    },
    sendLast: async (round, pages) => {
      const normalPages = pages.count();
      await this.#call("sendLast", ` ${round} ${JSON.stringify(pagesOf(pages))}`);
      return {
        normalPages,
        zeroPages: 0,
        bytes: normalPages * PAGE_BYTES,
        ms: this.costMs.sendLast ?? 0,
      };
    },
    roundTripMs: () => 0.1,
    sentPages: () => this.#sentPages,
  };

  readonly guest: GuestPort = {
    probeMs: () => 0.1,
    pause: async () => {
      await this.#call("pause");
      return STATE;
    },
    withhold: (shares) => {
      this.#passWithheld();
      this.withheld.push(shares);
    },
    activity: () => {
      this.#passWithheld();
      return [{ dirtiedPages: this.dirtiedPages, withheldMs: this.#withheldMs }];
    },
  };

  #passWithheld(): void {
    this.#withheldMs += (this.withheld.at(-1)?.[0] ?? 0) * (this.nowMs - this.#withheldAtMs);
    this.#withheldAtMs = this.nowMs;
  }

  readonly postcopy: PostcopyPort = {
    devicePages: 2,
    discard: (pages) => this.#call("discard", ` ${JSON.stringify(pagesOf(pages))}`),
    tellDiscard: (pages) => {
      this.calls.push(`tellDiscard ${JSON.stringify(pagesOf(pages))}`);
    },
  };

  readonly handover: HandoverPort = {
    tell: (state) => {
      this.told.push(state);
      this.calls.push("tell");
    },
    prepare: () => this.#call("prepare"),
    commit: async () => {
      await this.#call("commit");
      this.machine.step(this.answer);
    },
  };

  readonly stop = async (reason: MigrationError): Promise<void> => {
    this.stopReasons.push(reason);
    await this.#call("stop");
  };

  onRound(round: RoundProgress): void {
    this.rounds.push(round);
    this.onRoundDone(round);
  }
}
