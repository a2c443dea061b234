import { standingOf } from "./journal-entry.js";
import type { Decision, JournalEntry } from "./journal-entry.js";
import { isServing, offer, recoverSource, sourceMayAbort, sourceMayRunGuest, stepSource } from "./source-state.js";
import type { HandoverEffect, SourceEvent, SourceState, Step } from "./source-state.js";
import { admitted, ownerAnswer, stepTarget, targetMayRunGuest } from "./target-state.js";
import type { OwnerAnswer, TargetEvent, TargetState } from "./target-state.js";

/**
 * For tests: two agents that hand one guest back and forth, with the real reducers, over a link that loses, delays, repeats and reorders,
 * while processes and hosts go down and people and an arbiter have their say. A third of the attempts are split: the target's image is then
 * not whole until the source, with its own still in hand, has sent the rest. Everything that happens is drawn by lot from one seed. What must
 * hold is checked after every step; the names are those of docs/model/README.md.
 */
export type Property =
  | "oneOwner"
  | "stillOwner"
  | "epochGrows"
  | "ownerInTheEnd"
  | "noSilentRollback"
  | "doubtRemembered"
  | "imageKept"
  | "wholeGuest";

export class Violation extends Error {
  readonly property: Property;
  constructor(property: Property, message: string) {
    super(`${property}: ${message}`);
    this.property = property;
  }
}

/** What is seeded to see that it is found; each is a BUG_ of docs/model/handover.pml. */
export const MISTAKES = [
  "RUN_BEFORE_COMMIT",
  "TIMER_RESUMES",
  "CLAIM_UNFENCED",
  "BOOT_UNSEEN",
  "ABORT_KEEPS_EPOCH",
  "EPOCH_NOT_RAISED",
  "EPOCH_NOT_CHECKED",
  "GONE_IS_REFUSAL",
  "OWNER_AFTER_RUN",
  "UNKNOWN_IS_REFUSAL",
  "PREPARED_OF_ANY_BOOT",
  "TARGET_SKIPS_ARBITER",
  "JOURNAL_AFTER_SEND",
  "FREE_AFTER_COMMIT",
  "FREE_AT_ACTIVE",
  "WHOLE_STARVED",
  "HALF_CLAIMED",
  "HALF_COMMITTED",
  "NEVER_ASKS",
  "COMMIT_ONCE",
  "NEVER_RESUMES",
  "NOBODY_HELPS",
] as const;
export type Mistake = (typeof MISTAKES)[number];

/** The reducers, or what a mistake makes of them. */
function reducersWith(mistake: Mistake | undefined) {
  const journal = (decision: Decision, epoch: number): HandoverEffect => ({ effect: "journal", decision, epoch });
  return {
    stepSource(from: SourceState, event: SourceEvent): Step<SourceState> {
      if (mistake === "TIMER_RESUMES" && event === "silence" && from.phase === "in-doubt" && from.hasImage)
        return stepSource({ ...from, phase: "device" }, "fail");
      if (mistake === "FREE_AT_ACTIVE" && event === "active") return stepSource({ ...from, isSplit: false }, event);
      const step = stepSource(from, event);
      const { state, effects } = step;
      if (mistake === "EPOCH_NOT_RAISED" && state.phase === "taken-back" && state !== from)
        return {
          ...step,
          state: { ...state, epoch: from.epoch },
          effects: effects.map((one) => ("epoch" in one ? { ...one, epoch: from.epoch } : one)),
        };
      if (mistake === "ABORT_KEEPS_EPOCH" && sourceMayAbort(from.phase))
        return { ...step, effects: effects.map((one) => (one.effect === "run" ? { ...one, epoch: state.epoch } : one)) };
      if (mistake === "JOURNAL_AFTER_SEND" && step.decide === "committed")
        return { ...step, decide: undefined, effects: [...effects, journal("committed", state.epoch)] };
      if (mistake === "FREE_AFTER_COMMIT" && step.decide === "committed") return { ...step, effects: [...effects, { effect: "free" }] };
      return step;
    },
    stepTarget(from: TargetState, event: TargetEvent): Step<TargetState> {
      const step = stepTarget(from, event);
      const { state, effects } = step;
      if (mistake === "RUN_BEFORE_COMMIT" && step.decide === "prepared")
        return { ...step, effects: [...effects, { effect: "run", epoch: state.epoch }] };
      if (mistake === "OWNER_AFTER_RUN" && step.decide === "owner")
        return { ...step, decide: undefined, effects: [...effects.slice(0, 1), journal("owner", state.epoch), ...effects.slice(1)] };
      return step;
    },
    standingOf: (entries: readonly JournalEntry[], boot: string) =>
      standingOf(entries, mistake === "PREPARED_OF_ANY_BOOT" ? entries.at(-1)?.boot : boot).standing,
  };
}

