import { parseArgs } from "node:util";
import { CHANNELS_MAX, MigrationError, parseBandwidth, parseSize } from "@precopy/protocol";
import type { LinkOptions } from "./links.js";

const COMPRESSIONS = ["none", "lz4"] as const;
const CONGESTION_CONTROLS = ["cubic", "bbr"] as const;
/** The least an IPv4 host must take, and the most a header can tell. */
const MTU_MIN = 576;
const MTU_MAX = 65_535;

export interface Setting {
  readonly channels: number;
  readonly compression: (typeof COMPRESSIONS)[number];
}

/** Every setting is run on every link, `repeat` times. */
export interface SweepPlan {
  readonly links: readonly LinkOptions[];
  readonly settings: readonly Setting[];
  readonly repeat: number;
  /** As `precopy source` reads them, which also refuses what does not fit. */
  readonly guest: Readonly<Record<"memory" | "fill" | "dirty-rate" | "working-set", string>>;
  /** What the guest holds at boot, bytes. */
  readonly filledBytes: number;
  /** A smoke test: its figures are not kept. */
  readonly isQuick: boolean;
}

const SWEEP = {
  rates: "1Gbit,10Gbit,none",
  mtu: "1500,9000",
  channels: "1,2,4",
  compression: "none,lz4",
  repeat: "3",
  memory: "2GiB",
  fill: "256MiB",
  "dirty-rate": "2k",
  "working-set": "16MiB",
};
/** One small combination, some seconds. */
const QUICK: typeof SWEEP = {
  ...SWEEP,
  rates: "1Gbit",
  mtu: "1500",
  channels: "2",
  compression: "none",
  repeat: "1",
  memory: "128MiB",
  fill: "32MiB",
  "working-set": "4MiB",
};

const refuse = (message: string): never => {
  throw new MigrationError("ERR_PARAMETER", message);
};

function whole(flag: string, text: string, least: number, most: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  return value >= least && value <= most ? value : refuse(`--${flag} "${text}" must be a whole number, ${least} to ${most}`);
}

const choice = <const T extends string>(flag: string, text: string, choices: readonly T[]): T =>
  choices.find((one) => one === text) ?? refuse(`--${flag} "${text}" is not one of ${choices.join(", ")}`);

/** Bits a second. */
function rateOf(text: string): number | undefined {
  if (text === "none") return undefined;
  const bytesPerSecond = parseBandwidth(text);
  return bytesPerSecond === 0 ? refuse(`--rates "${text}" carries nothing: an unshaped link is "none"`) : bytesPerSecond * 8;
}

/** Reads the command line; `--quick` changes what is not given. @throws {MigrationError} ERR_PARAMETER. @throws {TypeError} an unknown option */
export function planOf(args: readonly string[]): SweepPlan {
  const text = { type: "string" } as const;
  const { values } = parseArgs({
    args: [...args],
    options: {
      rates: text,
      mtu: text,
      channels: text,
      compression: text,
      repeat: text,
      memory: text,
      fill: text,
      "dirty-rate": text,
      "working-set": text,
      "congestion-control": text,
      compressible: { type: "boolean", default: false },
      quick: { type: "boolean", default: false },
    },
  });
  const given = { ...(values.quick ? QUICK : SWEEP), ...values };
  const control = values["congestion-control"];
  const congestionControl = control === undefined ? undefined : choice("congestion-control", control, CONGESTION_CONTROLS);
  const mtus = given.mtu.split(",").map((mtu) => whole("mtu", mtu, MTU_MIN, MTU_MAX));
  const compressions = given.compression.split(",").map((compression) => choice("compression", compression, COMPRESSIONS));
  return {
    links: given.rates
      .split(",")
      .map(rateOf)
      .flatMap((rate) => mtus.map((mtu) => ({ rate, mtu, congestionControl }))),
    settings: given.channels
      .split(",")
      .map((channels) => whole("channels", channels, 1, CHANNELS_MAX))
      .flatMap((channels) => compressions.map((compression) => ({ channels, compression }))),
    repeat: whole("repeat", given.repeat, 1, 1000),
    guest: {
      memory: given.memory,
      fill: `${given.fill}:${given.compressible ? "text" : "random"}`,
      "dirty-rate": given["dirty-rate"],
      "working-set": given["working-set"],
    },
    filledBytes: parseSize(given.fill),
    isQuick: given.quick,
  };
}
