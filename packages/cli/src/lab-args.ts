import type { Command } from "@commander-js/extra-typings";
import {
  DEFAULT_PARAMETERS,
  MODES,
  PAGE_BYTES,
  TIMER_MS_MAX,
  VCPUS_MAX,
  fillParameters,
  formatAddress,
  parseAddress,
} from "@precopy/protocol";
import type { Address, MigrationParameters } from "@precopy/protocol";
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
import type { GuestOptions } from "./guest-options.js";
import { parametersOf, unattended, withMigration } from "./migration-options.js";
import { option, parseChoice, parseList, parseName, parsePeer, parseRate, parseTime, parseWhole } from "./option-parsers.js";

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
  readonly dirtyLog: DirtyLogChoice;
  /** Its mode is the first of `modes`. */
  readonly parameters: MigrationParameters;
  /** File for an array of reports. */
  readonly report: string | undefined;
  readonly isJson: boolean;
  /** Of its agents. */
  readonly hasFaultPoints: boolean;
}

export interface LabActions {
  switch(options: SwitchOptions): Promise<void>;
  client(options: ClientOptions): Promise<void>;
  demo(options: DemoOptions): Promise<void>;
}

/** What the demo compares by default: what works everywhere. */
const DEMO_MODES = ["precopy", "stop-and-copy"] as const satisfies readonly MigrationParameters["mode"][];

export function addNetwork(program: Command, actions: LabActions): void {
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

export function addDemo(program: Command, actions: LabActions): void {
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