/** A good enough sequence of its own, so that a seed means the same everywhere (mulberry32). */
class Dice {
  #state: number;
  constructor(seed: number) {
    this.#state = seed;
  }
  /** From 0 to below `sides`. */
  roll(sides: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % sides;
  }
}

type Role = "source" | "target";
interface Letter {
  readonly to: Agent;
  /** pages: all that the target may lack. serve: the source asks whether it lacks any; `serving`, or `placed`, is the answer. */
  readonly type:
    | "admit"
    | "state"
    | "pages"
    | "commit"
    | "abort"
    | "ask"
    | "serve"
    | "prepared"
    | "active"
    | "failed"
    | "owner"
    | "serving"
    | "placed";
  /** Of the attempt. */
  readonly epoch: number;
  /** Which process of the source it comes from or is for: no other one gets it. */
  readonly life: number;
  /** admit: the guest's epoch before it. state: which version of its memory. */
  readonly detail: number;
  /** state: all of it is there with it. ask: the source has its image. */
  readonly isWhole: boolean;
  readonly answer: OwnerAnswer;
}
const ANSWERS: readonly Letter["type"][] = ["prepared", "active", "failed", "owner", "serving", "placed"];

class Agent {
  readonly name: string;
  peer: Agent = this;
  isUp = true;
  boot = 1;
  /** Processes so far. */
  life = 1;
  journal: JournalEntry[] = [];
  /** Lines that a crash of the host leaves. */
  synced = 0;
  /** Of the attempt from here, and of the one to here. */
  outgoing = 0;
  incoming = 0;
  source: SourceState | undefined;
  target: TargetState | undefined;
  /** What the admission of the incoming attempt said. */
  epochBefore = 0;
  /** Which process of the source the target's words go to. */
  hears = 0;
  owed: { readonly role: Role; readonly epoch: number; readonly effect: HandoverEffect }[] = [];
  /** Version of the guest's memory that is here. */
  image: number | undefined;
  /** A part of it is at the source only. */
  isHalf = false;
  /** The guest runs here at this epoch; 0: it does not. */
  runs = 0;
  /** Highest epoch at which it ever ran here. */
  ran = 0;
  /** Highest epoch of an attempt that made this agent the owner, */
  owned = 0;
  /** and of one of which it lacked nothing. */
  whole = 0;
  /** COMMIT went out at this epoch, and no host crash since. */
  committed = 0;
  /** A person has accepted that something is rolled back. */
  isForced = false;

  constructor(name: string) {
    this.name = name;
  }
  get highest(): number {
    return this.journal.reduce((highest, { epoch }) => Math.max(highest, epoch), Math.max(this.runs, this.incoming));
  }
  get isDeciding(): boolean {
    return this.source?.phase === "committing" || this.source?.phase === "in-doubt";
  }
  /** Its target runs the guest, or is no more. */
  get isServing(): boolean {
    return this.source !== undefined && isServing(this.source.phase);
  }
  get isReceiving(): boolean {
    return this.target?.phase === "receiving" || this.target?.phase === "prepared";
  }
  get owns(): boolean {
    if (this.image === undefined) return false;
    if (this.source !== undefined) return sourceMayRunGuest(this.source) || this.source.phase === "device";
    return this.target === undefined || targetMayRunGuest(this.target);
  }
  /** Runs this attempt, or may come to. */
  holds(attempt: number): boolean {
    return this.target !== undefined && this.incoming === attempt && this.target.phase !== "discarded" && this.image !== undefined;
  }
}

const LETTERS_MAX = 24;
/** Turns of a calm world after which somebody runs the guest, or nobody ever will; people help in the second half. */
const CALM_TURNS = 40;

