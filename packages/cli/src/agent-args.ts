import { randomBytes } from "node:crypto";
import { resolve } from "node:path";
import { Option } from "@commander-js/extra-typings";
import type { Command, OptionValues } from "@commander-js/extra-typings";
import {
  DEFAULT_PORT,
  MEMORY_BYTES_MAX,
  MEMORY_BYTES_MIN,
  TIMER_MS_MAX,
  VCPUS_MAX,
  fillParameters,
  parseAddress,
  parseMilliseconds,
} from "@precopy/protocol";
import type { Address, MigrationParameters } from "@precopy/protocol";
import { selectionOf, stateDirOf, stateDirOption, withSelection } from "./agent-selection.js";
import type { AgentSelection } from "./agent-selection.js";
import {
  DEFAULT_SWITCH_PORT,
  dirtyLogOption,
  faultPointsOption,
  insecureOption,
  jsonOption,
  listenOf,
  pumpOption,
  reportOption,
} from "./common-options.js";
import type { DirtyLogChoice } from "./common-options.js";
import { FILLS, guestOf, parseFill, vcpusOf, withGuest } from "./guest-options.js";
import type { Fill, GuestOptions } from "./guest-options.js";
import { modeOption, parametersOf, withMigration } from "./migration-options.js";
import {
  option,
  parseBytes,
  parseChoice,
  parseName,
  parsePeer,
  parseText,
  parseTime,
  parseWhole,
  read,
  refuse,
  within,
} from "./option-parsers.js";
import type { None, OptionsOf } from "./option-parsers.js";
import { securityOf, withSecurity } from "./security-options.js";
import type { SecurityOptions } from "./security-options.js";

const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;

/** Files to register, by workload name, and a folder of them; whether they can be read is found out at registration. */
export interface WorkloadSources {
  readonly files: readonly { readonly name: string; readonly file: string }[];
  readonly directory: string | undefined;
}

export interface AgentOptions extends AgentSelection {
  readonly listen: Address;
  readonly isInsecure: boolean;
  readonly security: SecurityOptions;
  readonly stateDir: string;
  /** Undefined: only what the system has available. */
  readonly memoryLimitBytes: number | undefined;
  readonly dirtyLog: DirtyLogChoice;
  readonly pump: MigrationParameters["pump"];
  /** Back end of guests' network cards. */
  readonly switchAddress: Address | undefined;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly workloads: WorkloadSources;
  /** Where the guest goes when the agent is told to end; undefined: it stays, and so does the agent until it is told again. */
  readonly evacuateTo: Address | undefined;
  /** Absolute path of a folder that both agents see; undefined: an operator decides what two agents cannot. */
  readonly arbiter: string | undefined;
  /** How long a guest that arrived runs here before it is ended; undefined: it stays. */
  readonly discardAfterMs: number | undefined;
  readonly isJson: boolean;
  /** Its environment may make it fail, or slower, on purpose; see fault-points.ts. */
  readonly hasFaultPoints: boolean;
}

export interface SourceOptions extends AgentOptions, GuestOptions {
  readonly guest: string;
  readonly migrateTo: Address | undefined;
  /** From boot to the migration. */
  readonly afterMs: number;
  readonly parameters: MigrationParameters;
  /** File for the report of each migration. */
  readonly report: string | undefined;
}

export type TargetOptions = AgentOptions;

export interface AgentActions {
  source(options: SourceOptions): Promise<void>;
  target(options: TargetOptions): Promise<void>;
}

/** One `--workload` of a command line. */
interface GivenWorkload {
  readonly name: string;
  readonly file: string | undefined;
}

function parseWorkloads(text: string, previous: readonly GivenWorkload[]): GivenWorkload[] {
  const at = text.indexOf("=");
  const given =
    at < 0
      ? text.split(",").map((name) => ({ name: parseName(name), file: undefined }))
      : [{ name: parseName(text.slice(0, at)), file: text.slice(at + 1) }];
  for (const { name, file } of given) {
    if (file === "") refuse(`"${text}" names no file`);
    const other = previous.find(
      (earlier) => earlier.name === name && earlier.file !== undefined && file !== undefined && earlier.file !== file,
    );
    if (other !== undefined) refuse(`"${text}": ${name} is ${other.file} already`);
  }
  return [...previous, ...given];
}

const NO_WORKLOADS: readonly GivenWorkload[] = [];
const workloadOption = (description: string, otherwise: string) =>
  new Option("--workload <NAME>", description)
    .argParser((text: string, previous: readonly GivenWorkload[]): readonly GivenWorkload[] =>
      read("--workload", text, () => parseWorkloads(text, previous)),
    )
    .default(NO_WORKLOADS, otherwise);

const filesOf = (given: readonly GivenWorkload[]): WorkloadSources["files"] => {
  const files = new Map(given.flatMap(({ name, file }) => (file === undefined ? [] : [[name, file] as const])));
  return [...files].map(([name, file]) => ({ name, file }));
};

