import type { MigrationParameters } from "@precopy/protocol";
import type { Effect, WireFault } from "./proxy.js";
import { Random } from "./random.js";

/** Every fault point of the agents (packages/cli/src/fault-points.ts). */
export const POINTS = [
  "source.setup",
  "source.active",
  "source.device",
  "source.committing",
  "source.in-doubt",
  "source.completed",
  "source.failed",
  "source.cancelled",
  "source.taken-back",
  "source.given-up",
  "target.receiving",
  "target.prepared",
  "target.commit",
  "target.owner",
  "target.answered",
  "target.active",
  "target.discarded",
  "target.claimed",
] as const;
export type Point = (typeof POINTS)[number];
export type Role = "source" | "target";

/** ms after the command was given, after a hold began, or after the guest ran at the target without all of its memory. */
export interface When {
  readonly after: "start" | "hold" | "postcopy";
  readonly ms: number;
}

/** holdMs undefined: kill. */
export type PointFault = { readonly kind: "point"; readonly point: Point; readonly holdMs: number | undefined };
export type OperatorFault = {
  readonly kind: "operator";
  readonly act: "cancel" | "term" | "kill";
  readonly role: Role;
  readonly when: When;
};
/** silent: nothing passes. down: and new connections are refused. broken: those that are open are reset, new ones refused. */
export type LinkFault = { readonly kind: "link"; readonly act: "silent" | "down" | "broken"; readonly ms: number; readonly when: When };
export type Fault = PointFault | OperatorFault | LinkFault | { readonly kind: "wire"; readonly wire: WireFault };

/** The agents of a lab. */
export type Name = "a" | "b";
/** What agents and guest are like. A lab has one flavour at a time. */
export type Flavour = "mmu" | "barrier";

/** One migration with what goes wrong in it. */
export interface FaultCase {
  readonly seed: number;
  readonly flavour: Flavour;
  /** Where the guest is at the beginning. */
  readonly from: Name;
  readonly parameters: Partial<MigrationParameters>;
  readonly faults: readonly Fault[];
  /** From the death of an agent to its restart. */
  readonly restartAfterMs: number;
  /** Nobody cancels what is left over before the agents have given it up by themselves. */
  readonly isPatient: boolean;
  /** The operator would rather run an older copy than none. */
  readonly mayRollBack: boolean;
}

const whenText = ({ after, ms }: When): string => `@${after === "start" ? "" : `${after}+`}${ms}`;

function effectText(effect: Effect): string {
  switch (effect.type) {
    case "flip":
      return `flip:${effect.bit}`;
    case "cut":
      return `${effect.isLink ? "link-" : ""}${effect.how}`;
    case "stall":
      return `${effect.isLink ? "link-" : ""}stall-${effect.directions}:${effect.ms}`;
    case "delay":
      return `${effect.isLink ? "link-" : ""}delay:${effect.ms}`;
  }
}

/** A fault as it is printed and as `--fault` takes it: WHERE=ACTION[:VALUE][@MS after the start, or @hold+MS after a hold began, or @postcopy+MS]. */
export function faultText(fault: Fault): string {
  switch (fault.kind) {
    case "point":
      return `${fault.point}=${fault.holdMs === undefined ? "kill" : `hold:${fault.holdMs}`}`;
    case "operator":
      return `operator=${fault.act}-${fault.role}${whenText(fault.when)}`;
    case "link":
      return `link=${fault.act}:${fault.ms}${whenText(fault.when)}`;
    case "wire": {
      const { channel, direction, unit, at, effect } = fault.wire;
      return `${channel}.${direction}.${unit}#${at}=${effectText(effect)}`;
    }
  }
}

/** In which row of the table it counts. */
export function faultKind(fault: Fault): string {
  switch (fault.kind) {
    case "point":
      return `${fault.point} ${fault.holdMs === undefined ? "kill" : "hold"}`;
    case "operator":
      return `${fault.act} at the ${fault.role}`;
    case "link":
      return `link ${fault.act}`;
    case "wire":
      return `${fault.wire.channel} ${fault.wire.effect.type}`;
  }
}

/** For how long it keeps things as they should not be, ms; what comes of it takes longer. */
export function faultMs(fault: Fault): number {
  switch (fault.kind) {
    case "point":
      return fault.holdMs ?? 0;
    case "operator":
      return fault.when.ms;
    case "link":
      return fault.when.ms + fault.ms;
    case "wire":
      return fault.wire.effect.type === "stall" ? fault.wire.effect.ms : 0;
  }
}

