import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PAGE_BYTES } from "@precopy/protocol";
import type { MigrationParameters } from "@precopy/protocol";
import type { Bench, BenchRun, Figure, Measurement } from "../define-bench.js";
import { figuresOf, moveGuests, withLinks } from "../link-moves.js";
import type { LinkGuest, MadeLink, MoveFigures } from "../link-moves.js";
import { undisturbed } from "../noise.js";
import { workShare } from "../peers/ticks.js";
import { readTold, toldWriterModule } from "../told-writer.js";

const MIB = 2 ** 20;
const LINK_RATE = 1e9;
/** Pages a second that the link would carry if there were nothing but pages. */
const LINK_PAGES = LINK_RATE / 8 / PAGE_BYTES;
const LIMIT_MS = 180_000;
/** A technique that leaves a guest alone either ends within a few rounds or never does; the link carries the guest 16 times in this. */
const UNTHROTTLED_LIMIT_MS = 40_000;
/** What the host takes of a run as long as this evens out; nor is one made again that did not end. */
const LONG_MS = 10_000;

const FILLED = 256 * MIB;
const GUEST = { memory: 512 * MIB, filled: FILLED, fillKind: "random", dirtyRate: 0, workingSet: FILLED } as const;
/** Of what the link carries. */
const DIRTY_FRACTIONS = [0.25, 0.5, 1, 2, 4];
const TECHNIQUES: Readonly<Record<string, Partial<MigrationParameters>>> = {
  none: {},
  "auto-converge": { throttle: "auto-converge" },
  sdps: { throttle: "sdps" },
  xbzrle: { isXbzrleOn: true },
  "xbzrle, 256 MiB": { isXbzrleOn: true, xbzrleCacheBytes: FILLED },
  "hold-back": { isHoldBackOn: true },
  lz4: { multifdCompression: "lz4" },
  auto: { multifdCompression: "auto" },
};
/** Post-copy beside what it is an alternative to: a guest that is throttled until its link follows. */
const POSTCOPY_TECHNIQUES: typeof TECHNIQUES = {
  none: {},
  sdps: { throttle: "sdps" },
  hybrid: { mode: "hybrid" },
  postcopy: { mode: "postcopy" },
};

interface Converged {
  /** Undefined if it did not end by a switch. */
  readonly figures: MoveFigures | undefined;
  /** Of the work that was due from the command until the migration was over, at whichever side; undefined if nobody was told. */
  readonly workShare: number | undefined;
  readonly failure: string | undefined;
}

/** Moves a guest that writes at random, and tells how it got on. */
async function moveWriter({ link }: MadeLink, dirtyRate: number, parameters: Partial<MigrationParameters>): Promise<Converged> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-told-"));
  try {
    const module = join(folder, "told-writer.mjs");
    writeFileSync(module, toldWriterModule(folder, { rate: dirtyRate, workingSet: GUEST.workingSet }));
    const limitMs = parameters.throttle === undefined && parameters.mode === undefined ? UNTHROTTLED_LIMIT_MS : LIMIT_MS;
    const guest: LinkGuest = { ...GUEST, dirtyRate, workload: `told-writer=${module}` };
    const { runs, beganAt, elapsedMs } = await moveGuests(link, { guest, count: 1, order: "together", parameters, limitMs });
    const [run] = runs;
    if (run === undefined) throw new Error("One guest is one run");
    const told = readdirSync(folder)
      .flatMap((file) => /^told-(\d+)$/.exec(file)?.[1] ?? [])
      .map((agent) => readTold(folder, Number(agent)))
      .toSorted((one, other) => one.atMs[0]! - other.atMs[0]!); // at the source, then at the target, where it counts on
    const share = workShare(
      told.flatMap(({ atMs }) => atMs),
      told.flatMap(({ pages }) => pages.map((written) => (written * 1000) / dirtyRate)),
      beganAt,
      beganAt + elapsedMs,
    );
    return { figures: figuresOf(run), workShare: share, failure: run.error?.message };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function measure(techniques: typeof TECHNIQUES, { pairs, say }: BenchRun, made: MadeLink): Promise<Measurement> {
  const figures = new Map<string, Figure & { readonly values: number[] }>();
  const add = (name: string, unit: Figure["unit"], better: Figure["better"], value: number | undefined): void => {
    if (value === undefined) return;
    const figure = figures.get(name) ?? { name, unit, better, values: [] };
    figure.values.push(value);
    figures.set(name, figure);
  };
  const runs: unknown[] = [];
  for (let pair = 0; pair < pairs; pair++)
    for (const fraction of DIRTY_FRACTIONS)
      for (const [technique, parameters] of Object.entries(techniques)) {
        const what = `${fraction} of the link, ${technique}`;
        const dirtyRate = Math.round(fraction * LINK_PAGES);
        const {
          result: moved,
          stealShare,
          tries,
        } = await undisturbed(() => moveWriter(made, dirtyRate, parameters), {
          isFinal: ({ figures: ended }) => ended === undefined || ended.totalMs > LONG_MS,
        });
        runs.push({ pair, fraction, technique, dirtyRate, stealShare, tries, ...moved });
        add(`${what}: ends`, "share", "higher", moved.figures === undefined ? 0 : 1);
        add(`${what}: total`, "ms", "lower", moved.figures?.totalMs);
        add(`${what}: downtime`, "ms", "lower", moved.figures?.downtimeMs);
        add(`${what}: bytes sent of those filled`, "share", "lower", moved.figures && moved.figures.sentBytes / FILLED);
        add(`${what}: work done of what was due`, "share", "higher", moved.workShare);
        const took =
          moved.figures === undefined
            ? moved.failure
            : `${moved.figures.totalMs.toFixed(0)} ms, paused ${moved.figures.downtimeMs.toFixed(1)}`;
        say(`${what}: ${took ?? ""}; ${((moved.workShare ?? Number.NaN) * 100).toFixed(0)} % of its work`);
      }
  return { figures: [...figures.values()], runs };
}

const entry = (name: string, techniques: typeof TECHNIQUES): Bench => ({
  name,
  suite: "full",
  workload: {
    link: LINK_RATE,
    guest: GUEST,
    dirtyFractions: DIRTY_FRACTIONS,
    techniques,
    limitMs: { throttled: LIMIT_MS, unthrottled: UNTHROTTLED_LIMIT_MS },
  },
  measure: (run) =>
    withLinks([{ rate: LINK_RATE, mtu: 1500, congestionControl: undefined }], ([link]) => {
      if (link === undefined) throw new Error("One link was asked for");
      return measure(techniques, run, link);
    }),
});

/** Which techniques end a migration of a guest that outruns its link, and what each costs. */
export const convergenceEntries: readonly Bench[] = [entry("convergence", TECHNIQUES), entry("convergence-postcopy", POSTCOPY_TECHNIQUES)];
