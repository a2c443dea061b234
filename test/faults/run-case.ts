import type { MigrationReport, ProgressEvent } from "@precopy/protocol";
import { askCancel, askMigrate, askResolve } from "./agent-call.js";
import type { Answer, Status } from "./agent-call.js";
import type { Exit } from "./agent-process.js";
import { faultMs, faultText } from "./fault-case.js";
import type { Fault, FaultCase, LinkFault, OperatorFault, Role, When } from "./fault-case.js";
import { other } from "./fault-lab.js";
import type { FaultLab, Side } from "./fault-lab.js";

/** How long a migration is left alone with its faults: as long as they last and a while, but not for ever. */
const FAULTS_MS_MAX = 14_000;
const AFTERMATH_MS = 3000;
/** From there on nothing is wrong any more: what has not settled by then never will. */
const SETTLE_MS = 45_000;
const POLL_MS = 60;
/** A doubt ends by itself within this once both sides and the link are there; an operator has more patience than that. */
const DOUBT_MS = 8000;
/** What is left of an attempt at a target: how long an operator looks at it, and a patient one. */
const LEFTOVER_MS = 2500;
const LEFTOVER_PATIENT_MS = 25_000;
/** Nobody has the guest, and nothing else comes. */
const GONE_MS = 400;
/** Releasing a guest takes an agent a moment. */
const RETRY_MS = 6000;
const ANSWERS_MS = 30_000;
/** For a migration that must succeed, whatever the host is busy with. */
const UNHURRIED = { downtimeLimitMs: 10_000 } as const;

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

export type Outcome =
  | "moved"
  | "stayed"
  | "cancelled"
  | "taken back"
  | "claimed by its operator"
  | "rolled back by its operator"
  | "ended with its host"
  | "in doubt to the end"
  | "WRONG";

/** What a case came to; kept as one JSON line. */
export interface CaseResult {
  readonly seed: number;
  readonly faults: readonly string[];
  /** Those that came to act; a migration may be over before. */
  readonly struck: readonly string[];
  readonly outcome: Outcome;
  /** What the migration was answered: `ok`, an error code, or `gone`. */
  readonly answer: string;
  /** In ms; undefined if it never was in doubt. */
  readonly doubtMs?: number;
  readonly doubtEndedBy?: "itself" | "operator" | "nobody";
  /** What the agents did not clear away by themselves in time. */
  readonly leftOver?: string;
  readonly lost: number;
  readonly doubled: number;
  /** Everything that should not be; empty if all is well. */
  readonly wrong: readonly string[];
  readonly ms: number;
}

/** A death that was meant to be. */
interface Death {
  readonly role: Role;
  readonly atMs: number;
}

/** What the two sides come to when nothing moves any more. */
interface Settled {
  readonly owner: Role | undefined;
  readonly epoch: number;
}

/** Ours to fear: a message that no peer of this release sends, or a state that cannot be. */
const BUGS = [
  "ERR_INTERNAL",
  "ERR_ILLEGAL_TRANSITION",
  "ERR_NOT_TRACKING",
  "ERR_PACKET_SEQUENCE",
  "ERR_RUN_OUT_OF_RANGE",
  "ERR_SYSTEM_CALL",
];
/** Right if bytes were damaged on their way, and at no other time. */
const DAMAGE = [
  "ERR_DIGEST_MISMATCH",
  "ERR_VERIFICATION",
  "ERR_PACKET_CHECKSUM",
  "ERR_NOT_A_PACKET",
  "ERR_BLOCK_CORRUPT",
  "ERR_PAYLOAD_TOO_LARGE",
];

/** Of a copy whose operator may not accept a roll-back, whose agent has no such command, or that lacks pages which are nowhere any more. */
const REFUSED_CLAIMS = ["ERR_ROLLBACK", "ERR_BAD_MESSAGE", "ERR_POSTCOPY_LOST"];