function parseEffect(text: string): Effect | undefined {
  const [, link, name = "", value = ""] = /^(link-)?([a-z-]+)(?::(\d+))?$/.exec(text) ?? [];
  const isLink = link !== undefined;
  const ms = Number(value);
  if (name === "rst" || name === "fin") return { type: "cut", how: name, isLink };
  if (name === "stall-both") return { type: "stall", ms, directions: "both", isLink };
  if (name === "stall-one") return { type: "stall", ms, directions: "one", isLink };
  if (name === "delay") return { type: "delay", ms, isLink };
  return name === "flip" && ms < 8 ? { type: "flip", bit: ms } : undefined;
}

/** Undefined for what `faultText` does not write. */
function readFault(text: string): Fault | undefined {
  const [, where = "", action = "", after, ms = "0"] = /^([^=]+)=([^@]+)(?:@(?:(hold|postcopy)\+)?(\d+))?$/.exec(text) ?? [];
  const when: When = { after: (after ?? "start") as When["after"], ms: Number(ms) }; // the pattern has no others
  const point = POINTS.find((one) => one === where);
  if (point !== undefined) {
    const [, holdMs] = /^hold:(\d+)$/.exec(action) ?? [];
    return action !== "kill" && holdMs === undefined
      ? undefined
      : { kind: "point", point, holdMs: holdMs === undefined ? undefined : Number(holdMs) };
  }
  const act = /^(cancel|term|kill)-(source|target)$/.exec(action);
  if (where === "operator" && act !== null) return { kind: "operator", act: act[1] as OperatorFault["act"], role: act[2] as Role, when }; // the pattern has no others
  const link = /^(silent|down|broken):(\d+)$/.exec(action);
  if (where === "link" && link !== null) return { kind: "link", act: link[1] as LinkFault["act"], ms: Number(link[2]), when }; // nor this one
  const place = /^(control|pages|faults|any)\.(up|down)\.(message|byte)#(\d+)$/.exec(where);
  const effect = parseEffect(action);
  if (place === null || effect === undefined) return undefined;
  const [, channel, direction, unit, at] = place as unknown as [
    string,
    WireFault["channel"],
    WireFault["direction"],
    WireFault["unit"],
    string,
  ]; // nor this one
  return { kind: "wire", wire: { channel, direction, unit, at: Number(at), effect } };
}

/** @throws {Error} for what `faultText` does not write. */
export function parseFault(text: string): Fault {
  const fault = readFault(text);
  if (fault === undefined) throw new Error(`"${text}" is no fault: try target.owner=kill, control.up.message#3=rst or link=down:2000@50`);
  return fault;
}

/** Points that a migration passes if nothing else is wrong. */
const PLAIN_POINTS = [
  "source.setup",
  "source.active",
  "source.device",
  "source.committing",
  "source.completed",
  "target.receiving",
  "target.prepared",
  "target.commit",
  "target.owner",
  "target.answered",
  "target.active",
] as const satisfies readonly Point[];

const SLOW = 20_000_000;
const fault = (text: string): Fault => parseFault(text);

/** What else has to go wrong for a point to be reached, and how slow the link has to be for that. */
function companionsOf(point: Point): { readonly faults: readonly Fault[]; readonly isSlow: boolean } {
  switch (point) {
    case "source.in-doubt":
      return { faults: [fault("target.commit=hold:1500")], isSlow: false };
    case "source.failed":
      return { faults: [fault("operator=cancel-target@150")], isSlow: true };
    case "source.cancelled":
    case "target.discarded":
      return { faults: [fault("operator=cancel-source@150")], isSlow: true };
    case "source.taken-back":
      return { faults: [fault("target.commit=hold:1000"), fault("operator=cancel-target@hold+100")], isSlow: false };
    case "source.given-up":
      return { faults: [fault("target.owner=kill")], isSlow: false };
    case "target.claimed":
      return { faults: [fault("target.prepared=hold:400"), fault("operator=kill-source@hold+50")], isSlow: false };
    default:
      return { faults: [], isSlow: false };
  }
}

/** Each point, killed and held, with whatever brings a migration there: what `--every-point` runs. */
export const everyPoint = (): readonly FaultCase[] =>
  POINTS.flatMap((point, at) =>
    (["kill", "hold:1500"] as const).map((action, which): FaultCase => {
      const { faults, isSlow } = companionsOf(point);
      return {
        seed: 2 * at + which,
        flavour: "mmu",
        from: which === 0 ? "a" : "b",
        parameters: { downtimeLimitMs: 500, ...(isSlow && { maxBandwidthBytesPerSecond: SLOW }) },
        faults: [fault(`${point}=${action}`), ...faults],
        restartAfterMs: 100,
        isPatient: false,
        mayRollBack: point !== "source.given-up",
      };
    }),
  );

/** How long a fault may last: answers are late at 1 s, peers dead at 5 s. */
interface Limits {
  readonly holdMs: number;
  readonly linkMs: number;
}
const LIMITS: Limits = { holdMs: 4000, linkMs: 8000 };