const withAgent = <A extends unknown[], O extends OptionValues, G extends OptionValues>(command: Command<A, O, G>) =>
  withSecurity(withSelection(command))
    .addOption(
      option("--listen <HOST:PORT>", "where peers connect; port 0 to 65535, 0 lets the system choose", (text) =>
        parseAddress(text, DEFAULT_PORT),
      ).default({ host: "127.0.0.1", port: DEFAULT_PORT }, `127.0.0.1:${DEFAULT_PORT}`),
    )
    .addOption(insecureOption())
    .addOption(stateDirOption())
    .addOption(
      option(
        "--memory-limit <SIZE>",
        "most memory for guests here, a size such as 8GiB; 1MiB to 16TiB (default: what the system has available)",
        parseBytes(MEMORY_BYTES_MIN, MEMORY_BYTES_MAX),
      ),
    )
    .addOption(dirtyLogOption())
    .addOption(pumpOption())
    .addOption(
      option(
        "--switch <HOST:PORT>",
        `back end of network cards, a \`precopy switch\`; port 1 to 65535, else ${DEFAULT_SWITCH_PORT} (default: none, no card)`,
        parsePeer(DEFAULT_SWITCH_PORT),
      ),
    )
    .addOption(
      option(
        "--log-level <LEVEL>",
        `log on stderr: ${LOG_LEVELS.join(", ")} (default: warn for source, info for target)`,
        parseChoice(LOG_LEVELS),
      ),
    )
    .addOption(option("--workload-dir <DIR>", "register every .js and .mjs file of this folder by its name (default: none)", parseText))
    .addOption(
      option(
        "--evacuate-to <HOST:PORT>",
        `on SIGTERM or SIGINT migrate the guest there, then end; port 1 to 65535, else ${DEFAULT_PORT} (default: none, a first signal is refused while a guest is here and a second one ends both)`,
        parsePeer(DEFAULT_PORT),
      ),
    )
    .addOption(
      option(
        "--arbiter <DIR>",
        "folder that both agents see and may write, where they settle who owns a guest (default: none, an operator decides)",
        parseText,
      ),
    )
    .addOption(faultPointsOption())
    .addOption(jsonOption());

type GivenAgent = OptionsOf<ReturnType<typeof withAgent<[], None, None>>> & { readonly workload: readonly GivenWorkload[] };

const agentOf = (given: GivenAgent, logLevel: AgentOptions["logLevel"]): AgentOptions => ({
  ...selectionOf(given),
  ...listenOf(given.listen, given.insecure === true, securityOf(given)),
  security: securityOf(given),
  stateDir: stateDirOf(given),
  memoryLimitBytes: given.memoryLimit,
  dirtyLog: given.dirtyLog,
  pump: given.pump,
  switchAddress: given.switch,
  logLevel: given.logLevel ?? logLevel,
  workloads: { files: filesOf(given.workload), directory: given.workloadDir },
  evacuateTo: given.evacuateTo,
  arbiter: given.arbiter === undefined ? undefined : resolve(given.arbiter),
  discardAfterMs: undefined,
  isJson: given.json === true,
  hasFaultPoints: given.faultPoints === true,
});

export function addSource(program: Command, actions: AgentActions): void {
  const command = program.command("source").description("boot a guest here and hold it, ready to migrate");
  withMigration(withAgent(withGuest(command)))
    .addOption(
      workloadOption(
        "NAME[,NAME] or NAME=FILE, repeatable: one vCPU each, in order; built in: idle, random-writer, sequential-writer, ledger; NAME=FILE registers it too",
        "random-writer",
      ),
    )
    .addOption(
      option(
        "--vcpus <N>",
        `vCPUs; the last workload runs on those left over; 1 to ${VCPUS_MAX} (default: one for each workload)`,
        parseWhole(1, VCPUS_MAX),
      ),
    )
    .addOption(
      option(
        "--fill <SIZE:KIND>",
        `SIZE or SIZE:KIND, contents at boot, in whole pages; 0 to --memory; ${FILLS.join(", ")}`,
        parseFill,
      ).default<Fill>({ bytes: 0, kind: "random" }, "0:random"),
    )
    .addOption(option("--guest <ID>", "name of the guest (default: guest- and 6 random hex digits)", parseName))
    .addOption(
      option(
        "--migrate-to <HOST:PORT>",
        `migrate there after boot; port 1 to 65535, ${DEFAULT_PORT} if left out (default: wait for \`precopy migrate\`)`,
        parsePeer(DEFAULT_PORT),
      ),
    )
    .addOption(option("--after <MS>", `wait from boot to --migrate-to, ms; 0 to ${TIMER_MS_MAX} (default: 0)`, parseTime))
    .addOption(modeOption())
    .addOption(reportOption("what was measured"))
    .action(async (given) => {
      if (given.after !== undefined && given.migrateTo === undefined) refuse(`--after "${given.after}" needs --migrate-to`);
      const selected = given.workload.length === 0 ? ["random-writer"] : given.workload.map(({ name }) => name);
      await actions.source({
        ...agentOf(given, "warn"),
        ...guestOf(given, vcpusOf(selected, given.vcpus), given.fill),
        guest: given.guest ?? `guest-${randomBytes(3).toString("hex")}`,
        migrateTo: given.migrateTo,
        afterMs: given.after ?? 0,
        parameters: fillParameters(parametersOf(given)),
        report: given.report,
      });
    });
}

export function addTarget(program: Command, actions: AgentActions): void {
  withAgent(program.command("target").description("wait for a guest; it can be migrated on from here"))
    .addOption(workloadOption("NAME=FILE, repeatable: registers a workload that a guest may bring", "the built-in ones only"))
    .addOption(
      option(
        "--discard-after <MS>",
        `for benchmarks: end a guest that arrived and ran this long, for good, and be empty again; 1 to ${TIMER_MS_MAX}, or such as 2s (default: never)`,
        (text) => within(text, parseMilliseconds(text), 1, TIMER_MS_MAX, (value) => `${value} ms`),
      ),
    )
    .action(async (given) => {
      const selected = given.workload.find(({ file }) => file === undefined);
      if (selected !== undefined)
        refuse(`--workload: "${selected.name}" names no file, and a target only registers: give ${selected.name}=FILE`);
      await actions.target({ ...agentOf(given, "info"), discardAfterMs: given.discardAfter });
    });
}
