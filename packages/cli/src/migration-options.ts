import { Option } from "@commander-js/extra-typings";
import type { Command, OptionValues } from "@commander-js/extra-typings";
import {
  CHANNELS_MAX,
  COMPRESSIONS,
  DEFAULT_PARAMETERS,
  MODES,
  THROTTLES,
  TIMEOUT_ACTIONS,
  TIMER_MS_MAX,
  fillParameters,
  parseBandwidth,
  parseMilliseconds,
  parseSize,
} from "@precopy/protocol";
import type { LiveParameters, MigrationParameters } from "@precopy/protocol";
import { option, parseChoice, parseTime, parseWhole, refuse } from "./option-parsers.js";

const ON_OFF = ["on", "off"] as const;

export const parseCongestionControl = (text: string): string => fillParameters({ congestionControl: text }).congestionControl;

export const downtimeLimitOption = () =>
  option(
    "--downtime-limit <MS>",
    `longest pause that permits the switch, ms; 0 to 2000000 (default: ${DEFAULT_PARAMETERS.downtimeLimitMs})`,
    (text) => fillParameters({ downtimeLimitMs: parseMilliseconds(text) }).downtimeLimitMs,
  );

/** What `withLive` adds, as it is given. */
export interface GivenLive {
  readonly downtimeLimit?: number;
  readonly maxBandwidth?: number;
  readonly pauseBeforeSwitchover?: (typeof ON_OFF)[number];
  readonly throttle?: MigrationParameters["throttle"];
  readonly throttleTriggerThreshold?: number;
  readonly cpuThrottleInitial?: number;
  readonly cpuThrottleIncrement?: number;
  readonly maxCpuThrottle?: number;
  readonly vcpuDirtyLimit?: number;
  readonly timeout?: number;
  readonly timeoutAction?: MigrationParameters["timeoutAction"];
}

const percentOption = (flag: string, what: string, most: number, standard: number) =>
  option(`${flag} <PERCENT>`, `${what}; 1 to ${most} (default: ${standard})`, parseWhole(1, most));

const liveOptions = (): readonly Option[] => [
  downtimeLimitOption(),
  option(
    "--max-bandwidth <BW>",
    "cap on all page channels together, bytes/s or such as 10Gbit or 128MiB/s; lifted in the pause (default: 0, no cap)",
    (text) => fillParameters({ maxBandwidthBytesPerSecond: parseBandwidth(text) }).maxBandwidthBytesPerSecond,
  ),
  option(
    "--pause-before-switchover <SWITCH>",
    "when the guest could be paused go on with rounds, until `precopy continue`: on or off (default: off)",
    parseChoice(ON_OFF),
  ),
  option(
    "--throttle <KIND>",
    "slow a guest down that outruns the link: none, auto-converge (in steps), sdps (as much as it takes), dirty-limit (each vCPU to a rate) (default: none)",
    parseChoice(THROTTLES),
  ),
  percentOption(
    "--throttle-trigger-threshold",
    "a guest that dirties less than this share of what is sent is left alone, percent",
    100,
    50,
  ),
  percentOption("--cpu-throttle-initial", "auto-converge's first step, percent of the time withheld", 99, 20),
  percentOption("--cpu-throttle-increment", "its further steps, percent", 99, 10),
  percentOption("--max-cpu-throttle", "its last step, percent", 99, 99),
  option(
    "--vcpu-dirty-limit <BW>",
    "what dirty-limit lets each vCPU dirty, bytes/s or such as 10MB/s; 4096 or more (default: 1MB/s)",
    (text) => fillParameters({ vcpuDirtyLimitBytesPerSecond: parseBandwidth(text) }).vcpuDirtyLimitBytesPerSecond,
  ),
  option(
    "--timeout <MS>",
    `give the migration this long, ms, or such as 30s; 0 to ${TIMER_MS_MAX} (default: 0, as long as it takes)`,
    parseTime,
  ),
  option(
    "--timeout-action <ACTION>",
    "then: cancel, and the guest runs on here; force, and the round under way is the last, whatever the pause; or, with --mode hybrid, postcopy (default: cancel)",
    parseChoice(TIMEOUT_ACTIONS),
  ),
];

/** What may be changed in flight, too. Its type is written by hand: inferred from a chain of so many options it would take the compiler minutes. */
export function withLive<A extends unknown[], O extends OptionValues, G extends OptionValues>(
  command: Command<A, O, G>,
): Command<A, O & GivenLive, G> {
  for (const one of liveOptions()) command.addOption(one);
  return command;
}

/** What `withTransfer` adds, as it is given. */
interface GivenTransfer {
  readonly multifdChannels?: number;
  readonly multifdCompression?: MigrationParameters["multifdCompression"];
  readonly xbzrle?: (typeof ON_OFF)[number];
  readonly xbzrleCacheSize?: number;
  readonly holdBack?: (typeof ON_OFF)[number];
  readonly maxPostcopyBandwidth?: number;
  readonly congestionControl?: string;
  readonly digest?: (typeof ON_OFF)[number];
  readonly audit?: (typeof ON_OFF)[number];
}

