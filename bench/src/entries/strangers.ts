import { parseAddress } from "@precopy/protocol";
import type { Bench } from "../define-bench.js";
import { undisturbed } from "../noise.js";
import { ratiosOf } from "../pairs.js";
import type { Load, PeerRun } from "../peer.js";
import { withSecrets } from "../secrets.js";
import { guestArgs, migrateOnce, runOf } from "../peers/precopy.js";
import { Strangers } from "../strangers.js";
import type { Annoyance } from "../strangers.js";
import { warmMemory } from "../warm-memory.js";

const GIB = 2 ** 30;
const LOAD: Load = { name: "strangers", memory: 2 * GIB, filled: GIB, zeroed: 0, dirtyRate: 2000, workingSet: 2 ** 24 };
/** The link is what it waits for: strangers on this host take processor time of their own, which is no fault of the port's. */
const PARAMETERS = ["--max-bandwidth", "2Gbit"];
/** They come this long before the migration. */
const BEFORE_MS = 500;
const TARGET = 1.1;

interface Run extends PeerRun {
  readonly annoyance: Annoyance | undefined;
}

async function move(args: readonly string[], isAnnoyed: boolean): Promise<Run> {
  let strangers: Strangers | undefined;
  try {
    const outcome = await migrateOnce({ source: [...guestArgs(LOAD), ...args], target: args, parameters: PARAMETERS }, async (listen) => {
      warmMemory(2 * GIB);
      if (!isAnnoyed) return;
      strangers = new Strangers(parseAddress(listen));
      await strangers.begin();
      await new Promise((resolve) => setTimeout(resolve, BEFORE_MS));
    });
    return { ...runOf(outcome), annoyance: strangers?.annoyance };
  } finally {
    strangers?.end();
  }
}

/** What people without any business at a port do to a migration through it. */
export const strangersEntries: readonly Bench[] = (["plain", "tls"] as const).map((way) => ({
  name: `strangers-${way}`,
  suite: "full",
  workload: { ...LOAD, way, parameters: PARAMETERS },
  measure: ({ pairs, say }) =>
    withSecrets(async (argumentsOf) => {
      const alone: Run[] = [];
      const annoyed: Run[] = [];
      for (let pair = 0; pair < pairs; pair++)
        for (const [runs, isAnnoyed] of [
          [alone, false],
          [annoyed, true],
        ] as const) {
          const { result } = await undisturbed(() => move(argumentsOf(way), isAnnoyed));
          runs.push(result);
          say(`${isAnnoyed ? "with strangers" : "alone"}: ${result.totalMs.toFixed(0)} ms, paused ${result.pauseMs.toFixed(1)}`);
        }
      const totals = [annoyed, alone].map((runs) => runs.map(({ totalMs }) => totalMs));
      return {
        figures: [
          { name: "total, alone", unit: "ms", better: "lower", values: totals[1]! },
          { name: "total, with strangers", unit: "ms", better: "lower", values: totals[0]! },
          {
            name: "total, with strangers to alone",
            unit: "ratio",
            better: "lower",
            values: ratiosOf(totals[0]!, totals[1]!),
            target: TARGET,
          },
          { name: "pause, alone", unit: "ms", better: "lower", values: alone.map(({ pauseMs }) => pauseMs) },
          { name: "pause, with strangers", unit: "ms", better: "lower", values: annoyed.map(({ pauseMs }) => pauseMs) },
        ],
        runs: { alone, annoyed },
      };
    }),
}));