function pointFaults(random: Random): Fault[] {
  const isPlain = random.chance(0.85);
  const point = isPlain ? random.pick(PLAIN_POINTS) : random.pick(POINTS);
  const one: Fault = { kind: "point", point, holdMs: random.chance(0.5) ? random.spread(30, LIMITS.holdMs) : undefined };
  return [one, ...companionsOf(point).faults];
}

/** A channel and a direction. */
type Place = "control.up" | "control.down" | "pages.up" | "pages.down" | "faults.up" | "faults.down";
/** The last message that is worth counting to: what comes on a channel in a short migration. On fault channels only bytes are counted. */
const MESSAGES: Readonly<Record<Place, number>> = {
  "control.up": 7,
  "control.down": 12,
  "pages.up": 60,
  "pages.down": 4,
  "faults.up": 0,
  "faults.down": 0,
};
const HEAD_BYTES = 250;
const BYTES: Readonly<Record<Place, number>> = {
  "control.up": 2500,
  "control.down": 1500,
  "pages.up": 2 ** 24,
  "pages.down": 400,
  "faults.up": 2 ** 20,
  "faults.down": 2000,
};

const PLACES: Readonly<Record<string, number>> = { "control.up": 4, "control.down": 4, "pages.up": 5, "pages.down": 1 };
const POSTCOPY_PLACES: Readonly<Record<string, number>> = {
  "control.up": 3,
  "control.down": 3,
  "pages.up": 4,
  "faults.up": 4,
  "faults.down": 2,
};

/** @param mayFlip what it damages inside a page is found where a migration fails for it; in post-copy the guest has such a page by then */
function wireFault(random: Random, { linkMs }: Limits, places = PLACES, mayFlip = true): Fault {
  const place = random.weighted(places) as Place; // of the keys above
  const [channel, direction] = place.split(".") as [WireFault["channel"], WireFault["direction"]]; // a place is both
  const isLink = random.chance(0.25);
  const kind = random.weighted({ cut: 5, stall: 3, delay: 1, flip: mayFlip ? 2 : 0 });
  const ms = random.spread(20, linkMs);
  const effect: Effect =
    kind === "cut"
      ? { type: "cut", how: random.pick(["rst", "fin"]), isLink }
      : kind === "stall"
        ? { type: "stall", ms, directions: random.pick(["both", "one"]), isLink }
        : kind === "delay"
          ? { type: "delay", ms: Math.min(ms, 150), isLink }
          : { type: "flip", bit: random.between(0, 7) };
  const unit = kind !== "flip" && channel !== "faults" && random.chance(0.7) ? "message" : "byte";
  // Heads are short, and what is damaged there is soon refused.
  const isBehindHead = random.chance(0.7);
  const byte = (): number =>
    isBehindHead ? random.between(Math.min(HEAD_BYTES, BYTES[place]), BYTES[place]) : random.spread(1, BYTES[place]);
  const at = unit === "message" ? random.between(0, MESSAGES[place]) : byte();
  return { kind: "wire", wire: { channel, direction, unit, at, effect } };
}

function when(random: Random, hasHold: boolean): When {
  return hasHold && random.chance(0.6)
    ? { after: "hold", ms: random.spread(1, 1500) }
    : { after: "start", ms: random.spread(1, random.chance(0.8) ? 250 : 2500) };
}

const linkFault = (random: Random, at: When, { linkMs }: Limits): Fault => ({
  kind: "link",
  act: random.pick(["silent", "down", "broken"]),
  ms: random.spread(100, linkMs),
  when: at,
});

function timedFault(random: Random, hasHold: boolean): Fault {
  const at = when(random, hasHold);
  if (random.chance(0.5)) return linkFault(random, at, LIMITS);
  const act = random.weighted({ cancel: 4, term: 2, kill: 2 });
  return { kind: "operator", act, role: random.pick(["source", "target"]), when: at };
}

function deriveParameters(random: Random): Partial<MigrationParameters> {
  const maxBandwidthBytesPerSecond = random.weighted({ 0: 4, 100_000_000: 2, 40_000_000: 3, 20_000_000: 2 });
  return {
    mode: random.chance(0.85) ? "precopy" : "stop-and-copy",
    multifdChannels: random.between(1, 4),
    multifdCompression: random.chance(0.3) ? "lz4" : "none",
    maxBandwidthBytesPerSecond: Number(maxBandwidthBytesPerSecond),
    downtimeLimitMs: random.pick([300, 1000, 2000]),
  };
}

/** Longer than an operator waits for an agent that is dead. */
const GONE_FOR_LONG_MS = 15_000;