/** Runs one case in a lab whose guest is at `from`, and checks everything afterwards. */
export class CaseRun {
  readonly #lab: FaultLab;
  readonly #case: FaultCase;
  readonly #sides: Readonly<Record<Role, Side>>;
  readonly #startedMs = performance.now();
  readonly #struck = new Set<Fault>();
  readonly #wrong: string[] = [];
  readonly #deaths: Death[] = [];
  readonly #timers: NodeJS.Timeout[] = [];
  /** Starts at once what would be off for longer. */
  #hurry: () => void = () => {};
  readonly #restarts: Promise<void>[] = [];
  /** Told to end, or to be killed: its end is no surprise. */
  readonly #doomed = new Set<Role>();
  #answer: Answer<MigrationReport> | undefined;
  #phase = "";
  #isHeld = false;
  /** The guest has come to run at the target without all of its memory. */
  #isFetching = false;
  /** When the target was last asked, some of it was missing there. */
  #isLacking = false;
  #doubtFromMs: number | undefined;
  #doubtToMs: number | undefined;
  #didOperatorDecide = false;
  #isRolledBack = false;
  #isClaimed = false;
  #isNever = false;
  #leftOver: string | undefined;
  #lost = 0;
  #doubled = 0;
  #isOver = false;

  constructor(lab: FaultLab, faultCase: FaultCase) {
    this.#lab = lab;
    this.#case = faultCase;
    this.#sides = { source: lab.sides[faultCase.from], target: lab.sides[other(faultCase.from)] };
  }

