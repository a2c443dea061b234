import { styleText } from "node:util";
import { formatBandwidth, formatBytes } from "@precopy/protocol";
import { oneLine } from "./exit-code.js";

/** No line of a terminal is longer. */
export const COLUMNS = 80;
/** Room for the longest status, `taken-back`, and a space. */
export const LABEL_COLUMNS = 11;

export type Format = "bold" | "dim" | "green" | "red" | "yellow";
export const paint = (isColoured: boolean, format: Format, text: string): string =>
  isColoured ? styleText(format, text, { validateStream: false }) : text;

/** A number that is not there, or that no clock could have shown, is `-`; JSON turns both NaN and Infinity into null. */
export type Figure = number | null | undefined;
export const shown = (value: Figure, show: (value: number) => string): string =>
  typeof value === "number" && Number.isFinite(value) ? show(value) : "-";

/** For a column; above 100 s it says so. */
export const milliseconds = (value: Figure): string =>
  shown(value, (ms) => (ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : ms < 1e5 ? ms.toFixed(0) : `${(ms / 1000).toFixed(0)}s`));
export const time = (value: Figure): string => shown(value, (ms) => (ms < 1e5 ? `${milliseconds(ms)} ms` : `${(ms / 1000).toFixed(0)} s`));
/** At most six characters up to 10^12. */
export const count = (value: Figure): string =>
  shown(value, (number) =>
    number < 1e6
      ? number.toFixed(0)
      : number < 1e9
        ? `${(number / 1e6).toFixed(number < 1e8 ? 2 : 1)}M`
        : `${(number / 1e9).toFixed(number < 1e11 ? 2 : 1)}G`,
  );
export const bytes = (value: Figure): string => shown(value, formatBytes);
export const bandwidth = (value: Figure): string => shown(value, formatBandwidth);

export const clip = (text: string, columns = COLUMNS): string => (text.length <= columns ? text : `${text.slice(0, columns - 1)}…`);

/** Positive widths align to the right, negative ones to the left; the last column takes what is left of the line. */
export const row = (widths: readonly number[], cells: readonly string[]): string =>
  clip(
    cells
      .map((cell, at) => ((widths[at] ?? 0) < 0 ? cell.padEnd(-(widths[at] ?? 0)) : cell.padStart(widths[at] ?? 0)))
      .join(" ")
      .trimEnd(),
  );

/** Broken between words; a word that is longer than a line is broken too. */
export function wrap(text: string, columns: number): string[] {
  const lines: string[] = [];
  for (const word of oneLine(text).match(new RegExp(`[^ ]{1,${columns}}`, "g")) ?? []) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= columns) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

/** A label and its text, indented. */
export const paragraph = (label: string, text: string): string[] =>
  wrap(text, COLUMNS - LABEL_COLUMNS).map((line, at) => `${(at === 0 ? label : "").padEnd(LABEL_COLUMNS)}${line}`);

/** A command to be copied: where it does not fit into a line the shell reads on. */
export const commandLines = (indent: number, command: string): string[] => {
  const lines = wrap(command, COLUMNS - indent - 2);
  return lines.map((line, at) => `${" ".repeat(indent)}${line}${at === lines.length - 1 ? "" : " \\"}`);
};
