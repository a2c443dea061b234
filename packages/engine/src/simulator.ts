import { Bitmap } from "@precopy/guest";
import type { VcpuActivity } from "@precopy/guest";
import { MigrationError, PAGE_BYTES, fillParameters, hasRounds } from "@precopy/protocol";
import type { DowntimeBreakdown, MigrationParameters, RoundProgress } from "@precopy/protocol";
import { fetchModel } from "./fetch-model.js";
import type { Fetched } from "./fetch-model.js";
import type { GuestPort, LinkPort, RoundTransfer, Timer } from "./ports.js";
import { preCopy } from "./round-loop.js";
import type { RoundLoopPorts } from "./round-loop.js";
import { Throttling } from "./throttling.js";
import type { ModelVcpu } from "./writer-models.js";

export interface ModelGuest {
  /** Of its memory, all of them. */
  readonly pages: number;
  /** With data, so that the first round sends them; working sets lie among them. */
  readonly populatedPages: number;
  /** Written once and full of zeros, so that the first round looks at them and sends nothing; 0 if left out. */
  readonly zeroPages?: number;
  readonly vcpus: readonly ModelVcpu[];
}

export interface ModelLink {
  readonly bytesPerSecond: number;
  readonly roundTripMs: number;
}

/** What does not depend on how much is sent, measured on real hosts by a rehearsal. Times in ms. */
export interface ModelCosts {
  /** From the command to where the dirty log is started: connection, admission, page channels. */
  readonly setupMs: number;
  /** Starting the dirty log, with the list of what is populated. */
  readonly listMs: number;
  /** For each page of zeros. */
  readonly zeroPageMs: number;
  readonly pauseMs: number;
  readonly resumeMs: number;
  /** Of a collection, whatever it finds. */
  readonly collectMs: number;
  /** From a round's last byte to its acknowledgement, thread hand-offs included. */
  readonly roundMs: number;
  /** From the last page to PREPARED, and from COMMIT to ACTIVE. */
  readonly prepareMs: number;
  readonly commitMs: number;
  /** Post-copy: from a vCPU's stop at a missing page to the page's being there, beside a round trip. */
  readonly faultMs: number;
  /** On the wire for each page, its share of headers included. */
  readonly wireBytesPerPage: number;
}

export const TYPICAL_COSTS: ModelCosts = {
  setupMs: 0,
  listMs: 0.5,
  zeroPageMs: 0.0002,
  pauseMs: 0.3,
  resumeMs: 0.3,
  collectMs: 0.5,
  roundMs: 0.6,
  prepareMs: 1,
  commitMs: 1.5,
  faultMs: 0.1,
  wireBytesPerPage: PAGE_BYTES + 8,
};

/** What a simulated migration came to. Nothing in it was measured. */
export interface Simulated {
  readonly isSimulated: true;
  /** Undefined if it ended; else why it did not. */
  readonly failure: MigrationError | undefined;
  readonly rounds: readonly RoundProgress[];
  /** Command to the guest running at the target; to the end of the last round if it failed. */
  readonly totalMs: number;
  /** 0 if it failed. */
  readonly downtimeMs: number;
  /** Its parts; undefined if it failed. */
  readonly breakdown: DowntimeBreakdown | undefined;
  readonly bytes: number;
  /** What post-copy comes to; undefined without it. Its bytes are among those above, and its time is part of the total. */
  readonly fetched: Fetched | undefined;
  /** Share of its time that the guest lost to throttling before the pause, 0 to 1. */
  readonly lostShare: number;
}

interface Ticker {
  readonly ms: number;
  readonly work: () => void;
  nextMs: number;
}

/** Time that passes only when somebody waits for it; the guest runs meanwhile. */
class World {
  nowMs = 0;
  readonly #tickers = new Set<Ticker>();
  readonly #guest: RunningModel;

  constructor(guest: RunningModel) {
    this.#guest = guest;
  }

  readonly every: Timer = (ms, work) => {
    const ticker = { ms, work, nextMs: this.nowMs + ms };
    this.#tickers.add(ticker);
    return () => this.#tickers.delete(ticker);
  };

