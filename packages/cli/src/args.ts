import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { Argument, Command, CommanderError, Option } from "@commander-js/extra-typings";
import type { OptionValues, OutputConfiguration } from "@commander-js/extra-typings";
import type { DirtyLogKind, FILL_KINDS, WritePattern } from "@precopy/guest";
import {
  CHANNELS_MAX,
  COMPRESSIONS,
  DEFAULT_PARAMETERS,
  DEFAULT_PORT,
  MEMORY_BYTES_MAX,
  MEMORY_BYTES_MIN,
  MODES,
  MigrationError,
  PAGE_BYTES,
  TIMER_MS_MAX,
  VCPUS_MAX,
  fillParameters,
  formatAddress,
  formatBytes,
  isLoopback,
  parseAddress,
  parseMilliseconds,
} from "@precopy/protocol";
import type { Address, LiveParameters, MigrationParameters } from "@precopy/protocol";
import type { ResolveRequest } from "./command-socket.js";
import { oneLine } from "./exit-code.js";
import {
  downtimeLimitOption,
  liveParametersOf,
  modeOption,
  parametersOf,
  parseCongestionControl,
  unattended,
  withLive,
  withMigration,
} from "./migration-options.js";
import {
  option,
  parseBytes,
  parseChoice,
  parseFraction,
  parseList,
  parseName,
  parsePages,
  parsePeer,
  parseRate,
  parseText,
  parseTime,
  parseWhole,
  read,
  refuse,
  within,
} from "./option-parsers.js";
import { NO_SECURITY, securityOf, withSecurity } from "./security-options.js";
import type { SecurityOptions } from "./security-options.js";

export const DEFAULT_SWITCH_PORT = 4747;

// npm puts package.json into every package and demands a version in it
const packageFile = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { readonly version: string };
export const RELEASE = packageFile.version;

const PUMPS = ["auto", "direct", "portable"] as const satisfies readonly MigrationParameters["pump"][];
const DIRTY_LOGS = ["auto", "mmu", "barrier"] as const satisfies readonly ("auto" | DirtyLogKind)[];
const PATTERNS = ["steady", "bursty", "phases", "moving"] as const satisfies readonly WritePattern[];
const FILLS = ["random", "text", "sparse", "zeros"] as const satisfies readonly (typeof FILL_KINDS)[number][];
const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;

/** `sun_path` holds 104 bytes on some systems; a dead agent's socket is moved aside under a name that may be a little longer. */
const SOCKET_PATH_BYTES_MAX = 95;

export interface Fill {
  readonly bytes: number;
  readonly kind: (typeof FILLS)[number];
}

/** Files to register, by workload name, and a folder of them; whether they can be read is found out at registration. */
export interface WorkloadSources {
  readonly files: readonly { readonly name: string; readonly file: string }[];
  readonly directory: string | undefined;
}

/** Which agent of this host is meant. */
export interface AgentSelection {
  readonly name: string;
  /** Path of its Unix socket. */
  readonly socket: string;
}