export class World {
  readonly #mistake: Mistake | undefined;
  readonly #reducers: ReturnType<typeof reducersWith>;
  readonly #dice: Dice;
  readonly #agents: readonly [Agent, Agent];
  readonly #actions: readonly ((agent: Agent) => boolean)[];
  readonly #seen: Set<string>;
  readonly #story: string[] | undefined;
  readonly #hostsCrash: boolean;
  readonly #arbiter: { owner: Agent; epoch: number } | undefined;
  #letters: Letter[] = [];
  /** Version of the guest's memory that ran last. */
  #newest = 1;
  #isCalm = false;

  /**
   * @param seen gets every step of the reducers that changed something or asked for something: "source in-doubt active: completed".
   * @param story gets what happened, a line each.
   */
  constructor(seed: number, mistake: Mistake | undefined, seen: Set<string>, story?: string[]) {
    this.#mistake = mistake;
    this.#reducers = reducersWith(mistake);
    this.#dice = new Dice(seed);
    this.#seen = seen;
    this.#story = story;
    const [first, second] = [new Agent("A"), new Agent("B")];
    first.peer = second;
    second.peer = first;
    first.image = first.runs = first.ran = 1;
    this.#agents = [first, second];
    this.#hostsCrash = this.#isLot(2);
    this.#arbiter = this.#isLot(2) ? { owner: first, epoch: 1 } : undefined;
    this.#write(first, "booted", 1);
    this.#actions = this.#drawable();
  }

