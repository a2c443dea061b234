import { parseArgs } from "node:util";
import { MigrationError, parseBandwidth, parseSize } from "@precopy/protocol";
import type { LinkOptions } from "./links.js";

const CONGESTION_CONTROLS = ["none", "cubic", "bbr"] as const;
/** The least an IPv4 host must take, and the most a header can tell. */
const MTU_MIN = 576;
const MTU_MAX = 65_535;

/** The same sweep on every link. */
export interface OverLinksPlan {
  readonly links: readonly LinkOptions[];
  /** For `precopy bench`, which also refuses what is wrong with it. */
  readonly benchArguments: readonly string[];
  /** What the guest holds at boot, bytes. */
  readonly filledBytes: number;
  /** Folder for a folder of each link. */
  readonly plots: string | undefined;
  /** A smoke test: its figures are not kept. */
  readonly isQuick: boolean;
}

const LINKS = { rates: "1Gbit,10Gbit,none", mtu: "1500,9000", "link-congestion-control": "none", fill: "256MiB" };
const BENCH = ["--dirty-rates", "2k", "--working-set", "16MiB"];
/** One small combination, some seconds. */
const QUICK_LINKS: typeof LINKS = { ...LINKS, rates: "1Gbit", mtu: "1500", fill: "32MiB" };
const QUICK_BENCH = ["--quick"];

const refuse = (message: string): never => {
  throw new MigrationError("ERR_PARAMETER", message);
};

function mtuOf(text: string): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  return value >= MTU_MIN && value <= MTU_MAX ? value : refuse(`--mtu "${text}" must be a whole number, ${MTU_MIN} to ${MTU_MAX}`);
}

function controlOf(text: string): LinkOptions["congestionControl"] {
  const control = CONGESTION_CONTROLS.find((one) => one === text);
  if (control === undefined) return refuse(`--link-congestion-control "${text}" is not one of ${CONGESTION_CONTROLS.join(", ")}`);
  return control === "none" ? undefined : control;
}

/** Bits a second. */
function rateOf(text: string): number | undefined {
  if (text === "none") return undefined;
  const bytesPerSecond = parseBandwidth(text);
  return bytesPerSecond === 0 ? refuse(`--rates "${text}" carries nothing: an unshaped link is "none"`) : bytesPerSecond * 8;
}

/** Reads the command line; `--quick` changes what is not given, and what is not ours is the bench's. @throws {MigrationError} ERR_PARAMETER */
export function planOf(args: readonly string[]): OverLinksPlan {
  const text = { type: "string" } as const;
  const { values, tokens } = parseArgs({
    args: [...args],
    options: { rates: text, mtu: text, "link-congestion-control": text, fill: text, plots: text, quick: { type: "boolean" } },
    strict: false, // the rest is for the bench, in whatever way it is written
    tokens: true,
  });
  const ours = new Set<number>();
  for (const token of tokens) {
    if (token.kind !== "option" || !Object.hasOwn({ ...LINKS, plots: "", quick: true }, token.name)) continue;
    ours.add(token.index);
    if (token.name !== "quick" && token.value === undefined) refuse(`${token.rawName} needs a value`);
    if (token.inlineValue === false) ours.add(token.index + 1);
  }
  const given = (name: keyof typeof LINKS | "plots"): string | undefined => {
    const value = values[name];
    return typeof value === "string" ? value : undefined;
  };
  const isQuick = values["quick"] === true;
  const otherwise = isQuick ? QUICK_LINKS : LINKS;
  const list = (name: keyof typeof LINKS): string[] => (given(name) ?? otherwise[name]).split(",");
  const controls = list("link-congestion-control").map(controlOf);
  const mtus = list("mtu").map(mtuOf);
  const fill = given("fill") ?? otherwise.fill;
  return {
    links: list("rates")
      .map(rateOf)
      .flatMap((rate) => mtus.flatMap((mtu) => controls.map((congestionControl) => ({ rate, mtu, congestionControl })))),
    benchArguments: [...(isQuick ? QUICK_BENCH : BENCH), "--fill", fill, ...args.filter((_, at) => !ours.has(at))],
    filledBytes: parseSize(fill.split(":", 1)[0] ?? ""),
    plots: given("plots"),
    isQuick,
  };
}
