import type { Bench, BenchRun, Figure, Measurement } from "../define-bench.js";
import { LOADS } from "../peer.js";
import type { Load, Peer, PeerRun } from "../peer.js";
import { precopyPeer } from "../peers/precopy.js";
import { qemuPeer } from "../peers/qemu.js";
import { interleave, ratiosOf } from "../pairs.js";
import { formatSpread, spreadOf } from "../spread.js";
import { warmMemory } from "../warm-memory.js";

const GIB = 2 ** 30;
/** `proven` has digest and audit, which no peer has. */
const OWN_SETTINGS = ["default", "proven"] as const;
const PROVEN_TO_DEFAULT_MAX = 1.3;

/** Total time against the peer's best setting. */
const TOTAL_MAX: Readonly<Record<string, number>> = {
  "idle-64M": 0.25,
  "filled-1G": 0.7,
  "filled-2G": 0.7,
  "hot64-25k": 0.8,
  "hot1024-25k": 0.8,
  "hot1024-100k": 0.8,
  "zeroed-6G": 0.5,
};

interface Side {
  readonly peer: Peer;
  readonly setting: string;
  readonly runs: PeerRun[];
}

interface RunFigure {
  readonly name: string;
  readonly unit: "ms" | "s";
  of(run: PeerRun): number;
  /** Of the default setting, against the peer's best. */
  target(load: Load): number | undefined;
}
const FIGURES: readonly RunFigure[] = [
  { name: "total", unit: "ms", of: ({ totalMs }) => totalMs, target: ({ name }) => TOTAL_MAX[name] },
  { name: "pause", unit: "ms", of: ({ pauseMs }) => pauseMs, target: () => 1 },
  { name: "tick gap", unit: "ms", of: ({ tickGapMs }) => tickGapMs ?? Number.NaN, target: () => 1 },
  { name: "processor time", unit: "s", of: ({ cpuSource, cpuTarget }) => cpuSource + cpuTarget, target: () => undefined },
];

const PAUSE_FIGURES = FIGURES.filter(({ name }) => name === "pause" || name === "tick gap");

/** Free memory goes back to the host within seconds, so what the target needs is warmed at the last moment; zeros it does not need. */
const warmFor = (load: Load) => (): void => warmMemory(2 * load.filled + GIB);

const sideName = ({ peer, setting }: Side): string => `${peer.name} ${setting}`;

/** The setting with the lowest median of a figure: what precopy has to beat. */
function best(rivals: readonly Side[], { of }: RunFigure): Side | undefined {
  const median = ({ runs }: Side): number => spreadOf(runs.map(of)).median;
  return rivals.toSorted((one, other) => median(one) - median(other))[0];
}

/** Ours against the best of theirs, and what proof costs us: ratios pair by pair. */
function ratios(own: readonly Side[], rivals: readonly Side[], load: Load): Figure[] {
  const [plain] = own;
  return FIGURES.flatMap((figure): Figure[] => {
    const rival = best(rivals, figure);
    const figures: Figure[] = [];
    for (const side of own) {
      if (rival !== undefined)
        figures.push({
          name: `${figure.name}, ${side.setting} to ${sideName(rival)}`,
          unit: "ratio",
          better: "lower",
          values: ratiosOf(side.runs.map(figure.of), rival.runs.map(figure.of)),
          target: side === plain ? figure.target(load) : undefined,
        });
      if (plain !== undefined && side !== plain && figure.name === "total")
        figures.push({
          name: `${figure.name}, ${side.setting} to ${plain.setting}`,
          unit: "ratio",
          better: "lower",
          values: ratiosOf(side.runs.map(figure.of), plain.runs.map(figure.of)),
          target: PROVEN_TO_DEFAULT_MAX,
        });
    }
    return figures;
  });
}