  /** @param onStep told how many ms have passed, at each step. */
  pass(ms: number, onStep: (ms: number) => void = () => {}): void {
    for (const end = this.nowMs + ms; this.nowMs < end; ) {
      const next = Math.min(end, ...[...this.#tickers].map(({ nextMs }) => nextMs));
      const stepMs = Math.max(next - this.nowMs, 0);
      this.#guest.run(stepMs);
      this.nowMs = next;
      onStep(stepMs);
      for (const ticker of [...this.#tickers].filter(({ nextMs }) => nextMs <= next)) {
        ticker.nextMs += ticker.ms;
        ticker.work();
      }
    }
  }
}

/** Of each vCPU how many pages of its working set are dirty; which ones they are makes no difference to the model. */
class RunningModel {
  readonly #guest: ModelGuest;
  /** Of each vCPU, since the last collection, not counting what was withheld. */
  readonly #ranMs: number[];
  readonly #dirty: number[];
  readonly #dirtied: number[];
  readonly #withheldMs: number[];
  #shares: readonly number[] = [];
  #isPaused = false;
  ranMs = 0;

  constructor(guest: ModelGuest) {
    this.#guest = guest;
    this.#ranMs = guest.vcpus.map(() => 0);
    this.#dirty = guest.vcpus.map(() => 0);
    this.#dirtied = guest.vcpus.map(() => 0);
    this.#withheldMs = guest.vcpus.map(() => 0);
  }

  run(ms: number): void {
    if (this.#isPaused) return;
    this.ranMs += ms;
    this.#guest.vcpus.forEach((vcpu, at) => {
      const share = this.#shares[at] ?? 0;
      this.#withheldMs[at]! += share * ms;
      this.#ranMs[at]! += (1 - share) * ms;
      const dirty = vcpu.distinctPages(this.#ranMs[at]!);
      this.#dirtied[at]! += dirty - this.#dirty[at]!;
      this.#dirty[at] = dirty;
    });
  }

  /** Working sets lie one after another, and what is dirty of each at its start. */
  collect(into: Bitmap): void {
    let first = 0;
    this.#guest.vcpus.forEach(({ workingSetPages }, at) => {
      const pages = Math.round(this.#dirty[at]!);
      if (pages > 0) into.setRun(first, pages);
      this.#dirty[at] = this.#ranMs[at] = 0;
      first += workingSetPages;
    });
  }

  get lostShare(): number {
    const all = this.#withheldMs.reduce((sum, ms) => sum + ms, 0);
    return this.ranMs === 0 || this.#withheldMs.length === 0 ? 0 : all / this.#withheldMs.length / this.ranMs;
  }

  readonly port: Pick<GuestPort, "withhold" | "activity"> = {
    withhold: (shares) => {
      this.#shares = shares;
    },
    activity: (): VcpuActivity[] => this.#dirtied.map((dirtiedPages, at) => ({ dirtiedPages, withheldMs: this.#withheldMs[at] ?? 0 })),
  };

  pause(): void {
    this.#isPaused = true;
  }
}

/**
 * Runs the real round loop, policy and controllers against a model of guest and link, in no time. The pause is the same sum of parts as a real one.
 * @throws {MigrationError} ERR_PARAMETER
 */
export async function simulate(
  guest: ModelGuest,
  link: ModelLink,
  given: Partial<MigrationParameters> = {},
  costs: ModelCosts = TYPICAL_COSTS,
): Promise<Simulated> {
  checkModel(guest, link);
  // Nobody waits for an operator here.
  const parameters = fillParameters({ ...given, isPauseBeforeSwitchoverOn: false });
  if (parameters.isHoldBackOn)
    throw new MigrationError("ERR_PARAMETER", "hold-back cannot be simulated: the model does not know which pages are hot");
  const model = new RunningModel(guest);
  const world = new World(model);
  const rounds: RoundProgress[] = [];
  let sentPages = 0;
  let bytes = 0;
  let zerosLeft = guest.zeroPages ?? 0;
  const send = (pages: Bitmap, bytesPerSecond: number): RoundTransfer => {
    const started = world.nowMs;
    const normalPages = pages.count();
    const zeroPages = zerosLeft;
    zerosLeft = 0; // whoever writes into them writes data
    world.pass(zeroPages * costs.zeroPageMs);
    const wireBytes = normalPages * costs.wireBytesPerPage;
    const sendingMs = (wireBytes / bytesPerSecond) * 1000;
    world.pass(sendingMs, (ms) => {
      sentPages += (normalPages * ms) / sendingMs;
    });
    bytes += wireBytes;
    world.pass(costs.roundMs + link.roundTripMs / 2);
    return { normalPages, zeroPages, bytes: wireBytes, ms: world.nowMs - started };
  };
  const cap = parameters.maxBandwidthBytesPerSecond;
  const capped = cap === 0 ? link.bytesPerSecond : Math.min(cap, link.bytesPerSecond);
  const simulatedLink: Pick<LinkPort, "sendRound" | "roundTripMs" | "sentPages"> = {
    sendRound: async (_round, pages) => send(pages, capped),
    roundTripMs: () => link.roundTripMs,
    sentPages: () => sentPages,
  };
  const collect = (into: Bitmap): number => {
    model.collect(into);
    world.pass(costs.collectMs);
    return costs.collectMs;
  };
  const list = (into: Bitmap): number => {
    if (guest.populatedPages > 0) into.setRun(0, guest.populatedPages);
    world.pass(costs.listMs);
    return costs.listMs;
  };
  const ports: RoundLoopPorts = {
    clock: () => world.nowMs,
    every: world.every,
    resumeMs: costs.resumeMs,
    link: simulatedLink,
    guest: { probeMs: () => costs.pauseMs },
    dirty: {
      start: async (into) => list(into),
      collect: async (into) => collect(into),
    },
  };
  const throttled = { clock: ports.clock, every: world.every, link: simulatedLink, guest: model.port };
  const { timeoutMs, timeoutAction } = parameters;
  const isTimeUp = (): boolean => timeoutMs > 0 && world.nowMs >= timeoutMs;
  const forced = (): "switch over" | undefined => (timeoutAction === "force" && isTimeUp() ? "switch over" : undefined);
  let fetched: Fetched | undefined;
  const done = (failure: MigrationError | undefined, breakdown?: DowntimeBreakdown): Simulated => ({
    isSimulated: true,
    failure,
    rounds,
    totalMs: world.nowMs,
    downtimeMs: breakdown === undefined ? 0 : Object.values(breakdown).reduce((sum, ms) => sum + ms, 0),
    breakdown,
    bytes,
    fetched,
    lostShare: model.lostShare,
  });
  try {
    world.pass(costs.setupMs);
    const isLive = hasRounds(parameters);
    const plan = { pages: guest.pages, acceptedAtMs: 0, parameters: () => parameters, forced };
    const rounded = isLive
      ? await preCopy(plan, ports, new Throttling(throttled, () => parameters), (round) => {
          rounds.push(round);
          if (isTimeUp() && forced() === undefined) throw new MigrationError("ERR_TIMEOUT", `Not done within ${timeoutMs} ms`);
        })
      : undefined;
    const remaining = rounded?.remaining ?? new Bitmap(guest.pages);
    const isSplit = parameters.mode === "postcopy" || rounded?.next === "go to post-copy";
    if (isSplit) {
      if (!isLive) list(remaining);
      world.pass(costs.roundMs + link.roundTripMs); // the target is told, and lets go of what is old
    }
    world.pass(costs.pauseMs);
    model.pause();
    const collectMs = isLive || isSplit ? collect(remaining) : list(remaining);
    const { ms } = send(isSplit ? new Bitmap(guest.pages) : remaining, link.bytesPerSecond);
    const endMs = costs.roundMs + link.roundTripMs / 2; // of `ms`: the last page was handed over before
    const prepareMs = costs.prepareMs + link.roundTripMs;
    const commitMs = costs.commitMs + link.roundTripMs + costs.resumeMs;
    world.pass(prepareMs + commitMs);
    if (isSplit) {
      const { maxPostcopyBandwidthBytesPerSecond: limit } = parameters;
      const bytesPerMs = (limit === 0 ? link.bytesPerSecond : Math.min(limit, link.bytesPerSecond)) / 1000;
      const missingPages = remaining.count();
      fetched = fetchModel({
        missingPages,
        populatedPages: guest.populatedPages,
        vcpus: guest.vcpus,
        pagesPerMs: bytesPerMs / costs.wireBytesPerPage,
        faultMs: costs.faultMs + link.roundTripMs,
      });
      bytes += missingPages * costs.wireBytesPerPage;
      world.pass(fetched.ms);
    }
    return done(undefined, {
      pause: costs.pauseMs,
      collect: collectMs,
      transfer: ms - endMs,
      prepare: endMs + prepareMs,
      commit: commitMs,
    });
  } catch (thrown) {
    return done(MigrationError.from(thrown));
  }
}

function checkModel({ pages, populatedPages, vcpus }: ModelGuest, { bytesPerSecond }: ModelLink): void {
  const written = vcpus.reduce((sum, { workingSetPages }) => sum + workingSetPages, 0);
  const isSound = vcpus.every((vcpu) => vcpu.distinctPages(1000) >= 0 && vcpu.workingSetPages >= 1);
  if (populatedPages > pages || written > pages || !isSound || !(bytesPerSecond > 0))
    throw new MigrationError("ERR_PARAMETER", "A model needs a link that carries something, and a guest whose working sets fit into it");
}
