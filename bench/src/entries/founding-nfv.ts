import { whyNoMmuDirtyLog } from "@precopy/guest";
import type { Bench, BenchRun, Figure, Measurement } from "../define-bench.js";
import type { Load, PeerRun } from "../peer.js";
import { UNPROVEN, guestArgs, migrateOnce, runOf } from "../peers/precopy.js";
import { spreadOf } from "../spread.js";
import { warmMemory } from "../warm-memory.js";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

/**
 * The guests of a report on live migration of network functions (Intel, QEMU 2.4, 8 GiB): a freshly booted one from 2070 to 401 ms in all and from
 * 29 to 9 ms of downtime, one that forwards with DPDK from 2271 to 654 and from 26 to 5, by the kinds of optimisation that are switched off here.
 */
const GUESTS: readonly Load[] = [
  { name: "idle", memory: 8 * GIB, filled: 256 * MIB, zeroed: 0, dirtyRate: 0, workingSet: 0 },
  // Until there is a workload that forwards.
  { name: "loaded", memory: 8 * GIB, filled: GIB, zeroed: 0, dirtyRate: 25_000, workingSet: 64 * MIB },
];

/** The names are those of PRECOPY_WITHOUT. */
const SWITCHES = ["deferred-cleanup", "vector-zero-check", "populated-map"];
interface Variant {
  readonly name: string;
  readonly without: readonly string[];
}
const VARIANTS: readonly Variant[] = [
  { name: "all on", without: [] },
  ...SWITCHES.map((name) => ({ name: `without ${name}`, without: [name] })),
  // Alone it has next to nothing to look at: memory that was never populated is not even listed, and random pages end at their first words.
  { name: "without populated-map and vector-zero-check", without: ["populated-map", "vector-zero-check"] },
  { name: "all off", without: SWITCHES },
];

/** Beside what PeerRun has: the rounds as the report tells them. Times in ms. */
interface Run extends PeerRun {
  readonly guest: string;
  readonly variant: string;
  readonly setupMs: number | undefined;
  readonly iterations: readonly object[];
}

const FIGURES = {
  total: ({ totalMs }: Run) => totalMs,
  downtime: ({ pauseMs }: Run) => pauseMs,
} as const;

async function migrate(load: Load, { name, without }: Variant): Promise<Run> {
  const order = {
    source: [...guestArgs(load), "--fault-points"],
    target: ["--fault-points"],
    parameters: UNPROVEN,
    environment: { PRECOPY_WITHOUT: without.join(",") },
  };
  const outcome = await migrateOnce(order, () => warmMemory(2 * load.filled + GIB));
  const { iterations, "query-migrate": query } = outcome.report;
  return { guest: load.name, variant: name, ...runOf(outcome), setupMs: query["setup-time"], iterations };
}

function show(values: readonly number[]): string {
  const { median, min, max } = spreadOf(values);
  const digits = median < 20 ? 2 : 0;
  return `${median.toFixed(digits)} (${min.toFixed(digits)}-${max.toFixed(digits)})`;
}

async function measure({ pairs, say }: BenchRun): Promise<Measurement | string> {
  const reason = whyNoMmuDirtyLog();
  if (reason !== undefined) return `no mmu dirty log here, which is what has to be cleaned up: ${reason}`;
  const runs: Run[] = [];
  const figures: Figure[] = [];
  for (const load of GUESTS) {
    for (let round = 0; round < pairs; round++) for (const variant of VARIANTS) runs.push(await migrate(load, variant));
    say(`${load.name}: ${"".padEnd(38)} ${"total ms".padEnd(20)} downtime ms`);
    for (const { name } of VARIANTS) {
      const own = runs.filter(({ guest, variant }) => guest === load.name && variant === name);
      for (const [figure, of] of Object.entries(FIGURES))
        figures.push({ name: `${load.name}, ${name}: ${figure}`, unit: "ms", better: "lower", values: own.map(of) });
      say(`  ${name.padEnd(46)} ${show(own.map(FIGURES.total)).padEnd(20)} ${show(own.map(FIGURES.downtime))}`);
    }
  }
  return { figures, runs };
}

export const foundingNfvEntries: readonly Bench[] = [
  { name: "founding-nfv", suite: "full", workload: { guests: GUESTS, variants: VARIANTS, migrate: UNPROVEN.join(" ") }, measure },
];
