import { MigrationError } from "./errors.js";
import { CHANNELS_MAX, PAGE_BYTES, TIMER_MS_MAX, XBZRLE_CACHE_BYTES_MAX } from "./limits.js";

export const THROTTLES = ["none", "auto-converge", "sdps", "dirty-limit"] as const;
export const COMPRESSIONS = ["none", "lz4", "zstd", "auto"] as const;
/** What blocks can be compressed with. */
export const BLOCK_COMPRESSIONS = ["lz4", "zstd"] as const satisfies readonly (typeof COMPRESSIONS)[number][];
export type BlockCompression = (typeof BLOCK_COMPRESSIONS)[number];
export const MODES = ["precopy", "hybrid", "postcopy", "stop-and-copy"] as const;
export const TIMEOUT_ACTIONS = ["cancel", "force", "postcopy"] as const;

/** Withholding guest run time, so that a guest that outruns the link can be moved all the same. */
export interface ThrottleParameters {
  /**
   * none (default). auto-converge: in steps, while rounds fail to converge. sdps: as much as it takes to hold what a guest dirties that would dirty more
   * than a share of what the link sends, at half of that. dirty-limit: as much as it takes to hold each vCPU under `vcpuDirtyLimitBytesPerSecond`.
   */
  readonly throttle: (typeof THROTTLES)[number];
  /** auto-converge and sdps: a guest that dirties less than this share of what is sent is left alone, percent. Default 50 as in QEMU; 1 to 100. */
  readonly throttleTriggerThresholdPercent: number;
  /** auto-converge: the first step. Default 20 as in QEMU; 1 to 99. */
  readonly cpuThrottleInitialPercent: number;
  /** auto-converge: each further step. Default 10 as in QEMU; 1 to 99. */
  readonly cpuThrottleIncrementPercent: number;
  /** auto-converge: the last step. Default 99 as in QEMU; 1 to 99. */
  readonly maxCpuThrottlePercent: number;
  /** dirty-limit: default 1 MB/s as in QEMU; 4096 or more. */
  readonly vcpuDirtyLimitBytesPerSecond: number;
}

/** When it has taken too long. */
export interface TimeoutParameters {
  /** From the command on; default 0, never. 0 to 2,147,483,647 ms, as long as a timer can wait. */
  readonly timeoutMs: number;
  /**
   * cancel (default): the guest runs on here. force: the round under way is the last, and the pause takes what it takes. postcopy: the guest runs at
   * the target after the round under way, whatever is missing there; with mode hybrid.
   */
  readonly timeoutAction: (typeof TIMEOUT_ACTIONS)[number];
}

/** What may be changed while a migration runs. */
export type LiveParameters = Pick<MigrationParameters, "downtimeLimitMs" | "maxBandwidthBytesPerSecond" | "isPauseBeforeSwitchoverOn"> &
  ThrottleParameters &
  TimeoutParameters;

/** All of them given: what the code gets. Names are QEMU's plus the unit. */
export interface MigrationParameters extends ThrottleParameters, TimeoutParameters {
  /**
   * precopy (default): rounds while the guest runs, then a short pause. hybrid: the same, but if rounds do not lead to a pause within the limit the
   * guest runs at the target all the same, which fetches what is missing (post-copy). postcopy: that at once. stop-and-copy: all in one pause.
   */
  readonly mode: (typeof MODES)[number];
  /** Longest pause that permits the switch. Default 300 ms, as in QEMU and libvirt; 0 to 2,000,000. */
  readonly downtimeLimitMs: number;
  /** Cap on all page channels together, lifted in the blackout. Default 0, no cap: QEMU's 128 MiB/s is the classic trap. */
  readonly maxBandwidthBytesPerSecond: number;
  /** The same once the guest runs at the target and fetches what is missing; what it waits for does not count. Default 0, no cap, as in QEMU. */
  readonly maxPostcopyBandwidthBytesPerSecond: number;
  /** Page channels. Default 2 as in QEMU; 1 to 16. */
  readonly multifdChannels: number;
  /** Default none. auto: whichever of both gets pages to the target sooner, packet by packet. */
  readonly multifdCompression: (typeof COMPRESSIONS)[number];
  /** After the first round pages are sent as what changed since they were sent last. Default off. */
  readonly isXbzrleOn: boolean;
  /** What is kept of pages sent, over all channels. Default 64 MiB as in QEMU; 64 KiB to 2 GiB. */
  readonly xbzrleCacheBytes: number;
  /** Pages that are dirtied again and again wait until little else is left. Default off. */
  readonly isHoldBackOn: boolean;
  /** When the guest could be paused, rounds go on until this is switched off. Default off. In QEMU the guest stands still meanwhile; here it runs. */
  readonly isPauseBeforeSwitchoverOn: boolean;
  /** Both sides hash every page and compare the image digest in the commit. Default on. */
  readonly isDigestOn: boolean;
  /** After ACTIVE the source compares its frozen image with what it sent. Default on; needs the digest. */
  readonly isAuditOn: boolean;
  /** Default auto: direct where this host can, else portable. */
  readonly pump: "auto" | "direct" | "portable";
  /** Of the page channels' sockets, by the kernel's name. Default auto: cubic where it may be had, else the system's choice. A name takes Linux. */
  readonly congestionControl: string;
}

