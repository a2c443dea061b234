import { readFileSync } from "node:fs";
import { MigrationError } from "@precopy/protocol";

/**
 * Places in a hand-over where a test may stop or end an agent, where milliseconds would otherwise decide. `source.<phase>` and
 * `target.<phase>`: the phase was entered, and nothing of it has happened yet. The others lie between a journal line and the act it announces.
 */
export const FAULT_POINTS = [
  "source.setup",
  "source.active",
  "source.device",
  "source.committing", // journal `committed` is written, COMMIT is not sent
  "source.in-doubt",
  "source.completed",
  "source.failed",
  "source.cancelled",
  "source.taken-back",
  "source.given-up",
  "target.receiving",
  "target.prepared",
  "target.commit", // COMMIT is here, nothing is decided
  "target.owner", // journal `owner` is written, the guest does not run yet
  "target.answered", // the guest runs, ACTIVE is sent
  "target.active",
  "target.discarded",
  "target.claimed",
] as const;
export type FaultPoint = (typeof FAULT_POINTS)[number];
const isFaultPoint = (text: string): text is FaultPoint => FAULT_POINTS.some((point) => point === text);

const HOLD_MS_MAX = 2 ** 31 - 1;
const EXAMPLE = "POINT=hold:MS or POINT=kill, POINT#N for the Nth time, several with ; between them";

/** What happens at one point. `nth`: only the Nth time it is reached, from 1; undefined every time. */
interface Fault {
  readonly point: FaultPoint;
  readonly nth: number | undefined;
  readonly action: "kill" | { readonly holdMs: number };
}

const refuse = (message: string): never => {
  throw new MigrationError("ERR_PARAMETER", message);
};

