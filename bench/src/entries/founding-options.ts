import { PAGE_BYTES } from "@precopy/protocol";
import type { MigrationParameters } from "@precopy/protocol";
import type { Bench, BenchRun, Figure, Measurement } from "../define-bench.js";
import { figuresOf, moveGuest, moveGuests, withLinks } from "../link-moves.js";
import type { LinkGuest, MadeLink, MoveFigures, MovePlan } from "../link-moves.js";
import type { LinkOptions } from "../links.js";
import { interleave } from "../pairs.js";
import { qemuPeer } from "../peers/qemu.js";
import { warmMemory } from "../warm-memory.js";

const MIB = 2 ** 20;
const GIB = 2 ** 30;
/** No migration here ought to take half of it. */
const LIMIT_MS = 240_000;
const linkOf = (rate: number, mtu = 1500): LinkOptions => ({ rate, mtu, congestionControl: undefined });

/** Figures in the making; one without a value is none. */
class Tally {
  readonly #figures = new Map<string, Figure & { readonly values: number[] }>();

  add(name: string, unit: Figure["unit"], value: number | null, better: Figure["better"] = "lower", target?: number): void {
    const figure = this.#figures.get(name) ?? { name, unit, better, target, values: [] };
    if (value === null) return;
    figure.values.push(value);
    this.#figures.set(name, figure);
  }

