import type { Bench, Figure } from "../define-bench.js";
import { undisturbed } from "../noise.js";
import { ratiosOf } from "../pairs.js";
import type { Load, PeerRun } from "../peer.js";
import { guestArgs, migrateOnce, runOf } from "../peers/precopy.js";
import { WAYS, withSecrets } from "../secrets.js";
import type { Way } from "../secrets.js";
import { warmMemory } from "../warm-memory.js";

const GIB = 2 ** 30;
const LOADS: readonly Load[] = [
  { name: "filled-1G", memory: 8 * GIB, filled: GIB, zeroed: 0, dirtyRate: 0, workingSet: 0 },
  { name: "hot64-25k", memory: 8 * GIB, filled: GIB, zeroed: 0, dirtyRate: 25_000, workingSet: 2 ** 26 },
];
/** Total with TLS to total without. */
const TOTAL_TARGET = 2;

function figures(runs: ReadonlyMap<Way, readonly PeerRun[]>): Figure[] {
  const of = (way: Way, value: (run: PeerRun) => number): number[] => (runs.get(way) ?? []).map(value);
  const all: readonly (readonly [string, Figure["unit"], (run: PeerRun) => number])[] = [
    ["total", "ms", ({ totalMs }) => totalMs],
    ["pause", "ms", ({ pauseMs }) => pauseMs],
    ["processor time, source", "s", ({ cpuSource }) => cpuSource],
    ["processor time, target", "s", ({ cpuTarget }) => cpuTarget],
  ];
  return all.flatMap(([name, unit, value]) => [
    ...WAYS.map((way): Figure => ({ name: `${name}, ${way}`, unit, better: "lower", values: of(way, value) })),
    ...WAYS.filter((way) => way !== "plain").map(
      (way): Figure => ({
        name: `${name}, ${way} to plain`,
        unit: "ratio",
        better: "lower",
        values: ratiosOf(of(way, value), of("plain", value)),
        ...(name === "total" && way === "tls" && { target: TOTAL_TARGET }),
      }),
    ),
  ]);
}

/** What it costs to let nobody in, and nobody read along, over loopback, where the link costs nothing. */
export const tlsEntries: readonly Bench[] = LOADS.map((load) => ({
  name: `tls-${load.name}`,
  suite: "full",
  workload: { ...load, ways: WAYS },
  measure: ({ pairs, say }) =>
    withSecrets(async (argumentsOf) => {
      const runs = new Map<Way, PeerRun[]>(WAYS.map((way) => [way, []]));
      for (let pair = 0; pair < pairs; pair++)
        for (const way of WAYS) {
          const args = argumentsOf(way);
          const move = async () =>
            runOf(await migrateOnce({ source: [...guestArgs(load), ...args], target: args, parameters: [] }, () => warmMemory(2 * GIB)));
          const { result } = await undisturbed(move);
          runs.get(way)?.push(result);
          say(
            `${way}: ${result.totalMs.toFixed(0)} ms, paused ${result.pauseMs.toFixed(1)}, ${(result.cpuSource + result.cpuTarget).toFixed(2)} s of processor`,
          );
        }
      return { figures: figures(runs), runs: Object.fromEntries(runs) };
    }),
}));