/** One run of every setting of every side, again and again: what moves the machine meanwhile moves all of them. */
async function measure(load: Load, { pairs, say }: BenchRun): Promise<Measurement> {
  const precopy = precopyPeer();
  const qemu = await qemuPeer();
  if (typeof qemu === "string") say(`  without QEMU: ${qemu}`);
  const own = OWN_SETTINGS.map((setting): Side => ({ peer: precopy, setting, runs: [] }));
  const rivals = typeof qemu === "string" ? [] : qemu.settings.map((setting): Side => ({ peer: qemu, setting, runs: [] }));
  const sides = [...own, ...rivals];
  for (let round = 0; round < pairs; round++)
    for (const { peer, setting, runs } of sides) runs.push(await peer.migrate(load, setting, warmFor(load)));
  for (const side of sides) {
    const cells = FIGURES.map(({ name, unit, of }) => `${name} ${formatSpread(spreadOf(side.runs.map(of)))} ${unit}`);
    const shares = side.runs.flatMap(({ workShare }) => workShare ?? []);
    const work = shares.length === 0 ? "" : `  ${Math.round(100 * spreadOf(shares).median)} % of its work done meanwhile`;
    say(`  ${sideName(side).padEnd(22)} ${cells.join("  ")}${work}`);
  }
  const times = sides.flatMap((side) =>
    FIGURES.map(({ name, unit, of }): Figure => ({ name: `${name}, ${sideName(side)}`, unit, better: "lower", values: side.runs.map(of) })),
  );
  return {
    figures: [...ratios(own, rivals, load), ...times],
    runs: Object.fromEntries(sides.map((side) => [sideName(side), side.runs])),
  };
}

/** The table that precopy is compared in, a row each. */
export const versusEntries: readonly Bench[] = LOADS.map((load) => ({
  name: `versus-${load.name}`,
  suite: "table",
  workload: { ...load },
  measure: (run) => measure(load, run),
}));

/** Pauses vary more than totals do. */
const PAUSES_PER_PAIR = 3;
/** QEMU's setting with the shortest pauses in most rows of the table. */
const RIVAL_SETTING = "multifd-2";

/** Pauses of two settings that are known, more often than the table can have all of them. */
async function measurePauses(load: Load, { pairs }: BenchRun): Promise<Measurement | string> {
  const qemu = await qemuPeer();
  if (typeof qemu === "string") return qemu;
  const precopy = precopyPeer();
  const ready = warmFor(load);
  const pauses = await interleave(
    PAUSES_PER_PAIR * pairs,
    () => precopy.migrate(load, OWN_SETTINGS[0], ready),
    () => qemu.migrate(load, RIVAL_SETTING, ready),
  );
  const [ours, theirs] = [pauses.map((pair) => pair.ours), pauses.map((pair) => pair.theirs)];
  const rival = `${qemu.name} ${RIVAL_SETTING}`;
  const figures = PAUSE_FIGURES.flatMap(({ name, unit, of, target }): Figure[] => {
    const what = `${load.name}: ${name}`;
    const [own, other] = [ours.map(of), theirs.map(of)];
    return [
      { name: `${what}, precopy`, unit, better: "lower", values: own },
      { name: `${what}, ${rival}`, unit, better: "lower", values: other },
      { name: what, unit: "ratio", better: "lower", values: ratiosOf(own, other), target: target(load) },
    ];
  });
  return { figures, runs: { precopy: ours, [rival]: theirs } };
}

export const pausesEntries: readonly Bench[] = LOADS.map((load) => ({
  name: `pauses-${load.name}`,
  suite: "full",
  workload: { ...load },
  measure: (run) => measurePauses(load, run),
}));

const RUNS_OF_100 = 100;
const PAUSE_MAX_MS = 10;
const PAUSE_MAX_SHARE = 0.9;

/** How often a pause is short, with fresh agents every time. */
const hundredPauses: Bench = {
  name: "pause-100",
  suite: "full",
  workload: { load: "hot64-25k", runs: RUNS_OF_100 },
  async measure({ say }) {
    const load = LOADS.find(({ name }) => name === "hot64-25k");
    if (load === undefined) throw new Error("no such load");
    const peer = precopyPeer();
    const runs: PeerRun[] = [];
    while (runs.length < RUNS_OF_100) {
      runs.push(await peer.migrate(load, "default", warmFor(load)));
      if (runs.length % 20 === 0) say(`  ${runs.length} of ${RUNS_OF_100}`);
    }
    const pauses = runs.map(({ pauseMs }) => pauseMs);
    const share = pauses.filter((ms) => ms < PAUSE_MAX_MS).length / pauses.length;
    return {
      figures: [
        { name: `share under ${PAUSE_MAX_MS} ms`, unit: "share", better: "higher", values: [share], target: PAUSE_MAX_SHARE },
        { name: "pause", unit: "ms", better: "lower", values: pauses },
      ],
      runs,
    };
  },
};

export const pauseOf100: readonly Bench[] = [hundredPauses];