const transferOptions = (): readonly Option[] => [
  option(
    "--multifd-channels <N>",
    `page channels; 1 to ${CHANNELS_MAX} (default: ${DEFAULT_PARAMETERS.multifdChannels})`,
    parseWhole(1, CHANNELS_MAX),
  ),
  option(
    "--multifd-compression <KIND>",
    `${COMPRESSIONS.join(", ")} (whichever is faster, packet by packet); zstd needs Node 22.15 on both sides (default: ${DEFAULT_PARAMETERS.multifdCompression})`,
    parseChoice(COMPRESSIONS),
  ),
  option(
    "--xbzrle <SWITCH>",
    "after the first round send what changed of a page since it was sent last: on or off (default: off)",
    parseChoice(ON_OFF),
  ),
  option(
    "--xbzrle-cache-size <SIZE>",
    "what is kept of pages sent, over all channels; 64KiB to 2GiB (default: 64MiB)",
    (text) => fillParameters({ xbzrleCacheBytes: parseSize(text) }).xbzrleCacheBytes,
  ),
  option(
    "--hold-back <SWITCH>",
    "let pages that are dirtied again and again wait until little else is left: on or off (default: off)",
    parseChoice(ON_OFF),
  ),
  option(
    "--max-postcopy-bandwidth <BW>",
    "cap on what is sent unasked while the guest fetches what it misses, as --max-bandwidth (default: 0, no cap)",
    (text) => fillParameters({ maxPostcopyBandwidthBytesPerSecond: parseBandwidth(text) }).maxPostcopyBandwidthBytesPerSecond,
  ),
  option(
    "--congestion-control <NAME>",
    "of the page channels' sockets, a kernel's name such as bbr, at most 15 of a-z, 0-9, _; on Linux (default: auto: cubic where allowed, else the system's)",
    parseCongestionControl,
  ),
  option("--digest <SWITCH>", "both sides hash every page and compare before the switch: on or off (default: on)", parseChoice(ON_OFF)),
  option(
    "--audit <SWITCH>",
    "the source compares its frozen image with what it sent: on or off (default: as --digest, which it needs)",
    parseChoice(ON_OFF),
  ),
];

/** What is settled when a migration begins; its type is written by hand for the same reason. */
function withTransfer<A extends unknown[], O extends OptionValues, G extends OptionValues>(
  command: Command<A, O, G>,
): Command<A, O & GivenTransfer, G> {
  for (const one of transferOptions()) command.addOption(one);
  return command;
}

/** What a migration is asked for with. */
export const withMigration = <A extends unknown[], O extends OptionValues, G extends OptionValues>(command: Command<A, O, G>) =>
  withLive(withTransfer(command));

export const modeOption = () => option("--mode <MODE>", `${MODES.join(", ")} (default: ${DEFAULT_PARAMETERS.mode})`, parseChoice(MODES));

export type GivenMigration = GivenTransfer &
  GivenLive & {
    readonly mode?: MigrationParameters["mode"];
    readonly pump?: MigrationParameters["pump"];
  };

/** What was given of what may be changed in flight. */
export const liveParametersOf = (given: GivenLive): Partial<LiveParameters> => ({
  ...(given.downtimeLimit !== undefined && { downtimeLimitMs: given.downtimeLimit }),
  ...(given.maxBandwidth !== undefined && { maxBandwidthBytesPerSecond: given.maxBandwidth }),
  ...(given.pauseBeforeSwitchover && { isPauseBeforeSwitchoverOn: given.pauseBeforeSwitchover === "on" }),
  ...(given.throttle && { throttle: given.throttle }),
  ...(given.throttleTriggerThreshold && { throttleTriggerThresholdPercent: given.throttleTriggerThreshold }),
  ...(given.cpuThrottleInitial && { cpuThrottleInitialPercent: given.cpuThrottleInitial }),
  ...(given.cpuThrottleIncrement && { cpuThrottleIncrementPercent: given.cpuThrottleIncrement }),
  ...(given.maxCpuThrottle && { maxCpuThrottlePercent: given.maxCpuThrottle }),
  ...(given.vcpuDirtyLimit && { vcpuDirtyLimitBytesPerSecond: given.vcpuDirtyLimit }),
  ...(given.timeout !== undefined && { timeoutMs: given.timeout }),
  ...(given.timeoutAction && { timeoutAction: given.timeoutAction }),
});

/** @throws {MigrationError} ERR_PARAMETER if it would wait for somebody who does not know of it */
export function unattended(parameters: MigrationParameters): MigrationParameters {
  if (parameters.isPauseBeforeSwitchoverOn) refuse("--pause-before-switchover waits for `precopy continue`, and here nobody could say it");
  return parameters;
}

/** What was given and nothing else, checked. An audit needs the digest and goes with it, unless it was asked for. */
export function parametersOf(given: GivenMigration): Partial<MigrationParameters> {
  if (given.digest === "off" && given.audit === "on") refuse(`--audit "on" needs --digest on`);
  const audit = given.audit ?? (given.digest === "off" ? "off" : undefined);
  const parameters: Partial<MigrationParameters> = {
    ...(given.mode && { mode: given.mode }),
    ...(given.maxPostcopyBandwidth !== undefined && { maxPostcopyBandwidthBytesPerSecond: given.maxPostcopyBandwidth }),
    ...liveParametersOf(given),
    ...(given.multifdChannels !== undefined && { multifdChannels: given.multifdChannels }),
    ...(given.multifdCompression && { multifdCompression: given.multifdCompression }),
    ...(given.xbzrle && { isXbzrleOn: given.xbzrle === "on" }),
    ...(given.xbzrleCacheSize !== undefined && { xbzrleCacheBytes: given.xbzrleCacheSize }),
    ...(given.holdBack && { isHoldBackOn: given.holdBack === "on" }),
    ...(given.congestionControl && { congestionControl: given.congestionControl }),
    ...(given.digest && { isDigestOn: given.digest === "on" }),
    ...(audit && { isAuditOn: audit === "on" }),
    ...(given.pump && { pump: given.pump }),
  };
  fillParameters(parameters);
  return parameters;
}
