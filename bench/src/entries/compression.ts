import { BLOCK_COMPRESSIONS } from "@precopy/protocol";
import type { MigrationParameters } from "@precopy/protocol";
import { hasCodec } from "@precopy/protocol/page-codec";
import type { Bench, BenchRun, Figure, Measurement } from "../define-bench.js";
import { figuresOf, moveGuest, withLinks } from "../link-moves.js";
import type { LinkGuest, MadeLink } from "../link-moves.js";
import { undisturbed } from "../noise.js";
import { spreadOf } from "../spread.js";

const MIB = 2 ** 20;
const LIMIT_MS = 240_000;
/** Bits a second; undefined is as fast as the kernel copies. */
const RATES: readonly (number | undefined)[] = [1e8, 1e9, 1e10, undefined];
/** random: nothing becomes smaller. text: a third of it, as much of a heap. sparse: a sixteenth of each page is data. */
const CONTENTS = ["random", "text", "sparse"] as const;
/** With zstd where this Node has it, which then runs the agents, too. */
const COMPRESSIONS: readonly MigrationParameters["multifdCompression"][] = ["none", ...BLOCK_COMPRESSIONS.filter(hasCodec), "auto"];
/** On the slowest link it takes 11 s uncompressed. */
const FILLED = 128 * MIB;
const GUEST: Omit<LinkGuest, "fillKind"> = { memory: 512 * MIB, filled: FILLED, workload: "idle", dirtyRate: 0, workingSet: 0 };
/** Under it the link is what everything waits for, and what the host takes of the processors is in nobody's way. Bits a second. */
const SLOW_LINK = 5e8;
/** `auto` may be slower than `none` by noise only. */
const AUTO_TARGET = 1.1;

async function measure({ pairs, say }: BenchRun, links: readonly MadeLink[]): Promise<Measurement> {
  const figures = new Map<string, Figure & { readonly values: number[] }>();
  const add = (name: string, unit: Figure["unit"], value: number, target?: number): void => {
    const figure = figures.get(name) ?? { name, unit, better: "lower", target, values: [] };
    figure.values.push(value);
    figures.set(name, figure);
  };
  const runs: unknown[] = [];
  for (let pair = 0; pair < pairs; pair++)
    for (const { link, name, options } of links)
      for (const fillKind of CONTENTS) {
        const took = new Map<string, number>();
        // Another one is first in each pair: what a run leaves behind (a warm cache, a queue that empties) is nobody's in particular.
        for (const multifdCompression of [
          ...COMPRESSIONS.slice(pair % COMPRESSIONS.length),
          ...COMPRESSIONS.slice(0, pair % COMPRESSIONS.length),
        ]) {
          const move = () => moveGuest(link, { ...GUEST, fillKind }, { multifdCompression }, LIMIT_MS);
          const isSlow = (options.rate ?? Infinity) < SLOW_LINK;
          const { result, ...disturbance } = isSlow ? { result: await move(), tries: 1 } : await undisturbed(move);
          const run = figuresOf(result);
          if (run === undefined) throw new Error(`${name}, ${fillKind}, ${multifdCompression}: an idle guest did not converge`);
          took.set(multifdCompression, run.totalMs);
          runs.push({ pair, link: name, fillKind, multifdCompression, ...disturbance, ...run });
          add(`${name}, ${fillKind}, ${multifdCompression}: total`, "ms", run.totalMs);
          add(`${name}, ${fillKind}, ${multifdCompression}: bytes sent of those filled`, "share", run.sentBytes / FILLED);
        }
        const { none = NaN, auto = NaN, ...others } = Object.fromEntries(took);
        add(`${name}, ${fillKind}: auto to none`, "ratio", auto / none, AUTO_TARGET);
        add(`${name}, ${fillKind}: auto to the best`, "ratio", auto / Math.min(none, ...Object.values(others)));
        say(`${name}, ${fillKind}: ${[...took].map(([compression, ms]) => `${compression} ${ms.toFixed(0)}`).join(", ")} ms`);
      }
  for (const { name, values } of figures.values()) if (name.endsWith("auto to none")) say(`${name}: ${spreadOf(values).median.toFixed(2)}`);
  return { figures: [...figures.values()], runs };
}

/** Whether `auto` chooses well: on links of all speeds, for contents of all kinds. */
export const compressionEntries: readonly Bench[] = [
  {
    name: "compression",
    suite: "full",
    workload: { rates: RATES.map((rate) => rate ?? "unshaped"), contents: CONTENTS, compressions: COMPRESSIONS, guest: GUEST },
    measure: (run) =>
      withLinks(
        RATES.map((rate) => ({ rate, mtu: 1500, congestionControl: undefined })),
        (links) => measure(run, links),
      ),
  },
];