/** The case of a seed: always the same one. @param forced faults to take in place of the seed's own. */
export function deriveCase(seed: number, forced?: readonly Fault[]): FaultCase {
  const random = new Random(seed);
  const flavour: Flavour = random.chance(0.35) ? "barrier" : "mmu";
  const from = random.pick(["a", "b"]);
  const parameters = deriveParameters(random);
  const faults: Fault[] = [];
  for (let left = Number(random.weighted({ 1: 5, 2: 4, 3: 2 })); left > 0; left--) {
    const hasHold = faults.some((one) => one.kind === "point" && one.holdMs !== undefined);
    const kind = random.weighted({ point: 4, wire: 4, timed: 3 });
    if (kind === "point") faults.push(...pointFaults(random).filter((one) => !faults.some((other) => isInTheWay(one, other))));
    else faults.push(kind === "wire" ? wireFault(random, LIMITS) : timedFault(random, hasHold));
  }
  return {
    seed,
    flavour,
    from,
    parameters,
    faults: forced ?? faults,
    restartAfterMs: random.chance(0.9) ? random.spread(30, 2000) : GONE_FOR_LONG_MS,
    isPatient: random.chance(0.08),
    mayRollBack: random.chance(0.5),
  };
}

/** A case whose guest comes to run at the target without all of its memory, if nothing is in the way; most faults strike while it fetches. */
export function derivePostcopyCase(seed: number, forced?: readonly Fault[]): FaultCase {
  const random = new Random(seed);
  const flavour: Flavour = random.chance(0.35) ? "barrier" : "mmu";
  const from = random.pick(["a", "b"]);
  const isHybrid = random.chance(0.4);
  const parameters: Partial<MigrationParameters> = {
    mode: isHybrid ? "hybrid" : "postcopy",
    multifdChannels: random.between(1, 4),
    multifdCompression: random.chance(0.3) ? "lz4" : "none",
    maxPostcopyBandwidthBytesPerSecond: Number(random.weighted({ 0: 1, 40_000_000: 2, 10_000_000: 4, 4_000_000: 3 })),
    ...(isHybrid && { maxBandwidthBytesPerSecond: 40_000_000, downtimeLimitMs: 1 }), // which nothing here reaches
  };
  const at = (): When => (random.chance(0.8) ? { after: "postcopy", ms: random.spread(1, 1500) } : when(random, false));
  const faults: Fault[] = [];
  for (let left = Number(random.weighted({ 1: 5, 2: 4, 3: 2 })); left > 0; left--) {
    const kind = random.weighted({ wire: 5, link: 4, operator: 3, point: 2 });
    if (kind === "wire") faults.push(wireFault(random, LIMITS, POSTCOPY_PLACES, false));
    else if (kind === "link") faults.push(linkFault(random, at(), LIMITS));
    else if (kind === "point") faults.push(...pointFaults(random).filter((one) => !faults.some((other) => isInTheWay(one, other))));
    else {
      const act = random.weighted({ cancel: 1, term: 2, kill: 4 });
      faults.push({ kind: "operator", act, role: random.pick(["source", "target"]), when: at() });
    }
  }
  return {
    ...{ seed, flavour, from, parameters, faults: forced ?? faults },
    restartAfterMs: random.spread(30, 2000),
    isPatient: false,
    mayRollBack: random.chance(0.5),
  };
}

const MILD: Limits = { holdMs: 800, linkMs: 2500 };

/** A case that both agents survive, and the guest with them: nothing is killed, and nothing lasts. One in four has no fault at all. */
export function deriveMildCase(seed: number, flavour: Flavour, from: Name): FaultCase {
  const random = new Random(seed);
  const kind = random.weighted({ none: 2, hold: 1, wire: 3, link: 1, cancel: 1 });
  const at = when(random, false);
  const faults: Record<typeof kind, () => Fault[]> = {
    none: () => [],
    hold: () => [{ kind: "point", point: random.pick(PLAIN_POINTS), holdMs: random.spread(30, MILD.holdMs) }],
    wire: () => [wireFault(random, MILD)],
    link: () => [linkFault(random, at, MILD)],
    cancel: () => [{ kind: "operator", act: "cancel", role: random.pick(["source", "target"]), when: at }],
  };
  const parameters = deriveParameters(random);
  return { seed, flavour, from, parameters, faults: faults[kind](), restartAfterMs: 0, isPatient: false, mayRollBack: false };
}

/** An agent does one thing at a point, and dies once. */
function isInTheWay(one: Fault, other: Fault): boolean {
  if (one.kind !== "point" || other.kind !== "point") return false;
  const isSameAgent = one.point.slice(0, 6) === other.point.slice(0, 6);
  return one.point === other.point || (isSameAgent && one.holdMs === undefined && other.holdMs === undefined);
}