export const DEFAULT_PARAMETERS: MigrationParameters = {
  mode: "precopy",
  downtimeLimitMs: 300,
  maxBandwidthBytesPerSecond: 0,
  maxPostcopyBandwidthBytesPerSecond: 0,
  multifdChannels: 2,
  multifdCompression: "none",
  isXbzrleOn: false,
  xbzrleCacheBytes: 64 * 2 ** 20,
  isHoldBackOn: false,
  isPauseBeforeSwitchoverOn: false,
  isDigestOn: true,
  isAuditOn: true,
  pump: "auto",
  congestionControl: "auto",
  throttle: "none",
  throttleTriggerThresholdPercent: 50,
  cpuThrottleInitialPercent: 20,
  cpuThrottleIncrementPercent: 10,
  maxCpuThrottlePercent: 99,
  vcpuDirtyLimitBytesPerSecond: 1_000_000,
  timeoutMs: 0,
  timeoutAction: "cancel",
};

/** The kernel keeps 16 bytes for a name, its end included. */
const CONGESTION_CONTROL = /^[a-z0-9_]{1,15}$/;

const refuse = (name: string, value: unknown, range: string): never => {
  throw new MigrationError("ERR_PARAMETER", `${name} is ${String(value)}, must be ${range}`);
};
const isWhole = (value: number, least: number, most: number): boolean => Number.isSafeInteger(value) && value >= least && value <= most;

/** Fills in the defaults. Refuses what is out of range, and repairs nothing. @throws {MigrationError} ERR_PARAMETER */
export function fillParameters(given: Partial<MigrationParameters>): MigrationParameters {
  const all = { ...DEFAULT_PARAMETERS, ...given };
  if (!isWhole(all.downtimeLimitMs, 0, 2_000_000)) refuse("downtime-limit", all.downtimeLimitMs, "0 to 2000000 ms");
  if (!isWhole(all.maxBandwidthBytesPerSecond, 0, Number.MAX_SAFE_INTEGER))
    refuse("max-bandwidth", all.maxBandwidthBytesPerSecond, "0 or more B/s");
  if (!isWhole(all.multifdChannels, 1, CHANNELS_MAX)) refuse("multifd-channels", all.multifdChannels, `1 to ${CHANNELS_MAX}`);
  if (!COMPRESSIONS.includes(all.multifdCompression)) refuse("multifd-compression", all.multifdCompression, COMPRESSIONS.join(", "));
  if (!isWhole(all.xbzrleCacheBytes, CHANNELS_MAX * PAGE_BYTES, XBZRLE_CACHE_BYTES_MAX))
    refuse("xbzrle-cache-size", all.xbzrleCacheBytes, `${CHANNELS_MAX * PAGE_BYTES} to ${XBZRLE_CACHE_BYTES_MAX} B`);
  if (!isWhole(all.maxPostcopyBandwidthBytesPerSecond, 0, Number.MAX_SAFE_INTEGER))
    refuse("max-postcopy-bandwidth", all.maxPostcopyBandwidthBytesPerSecond, "0 or more B/s");
  if (!MODES.includes(all.mode)) refuse("mode", all.mode, MODES.join(", "));
  if (all.isPauseBeforeSwitchoverOn && !hasRounds(all)) refuse("mode", all.mode, "precopy or hybrid with pause-before-switchover");
  if (all.isXbzrleOn && mayPostcopy(all)) refuse("mode", all.mode, "precopy with xbzrle: a page that is missing has no earlier version");
  if (!["auto", "direct", "portable"].includes(all.pump)) refuse("pump", all.pump, "auto, direct or portable");
  if (!CONGESTION_CONTROL.test(all.congestionControl))
    refuse("congestion-control", `"${all.congestionControl}"`, "auto or a name of at most 15 of a-z, 0-9 and _");
  checkThrottle(all);
  if (!isWhole(all.timeoutMs, 0, TIMER_MS_MAX)) refuse("timeout", all.timeoutMs, `0 to ${TIMER_MS_MAX} ms`);
  if (!TIMEOUT_ACTIONS.includes(all.timeoutAction)) refuse("timeout-action", all.timeoutAction, TIMEOUT_ACTIONS.join(", "));
  if (all.timeoutAction === "postcopy" && all.mode !== "hybrid") refuse("mode", all.mode, "hybrid with timeout-action postcopy");
  return all;
}

