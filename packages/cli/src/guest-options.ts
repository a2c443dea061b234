import type { Command, OptionValues } from "@commander-js/extra-typings";
import type { FILL_KINDS, WritePattern } from "@precopy/guest";
import { MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, PAGE_BYTES, VCPUS_MAX, formatBytes } from "@precopy/protocol";
import { option, parseBytes, parseChoice, parseFraction, parsePages, parseRate, refuse } from "./option-parsers.js";
import type { None, OptionsOf } from "./option-parsers.js";

const PATTERNS = ["steady", "bursty", "phases", "moving"] as const satisfies readonly WritePattern[];
export const FILLS = ["random", "text", "sparse", "zeros"] as const satisfies readonly (typeof FILL_KINDS)[number][];

export interface Fill {
  readonly bytes: number;
  readonly kind: (typeof FILLS)[number];
}

/** A guest to be booted. */
export interface GuestOptions {
  /** Workload of each vCPU; never empty. */
  readonly vcpus: readonly string[];
  readonly memoryBytes: number;
  /** At most the memory, whole pages. */
  readonly fill: Fill;
  /** Of a random-writer or sequential-writer; 0 is as fast as it can. */
  readonly dirtyPagesPerSecond: number;
  /** Of a random-writer or sequential-writer; more than the vCPU's region is refused. */
  readonly workingSetBytes: number;
  /** Of a random-writer, 0 to 1: share of the writes that goes to a tenth of the working set, the first if it does not move. */
  readonly hotFraction: number;
  readonly writePattern: WritePattern;
}

export function parseFill(text: string): Fill {
  const colon = text.indexOf(":");
  const size = colon < 0 ? text : text.slice(0, colon);
  return { bytes: parsePages(0, MEMORY_BYTES_MAX)(size), kind: colon < 0 ? "random" : parseChoice(FILLS)(text.slice(colon + 1)) };
}

/** The last selected workload runs on every vCPU that is left. */
export function vcpusOf(selected: readonly string[], vcpus = selected.length): string[] {
  if (vcpus < selected.length) refuse(`--vcpus ${vcpus} is less than the ${selected.length} workloads: ${selected.join(", ")}`);
  if (vcpus > VCPUS_MAX) refuse(`--workload: ${vcpus} vCPUs, must be 1 to ${VCPUS_MAX}`);
  return Array.from({ length: vcpus }, (_, at) => selected[Math.min(at, selected.length - 1)] ?? "");
}

export const withGuest = <A extends unknown[], O extends OptionValues, G extends OptionValues>(command: Command<A, O, G>) =>
  command
    .addOption(
      option(
        "--memory <SIZE>",
        "guest memory, a size such as 8GiB in whole 4 KiB pages; 1MiB to 16TiB",
        parsePages(MEMORY_BYTES_MIN, MEMORY_BYTES_MAX),
      ).default(2 ** 31, "2GiB"),
    )
    .addOption(
      option(
        "--dirty-rate <COUNT>",
        "pages/s that each random-writer or sequential-writer writes, such as 25k; 0 to 1G, 0 is as fast as it can",
        parseRate(0, 1e9),
      ).default(25_000, "25k"),
    )
    .addOption(
      option(
        "--working-set <SIZE>",
        "memory it writes to, at most the region of its vCPU; 4KiB to 16TiB",
        parseBytes(PAGE_BYTES, MEMORY_BYTES_MAX),
      ).default(2 ** 26, "64MiB"),
    )
    .addOption(
      option(
        "--hot-fraction <FRACTION>",
        "share of a random-writer's writes that goes to a tenth of the working set, the first if it does not move; 0 to 1",
        parseFraction,
      ).default(0),
    )
    .addOption(
      option(
        "--write-pattern <PATTERN>",
        "steady; bursty (a quarter of each second at four times the rate); phases (5 s at half as much again, 5 s at half); moving (steady, and a random-writer's hot tenth is another one each second)",
        parseChoice(PATTERNS),
      ).default("steady" as const),
    );

type GivenGuest = OptionsOf<ReturnType<typeof withGuest<[], None, None>>>;

export function guestOf(given: GivenGuest, vcpus: readonly string[], fill: Fill): GuestOptions {
  if (fill.bytes > given.memory) refuse(`--fill of ${formatBytes(fill.bytes)} does not fit into --memory of ${formatBytes(given.memory)}`);
  return {
    vcpus,
    memoryBytes: given.memory,
    fill,
    dirtyPagesPerSecond: given.dirtyRate,
    workingSetBytes: given.workingSet,
    hotFraction: given.hotFraction,
    writePattern: given.writePattern,
  };
}