  /** One thing happens. False if what was drawn cannot happen now. */
  step(): boolean {
    const action = this.#actions[this.#dice.roll(this.#actions.length)];
    const [first, second] = this.#agents;
    if (action?.(this.#isLot(2) ? first : second) !== true) return false;
    this.#check();
    return true;
  }

  /** What may happen, more often what is listed more often. */
  #drawable(): ((agent: Agent) => boolean)[] {
    const often = (times: number, action: (agent: Agent) => boolean) => new Array<(agent: Agent) => boolean>(times).fill(action);
    return [
      ...often(24, () => this.#deliver()),
      ...often(16, (agent) => this.#perform(agent)),
      ...often(8, (agent) => this.#offer(agent)),
      ...often(4, (agent) => agent.source?.phase === "setup" && this.#atSource(agent, "rounds")),
      ...often(4, (agent) => this.#pause(agent)),
      ...often(4, (agent) => this.#ask(agent)),
      ...often(4, (agent) => this.#sendPages(agent)),
      ...often(4, (agent) => this.#offerToServe(agent)),
      ...often(2, (agent) => agent.source !== undefined && this.#atSource(agent, "silence")),
      ...often(4, (agent) => !agent.isUp && this.#restart(agent)),
      ...often(1, (agent) => agent.source !== undefined && sourceMayAbort(agent.source.phase) && this.#atSource(agent, "fail")),
      ...often(1, (agent) => agent.source !== undefined && sourceMayAbort(agent.source.phase) && this.#atSource(agent, "cancel")),
      ...often(1, (agent) => agent.target !== undefined && this.#atTarget(agent, "silence")),
      ...often(1, (agent) => agent.isReceiving && this.#atTarget(agent, "fail")),
      ...often(1, (agent) => agent.isReceiving && this.#atTarget(agent, "cancel")),
      ...often(1, (agent) => this.#revoke(agent)),
      ...often(1, (agent) => this.#mayEnd(agent) && this.#atSource(agent, "give-up")),
      ...often(1, (agent) => this.#fence(agent)),
      ...often(3, (agent) => this.#claim(agent)),
      ...often(2, (agent) => this.#arbitrate(agent)),
      ...often(2, (agent) => this.#boot(agent)),
      ...often(1, (agent) => agent.isUp && this.#crash(agent, this.#hostsCrash && this.#isLot(2))),
      ...often(1, (agent) => this.#sync(agent)),
    ];
  }

  /** One chance in so many. */
  #isLot(sides: number): boolean {
    return this.#dice.roll(sides) === 0;
  }
  #tell(agent: Agent, text: string): true {
    this.#story?.push(`${agent.name} ${text}`);
    return true;
  }
  #violate(property: Property, agent: Agent, text: string): never {
    this.#tell(agent, `violates ${property}: ${text}`);
    throw new Violation(property, `${agent.name} ${text}`);
  }

  // Journal, letters, effects

  #write(agent: Agent, decision: Decision, epoch: number): void {
    agent.journal.push({ at: "", decision, epoch, boot: String(agent.boot) });
    // What is decided outside of a pause is synced before it holds.
    if (["booted", "offered", "claimed", "taken-back"].includes(decision)) agent.synced = agent.journal.length;
  }
  #sync(agent: Agent): boolean {
    if (!agent.isUp || agent.synced === agent.journal.length) return false;
    agent.synced = agent.journal.length;
    return true;
  }
  #post(letter: Letter): void {
    if (!letter.to.isUp && !this.#isCalm) return;
    if (this.#letters.length === LETTERS_MAX) this.#letters.splice(this.#dice.roll(LETTERS_MAX), 1);
    this.#letters.push(letter);
  }
  /** To the target. */
  #send({ peer, life }: Agent, type: Letter["type"], epoch: number, said: Partial<Pick<Letter, "detail" | "isWhole">> = {}): void {
    this.#post({ to: peer, type, epoch, life, detail: 0, isWhole: true, answer: "unknown", ...said });
  }
  /** To one process of the source. */
  #reply({ peer }: Agent, type: Letter["type"], epoch: number, life: number, answer: OwnerAnswer = "unknown"): void {
    this.#post({ to: peer, type, epoch, life, detail: 0, isWhole: true, answer });
  }

  /** Takes a step: what cannot be written down does not happen, and what it asks for is owed. */
  #take<S extends SourceState | TargetState>(
    agent: Agent,
    role: Role,
    from: S,
    event: string,
    { state, decide, effects }: Step<S>,
  ): S | undefined {
    if (decide !== undefined && !this.#isCalm && this.#isLot(64)) return undefined;
    if (decide !== undefined) this.#write(agent, decide, state.epoch);
    if (state === from && effects.length === 0) return state;
    this.#seen.add(`${role} ${from.phase} ${event}: ${state.phase}`);
    if (this.#story !== undefined) this.#tell(agent, `${role} ${event}: ${from.phase} -> ${state.phase} at ${state.epoch}`);
    const epoch = role === "source" ? agent.outgoing : agent.incoming;
    for (const effect of effects) agent.owed.push({ role, epoch, effect });
    return state;
  }
  #atSource(agent: Agent, event: SourceEvent): boolean {
    const { source } = agent;
    if (source === undefined || !agent.isUp) return false;
    const state = this.#take(agent, "source", source, event, this.#reducers.stepSource(source, event));
    if (state === undefined || state === source) return agent.owed.length > 0;
    agent.source = state;
    return true;
  }
  #atTarget(agent: Agent, event: TargetEvent): boolean {
    const { target } = agent;
    if (target === undefined || !agent.isUp) return false;
    const state = this.#take(agent, "target", target, event, this.#reducers.stepTarget(target, event));
    if (state === undefined || state === target) return agent.owed.length > 0;
    agent.target = state;
    if (targetMayRunGuest(state)) agent.owned = agent.incoming;
    return true;
  }

  /** The next effect that is owed. */
  #perform(agent: Agent): boolean {
    const next = agent.owed.shift();
    if (next === undefined) return false;
    const { effect, role, epoch } = next;
    switch (effect.effect) {
      case "journal": // the disk may be full
        if (this.#isCalm || !this.#isLot(16)) this.#write(agent, effect.decision, effect.epoch);
        break;
      case "send":
        if (effect.message === "commit") agent.committed = epoch;
        if (role === "source") this.#send(agent, effect.message, epoch);
        else this.#reply(agent, effect.message, epoch, agent.hears);
        break;
      case "run":
        this.#run(agent, effect.epoch);
        if (role === "source" && agent.source?.phase !== "taken-back" && effect.epoch !== agent.source?.epochBefore)
          this.#violate("stillOwner", agent, `aborted, and goes on at another epoch`);
        break;
      case "free":
        if (role === "source") this.#checkFree(agent, epoch);
        if (role === "target" && agent.target?.phase === "lost" && agent.whole >= epoch)
          this.#violate("imageKept", agent, "ends a guest that lacks nothing");
        agent.image = undefined;
        agent.isHalf = false;
        if (agent.target?.phase === "lost") agent.runs = 0;
    }
    return this.#tell(agent, `does ${Object.values(effect).join(" ")}`);
  }
  #checkFree({ source, image, peer, name }: Agent, epoch: number): void {
    if (source?.phase === "given-up" || image === undefined) return;
    if (peer.owned < epoch) throw new Violation("imageKept", `${name} frees the guest, of which the target is not the owner`);
    if (peer.whole < epoch) throw new Violation("imageKept", `${name} frees pages that the target lacks`);
  }
  #run(agent: Agent, epoch: number): void {
    if (agent.image === undefined) this.#violate("imageKept", agent, "has no guest to run");
    if (agent.peer.runs > 0) this.#violate("oneOwner", agent, `runs at ${epoch}; ${agent.peer.name} runs at ${agent.peer.runs}`);
    if (agent.image !== this.#newest && !agent.isForced)
      this.#violate("noSilentRollback", agent, `runs version ${agent.image}, and ${this.#newest} has run`);
    if (agent.isHalf && agent.target?.phase !== "active" && agent.target?.phase !== "lost")
      this.#violate("wholeGuest", agent, `runs a part of the guest at ${epoch}, and not by COMMIT`);
    if (epoch <= agent.peer.ran) this.#violate("epochGrows", agent, `runs at ${epoch}; ${agent.peer.name} ran at ${agent.peer.ran}`);
    agent.isForced = false;
    agent.image = ++this.#newest;
    agent.runs = epoch;
    agent.ran = Math.max(agent.ran, epoch);
  }
  #check(): void {
    const [first, second] = this.#agents;
    if ((first.runs > 0 && second.runs > 0) || (first.owns && second.owns))
      this.#violate("oneOwner", first, `and ${second.name} both own it`);
    for (const { source, image, name } of this.#agents)
      if (source !== undefined && sourceMayAbort(source.phase) && image === undefined)
        throw new Violation("stillOwner", `${name} is ${source.phase} and has no guest`);
  }

  // The source

  #offer(agent: Agent): boolean {
    const isOver = agent.source === undefined || (!sourceMayAbort(agent.source.phase) && !agent.isDeciding);
    if (!agent.isUp || agent.runs === 0 || agent.isHalf || !isOver || agent.owed.length > 0) return false;
    const { state, decide } = offer(agent.runs, agent.highest + 1);
    if (decide !== undefined) this.#write(agent, decide, state.epoch);
    agent.outgoing = state.epoch;
    agent.source = state;
    this.#send(agent, "admit", agent.outgoing, { detail: agent.runs });
    return this.#tell(agent, `offers at ${agent.outgoing}`);
  }
  #pause(agent: Agent): boolean {
    if (agent.source?.phase !== "setup" && agent.source?.phase !== "active") return false;
    agent.runs = 0;
    agent.image = ++this.#newest; // it did something until now
    const isSplit = this.#isLot(3);
    this.#send(agent, "state", agent.outgoing, { detail: agent.image, isWhole: !isSplit });
    return this.#atSource(agent, isSplit ? "split" : "pause");
  }
  /** In post-copy only people do, before they say anything. */
  #ask(agent: Agent): boolean {
    if ((!agent.isDeciding && !agent.isServing) || this.#mistake === "NEVER_ASKS") return false;
    this.#send(agent, "ask", agent.outgoing, { isWhole: agent.source?.hasImage === true });
    return true;
  }
  #sendPages(agent: Agent): boolean {
    if (agent.source?.phase !== "postcopy-active") return false;
    this.#send(agent, "pages", agent.outgoing);
    return true;
  }
  /** When all was sent, and when the link was gone. */
  #offerToServe(agent: Agent): boolean {
    if (!agent.isServing || (this.#mistake === "NEVER_RESUMES" && agent.source?.phase === "postcopy-paused")) return false;
    this.#send(agent, "serve", agent.outgoing);
    return true;
  }
  #hear(agent: Agent, { type, epoch, answer }: Letter): boolean {
    const { source } = agent;
    if (source === undefined || (epoch !== agent.outgoing && this.#mistake !== "EPOCH_NOT_CHECKED")) return false;
    if (type === "failed") return this.#atSource(agent, sourceMayAbort(source.phase) ? "fail" : "silence"); // only `owner` tells
    switch (type === "owner" ? answer : type) {
      case "prepared":
        return (this.#mistake !== "COMMIT_ONCE" || source.phase === "device") && this.#atSource(agent, "prepared");
      case "active":
        return this.#hearActive(agent);
      case "serving":
        return source.phase === "postcopy-paused" && this.#atSource(agent, "resumed");
      case "placed":
        return this.#atSource(agent, "placed");
      case "discarded":
        return this.#mayTakeBack(agent, true) && this.#atSource(agent, "discarded");
      case "gone": // it ran there and is no more: with nothing here nothing is left to decide
        if (this.#mistake === "GONE_IS_REFUSAL") return this.#atSource(agent, "discarded");
        return this.#atSource(agent, source.hasImage ? "unknown" : "active");
      case "unknown":
        return this.#atSource(agent, this.#mistake === "UNKNOWN_IS_REFUSAL" ? "discarded" : "unknown");
      default:
        return false;
    }
  }
  #hearActive(agent: Agent): boolean {
    const isTaken = this.#atSource(agent, "active");
    if (agent.source?.phase === "completed" && agent.peer.whole < agent.outgoing)
      this.#violate("wholeGuest", agent, "is told that the guest runs there, where a part of it is missing for good");
    return isTaken;
  }

  // The target

  #admit(agent: Agent, { epoch, detail, life }: Letter): boolean {
    if (agent.isReceiving && epoch > agent.incoming) this.#atTarget(agent, "superseded");
    const isFree = agent.image === undefined && agent.owed.length === 0 && !agent.isReceiving;
    if (!isFree || epoch <= agent.highest) {
      this.#reply(agent, "failed", epoch, life);
      return true;
    }
    agent.source = undefined; // what was asked about an older attempt is answered by this one
    agent.target = admitted(epoch);
    agent.incoming = epoch;
    agent.epochBefore = detail;
    agent.hears = life;
    return this.#tell(agent, `admits ${epoch}`);
  }
  #serve(agent: Agent, letter: Letter): boolean {
    const { type, epoch, detail, isWhole, life } = letter;
    if (type === "admit") return this.#admit(agent, letter);
    if (type === "ask") return this.#beAsked(agent, letter);
    const { target } = agent;
    if (target === undefined || (epoch !== agent.incoming && this.#mistake !== "EPOCH_NOT_CHECKED")) return false;
    if (type === "abort") return this.#atTarget(agent, "abort");
    if (type === "pages" || type === "serve") return target.phase === "active" && this.#fetch(agent, letter);
    if (type === "state") {
      if (target.phase !== "receiving" || agent.owed.length > 0) return false;
      if (!this.#atTarget(agent, "verified")) return false;
      agent.image = detail;
      agent.isHalf = !isWhole;
      if (isWhole) agent.whole = Math.max(agent.whole, epoch);
      return true;
    }
    if (life !== agent.hears) return false; // COMMIT on the connection of a process that has ended since
    if (target.phase !== "prepared" || this.#mistake === "TARGET_SKIPS_ARBITER") return this.#atTarget(agent, "commit");
    return this.#atTarget(agent, this.#mayOwn(agent, agent.incoming) ? "commit" : "outvoted");
  }
  /** Post-copy: pages of a source that has ended since are as good as any. */
  #fetch(agent: Agent, { type, epoch, life }: Letter): boolean {
    if (type === "pages") {
      agent.isHalf = false;
      agent.whole = Math.max(agent.whole, epoch);
      return this.#tell(agent, "lacks nothing any more");
    }
    agent.hears = life;
    this.#reply(agent, agent.isHalf ? "serving" : "placed", epoch, life);
    return true;
  }
  /** A source without an image cannot send what is missing: then nobody can. */
  #beAsked(agent: Agent, { epoch, life, isWhole: hasImage }: Letter): boolean {
    const isOfAttempt = agent.target !== undefined && agent.incoming === epoch;
    if (isOfAttempt && agent.isReceiving) agent.hears = life;
    if (isOfAttempt && !hasImage) this.#starve(agent);
    this.#reply(agent, "owner", epoch, life, this.#answer(agent, epoch));
    return true;
  }
  #starve(agent: Agent): void {
    if (agent.target?.phase === "active" && (agent.isHalf || this.#mistake === "WHOLE_STARVED")) this.#atTarget(agent, "starved");
    if (agent.target?.phase === "prepared" && agent.isHalf && this.#mistake !== "HALF_COMMITTED") this.#atTarget(agent, "fail");
  }
  /** From memory; else what the journal has of that attempt. */
  #answer(agent: Agent, epoch: number): OwnerAnswer {
    if (agent.target !== undefined && agent.incoming === epoch) return ownerAnswer(agent.target);
    const ofAttempt = agent.journal.filter((entry) => entry.epoch === epoch || (entry.epoch === epoch + 1 && entry.decision === "claimed"));
    switch (this.#reducers.standingOf(ofAttempt, String(agent.boot))) {
      case "gone": {
        const next = agent.journal.find((entry) => entry.epoch > epoch && (entry.decision === "completed" || entry.decision === "booted"));
        return next?.decision === "completed" ? "active" : "gone"; // it went on to somebody else, unless another one was booted first
      }
      case "refused":
        return "discarded";
      default:
        return "unknown";
    }
  }

  #deliver(): boolean {
    const at = this.#dice.roll(Math.max(this.#letters.length, 1));
    const letter = this.#letters[at];
    if (letter === undefined) return false;
    const isKept = letter.type !== "admit" && this.#isLot(4); // it comes again later; an admission is the first word of its connection
    if (!isKept) this.#letters.splice(at, 1);
    if (this.#isLot(8)) return true; // lost
    return this.#open(letter);
  }
  #open(letter: Letter): boolean {
    const { to, type, life } = letter;
    if (!to.isUp) return false;
    if (!ANSWERS.includes(type)) return this.#serve(to, letter);
    return life === to.life && this.#hear(to, letter);
  }

  // The arbiter: a record of owner and epoch, and a compare-and-swap

  #swap(expected: Agent, expectedEpoch: number, owner: Agent, epoch: number): boolean {
    const record = this.#arbiter;
    if (record === undefined || (record.owner === owner && record.epoch === epoch)) return true;
    if (record.owner !== expected || record.epoch !== expectedEpoch) return false;
    record.owner = owner;
    record.epoch = epoch;
    return this.#tell(owner, `owns it by the arbiter's book at ${epoch}`);
  }
  #mayOwn(agent: Agent, epoch: number): boolean {
    return this.#swap(agent.peer, agent.epochBefore, agent, epoch) || this.#swap(agent, agent.incoming, agent, epoch);
  }
  #mayTakeBack(agent: Agent, hasRefused: boolean): boolean {
    const { source, outgoing } = agent;
    if (source === undefined || !source.hasImage || !agent.isDeciding) return true;
    if (this.#swap(agent, source.epochBefore, agent, outgoing + 1)) return true;
    return hasRefused && this.#swap(agent.peer, outgoing, agent, outgoing + 1); // it won, and refused afterwards
  }
  #arbitrate(agent: Agent): boolean {
    if (this.#arbiter === undefined || agent.source?.phase !== "in-doubt" || !agent.source.hasImage) return false;
    return this.#mayTakeBack(agent, false) && this.#atSource(agent, "fenced");
  }
  #overrule(owner: Agent, epoch: number): void {
    if (this.#arbiter !== undefined) Object.assign(this.#arbiter, { owner, epoch });
  }

  // People, who look at both sides first

  /** COMMIT is called back; nobody is fenced. */
  #revoke(agent: Agent): boolean {
    if (agent.source?.phase !== "in-doubt") return false;
    this.#send(agent, "abort", agent.outgoing);
    return true;
  }
  #mayEnd({ source }: Agent): boolean {
    return source?.phase === "in-doubt" || source?.phase === "postcopy-paused";
  }
  /** The process that had the copy, or ran the guest, has ended. */
  #fence(agent: Agent): boolean {
    if (!this.#mayEnd(agent) || agent.source?.hasImage !== true || agent.peer.holds(agent.outgoing)) return false;
    agent.isForced = true;
    this.#overrule(agent, agent.outgoing + 1);
    return this.#atSource(agent, "fenced");
  }
  /** The source's guest has ended, and none that is newer than the copy's attempt ever ran there. A part of a guest is no copy. */
  #claim(agent: Agent): boolean {
    const isFenced = agent.peer.image === undefined && agent.peer.ran <= agent.incoming;
    if (agent.target?.phase !== "prepared" || (!isFenced && this.#mistake !== "CLAIM_UNFENCED")) return false;
    if (agent.isHalf && this.#mistake !== "HALF_CLAIMED") return false;
    if (!this.#mayOwn(agent, agent.incoming + 1)) return false;
    agent.isForced = true;
    return this.#atTarget(agent, "claim");
  }
  /** A new guest of that name, where neither side has one, above every epoch that either has met or run at. */
  #boot(agent: Agent): boolean {
    const { peer } = agent;
    const isNowhere = peer.image === undefined && !peer.isReceiving;
    if (!agent.isUp || agent.image !== undefined || agent.isReceiving || agent.isDeciding || agent.owed.length > 0) return false;
    if (!isNowhere && this.#mistake !== "BOOT_UNSEEN") return false;
    const epoch = Math.max(agent.highest, peer.highest, agent.ran, peer.ran) + 1;
    agent.source = agent.target = undefined;
    agent.image = this.#newest;
    this.#overrule(agent, epoch);
    this.#write(agent, "booted", epoch);
    this.#run(agent, epoch);
    return this.#tell(agent, `boots at ${epoch}`);
  }

  // Processes and hosts

  #crash(agent: Agent, isHost: boolean): boolean {
    agent.isUp = agent.isForced = agent.isHalf = false;
    agent.life++;
    agent.source = agent.target = agent.image = undefined;
    agent.runs = agent.outgoing = agent.incoming = 0;
    agent.owed = [];
    this.#letters = this.#letters.filter(({ to }) => to !== agent); // connections end with their process
    if (isHost) {
      agent.boot++;
      agent.journal.length -= this.#dice.roll(agent.journal.length - agent.synced + 1);
      agent.synced = agent.journal.length;
      agent.committed = 0;
    }
    return this.#tell(agent, isHost ? `goes down; ${agent.journal.length} lines are left` : "crashes");
  }
  #restart(agent: Agent): boolean {
    agent.isUp = true;
    const last = agent.journal.at(-1);
    const standing = this.#reducers.standingOf(agent.journal, String(agent.boot));
    this.#tell(agent, `starts: ${standing}`);
    const isOpen = last?.epoch === agent.committed && (last.decision === "offered" || last.decision === "committed");
    if (isOpen && standing !== "in-doubt") this.#violate("doubtRemembered", agent, `sent COMMIT, and is ${standing}`);
    if (standing === "in-doubt" && last !== undefined) {
      agent.source = recoverSource(last.epoch);
      agent.outgoing = last.epoch;
    }
    if (standing === "refused" && last?.decision === "prepared") this.#write(agent, "refused", last.epoch); // outlives the host, too
    return true;
  }

  /** Nothing is lost any more and nobody crashes: then somebody comes to run the guest, or nothing is left of it. People help in the second half. */
  settle(): void {
    this.#isCalm = true;
    for (let turn = 0; turn < CALM_TURNS; turn++) {
      for (const agent of this.#agents) {
        if (!agent.isUp) this.#restart(agent);
        while (this.#perform(agent));
      }
      for (const letter of this.#letters.splice(0)) this.#open(letter);
      for (const agent of this.#agents) this.#goOn(agent, turn >= CALM_TURNS / 2);
      this.#check();
      if (this.#agents.some(({ runs, isHalf }) => runs > 0 && !isHalf) || this.#agents.every((agent) => this.#hasNothing(agent))) return;
    }
    const [first, second] = this.#agents;
    const say = ({ name, source, target }: Agent): string => `${name} ${source?.phase ?? "-"}/${target?.phase ?? "-"}`;
    this.#violate("ownerInTheEnd", first, `${say(first)}, ${say(second)}`);
  }
  /**
   * No image, or a part of one that nobody can complete, or a copy that the guest went past: it ran elsewhere at a higher epoch, or the
   * arbiter gave it away.
   */
  #hasNothing({ image, isHalf, target, incoming, peer }: Agent): boolean {
    if (image === undefined || (isHalf && peer.image === undefined)) return true;
    const isGivenAway = this.#arbiter?.owner === peer && this.#arbiter.epoch > incoming;
    return target?.phase === "prepared" && peer.image === undefined && (peer.ran > incoming || isGivenAway);
  }
  #goOn(agent: Agent, isHelped: boolean): void {
    const { source, target } = agent;
    if (source !== undefined && sourceMayAbort(source.phase)) this.#atSource(agent, "fail");
    this.#sendPages(agent);
    if (source?.phase === "committing" || source?.phase === "postcopy-active") this.#atSource(agent, "silence");
    this.#offerToServe(agent);
    if (target?.phase === "receiving") this.#atTarget(agent, "silence");
    this.#arbitrate(agent);
    this.#ask(agent);
    if (!isHelped || this.#mistake === "NOBODY_HELPS") return;
    this.#fence(agent);
    if (agent.peer.source === undefined || !agent.peer.isDeciding) this.#claim(agent);
  }
}