function parseFault(text: string): Fault {
  const [, point = "", nth, action = ""] =
    /^([^=#]*)(?:#([^=]*))?=(.*)$/.exec(text) ?? refuse(`PRECOPY_FAULT: "${text}" is not ${EXAMPLE}`);
  if (!isFaultPoint(point)) return refuse(`PRECOPY_FAULT: "${point}" is no fault point; known: ${FAULT_POINTS.join(", ")}`);
  if (nth !== undefined && !/^[1-9]\d{0,8}$/.test(nth)) return refuse(`PRECOPY_FAULT: "${text}": #${nth} is no count from 1`);
  const [, ms] = /^hold:(\d{1,10})$/.exec(action) ?? [];
  if (action !== "kill" && (ms === undefined || Number(ms) > HOLD_MS_MAX))
    return refuse(`PRECOPY_FAULT: "${text}": "${action}" is neither kill nor hold:MS, 0 to ${HOLD_MS_MAX} ms`);
  return { point, nth: nth === undefined ? undefined : Number(nth), action: action === "kill" ? "kill" : { holdMs: Number(ms) } };
}

/** @throws {MigrationError} ERR_PARAMETER for a point or an action that is not known. */
export const parseFaults = (text: string): readonly Fault[] =>
  text
    .split(";")
    .map((one) => one.trim())
    .filter((one) => one !== "")
    .map(parseFault);

type Environment = Readonly<Record<string, string | undefined>>;

/** What each does to an agent, on purpose. */
const PURPOSES = {
  PRECOPY_FAULT: "fail on purpose for a test",
  PRECOPY_FORGET_DIRTY: "fail on purpose for a test",
  PRECOPY_WITHOUT: "slower on purpose for a bench or a test",
} as const;

/** A production agent must not obey an environment variable that somebody left behind. @throws {MigrationError} ERR_PARAMETER */
function valueOf(name: keyof typeof PURPOSES, environment: Environment, isAllowed: boolean): string {
  const value = environment[name] ?? "";
  if (value !== "" && !isAllowed) refuse(`${name} is set, which makes an agent ${PURPOSES[name]}: unset it, or add --fault-points`);
  return value;
}

/**
 * PRECOPY_FORGET_DIRTY=N makes the dirty log lose one written page in N; 0 without it.
 * @param isAllowed `--fault-points` was given.
 * @throws {MigrationError} ERR_PARAMETER if it was not, and for what is no number.
 */
export function forgetDirtyEvery(environment: Environment, isAllowed: boolean): number {
  const value = valueOf("PRECOPY_FORGET_DIRTY", environment, isAllowed);
  if (!/^\d{0,9}$/.test(value)) refuse(`PRECOPY_FORGET_DIRTY: "${value}" is no whole number`);
  return Number(value);
}

/** What an agent may be made to do without, to measure what each saves. */
export const OPTIMISATIONS = [
  "deferred-cleanup", // channels and dirty log are ended in the pause, before COMMIT, and not when the guest runs at the target
  "vector-zero-check", // pages are looked at a word at a time, in JavaScript
  "populated-map", // the first round considers every page, memory included that was never populated
  "rehearsal", // the first hand-over runs code that was never compiled; an agent is up in less time
] as const;
export type Optimisation = (typeof OPTIMISATIONS)[number];
const isOptimisation = (text: string): text is Optimisation => OPTIMISATIONS.some((name) => name === text);

/**
 * PRECOPY_WITHOUT=NAME[,NAME...] switches optimisations off; empty without it.
 * @param isAllowed `--fault-points` was given.
 * @throws {MigrationError} ERR_PARAMETER if it was not, and for a name that is not known.
 */
export function switchedOff(environment: Environment, isAllowed: boolean): ReadonlySet<Optimisation> {
  const names = valueOf("PRECOPY_WITHOUT", environment, isAllowed)
    .split(",")
    .map((name) => name.trim())
    .filter((name) => name !== "");
  const known = (name: string): Optimisation =>
    isOptimisation(name) ? name : refuse(`PRECOPY_WITHOUT: "${name}" is no optimisation; known: ${OPTIMISATIONS.join(", ")}`);
  return new Set(names.map(known));
}

/** What faults do to this process. */
export interface FaultActs {
  /** Gets one line for each hold, so that a test knows when. */
  announce(line: { readonly type: "hold"; readonly point: FaultPoint }): void;
  /** Ends the process at once, whatever it does. */
  kill(): void;
}
const OWN_PROCESS: FaultActs = {
  announce: (line) => process.stdout.write(`${JSON.stringify(line)}\n`),
  kill: () => process.kill(process.pid, "SIGKILL"),
};

function readIfThere(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return ""; // nobody has written it yet
  }
}

/**
 * What an agent has to call at each point, at once after the state was entered. It obeys PRECOPY_FAULT="POINT=ACTION[;POINT=ACTION...]", with
 * ACTION `hold:MS` or `kill`; POINT#N is its Nth time only. A kill happens before the call returns. PRECOPY_FAULT=@FILE takes the same text from
 * a file that may change while the agent runs: it is read at each point, need not be there, and new text counts from one again.
 * @param isAllowed `--fault-points` was given.
 * @throws {MigrationError} ERR_PARAMETER if it was not, and for what is not understood.
 */
export function reachPoint(environment: Environment, isAllowed: boolean, acts = OWN_PROCESS): (point: string) => Promise<void> {
  const value = valueOf("PRECOPY_FAULT", environment, isAllowed);
  const current = value.startsWith("@") ? () => readIfThere(value.slice(1)) : () => value;
  const reached = new Map<FaultPoint, number>();
  let text = current();
  let faults = parseFaults(text);
  return async (point) => {
    if (value === "" || !isFaultPoint(point)) return;
    const latest = current();
    if (latest !== text) {
      faults = parseFaults(latest);
      text = latest;
      reached.clear();
    }
    const count = (reached.get(point) ?? 0) + 1;
    reached.set(point, count);
    const fault = faults.find((one) => one.point === point && (one.nth ?? count) === count);
    if (fault === undefined) return;
    if (fault.action === "kill") return acts.kill();
    acts.announce({ type: "hold", point });
    const { holdMs } = fault.action;
    await new Promise((resolve) => setTimeout(resolve, holdMs));
  };
}
