import { parseArgs } from "node:util";
import { spreadOf } from "./define-bench.js";
import type { Spread } from "./define-bench.js";
import { LOADS } from "./peer.js";
import type { Load, Peer, PeerRun } from "./peer.js";
import { precopyPeer } from "./peers/precopy.js";
import { qemuPeer } from "./peers/qemu.js";
import { environment, keepResult } from "./report.js";
import { warmMemory } from "./warm-memory.js";

// npm run bench:versus -- [--pairs N] [--load NAME,...] [--setting NAME] [--keep]
// Every load on precopy and on every setting of every peer, one after another, N times over; ratios are taken round by round.
const { values } = parseArgs({
  options: {
    pairs: { type: "string", default: "10" },
    load: { type: "string" },
    setting: { type: "string", default: "default,proven" },
    keep: { type: "boolean", default: false },
  },
});
const GIB = 2 ** 30;
const loads = LOADS.filter(({ name }) => values.load === undefined || values.load.split(",").includes(name));
const ownSettings = values.setting.split(",");

interface Side {
  readonly peer: Peer;
  readonly setting: string;
  readonly isOurs: boolean;
  readonly runs: PeerRun[];
}

const FIGURES = {
  "total ms": ({ totalMs }: PeerRun) => totalMs,
  "pause ms": ({ pauseMs }: PeerRun) => pauseMs,
  "tick gap ms": ({ tickGapMs }: PeerRun) => tickGapMs ?? Number.NaN,
  "cpu s": ({ cpuSource, cpuTarget }: PeerRun) => cpuSource + cpuTarget,
} as const;
type Figure = keyof typeof FIGURES;

const show = ({ median, min, max }: Spread): string => `${median.toFixed(median < 20 ? 2 : 0)} (${min.toFixed(1)}-${max.toFixed(1)})`;

/** The peer's setting with the lowest median of a figure: what precopy has to beat. */
function best(sides: readonly Side[], figure: Figure): Side | undefined {
  const median = ({ runs }: Side): number => spreadOf(runs.map(FIGURES[figure])).median;
  return sides.filter(({ isOurs, runs }) => !isOurs && runs.length > 0).toSorted((one, other) => median(one) - median(other))[0];
}

async function compare(load: Load, peers: readonly Peer[], rounds: number): Promise<Record<string, unknown>> {
  const sides: Side[] = [
    ...ownSettings.map((setting) => ({ peer: precopyPeer(), setting, isOurs: true, runs: [] })),
    ...peers.flatMap((peer) => peer.settings.map((setting) => ({ peer, setting, isOurs: false, runs: [] }))),
  ];
  for (let round = 0; round < rounds; round++)
    for (const { peer, setting, runs } of sides) {
      // Free memory goes back to the host within seconds, so what the target needs is warmed at the last moment; zeros it does not need.
      runs.push(await peer.migrate(load, setting, () => warmMemory(2 * load.filled + GIB)));
    }
  console.log(`\n${load.name}`);
  for (const { peer, setting, runs } of sides) {
    const cells = Object.entries(FIGURES).map(([name, of]) => `${name} ${show(spreadOf(runs.map(of)))}`);
    console.log(`  ${`${peer.name} ${setting}`.padEnd(24)} ${cells.join("  ")}  rounds ${spreadOf(runs.map(({ rounds: n }) => n)).median}`);
  }
  const ratios: Record<string, Spread> = {};
  for (const { setting, runs } of sides.filter(({ isOurs }) => isOurs))
    for (const [name, of] of Object.entries(FIGURES)) {
      const rival = best(sides, name as Figure); // the keys of FIGURES
      if (rival === undefined) continue;
      const ratio = spreadOf(runs.map((run, at) => of(run) / of(rival.runs[at]!)));
      ratios[`${setting}, ${name}, against ${rival.setting}`] = ratio;
      console.log(
        `  ratio ${setting}, ${name}: ${ratio.median.toFixed(2)} (${ratio.min.toFixed(2)}-${ratio.max.toFixed(2)}) of ${rival.setting}`,
      );
    }
  return { load, ratios, sides: sides.map(({ peer, setting, runs }) => ({ peer: peer.name, setting, runs })) };
}

const qemu = await qemuPeer();
const peers = typeof qemu === "string" ? [] : [qemu];
if (typeof qemu === "string") console.log(`no QEMU: ${qemu}`);
const results: unknown[] = [];
for (const load of loads) results.push(await compare(load, peers, Number(values.pairs)));
if (values.keep)
  keepResult("versus", { command: `npm run bench:versus -- --pairs ${values.pairs} --keep`, environment: environment(), results });
