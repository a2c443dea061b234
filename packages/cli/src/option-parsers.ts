import { Option } from "@commander-js/extra-typings";
import type { Command } from "@commander-js/extra-typings";
import {
  MigrationError,
  PAGE_BYTES,
  TIMER_MS_MAX,
  formatBytes,
  parseAddress,
  parseCount,
  parseMilliseconds,
  parseSize,
} from "@precopy/protocol";

export const refuse = (message: string): never => {
  throw new MigrationError("ERR_PARAMETER", message);
};

/** Runs a parser; what it throws gets the option's name, and the text where that is missing. */
export function read<T>(flag: string, text: string, parse: (text: string) => T): T {
  try {
    return parse(text);
  } catch (error) {
    if (!(error instanceof MigrationError)) throw error;
    const lead = error.message.includes(`"${text}"`) ? flag : `${flag} ${text}`;
    throw new MigrationError(error.code, `${lead}: ${error.message}`, error.cause === undefined ? undefined : { cause: error.cause });
  }
}

export const option = <Flags extends string, T>(flags: Flags, description: string, parse: (text: string) => T) =>
  new Option(flags, description).argParser((text: string) => read(flags.split(" ", 1)[0] ?? flags, text, parse));

export const within = (text: string, value: number, least: number, most: number, show: (value: number) => string = String): number =>
  value >= least && value <= most ? value : refuse(`"${text}" is out of range, must be ${show(least)} to ${show(most)}`);

export const parseWhole = (least: number, most: number) => (text: string) =>
  /^\d+$/.test(text) ? within(text, Number(text), least, most) : refuse(`"${text}" is not a whole number, must be ${least} to ${most}`);
export const parseRate = (least: number, most: number) => (text: string) => within(text, parseCount(text), least, most);
export const parseTime = (text: string) => within(text, parseMilliseconds(text), 0, TIMER_MS_MAX, (value) => `${value} ms`);
export const parseBytes = (least: number, most: number) => (text: string) => within(text, parseSize(text), least, most, formatBytes);
export const parsePages = (least: number, most: number) => (text: string) => {
  const bytes = parseBytes(least, most)(text);
  if (bytes % PAGE_BYTES === 0) return bytes;
  return refuse(
    `"${text}" is no multiple of ${PAGE_BYTES} B, the page size: the next one is ${Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES}`,
  );
};

export function parseChoice<const T extends string>(choices: readonly T[]): (text: string) => T {
  return (text) => choices.find((choice) => choice === text) ?? refuse(`"${text}" is not one of ${choices.join(", ")}`);
}

export function parseFraction(text: string): number {
  const value = /^\d*\.?\d+$/.test(text) ? Number(text) : NaN;
  return value >= 0 && value <= 1 ? value : refuse(`"${text}" is not a fraction, must be 0 to 1`);
}

export const parseName = (text: string): string =>
  /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(text)
    ? text
    : refuse(`"${text}" is not a name: up to 64 letters, digits, ".", "_" and "-", a letter or digit first`);
export const parseText = (text: string): string => (text === "" ? refuse(`"" is empty`) : text);

/** For a peer: there port 0 means nothing. */
export const parsePeer = (defaultPort: number) => (text: string) => {
  const address = parseAddress(text, defaultPort);
  if (address.port === 0) throw new MigrationError("ERR_ADDRESS", `"${text}": nobody can be reached at port 0`);
  return address;
};

export function parseList<T>(parse: (text: string) => T): (text: string) => T[] {
  return (text) => {
    const list = text.split(",").map(parse);
    return new Set(list).size === list.length ? list : refuse(`"${text}" names one twice`);
  };
}

/** What an action is given of a command's options. */
export type OptionsOf<C> = C extends Command<infer _A, infer O, infer _G> ? O : never;
/** Of a command that has none yet. */
export type None = Record<never, never>;
