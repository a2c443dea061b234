import { Option } from "@commander-js/extra-typings";
import type { Command } from "@commander-js/extra-typings";
import {
  CHANNELS_MAX,
  COMPRESSIONS,
  DEFAULT_PARAMETERS,
  DEFAULT_PORT,
  MEMORY_BYTES_MAX,
  MEMORY_BYTES_MIN,
  PAGE_BYTES,
  TIMER_MS_MAX,
  formatBytes,
} from "@precopy/protocol";
import type { Address, MigrationParameters } from "@precopy/protocol";
import { jsonOption, reportOption } from "./common-options.js";
import { FILLS, parseFill } from "./guest-options.js";
import type { Fill } from "./guest-options.js";
import { downtimeLimitOption, parseCongestionControl } from "./migration-options.js";
import {
  option,
  parseBytes,
  parseChoice,
  parseList,
  parsePages,
  parsePeer,
  parseRate,
  parseText,
  parseTime,
  parseWhole,
  refuse,
} from "./option-parsers.js";
import { securityOf, withSecurity } from "./security-options.js";
import type { SecurityOptions } from "./security-options.js";

/** One sweep over everything that is a list. */
export interface BenchOptions {
  readonly to: Address;
  /** Of the sources that it starts. */
  readonly security: SecurityOptions;
  /** 0: the guest writes nothing. */
  readonly dirtyPagesPerSecond: readonly number[];
  readonly channels: readonly number[];
  readonly compressions: readonly MigrationParameters["multifdCompression"][];
  readonly congestionControls: readonly string[];
  /** Runs of each setting. */
  readonly repeats: number;
  readonly memoryBytes: number;
  /** At most the memory, whole pages. */
  readonly fill: Fill;
  readonly workingSetBytes: number;
  readonly downtimeLimitMs: number;
  /** How long the target may be full before a run, which is how long it may take to discard the guest of the run before. */
  readonly targetWaitMs: number;
  /** File for everything that was measured. */
  readonly report: string | undefined;
  /** For a shell, before each migration; undefined: nothing. */
  readonly prepare: string | undefined;
  /** Folder for SVG files; made if need be. */
  readonly plots: string | undefined;
  readonly isJson: boolean;
}

export interface BenchActions {
  bench(options: BenchOptions): Promise<void>;
}

/** What `precopy bench` does unless it is told otherwise; memory and fill are as in the demo. */
const BENCH = {
  dirtyRates: [0, 10_000, 25_000],
  channels: [1, 2, 4],
  compressions: ["none", "lz4"],
  repeats: 3,
  memoryBytes: 2 ** 31,
  fillBytes: 2 ** 28,
  workingSetBytes: 2 ** 26,
} as const;
/** One small run, some seconds. */
const BENCH_QUICK = {
  dirtyRates: [2000],
  channels: [2],
  compressions: ["none"],
  repeats: 1,
  memoryBytes: 2 ** 27,
  fillBytes: 2 ** 25,
  workingSetBytes: 2 ** 22,
} as const satisfies Record<keyof typeof BENCH, unknown>;
/** Longer than agents on one host take to discard a guest after `--discard-after 2s`, on a busy one too. */
const TARGET_WAIT_MS = 15_000;