export interface AgentOptions extends AgentSelection {
  readonly listen: Address;
  readonly isInsecure: boolean;
  readonly security: SecurityOptions;
  readonly stateDir: string;
  /** Undefined: only what the system has available. */
  readonly memoryLimitBytes: number | undefined;
  readonly dirtyLog: (typeof DIRTY_LOGS)[number];
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

export interface MigrateOptions extends AgentSelection {
  readonly to: Address;
  /** Undefined: whichever the agent holds. */
  readonly guest: string | undefined;
  /** Only what was given; the agent knows the rest. */
  readonly parameters: Partial<MigrationParameters>;
  readonly report: string | undefined;
  readonly isJson: boolean;
}

export interface PlanOptions extends AgentSelection {
  readonly to: Address;
  /** Undefined: whichever the agent holds. */
  readonly guest: string | undefined;
  /** Only what was given; the agent knows the rest. */
  readonly parameters: Partial<MigrationParameters>;
  readonly isJson: boolean;
}

export interface DirtyRateOptions extends AgentSelection {
  /** Undefined: whichever the agent holds. */
  readonly guest: string | undefined;
  readonly isJson: boolean;
}

export interface HistoryOptions {
  /** The agent's. */
  readonly stateDir: string;
  /** How many of the last migrations are shown. */
  readonly last: number;
  readonly isJson: boolean;
}

export interface StatusOptions extends AgentSelection {
  readonly isJson: boolean;
}

export type CancelOptions = AgentSelection;

export interface PostcopyOptions extends AgentSelection {
  /** False: begin it. True: try to make its broken link again. */
  readonly isRecovery: boolean;
}

export interface SetOptions extends AgentSelection {
  /** At least one. */
  readonly parameters: Partial<LiveParameters>;
}

export interface ResolveOptions extends AgentSelection, ResolveRequest {
  readonly isJson: boolean;
}

export interface WhoOwnsOptions extends AgentSelection {
  /** Undefined: whichever the agent holds. */
  readonly guest: string | undefined;
  /** Undefined: the other side of the guest's last hand-over. */
  readonly peer: Address | undefined;
  readonly isJson: boolean;
}

export interface SwitchOptions {
  readonly listen: Address;
  readonly isInsecure: boolean;
  readonly isJson: boolean;
}

export interface ClientOptions {
  readonly switchAddress: Address;
  readonly guest: string;
  readonly requestsPerSecond: number;
  /** 0: until it is told to finish. */
  readonly durationMs: number;
  readonly isJson: boolean;
}

export interface DemoOptions extends GuestOptions {
  readonly modes: readonly MigrationParameters["mode"][];
  /** Migrations in each mode. */
  readonly repeats: number;
  readonly dirtyLog: (typeof DIRTY_LOGS)[number];
  /** Its mode is the first of `modes`. */
  readonly parameters: MigrationParameters;
  /** File for an array of reports. */
  readonly report: string | undefined;
  readonly isJson: boolean;
  /** Of its agents. */
  readonly hasFaultPoints: boolean;
}

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

export interface CertsInitOptions {
  readonly dir: string;
  readonly days: number;
  readonly isJson: boolean;
}

export interface CertsIssueOptions {
  /** Of the authority. */
  readonly dir: string;
  /** Undefined: a folder of the first name's in `dir`. */
  readonly out: string | undefined;
  /** Host names and addresses; never empty. */
  readonly names: readonly string[];
  readonly days: number;
  readonly isJson: boolean;
}

/** What the demo compares by default: what works everywhere. */
const DEMO_MODES = ["precopy", "stop-and-copy"] as const satisfies readonly MigrationParameters["mode"][];

/** What each command does; the options are checked and complete. */
export interface Actions {
  source(options: SourceOptions): Promise<void>;
  target(options: TargetOptions): Promise<void>;
  migrate(options: MigrateOptions): Promise<void>;
  plan(options: PlanOptions): Promise<void>;
  dirtyRate(options: DirtyRateOptions): Promise<void>;
  history(options: HistoryOptions): Promise<void>;
  status(options: StatusOptions): Promise<void>;
  cancel(options: CancelOptions): Promise<void>;
  postcopy(options: PostcopyOptions): Promise<void>;
  set(options: SetOptions): Promise<void>;
  resolve(options: ResolveOptions): Promise<void>;
  whoOwns(options: WhoOwnsOptions): Promise<void>;
  switch(options: SwitchOptions): Promise<void>;
  client(options: ClientOptions): Promise<void>;
  demo(options: DemoOptions): Promise<void>;
  bench(options: BenchOptions): Promise<void>;
  certsInit(options: CertsInitOptions): Promise<void>;
  certsIssue(options: CertsIssueOptions): Promise<void>;
}

const inFolder = (folder: string | undefined, otherwise: string): string =>
  folder !== undefined && isAbsolute(folder) ? join(folder, "precopy") : otherwise;

/** Where the agent called `name` listens for commands: `$XDG_RUNTIME_DIR/precopy/NAME.sock`, else `<tmpdir>/precopy-<uid>/NAME.sock`. */
export const socketPath = (name: string, runtimeFolder = process.env["XDG_RUNTIME_DIR"]): string =>
  join(inFolder(runtimeFolder, join(tmpdir(), `precopy-${process.getuid?.() ?? 0}`)), `${name}.sock`);

/** Where it keeps journal and history: `$XDG_STATE_HOME/precopy/NAME`, else `~/.local/state/precopy/NAME`. */
export const statePath = (name: string, stateFolder = process.env["XDG_STATE_HOME"]): string =>
  join(inFolder(stateFolder, join(homedir(), ".local", "state", "precopy")), name);

function parseFill(text: string): Fill {
  const colon = text.indexOf(":");
  const size = colon < 0 ? text : text.slice(0, colon);
  return { bytes: parsePages(0, MEMORY_BYTES_MAX)(size), kind: colon < 0 ? "random" : parseChoice(FILLS)(text.slice(colon + 1)) };
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

/** The last selected workload runs on every vCPU that is left. */
function vcpusOf(selected: readonly string[], vcpus = selected.length): string[] {
  if (vcpus < selected.length) refuse(`--vcpus ${vcpus} is less than the ${selected.length} workloads: ${selected.join(", ")}`);
  if (vcpus > VCPUS_MAX) refuse(`--workload: ${vcpus} vCPUs, must be 1 to ${VCPUS_MAX}`);
  return Array.from({ length: vcpus }, (_, at) => selected[Math.min(at, selected.length - 1)] ?? "");
}

const jsonOption = () => new Option("--json", "write JSON, one object a line (default: text)");
/** For tests only, and therefore not in --help. */
const faultPointsOption = () =>
  new Option("--fault-points", "obey PRECOPY_FAULT, PRECOPY_FORGET_DIRTY and PRECOPY_WITHOUT (default: refuse them)").hideHelp();
const insecureOption = () => new Option("--insecure", "accept unauthenticated peers on an address beyond loopback (default: refuse)");
const reportOption = (what: string) => option("--report <FILE>", `write ${what} to this file as JSON (default: none)`, parseText);
const dirtyLogOption = () =>
  option("--dirty-log <KIND>", `who tells which pages were written: ${DIRTY_LOGS.join(", ")}`, parseChoice(DIRTY_LOGS)).default(
    "auto" as const,
    "auto: mmu where this host can",
  );
const pumpOption = () =>
  option("--pump <KIND>", `how pages reach the socket: ${PUMPS.join(", ")}`, parseChoice(PUMPS)).default(
    "auto" as const,
    "auto: direct where this host can",
  );

const withSelection = <A extends unknown[], O extends OptionValues, G extends OptionValues>(command: Command<A, O, G>) =>
  command
    .addOption(option("--name <NAME>", "name of the agent on this host", parseName).default("default", "default"))
    .addOption(
      option(
        "--socket <PATH>",
        "its Unix socket (default: $XDG_RUNTIME_DIR/precopy/NAME.sock, else <tmpdir>/precopy-<uid>/NAME.sock)",
        parseText,
      ),
    );

const stateDirOption = () =>
  option(
    "--state-dir <DIR>",
    "where journal and history are kept (default: $XDG_STATE_HOME/precopy/NAME, else ~/.local/state/precopy/NAME)",
    parseText,
  );
const stateDirOf = ({ name, stateDir }: { readonly name: string; readonly stateDir?: string }): string =>
  stateDir === undefined ? statePath(name) : resolve(stateDir);

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

const withGuest = <A extends unknown[], O extends OptionValues, G extends OptionValues>(command: Command<A, O, G>) =>
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

type OptionsOf<C> = C extends Command<infer _A, infer O, infer _G> ? O : never;
type None = Record<never, never>;
type GivenSelection = OptionsOf<ReturnType<typeof withSelection<[], None, None>>>;
type GivenAgent = OptionsOf<ReturnType<typeof withAgent<[], None, None>>> & { readonly workload: readonly GivenWorkload[] };
type GivenGuest = OptionsOf<ReturnType<typeof withGuest<[], None, None>>>;

function selectionOf({ name, socket }: GivenSelection): AgentSelection {
  const path = socket === undefined ? socketPath(name) : resolve(socket);
  const bytes = Buffer.byteLength(path);
  if (bytes > SOCKET_PATH_BYTES_MAX) refuse(`--socket "${path}" has ${bytes} bytes, at most ${SOCKET_PATH_BYTES_MAX}: give a shorter one`);
  return { name, socket: path };
}

function listenOf(
  listen: Address,
  isInsecure: boolean,
  { tlsCreds, tokenFile }: SecurityOptions = NO_SECURITY,
): { readonly listen: Address; readonly isInsecure: boolean } {
  if (!isInsecure && !isLoopback(listen.host) && tlsCreds === undefined && tokenFile === undefined)
    throw new MigrationError(
      "ERR_INSECURE_LISTEN",
      `--listen ${formatAddress(listen)} is open to the network, and peers are not authenticated`,
    );
  return { listen, isInsecure };
}

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

function guestOf(given: GivenGuest, vcpus: readonly string[], fill: Fill): GuestOptions {
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

const EXAMPLES = `
Examples:
  precopy demo
      Boots a guest, moves it in both modes between two agents here, compares.
  precopy target --listen 0.0.0.0:4646 --insecure
      On one host: waits for a guest.
  precopy source --workload ledger,random-writer --migrate-to other-host:4646
      On another: boots a guest of two vCPUs and moves it while it runs.
`;

function addSource(program: Command, actions: Actions): void {
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

function addTarget(program: Command, actions: Actions): void {
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

const targetArgument = () =>
  new Argument("<HOST:PORT>", `agent to migrate to; port 1 to 65535, ${DEFAULT_PORT} if left out`).argParser((text: string) =>
    read("HOST:PORT", text, parsePeer(DEFAULT_PORT)),
  );
const guestOption = () => option("--guest <ID>", "only if the agent holds this guest (default: whichever it holds)", parseName);

function addCommands(program: Command, actions: Actions): void {
  const migrate = program
    .command("migrate")
    .description("ask a running agent to migrate its guest; what is not given is as the agent was started");
  withMigration(withSelection(migrate))
    .addArgument(targetArgument())
    .addOption(modeOption())
    .addOption(guestOption())
    .addOption(reportOption("what was measured"))
    .addOption(jsonOption())
    .action(async (to, given) => {
      await actions.migrate({
        ...selectionOf(given),
        to,
        guest: given.guest,
        parameters: parametersOf(given),
        report: given.report,
        isJson: given.json === true,
      });
    });
  withSelection(program.command("status").description("what a running agent holds and does"))
    .addOption(jsonOption())
    .action((given) => actions.status({ ...selectionOf(given), isJson: given.json === true }));
  withSelection(program.command("cancel").description("cancel the migration in progress; the guest runs on at the source")).action(
    (given) => actions.cancel(selectionOf(given)),
  );
  withSelection(
    program
      .command("postcopy")
      .description("let the guest of a migration with --mode hybrid run at the target now, and fetch what is missing"),
  ).action((given) => actions.postcopy({ ...selectionOf(given), isRecovery: false }));
  withSelection(
    program.command("postcopy-recover").description("try at once to make the broken link of a post-copy migration again"),
  ).action((given) => actions.postcopy({ ...selectionOf(given), isRecovery: true }));
  withSelection(
    program.command("continue").description("let a migration with --pause-before-switchover pause the guest and switch over"),
  ).action((given) => actions.set({ ...selectionOf(given), parameters: { isPauseBeforeSwitchoverOn: false } }));
  withLive(withSelection(program.command("set").description("change the migration in progress; what is not given stays as it is"))).action(
    async (given) => {
      const parameters = liveParametersOf(given);
      if (Object.keys(parameters).length === 0) refuse("nothing to set: give at least one of the options");
      await actions.set({ ...selectionOf(given), parameters });
    },
  );
}

/** What is known of migrations before and after them. */
function addForecasts(program: Command, actions: Actions): void {
  withMigration(
    withSelection(program.command("plan").description("say what a migration would come to, by measuring guest and link for some seconds")),
  )
    .addArgument(targetArgument())
    .addOption(modeOption())
    .addOption(guestOption())
    .addOption(jsonOption())
    .action(async (to, given) => {
      await actions.plan({ ...selectionOf(given), to, guest: given.guest, parameters: parametersOf(given), isJson: given.json === true });
    });
  withSelection(program.command("dirty-rate").description("how many different pages the guest writes within 0.01 to 3 s"))
    .addOption(guestOption())
    .addOption(jsonOption())
    .action((given) => actions.dirtyRate({ ...selectionOf(given), guest: given.guest, isJson: given.json === true }));
  program
    .command("history")
    .description("what migrations from an agent were expected to come to, and what they came to; the agent need not run")
    .addOption(option("--name <NAME>", "name of the agent on this host", parseName).default("default"))
    .addOption(stateDirOption())
    .addOption(option("--last <COUNT>", "so many of the last ones; 1 to 10000", parseWhole(1, 10_000)).default(20))
    .addOption(jsonOption())
    .action((given) => actions.history({ stateDir: stateDirOf(given), last: given.last, isJson: given.json === true }));
}

/** Who owns a guest, when two agents do not settle it by themselves. */
function addOwnership(program: Command, actions: Actions): void {
  withSelection(program.command("who-owns").description("what this agent and the other side say of a guest, and what that comes to"))
    .addOption(option("--guest <ID>", "the guest in question (default: the one that the agent holds)", parseName))
    .addOption(
      option(
        "--peer <HOST:PORT>",
        `the other agent; port 1 to 65535, ${DEFAULT_PORT} if left out (default: the other side of the last hand-over)`,
        parsePeer(DEFAULT_PORT),
      ),
    )
    .addOption(jsonOption())
    .action((given) => actions.whoOwns({ ...selectionOf(given), guest: given.guest, peer: given.peer, isJson: given.json === true }));
  withSelection(program.command("resolve").description("end a doubt about a guest by your word; look at `precopy who-owns` first"))
    .addOption(option("--guest <ID>", "the guest in question (required)", parseName).makeOptionMandatory())
    .addOption(
      new Option("--take-back", "the guest is to run here: after COMMIT at the source, or out of the copy that waits at the target"),
    )
    .addOption(new Option("--give-up", "what is here of the guest is to go"))
    .addOption(new Option("--other-side-is-fenced", "your word that the other side cannot run the guest, now or later (default: ask it)"))
    .addOption(
      new Option("--accept-rollback", "with --take-back: run a copy that may lack what the guest did later (default: refuse if so)"),
    )
    .addOption(jsonOption())
    .action(async (given) => {
      const [isTakeBack, isGiveUp] = [given.takeBack === true, given.giveUp === true];
      if (isTakeBack === isGiveUp) refuse(`${isTakeBack ? "not both" : "one is needed"}: --take-back or --give-up`);
      if (isGiveUp && given.acceptRollback === true) refuse("--accept-rollback goes with --take-back: nothing runs after --give-up");
      await actions.resolve({
        ...selectionOf(given),
        guest: given.guest,
        way: isTakeBack ? "take-back" : "give-up",
        isOtherSideFenced: given.otherSideIsFenced === true,
        isRollbackAccepted: given.acceptRollback === true,
        isJson: given.json === true,
      });
    });
}

function addNetwork(program: Command, actions: Actions): void {
  const here: Address = { host: "127.0.0.1", port: DEFAULT_SWITCH_PORT };
  program
    .command("switch")
    .description("a small learning switch between guests' network cards and clients")
    .addOption(
      option("--listen <HOST:PORT>", "UDP address; port 0 to 65535, 0 lets the system choose", (text) =>
        parseAddress(text, DEFAULT_SWITCH_PORT),
      ).default(here, formatAddress(here)),
    )
    .addOption(insecureOption())
    .addOption(jsonOption())
    .action((given) => actions.switch({ ...listenOf(given.listen, given.insecure === true), isJson: given.json === true }));
  program
    .command("client")
    .description(
      "send numbered requests to a guest and measure its longest silence; reads lines from stdin unless that is a terminal: mark, finish",
    )
    .addOption(
      option(
        "--switch <HOST:PORT>",
        `where \`precopy switch\` listens; port 1 to 65535, ${DEFAULT_SWITCH_PORT} if left out`,
        parsePeer(DEFAULT_SWITCH_PORT),
      ).default(here, formatAddress(here)),
    )
    .addOption(option("--guest <ID>", "guest to ask (required)", parseName).makeOptionMandatory())
    .addOption(option("--rate <COUNT>", "requests per second, whether answered or not; 1 to 1M", parseRate(1, 1e6)).default(1000))
    .addOption(option("--duration <MS>", `how long, ms; 0 to ${TIMER_MS_MAX}, 0 is until Ctrl-C`, parseTime).default(0))
    .addOption(jsonOption())
    .action((given) =>
      actions.client({
        switchAddress: given.switch,
        guest: given.guest,
        requestsPerSecond: given.rate,
        durationMs: given.duration,
        isJson: given.json === true,
      }),
    );
}

function addDemo(program: Command, actions: Actions): void {
  withMigration(
    withGuest(
      program.command("demo").description("boot a guest, move it between two agents of this host while a client watches, compare modes"),
    ),
  )
    .addOption(
      option("--workload <NAMES>", "NAME[,NAME] of the vCPUs after the first, which is always ledger (default: random-writer)", (text) =>
        text.split(",").map(parseName),
      ),
    )
    .addOption(
      option(
        "--vcpus <N>",
        `vCPUs, the first included; the last workload runs on those left over; 1 to ${VCPUS_MAX} (default: one for each workload)`,
        parseWhole(1, VCPUS_MAX),
      ),
    )
    .addOption(
      option(
        "--fill <SIZE:KIND>",
        `SIZE or SIZE:KIND, contents at boot, in whole pages; 0 to --memory; ${FILLS.join(", ")} (default: 256MiB, at most half)`,
        parseFill,
      ),
    )
    .addOption(
      option("--modes <LIST>", `what to compare, separated by commas: ${MODES.join(", ")}`, parseList(parseChoice(MODES))).default(
        [...DEMO_MODES],
        DEMO_MODES.join(","),
      ),
    )
    .addOption(option("--repeats <N>", "migrations in each mode; 1 to 1000", parseWhole(1, 1000)).default(1))
    .addOption(dirtyLogOption())
    .addOption(pumpOption())
    .addOption(reportOption("an array of what was measured"))
    .addOption(faultPointsOption())
    .addOption(jsonOption())
    .action(async (given) => {
      const others = given.workload ?? (given.vcpus === 1 ? [] : ["random-writer"]);
      const half = Math.floor(given.memory / 2 / PAGE_BYTES) * PAGE_BYTES;
      const [mode = DEFAULT_PARAMETERS.mode] = given.modes;
      await actions.demo({
        ...guestOf(given, vcpusOf(["ledger", ...others], given.vcpus), given.fill ?? { bytes: Math.min(2 ** 28, half), kind: "random" }),
        modes: given.modes,
        repeats: given.repeats,
        dirtyLog: given.dirtyLog,
        parameters: unattended(fillParameters({ ...parametersOf(given), mode })),
        report: given.report,
        isJson: given.json === true,
        hasFaultPoints: given.faultPoints === true,
      });
    });
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

function addBench(program: Command, actions: Actions): void {
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

const authorityOption = () => option("--dir <DIR>", "folder of the certificate authority", parseText).default("precopy-ca");
const daysOption = (days: number) => option("--days <N>", "how long it is valid; 1 to 36500", parseWhole(1, 36_500)).default(days);

function addCerts(program: Command, actions: Actions): void {
  const certs = program.command("certs").description("certificates for --tls-creds, from a private authority, for a lab");
  certs
    .command("init")
    .description("make the authority")
    .addOption(authorityOption())
    .addOption(daysOption(3650))
    .addOption(jsonOption())
    .action((given) => actions.certsInit({ dir: given.dir, days: given.days, isJson: given.json === true }));
  certs
    .command("issue")
    .description("make a folder of certificates for the agents of one host")
    .argument("<NAME...>", "names and addresses by which the host is connected to; the first one is who it is for --tls-authz")
    .addOption(authorityOption())
    .addOption(option("--out <DIR>", "folder to be made (default: one of the first name's in --dir)", parseText))
    .addOption(daysOption(365))
    .addOption(jsonOption())
    .action((names, given) => actions.certsIssue({ dir: given.dir, out: given.out, names, days: given.days, isJson: given.json === true }));
}

/**
 * The `precopy` command; `parseAsync` runs one action. Never ends the process: --help and --version reject with a CommanderError of
 * `exitCode` 0, unknown commands and flags with one of 2 after one line on stderr, and a bad value with a MigrationError.
 * @param output where help and usage errors go, for tests; default the process's own streams.
 */
export function buildProgram(actions: Actions, output: OutputConfiguration = {}): Command {
  const program = new Command("precopy")
    .description("Moves a running guest from one Node process to another, over TCP, with a pause of milliseconds.")
    .version(RELEASE, "--version", "print the release")
    .addHelpText("after", EXAMPLES)
    .configureOutput({ ...output, outputError: (text, write) => write(`precopy: ${oneLine(text.replace(/^error: /, ""))}\n`) })
    .exitOverride((error) => {
      throw new CommanderError(error.exitCode === 0 ? 0 : 2, error.code, error.message);
    });
  addSource(program, actions);
  addTarget(program, actions);
  addCommands(program, actions);
  addForecasts(program, actions);
  addOwnership(program, actions);
  addNetwork(program, actions);
  addDemo(program, actions);
  addBench(program, actions);
  addCerts(program, actions);
  return program;
}
