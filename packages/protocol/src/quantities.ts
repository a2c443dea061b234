import { MigrationError } from "./errors.js";

const BINARY = { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 } as const;
const DECIMAL = { "": 1, K: 1e3, M: 1e6, G: 1e9, T: 1e12 } as const;
type Prefix = keyof typeof BINARY;
const isPrefix = (value: string): value is Prefix => Object.hasOwn(BINARY, value);

/** Rounds, but never out of what a number holds exactly, and never something to 0: a bandwidth of 0 means no limit. */
function whole(text: string, value: number): number {
  const rounded = Math.round(value);
  if (!Number.isSafeInteger(rounded)) throw new MigrationError("ERR_PARAMETER", `"${text}" is too large`);
  if (rounded === 0 && value > 0) throw new MigrationError("ERR_PARAMETER", `"${text}" is too small`);
  return rounded;
}

function parse(text: string, pattern: RegExp, what: string, scale: (prefix: Prefix, unit: string) => number): number {
  const match = pattern.exec(text.trim());
  const prefix = (match?.[2] ?? "").toUpperCase();
  if (match === null || !isPrefix(prefix)) throw new MigrationError("ERR_PARAMETER", `"${text}" is not ${what}`);
  return whole(text, Number(match[1]) * scale(prefix, match[3] ?? ""));
}

/** Bytes. `8GiB`, `512M` and `64k` are binary as in QEMU and libvirt, `8GB` is decimal, a bare number is bytes. @throws ERR_PARAMETER */
export const parseSize = (text: string): number =>
  parse(text, /^(\d+(?:\.\d+)?) *([kmgt]?)(i?b)?$/i, "a size: try 8GiB, 512M or 1048576", (prefix, unit) =>
    unit.toLowerCase() === "b" ? DECIMAL[prefix] : BINARY[prefix],
  );

/** Bytes a second. `10Gbit` is decimal bits, `128MiB` or `128MiB/s` bytes, `0` means unlimited; `Bps` could be either and is refused. @throws ERR_PARAMETER */
export const parseBandwidth = (text: string): number =>
  /bit(\/s)?$|bps$/i.test(text.trim())
    ? parse(
        text,
        /^(\d+(?:\.\d+)?) *([kmgtKMGT]?)([Bb]it\/s|[Bb]it|bps)$/,
        "a bandwidth: try 10Gbit or 128MiB/s",
        (prefix) => DECIMAL[prefix] / 8,
      )
    : parseSize(text.replace(/\/s$/i, ""));

/** A plain count or rate: `25000`, `25k`, `1.5M` are all decimal. @throws ERR_PARAMETER */
export const parseCount = (text: string): number =>
  parse(text, /^(\d+(?:\.\d+)?) *([kmg]?)$/i, "a number: try 25000 or 25k", (prefix) => DECIMAL[prefix]);

/** Whole milliseconds: `300`, `300ms`, `2s`. @throws ERR_PARAMETER */
export function parseMilliseconds(text: string): number {
  const match = /^(\d+(?:\.\d+)?) *(ms|s)?$/i.exec(text.trim());
  if (match === null) throw new MigrationError("ERR_PARAMETER", `"${text}" is not a time: try 300, 300ms or 2s`);
  return whole(text, Number(match[1]) * (match[2]?.toLowerCase() === "s" ? 1000 : 1));
}

const short = (value: number): string => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

/** `1.00 GiB`, `64.0 KiB`, `17 B`. */
export function formatBytes(bytes: number): string {
  const prefixes = ["", "Ki", "Mi", "Gi", "Ti"];
  let value = bytes;
  let step = 0;
  for (; value >= 1024 && step < prefixes.length - 1; step++) value /= 1024;
  return step === 0 ? `${bytes} B` : `${short(value)} ${prefixes[step]}B`;
}

/** `12.4 Gbit/s`, from bytes a second. */
export function formatBandwidth(bytesPerSecond: number): string {
  const prefixes = ["", "k", "M", "G", "T"];
  let value = bytesPerSecond * 8;
  let step = 0;
  for (; value >= 1000 && step < prefixes.length - 1; step++) value /= 1000;
  return `${short(value)} ${prefixes[step]}bit/s`;
}