/** The guest runs on at the source while rounds are sent. */
export const hasRounds = ({ mode }: Pick<MigrationParameters, "mode">): boolean => mode === "precopy" || mode === "hybrid";

/** The guest may run at the target before all of its memory is there. */
export const mayPostcopy = ({ mode }: Pick<MigrationParameters, "mode">): boolean => mode === "postcopy" || mode === "hybrid";

function checkThrottle(all: ThrottleParameters): void {
  const isPercent = (value: number): boolean => isWhole(value, 1, 99);
  if (!THROTTLES.includes(all.throttle)) refuse("throttle", all.throttle, THROTTLES.join(", "));
  if (!isWhole(all.throttleTriggerThresholdPercent, 1, 100))
    refuse("throttle-trigger-threshold", all.throttleTriggerThresholdPercent, "1 to 100 %");
  if (!isPercent(all.cpuThrottleInitialPercent)) refuse("cpu-throttle-initial", all.cpuThrottleInitialPercent, "1 to 99 %");
  if (!isPercent(all.cpuThrottleIncrementPercent)) refuse("cpu-throttle-increment", all.cpuThrottleIncrementPercent, "1 to 99 %");
  if (!isPercent(all.maxCpuThrottlePercent)) refuse("max-cpu-throttle", all.maxCpuThrottlePercent, "1 to 99 %");
  if (!isWhole(all.vcpuDirtyLimitBytesPerSecond, PAGE_BYTES, Number.MAX_SAFE_INTEGER))
    refuse("vcpu-dirty-limit", all.vcpuDirtyLimitBytesPerSecond, `${PAGE_BYTES} or more B/s`);
}

/** Spelled as on the command line, for the report. */
export const reportParameters = (parameters: MigrationParameters): Record<string, unknown> => ({
  mode: parameters.mode,
  "downtime-limit": parameters.downtimeLimitMs,
  "max-bandwidth": parameters.maxBandwidthBytesPerSecond,
  "max-postcopy-bandwidth": parameters.maxPostcopyBandwidthBytesPerSecond,
  "multifd-channels": parameters.multifdChannels,
  "multifd-compression": parameters.multifdCompression,
  xbzrle: parameters.isXbzrleOn,
  "xbzrle-cache-size": parameters.xbzrleCacheBytes,
  "hold-back": parameters.isHoldBackOn,
  "pause-before-switchover": parameters.isPauseBeforeSwitchoverOn,
  digest: parameters.isDigestOn,
  audit: parameters.isAuditOn,
  pump: parameters.pump,
  "congestion-control": parameters.congestionControl,
  throttle: parameters.throttle,
  "throttle-trigger-threshold": parameters.throttleTriggerThresholdPercent,
  "cpu-throttle-initial": parameters.cpuThrottleInitialPercent,
  "cpu-throttle-increment": parameters.cpuThrottleIncrementPercent,
  "max-cpu-throttle": parameters.maxCpuThrottlePercent,
  "vcpu-dirty-limit": parameters.vcpuDirtyLimitBytesPerSecond,
  timeout: parameters.timeoutMs,
  "timeout-action": parameters.timeoutAction,
});
