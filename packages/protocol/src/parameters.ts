import { MigrationError } from "./errors.js";
import { CHANNELS_MAX } from "./limits.js";

/** All of them given: what the code gets. Names are QEMU's plus the unit. */
export interface MigrationParameters {
  readonly mode: "precopy" | "stop-and-copy";
  /** Longest pause that permits the switch. Default 300 ms, as in QEMU and libvirt; 0 to 2,000,000. */
  readonly downtimeLimitMs: number;
  /** Cap on all page channels together, lifted in the blackout. Default 0, no cap: QEMU's 128 MiB/s is the classic trap. */
  readonly maxBandwidthBytesPerSecond: number;
  /** Page channels. Default 2 as in QEMU; 1 to 16. */
  readonly multifdChannels: number;
  /** Default none. */
  readonly multifdCompression: "none" | "lz4";
  /** Both sides hash every page and compare the image digest in the commit. Default on. */
  readonly isDigestOn: boolean;
  /** After ACTIVE the source compares its frozen image with what it sent. Default on; needs the digest. */
  readonly isAuditOn: boolean;
  /** Default auto: direct where this host can, else portable. */
  readonly pump: "auto" | "direct" | "portable";
  /** Of the page channels' sockets, by the kernel's name. Default auto: cubic where it may be had, else the system's choice. A name needs the direct pump. */
  readonly congestionControl: string;
}

export const DEFAULT_PARAMETERS: MigrationParameters = {
  mode: "precopy",
  downtimeLimitMs: 300,
  maxBandwidthBytesPerSecond: 0,
  multifdChannels: 2,
  multifdCompression: "none",
  isDigestOn: true,
  isAuditOn: true,
  pump: "auto",
  congestionControl: "auto",
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
  if (!["none", "lz4"].includes(all.multifdCompression)) refuse("multifd-compression", all.multifdCompression, "none or lz4");
  if (!["precopy", "stop-and-copy"].includes(all.mode)) refuse("mode", all.mode, "precopy or stop-and-copy");
  if (!["auto", "direct", "portable"].includes(all.pump)) refuse("pump", all.pump, "auto, direct or portable");
  if (!CONGESTION_CONTROL.test(all.congestionControl))
    refuse("congestion-control", `"${all.congestionControl}"`, "auto or a name of at most 15 of a-z, 0-9 and _");
  return all;
}

/** Spelled as on the command line, for the report. */
export const reportParameters = (parameters: MigrationParameters): Record<string, unknown> => ({
  mode: parameters.mode,
  "downtime-limit": parameters.downtimeLimitMs,
  "max-bandwidth": parameters.maxBandwidthBytesPerSecond,
  "multifd-channels": parameters.multifdChannels,
  "multifd-compression": parameters.multifdCompression,
  digest: parameters.isDigestOn,
  audit: parameters.isAuditOn,
  pump: parameters.pump,
  "congestion-control": parameters.congestionControl,
});