  async run(): Promise<CaseResult> {
    const { seed, faults } = this.#case;
    this.#lab.markLogs(`case ${seed}: ${faults.map(faultText).join("; ")}`);
    let outcome: Outcome;
    try {
      this.#arm();
      await this.#migrate();
      outcome = await this.#judge(await this.#settle());
    } catch (error) {
      this.#wrong.push(error instanceof Error ? error.message : String(error));
      outcome = "WRONG";
    } finally {
      this.#isOver = true;
      for (const timer of this.#timers) clearTimeout(timer);
      this.#disarm();
      this.#hurry();
      await Promise.all(this.#restarts); // whoever comes next finds two agents, or nobody who is still starting them
    }
    if (this.#wrong.length > 0) this.#lab.home = undefined; // whatever it was, the next case begins with a new guest
    return {
      seed,
      faults: faults.map(faultText),
      struck: [...this.#struck].map(faultText),
      outcome: this.#wrong.length > 0 ? "WRONG" : outcome,
      answer: this.#answer?.type === "error" ? this.#answer.code : (this.#answer?.type ?? "none"),
      ...this.#doubt(),
      ...(this.#leftOver !== undefined && { leftOver: this.#leftOver }),
      lost: this.#lost,
      doubled: this.#doubled,
      wrong: this.#wrong,
      ms: Math.round(performance.now() - this.#startedMs),
    };
  }

  #doubt(): Pick<CaseResult, "doubtMs" | "doubtEndedBy"> {
    if (this.#doubtFromMs === undefined) return {};
    const doubtMs = Math.round((this.#doubtToMs ?? performance.now()) - this.#doubtFromMs);
    return { doubtMs, doubtEndedBy: this.#isNever ? "nobody" : this.#didOperatorDecide ? "operator" : "itself" };
  }

  #arm(): void {
    const { proxy } = this.#sides.target;
    for (const [role, side] of Object.entries(this.#sides) as [Role, Side][]) {
      const own = this.#case.faults.filter((fault) => fault.kind === "point" && fault.point.startsWith(role));
      side.setFaults(own.map(faultText).join(";"));
      this.#watch(role);
    }
    const waiting = this.#case.faults.flatMap((fault) => (fault.kind === "wire" ? [fault] : []));
    for (const { wire } of waiting) proxy.arm(wire);
    proxy.onStrike = (wire) => {
      const fault = waiting.find((one) => one.wire === wire);
      if (fault !== undefined) this.#struck.add(fault);
    };
  }

  #disarm(): void {
    for (const side of Object.values(this.#sides)) side.setFaults("");
  }

  #watch(role: Role): void {
    const agent = this.#sides[role].process;
    if (agent === undefined) return;
    void agent.exited.then((exit) => this.#onExit(role, exit));
    agent.onLine = (line) => {
      if (line.type === "hold") this.#onHold(String(line["point"]));
    };
  }

  #onHold(point: string): void {
    const fault = this.#case.faults.find((one) => one.kind === "point" && one.point === point);
    if (fault !== undefined) this.#struck.add(fault);
    if (this.#isHeld) return;
    this.#isHeld = true;
    this.#schedule("hold");
  }

  #onExit(role: Role, { code, signal }: Exit): void {
    if (this.#isOver) return;
    const side = this.#sides[role];
    const killer = this.#case.faults.find(
      (fault) => fault.kind === "point" && fault.holdMs === undefined && fault.point.startsWith(role) && !this.#struck.has(fault),
    );
    if (signal === "SIGKILL" && killer !== undefined && !this.#doomed.has(role)) this.#struck.add(killer);
    else if (!this.#doomed.has(role)) this.#wrong.push(`the ${role} ended by itself: ${String(code ?? signal)}`);
    side.setFaults(""); // its next process is not killed again
    this.#doomed.delete(role);
    this.#deaths.push({ role, atMs: performance.now() });
    const restart = async (): Promise<void> => {
      await Promise.race([sleep(this.#case.restartAfterMs), new Promise<void>((resolve) => (this.#hurry = resolve))]);
      await side.start("target", "listening");
      this.#watch(role);
    };
    this.#restarts.push(restart().catch((error: unknown) => void this.#wrong.push(`the ${role} does not start again: ${String(error)}`)));
  }

  /** The timed faults that count from here. */
  #schedule(after: When["after"]): void {
    for (const fault of this.#case.faults) {
      if ((fault.kind !== "operator" && fault.kind !== "link") || fault.when.after !== after) continue;
      this.#timers.push(
        setTimeout(() => {
          if (this.#answer !== undefined) return; // the migration is over
          this.#struck.add(fault);
          if (fault.kind === "link") this.#breakLink(fault);
          else this.#act(fault);
        }, fault.when.ms),
      );
    }
  }

  #breakLink({ act, ms }: LinkFault): void {
    const { proxy } = this.#sides.target;
    if (act !== "silent") proxy.refuse();
    if (act === "broken") proxy.cut("rst");
    else proxy.fallSilent();
    this.#timers.push(setTimeout(() => void proxy.comeBack(), ms));
  }

  #act({ act, role }: OperatorFault): void {
    const { socket, process } = this.#sides[role];
    if (act === "cancel") {
      void askCancel(socket); // refused if it comes too late
      return;
    }
    if (process?.exit !== undefined) return;
    this.#doomed.add(role);
    process?.kill(act === "term" ? "SIGTERM" : "SIGKILL");
  }

  /** Until the migration was answered, or its time with the faults is up; then everything that was broken is whole again. */
  async #migrate(): Promise<void> {
    const { source, target } = this.#sides;
    const call = askMigrate(source.socket, target.proxy.address, this.#case.parameters, (event) => this.#onEvent(event)).then((answer) => {
      this.#answer = answer;
    });
    this.#schedule("start");
    const faultsMs = this.#case.faults.reduce((sum, fault) => sum + faultMs(fault), AFTERMATH_MS);
    await Promise.race([call, sleep(Math.min(faultsMs, FAULTS_MS_MAX))]);
    for (const timer of this.#timers.splice(0)) clearTimeout(timer);
    await target.proxy.comeBack();
  }

  #onEvent(event: ProgressEvent): void {
    if (event.type !== "phase") return;
    if (event.phase === "postcopy-active" && !this.#isFetching) {
      this.#isFetching = true;
      this.#schedule("postcopy");
    }
    if (event.phase === "in-doubt") this.#doubtFromMs ??= performance.now();
    else if (this.#phase === "in-doubt") this.#doubtToMs = performance.now();
    this.#phase = event.phase;
  }

  /** Waits until exactly one side runs the guest, or nobody ever will, and acts as an operator does where the two cannot decide. */
  async #settle(): Promise<Settled> {
    const fromMs = performance.now();
    let changedMs = fromMs;
    let before = "";
    for (;;) {
      const [source, target] = await Promise.all([this.#sides.source.status(), this.#sides.target.status()]);
      const now = `${phaseOf(source)}, ${phaseOf(target)}`;
      if (now !== before) changedMs = performance.now();
      before = now;
      const settled = await this.#look(source, target, performance.now() - changedMs);
      if (settled !== undefined && (this.#isNever || (await this.#isCalm(now)))) return settled;
      if (performance.now() - fromMs > SETTLE_MS) throw new Error(`stuck: source ${phaseOf(source)}, target ${phaseOf(target)}`);
      await sleep(POLL_MS);
    }
  }

  /**
   * A slow agent may reach its fault point when the migration was answered long ago. An agent that answers after it was disarmed has reached it by
   * now, or will pass it unharmed.
   */
  async #isCalm(before: string): Promise<boolean> {
    this.#disarm();
    const [source, target] = await Promise.all([this.#sides.source.status(), this.#sides.target.status()]);
    return `${phaseOf(source)}, ${phaseOf(target)}` === before;
  }

  /** @param quietMs for how long nothing has changed. @returns undefined: not settled. */
  async #look(source: Status | undefined, target: Status | undefined, quietMs: number): Promise<Settled | undefined> {
    const [sourcePhase, targetPhase] = [phaseOf(source), phaseOf(target)];
    // The host of one side is off for long, and the other side cannot decide without it: the operator does not wait.
    if (target === undefined && this.#hasDied("target") && sourcePhase === "in-doubt" && quietMs >= DOUBT_MS) return this.#decideDoubt();
    if (source === undefined && this.#hasDied("source") && targetPhase === "prepared" && quietMs >= DOUBT_MS)
      return this.#decideCopy(targetPhase);
    if (source === undefined || target === undefined) {
      const isWaitedFor = sourcePhase === "in-doubt" || targetPhase === "prepared";
      if (!isWaitedFor && quietMs >= LEFTOVER_MS) this.#hurry();
      return undefined;
    }
    this.#isLacking = targetPhase === "none" ? this.#isLacking : targetPhase.startsWith("postcopy-");
    const isServing = source["query-migrate"]?.status?.startsWith("postcopy-") === true;
    // What the target had ended with it; the source has all of it, as it was at the pause, and waits for its operator.
    if (isServing && targetPhase === "none" && this.#hasDied("target") && quietMs >= LEFTOVER_MS) return this.#decideDoubt();
    if (targetPhase.startsWith("postcopy-")) return undefined;
    if (sourcePhase === "running" && targetPhase === "running") throw new Error("both sides say that they run the guest");
    if (sourcePhase === "failed" || targetPhase === "failed") throw new Error("the guest failed");
    if (sourcePhase === "in-doubt" && targetPhase !== "running") return quietMs < DOUBT_MS ? undefined : this.#decideDoubt();
    // A source that died while it was asked has given no answer; every other call ends with its migration.
    if (this.#answer === undefined || sourcePhase === "in-doubt" || sourcePhase === "migrating" || targetPhase === "migrating")
      return undefined;
    const patienceMs = this.#case.isPatient ? LEFTOVER_PATIENT_MS : LEFTOVER_MS;
    if (sourcePhase === "running") {
      if (targetPhase !== "none" && quietMs < patienceMs) return undefined;
      if (targetPhase !== "none") this.#leftOver = targetPhase; // the next offer has to get past it
      return { owner: "source", epoch: source.guest?.epoch ?? 0 };
    }
    if (targetPhase === "running") return { owner: "target", epoch: target.guest?.epoch ?? 0 };
    if (targetPhase === "none") return quietMs < GONE_MS ? undefined : { owner: undefined, epoch: 0 };
    return quietMs < patienceMs ? undefined : this.#decideCopy(targetPhase);
  }

  /** The source is in doubt and stays so: its target is not the process any more that was asked. */
  async #decideDoubt(): Promise<Settled | undefined> {
    const { socket } = this.#sides.source;
    const { guest } = this.#lab;
    if (!this.#hasDied("target")) throw new Error("a doubt does not end though both sides and the link are there");
    const answer = await askResolve(socket, guest, "take-back", false);
    if (answer.type === "error" && answer.code === "ERR_BAD_MESSAGE") {
      this.#isNever = true; // agents of this release have no such command
      return { owner: undefined, epoch: 0 };
    }
    this.#didOperatorDecide = true;
    if (answer.type === "ok") this.#isRolledBack = answer.value.isRolledBack;
    if (answer.type === "error" && answer.code === "ERR_ROLLBACK") {
      this.#isRolledBack = this.#case.mayRollBack;
      const last = await askResolve(socket, guest, this.#case.mayRollBack ? "take-back" : "give-up", this.#case.mayRollBack);
      if (last.type === "error") this.#wrong.push(`resolve: ${last.code}: ${last.message}`);
    } else if (answer.type === "error") this.#wrong.push(`resolve: ${answer.code}: ${answer.message}`);
    return undefined;
  }

  /** The source is gone, and a copy waits at the target, or a part of one. */
  async #decideCopy(phase: string): Promise<Settled | undefined> {
    const { socket } = this.#sides.target;
    const { guest } = this.#lab;
    if (!this.#hasDied("source")) throw new Error(`the guest is nowhere, and ${phase} at the target`);
    this.#didOperatorDecide = true;
    if (phase !== "prepared") {
      this.#leftOver = phase;
      await askCancel(socket);
      return undefined;
    }
    const first = await askResolve(socket, guest, "take-back", false);
    const mayAccept = first.type === "error" && first.code === "ERR_ROLLBACK" && this.#case.mayRollBack;
    const answer = mayAccept ? await askResolve(socket, guest, "take-back", true) : first;
    this.#isRolledBack = answer.type === "ok" && answer.value.isRolledBack;
    this.#isClaimed = answer.type === "ok";
    if (answer.type === "error") await askCancel(socket);
    if (answer.type === "error" && !REFUSED_CLAIMS.includes(answer.code))
      this.#wrong.push(`resolve at the target: ${answer.code}: ${answer.message}`);
    return undefined;
  }

  #hasDied(role: Role): boolean {
    return this.#deaths.some((death) => death.role === role);
  }

  /** Whether the side that owned the guest, by the journals' word, is one that died; or the source in the moment when nobody can tell. */
  #mayBeGone(): boolean {
    const decisions = (role: Role): string[] => {
      const lines = this.#sides[role].journal(this.#lab.guest);
      const attempt = lines.findLastIndex(({ decision }) => decision === "offered" || decision === "prepared");
      return lines.slice(Math.max(attempt, 0)).map(({ decision }) => decision);
    };
    const source = decisions("source");
    const target = decisions("target");
    if (source.includes("taken-back")) return this.#hasDied("source");
    if (target.includes("owner") || target.includes("claimed"))
      return this.#hasDied("target") || (this.#isLacking && this.#hasDied("source"));
    return this.#hasDied("source");
  }

  async #judge({ owner, epoch }: Settled): Promise<Outcome> {
    if (this.#doubtFromMs !== undefined) this.#doubtToMs ??= performance.now();
    await this.#clearJournals(owner);
    this.#checkAnswer(owner);
    if (owner === undefined) return this.#judgeGone();
    const home = this.#sides[owner];
    const { client } = this.#lab;
    await untilTrue(
      () => this.#lab.epochSeen === epoch,
      ANSWERS_MS,
      () => `status says epoch ${epoch}, frames say ${this.#lab.epochSeen}`,
    );
    if (this.#isRolledBack) await this.#lab.renewClient();
    else {
      const { acknowledged } = client.statistics();
      await untilTrue(
        () => client.statistics().acknowledged > acknowledged,
        ANSWERS_MS,
        () => "the guest does not answer",
      );
    }
    await this.#settleAccounts("after the case");
    await this.#moveOn(home);
    await this.#settleAccounts("after the migration without faults");
    this.#checkFinding();
    if (this.#isClaimed) return this.#isRolledBack ? "rolled back by its operator" : "claimed by its operator";
    if (this.#isRolledBack) return "rolled back by its operator";
    if (owner === "target") return "moved";
    if (this.#phase === "taken-back") return "taken back";
    return this.#answer?.type === "error" && this.#answer.code === "ERR_CANCELLED" ? "cancelled" : "stayed";
  }

  /**
   * An agent that was started anew may have to ask for the end of what its journal calls in doubt. If the guest is somewhere it hears so; if
   * it is nowhere, nobody can tell it but an operator.
   */
  async #clearJournals(owner: Role | undefined): Promise<void> {
    const { guest } = this.#lab;
    for (const [role, side] of Object.entries(this.#sides) as [Role, Side][]) {
      const isClear = async (): Promise<boolean> => !(await side.status())?.unresolved?.some((one) => one.guest === guest);
      if (this.#isNever || (await isClear())) continue;
      this.#doubtFromMs ??= this.#deaths.find((death) => death.role === role)?.atMs ?? performance.now();
      for (const untilMs = performance.now() + DOUBT_MS; !(await isClear()) && performance.now() < untilMs; ) await sleep(POLL_MS);
      if (!(await isClear()) && owner === undefined) {
        this.#didOperatorDecide = true;
        await askResolve(side.socket, guest, "give-up", false);
      }
      this.#doubtToMs = performance.now();
      if (!(await isClear())) this.#wrong.push(`the ${role} does not know what became of the guest`);
    }
  }

  async #judgeGone(): Promise<Outcome> {
    const before = this.#lab.client.statistics().acknowledged;
    await sleep(GONE_MS);
    const { acknowledged } = this.#lab.client.statistics();
    if (acknowledged !== before) this.#wrong.push("a guest that nobody has answers");
    this.#checkFinding();
    const report = await this.#lab.client.finish({ timeoutMs: 0 });
    this.#count(report.lost, report.doubled, report.staleEpochAnswers, "up to its end");
    this.#lab.home = undefined;
    if (this.#isNever) return "in doubt to the end";
    if (this.#mayBeGone()) return "ended with its host";
    this.#lost++;
    this.#wrong.push("the guest is gone, and its owner was not");
    return "WRONG";
  }

  /** The agent's word to whoever asked for the migration, and where the guest is. */
  #checkAnswer(owner: Role | undefined): void {
    const answer = this.#answer;
    const isDamaged = [...this.#struck].some((fault) => fault.kind === "wire" && fault.wire.effect.type === "flip");
    if (answer?.type === "ok") {
      if (owner !== "target" && !this.#hasDied("target")) this.#wrong.push("the migration succeeded, and the guest is not at the target");
      if (answer.value["digest-equal"] !== true) this.#wrong.push(`the migration succeeded, not verified: ${answer.value.verdict}`);
    }
    if (answer?.type !== "error") return;
    if (owner === "target" && !this.#isClaimed)
      this.#wrong.push(`the migration failed with ${answer.code}, and the guest is at the target`);
    if (BUGS.includes(answer.code) || (DAMAGE.includes(answer.code) && !isDamaged)) this.#wrong.push(`${answer.code}: ${answer.message}`);
  }

  #checkFinding(): void {
    const finding = this.#lab.takeFinding();
    if (finding !== undefined) this.#wrong.push(`two owners: ${finding}`);
  }

  async #settleAccounts(at: string): Promise<void> {
    const report = await this.#lab.client.settle({ timeoutMs: ANSWERS_MS });
    this.#count(report.lost, report.doubled, report.staleEpochAnswers, at);
    if (report.unanswered > 0) this.#wrong.push(`${report.unanswered} requests without an answer ${at}`);
    if (report.counter === undefined) this.#wrong.push(`the ledger did not tell its counter ${at}`);
  }

  #count(lost: number, doubled: number, stale: number, at: string): void {
    this.#lost += lost;
    this.#doubled += doubled;
    if (lost + doubled + stale > 0) this.#wrong.push(`${lost} lost, ${doubled} doubled, ${stale} answers from an older owner ${at}`);
  }

  /** The guest has to get away from where it is now: nothing is stuck, and no page is missed. */
  async #moveOn(home: Side): Promise<void> {
    const target = this.#lab.sides[other(home.name)];
    const report = await migrateUnhurried(home, target);
    if (report["digest-equal"] !== true) this.#wrong.push(`the migration without faults is not verified: ${report.verdict}`);
    this.#lab.home = target.name;
  }
}

const phaseOf = (status: Status | undefined): string => (status === undefined ? "away" : (status.guest?.phase ?? "none"));

async function untilTrue(isTrue: () => boolean, ms: number, what: () => string): Promise<void> {
  for (const untilMs = performance.now() + ms; !isTrue(); await sleep(10)) if (performance.now() > untilMs) throw new Error(what());
}

/** A migration that nothing disturbs; what an earlier one still holds is waited for. @throws {Error} if it fails */
export async function migrateUnhurried(home: Side, target: Side): Promise<MigrationReport> {
  for (const untilMs = performance.now() + RETRY_MS; ; await sleep(POLL_MS)) {
    const answer = await askMigrate(home.socket, target.proxy.address, UNHURRIED);
    if (answer.type === "ok") return answer.value;
    const isEarly = answer.type === "error" && ["ERR_BUSY", "ERR_AGENT_FULL", "ERR_GUEST_PRESENT"].includes(answer.code);
    if (isEarly && performance.now() < untilMs) continue;
    throw new Error(`the migration without faults failed: ${answer.type === "error" ? `${answer.code}: ${answer.message}` : answer.type}`);
  }
}