  get figures(): readonly Figure[] {
    return [...this.#figures.values()];
  }
}

const gigabits = (bytesPerSecond: number | null): number | null => (bytesPerSecond === null ? null : (bytesPerSecond * 8) / 1e9);
const ms = (value: number): string => `${value.toFixed(value < 100 ? 1 : 0)} ms`;

/** @throws {Error} if it did not converge: no link here is too slow for that guest */
function converged(figures: MoveFigures | undefined, what: string): MoveFigures {
  if (figures === undefined) throw new Error(`${what}: did not converge`);
  return figures;
}

/** One way to migrate, and one thing that is other than in `plain`. */
interface Option {
  readonly name: string;
  readonly fillKind: LinkGuest["fillKind"];
  readonly parameters: Partial<MigrationParameters>;
}
const PLAIN: Option = { name: "plain", fillKind: "random", parameters: { multifdChannels: 1, multifdCompression: "none" } };
const LZ4_TEXT: Option = { name: "lz4, text", fillKind: "text", parameters: { ...PLAIN.parameters, multifdCompression: "lz4" } };
const LZ4_RANDOM: Option = { ...LZ4_TEXT, name: "lz4, random", fillKind: "random" };
const MULTICHANNEL: Option = { ...PLAIN, name: "4 channels", parameters: { ...PLAIN.parameters, multifdChannels: 4 } };

const OPTIONS = {
  links: [1e9, 1e10].flatMap((rate) => [1500, 9000].map((mtu) => linkOf(rate, mtu))),
  options: [PLAIN, LZ4_TEXT, LZ4_RANDOM, MULTICHANNEL],
  guest: { memory: 2 * GIB, filled: 512 * MIB, workload: "random-writer", dirtyRate: 2000, workingSet: 16 * MIB },
};

async function measureOptions({ pairs, say }: BenchRun, links: readonly MadeLink[]): Promise<Measurement> {
  const tally = new Tally();
  const runs: unknown[] = [];
  for (let pair = 0; pair < pairs; pair++) {
    const took = new Map<string, MoveFigures>();
    for (const { link, name } of links)
      for (const { name: option, fillKind, parameters } of OPTIONS.options) {
        const what = `${name}: ${option}`;
        const figures = converged(figuresOf(await moveGuest(link, { ...OPTIONS.guest, fillKind }, parameters, LIMIT_MS)), what);
        const bandwidth = gigabits(figures.firstRoundBytesPerSecond);
        tally.add(`${what}: total`, "ms", figures.totalMs);
        tally.add(`${what}: downtime`, "ms", figures.downtimeMs);
        tally.add(`${what}: bandwidth in the first round`, "Gbit/s", bandwidth, "higher");
        say(`${what}: total ${ms(figures.totalMs)}, downtime ${ms(figures.downtimeMs)}, round 1 ${bandwidth?.toFixed(2) ?? "-"} Gbit/s`);
        took.set(what, figures);
        runs.push({ pair, link: name, option, ...figures });
      }
    addShares(tally, links, took);
  }
  return { figures: tally.figures, runs };
}

/** What the checklist promises of each option: how much of the plain total time is left. */
function addShares(tally: Tally, links: readonly MadeLink[], took: ReadonlyMap<string, MoveFigures>): void {
  const totalMs = (link: string, { name }: Option): number => took.get(`${link}: ${name}`)?.totalMs ?? Number.NaN;
  for (const { name, options } of links) {
    for (const option of [LZ4_TEXT, LZ4_RANDOM, MULTICHANNEL])
      tally.add(`${name}: total, ${option.name} of plain`, "share", totalMs(name, option) / totalMs(name, PLAIN));
    const small = links.find((other) => other.options.rate === options.rate && other.options.mtu < options.mtu);
    if (small !== undefined)
      tally.add(`${name}: total, plain, of MTU ${small.options.mtu}`, "share", totalMs(name, PLAIN) / totalMs(small.name, PLAIN));
  }
}

const foundingOptions: Bench = {
  name: "founding-options",
  suite: "full",
  workload: OPTIONS,
  measure: (run) => withLinks(OPTIONS.links, (links) => measureOptions(run, links)),
};

const SIMULTANEOUS = {
  links: [linkOf(1e9), linkOf(1e10)],
  guests: [1, 2, 4, 8],
  guest: {
    ...{ memory: 512 * MIB, filled: 256 * MIB, fillKind: "random" },
    ...{ workload: "random-writer", dirtyRate: 2000, workingSet: 16 * MIB },
  } satisfies LinkGuest as LinkGuest,
};

/** @returns ms for each guest, if all of them moved */
async function moveMany(
  { say }: BenchRun,
  { link, name }: MadeLink,
  count: number,
  order: MovePlan["order"],
  tally: Tally,
  runs: unknown[],
) {
  const what = `${name}: ${count} ${count === 1 ? "guest" : `guests ${order}`}`;
  const moves = await moveGuests(link, { guest: SIMULTANEOUS.guest, count, order, parameters: {}, limitMs: LIMIT_MS });
  const figures = moves.runs.map(figuresOf);
  const moved = figures.filter((one) => one !== undefined);
  runs.push({ link: name, count, order, elapsedMs: moves.elapsedMs, guests: figures.map((one) => one ?? null) });
  tally.add(`${what}: converged`, "share", moved.length / count, "higher");
  if (moved.length < count) {
    say(`${what}: ${count - moved.length} did not converge`);
    return undefined;
  }
  const eachMs = moves.elapsedMs / count;
  const longestMs = Math.max(...moved.map(({ totalMs }) => totalMs));
  const worstMs = Math.max(...moved.map(({ downtimeMs }) => downtimeMs));
  tally.add(`${what}: time until the last has moved, for each`, "ms", eachMs);
  tally.add(`${what}: longest total`, "ms", longestMs);
  for (const { downtimeMs } of moved) tally.add(`${what}: downtime`, "ms", downtimeMs);
  tally.add(`${what}: worst downtime`, "ms", worstMs);
  say(`${what}: ${ms(eachMs)} for each, longest total ${ms(longestMs)}, worst downtime ${ms(worstMs)}`);
  return eachMs;
}

async function measureSimultaneous(run: BenchRun, links: readonly MadeLink[]): Promise<Measurement> {
  const tally = new Tally();
  const runs: unknown[] = [];
  for (let pair = 0; pair < run.pairs; pair++)
    for (const made of links)
      for (const count of SIMULTANEOUS.guests) {
        const together = await moveMany(run, made, count, "together", tally, runs);
        if (count === 1) continue;
        const inTurn = await moveMany(run, made, count, "in turn", tally, runs);
        // Above 1 it is quicker to move one after the other: there the total time turns.
        if (together !== undefined && inTurn !== undefined)
          tally.add(`${made.name}: ${count} guests, time together of in turn`, "share", together / inTurn);
      }
  return { figures: tally.figures, runs };
}

const foundingSimultaneous: Bench = {
  name: "founding-simultaneous",
  suite: "full",
  workload: SIMULTANEOUS,
  measure: (run) => withLinks(SIMULTANEOUS.links, (links) => measureSimultaneous(run, links)),
};

/** The writer that walks its memory. */
const WALKER = "sequential-writer";
const SLOW_RATE = 1e9;
const SEQUENTIAL = {
  links: [linkOf(SLOW_RATE), linkOf(4 * SLOW_RATE)],
  /** Of the pages that the slow link could carry if there were nothing but pages. */
  dirtyFractions: [0.1, 0.25, 0.5, 0.75, 0.9],
  guest: {
    ...{ memory: GIB, filled: 512 * MIB, fillKind: "random", workload: WALKER, dirtyRate: SLOW_RATE / 8 / PAGE_BYTES },
    ...{ workingSet: 512 * MIB },
  } satisfies LinkGuest as LinkGuest,
};

async function measureSequential({ pairs, say }: BenchRun, links: readonly MadeLink[]): Promise<Measurement> {
  const tally = new Tally();
  const runs: unknown[] = [];
  const { guest, dirtyFractions } = SEQUENTIAL;
  for (let pair = 0; pair < pairs; pair++)
    for (const fraction of dirtyFractions) {
      const dirtyRate = Math.round(fraction * guest.dirtyRate);
      const load = `${Math.round(fraction * 100)} % dirtied`;
      const totals: (number | undefined)[] = [];
      for (const { link, name } of links) {
        const what = `${name}, ${load}`;
        const run = await moveGuest(link, { ...guest, dirtyRate }, {}, LIMIT_MS);
        const figures = figuresOf(run);
        totals.push(figures?.totalMs);
        runs.push({ pair, link: name, fraction, dirtyRate, figures: figures ?? null, error: run.error });
        tally.add(`${what}: converged`, "share", figures === undefined ? 0 : 1, "higher");
        if (figures === undefined) {
          say(`${what}: ${run.error?.message}`);
          continue;
        }
        tally.add(`${what}: total`, "ms", figures.totalMs);
        tally.add(`${what}: downtime`, "ms", figures.downtimeMs);
        tally.add(`${what}: bytes sent of those filled`, "share", figures.sentBytes / guest.filled);
        tally.add(`${what}: rounds`, "count", figures.rounds);
        say(`${what}: total ${ms(figures.totalMs)}, downtime ${ms(figures.downtimeMs)}, ${figures.rounds} rounds`);
      }
      const [slow, fast] = totals;
      if (slow !== undefined && fast !== undefined) tally.add(`${load}: total, fast link of slow`, "share", fast / slow);
    }
  return { figures: tally.figures, runs };
}

const foundingSequential: Bench = {
  name: "founding-sequential",
  suite: "full",
  workload: SEQUENTIAL,
  measure: (run) => withLinks(SEQUENTIAL.links, (links) => measureSequential(run, links)),
};

/** Nobody hashes: QEMU does not either. */
const UNPROVEN: Partial<MigrationParameters> = { isDigestOn: false, isAuditOn: false };
const COMPRESSIBLE = {
  link: linkOf(1e9),
  memory: 2 * GIB,
  filled: GIB,
  ours: { fillKind: "text", parameters: { ...UNPROVEN, multifdCompression: "lz4" } },
  /** Uncompressed, so that its content does not matter. */
  theirs: { fillKind: "random", setting: "default" },
} as const;

async function measureCompressible({ pairs, say }: BenchRun, { link }: MadeLink): Promise<Measurement | string> {
  const qemu = await qemuPeer(link);
  if (typeof qemu === "string") return qemu;
  const { memory, filled, ours, theirs } = COMPRESSIBLE;
  const guest: LinkGuest = { memory, filled, fillKind: ours.fillKind, workload: "idle", dirtyRate: 0, workingSet: 0 };
  const load = { name: "compressible", memory, filled, zeroed: 0, dirtyRate: 0, workingSet: 0 };
  const runs = await interleave<{ readonly totalMs: number }>(
    pairs,
    async () => {
      const figures = converged(figuresOf(await moveGuest(link, guest, ours.parameters, LIMIT_MS)), "precopy");
      say(`precopy, lz4: total ${ms(figures.totalMs)}`);
      return figures;
    },
    async () => {
      const run = await qemu.migrate(load, theirs.setting, () => warmMemory(2 * filled));
      say(`${qemu.name}: total ${ms(run.totalMs)}`);
      return run;
    },
  );
  const tally = new Tally();
  for (const pair of runs) {
    tally.add("total, precopy with lz4", "ms", pair.ours.totalMs);
    tally.add(`total, ${qemu.name}`, "ms", pair.theirs.totalMs);
    tally.add("total", "ratio", pair.ours.totalMs / pair.theirs.totalMs, "lower", 0.5);
  }
  return { figures: tally.figures, runs };
}

const lz4Over1Gbit: Bench = {
  name: "lz4-over-1gbit",
  suite: "full",
  workload: COMPRESSIBLE,
  measure: (run) => withLinks([COMPRESSIBLE.link], ([made]) => measureCompressible(run, made!)),
};

/** What those who came before say of options, simultaneous migrations and faster links, measured over links of this host. */
export const foundingOptionsEntries: readonly Bench[] = [foundingOptions, foundingSimultaneous, foundingSequential, lz4Over1Gbit];