export function addBench(program: Command, actions: BenchActions): void {
  withSecurity(
    program.command("bench").description("move fresh guests from this host to a target, on every combination of the lists, and compare"),
  )
    .addOption(
      option(
        "--to <HOST:PORT>",
        `a \`precopy target --discard-after 2s\`; port 1 to 65535, ${DEFAULT_PORT} if left out (required)`,
        parsePeer(DEFAULT_PORT),
      ).makeOptionMandatory(),
    )
    .addOption(
      option(
        "--dirty-rates <LIST>",
        "pages/s that the guest writes, separated by commas; 0 to 1G, 0 is a guest that writes nothing (default: 0,10k,25k)",
        parseList(parseRate(0, 1e9)),
      ),
    )
    .addOption(option("--channels <LIST>", `page channels; 1 to ${CHANNELS_MAX} (default: 1,2,4)`, parseList(parseWhole(1, CHANNELS_MAX))))
    .addOption(option("--compressions <LIST>", `${COMPRESSIONS.join(", ")} (default: none,lz4)`, parseList(parseChoice(COMPRESSIONS))))
    .addOption(
      option(
        "--congestion-controls <LIST>",
        "auto, and kernel's names such as cubic, bbr (default: auto: cubic where allowed)",
        parseList(parseCongestionControl),
      ),
    )
    .addOption(option("--repeats <N>", "runs of each combination; 1 to 1000 (default: 3)", parseWhole(1, 1000)))
    .addOption(
      option(
        "--memory <SIZE>",
        "guest memory, a size such as 8GiB in whole 4 KiB pages; 1MiB to 16TiB (default: 2GiB)",
        parsePages(MEMORY_BYTES_MIN, MEMORY_BYTES_MAX),
      ),
    )
    .addOption(
      option(
        "--fill <SIZE:KIND>",
        `SIZE or SIZE:KIND, contents at boot, in whole pages; 0 to --memory; ${FILLS.join(", ")} (default: 256MiB:random, at most half)`,
        parseFill,
      ),
    )
    .addOption(
      option(
        "--working-set <SIZE>",
        "memory that the guest writes to, at most what it has; 4KiB to 16TiB (default: 64MiB)",
        parseBytes(PAGE_BYTES, MEMORY_BYTES_MAX),
      ),
    )
    .addOption(downtimeLimitOption())
    .addOption(
      option(
        "--target-wait <MS>",
        `how long the target may be full before a run, longer than its --discard-after, ms; 0 to ${TIMER_MS_MAX}`,
        parseTime,
      ).default(TARGET_WAIT_MS, `${TARGET_WAIT_MS / 1000}s`),
    )
    .addOption(
      option(
        "--prepare <COMMAND>",
        "run this in a shell before each migration, while its guest runs: to warm the target's memory, or such (default: nothing)",
        parseText,
      ),
    )
    .addOption(reportOption("every value of every run, after each setting"))
    .addOption(
      option("--plots <DIR>", "write total time and downtime against the dirty rate there, as SVG files (default: none)", parseText),
    )
    .addOption(new Option("--quick", "one small run of seconds; what else is given still holds (default: all combinations)"))
    .addOption(jsonOption())
    .action(async (given) => {
      const otherwise = given.quick === true ? BENCH_QUICK : BENCH;
      const memoryBytes = given.memory ?? otherwise.memoryBytes;
      const half = Math.floor(memoryBytes / 2 / PAGE_BYTES) * PAGE_BYTES;
      const fill = given.fill ?? { bytes: Math.min(otherwise.fillBytes, half), kind: "random" };
      if (fill.bytes > memoryBytes)
        refuse(`--fill of ${formatBytes(fill.bytes)} does not fit into --memory of ${formatBytes(memoryBytes)}`);
      await actions.bench({
        to: given.to,
        security: securityOf(given),
        dirtyPagesPerSecond: given.dirtyRates ?? otherwise.dirtyRates,
        channels: given.channels ?? otherwise.channels,
        compressions: given.compressions ?? otherwise.compressions,
        congestionControls: given.congestionControls ?? [DEFAULT_PARAMETERS.congestionControl],
        repeats: given.repeats ?? otherwise.repeats,
        memoryBytes,
        fill,
        workingSetBytes: given.workingSet ?? otherwise.workingSetBytes,
        downtimeLimitMs: given.downtimeLimit ?? DEFAULT_PARAMETERS.downtimeLimitMs,
        targetWaitMs: given.targetWait,
        prepare: given.prepare,
        report: given.report,
        plots: given.plots,
        isJson: given.json === true,
      });
    });
}
