import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { readResults } from "./compare.js";
import type { EntryResult } from "./compare.js";
import type { Figure } from "./define-bench.js";
import { resultFile } from "./report.js";
import { formatSpread, spreadOf } from "./spread.js";

// `npm run bench:document` fills the tables of docs/benchmarks.md from bench/results. A table stands between `<!-- results NAME ... -->` and
// `<!-- end -->`, where a NAME is an entry's, or `node-MAJOR` for what `--json bench/results/node-MAJOR.json` wrote under that Node.
const DOCUMENT = fileURLToPath(new URL("../../docs/benchmarks.md", import.meta.url));
const BLOCK = /(<!-- results ([^>]+?) -->\n)[\s\S]*?(<!-- end -->)/g;

const markdownRow = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [head, head.map((_, at) => (at === 0 ? "---" : "---:")), ...rows].map(markdownRow).join("\n");

const spread = ({ values }: Figure): string => formatSpread(spreadOf(values));
const median = ({ values }: Figure): string => formatSpread({ ...spreadOf([spreadOf(values).median]) });
const against = ({ values, target, better }: Figure): string => {
  if (target === undefined) return "";
  const { median: middle } = spreadOf(values);
  const isMet = better === "lower" ? middle <= target : middle >= target;
  return `${better === "lower" ? "at most" : "at least"} ${target}: ${isMet ? "met" : "**missed**"}`;
};

/** A figure of one point of a curve, or of one case of many: `total at 4GiB`, `1.00 Gbit/s, MTU 1500: plain: total`. */
const POINT = /^(?<what>[^:]+?) at (?<where>[^:]+)$|^(?<case>.+): (?<figure>[^:]+)$/;

/** A row for each point, a column for each figure; points that have no figure in common go into tables of their own. */
function pivot(figures: readonly Figure[]): string {
  const cells = figures.flatMap((figure) => {
    const groups = POINT.exec(figure.name)?.groups;
    const [what, where] = [groups?.["what"] ?? groups?.["figure"], groups?.["where"] ?? groups?.["case"]];
    return what === undefined || where === undefined ? [] : [{ column: `${what}, ${figure.unit}`, row: where, figure }];
  });
  interface Table {
    readonly rows: string[];
    readonly columns: Set<string>;
  }
  const tables: Table[] = [];
  for (const row of new Set(cells.map((cell) => cell.row))) {
    const columns = cells.filter((cell) => cell.row === row).map(({ column }) => column);
    const own: Table = tables.find((one) => columns.some((column) => one.columns.has(column))) ?? { rows: [], columns: new Set() };
    if (own.rows.length === 0) tables.push(own);
    own.rows.push(row);
    for (const column of columns) own.columns.add(column);
  }
  const cell = (row: string, column: string): string => {
    const found = cells.find((one) => one.row === row && one.column === column)?.figure;
    return found === undefined ? "" : spread(found);
  };
  return tables
    .map(({ rows, columns }) =>
      table(
        ["", ...columns],
        rows.map((row) => [row, ...[...columns].map((column) => cell(row, column))]),
      ),
    )
    .join("\n\n");
}

/** A row for each figure. */
const list = (figures: readonly Figure[]): string =>
  table(
    ["figure", "median (least to most)", "unit", "runs", "target"],
    figures.map((figure) => [figure.name, spread(figure), figure.unit, String(figure.values.length), against(figure)]),
  );

/** A row for each load: ours, the peer's best, and their ratio. */
function versus(entries: readonly EntryResult[]): string {
  const rows = entries.flatMap(({ name, figures }) =>
    ["total", "pause", "tick gap", "processor time"].flatMap((what) => {
      const ratio = figures.find((figure) => figure.name.startsWith(`${what}, default to `));
      const rival = ratio?.name.slice(`${what}, default to `.length);
      const [own, theirs, proven, provenRatio] = [
        `${what}, precopy default`,
        `${what}, ${rival}`,
        `${what}, precopy proven`,
        `${what}, proven to ${rival}`,
      ].map((wanted) => figures.find((figure) => figure.name === wanted));
      if (ratio === undefined || rival === undefined || own === undefined || theirs === undefined) return [];
      return [
        [
          `${name.replace("versus-", "")}: ${what}, ${own.unit}`,
          spread(own),
          `${spread(theirs)} ${rival.split(" ").slice(2).join(" ")}`,
          spread(ratio),
          against(ratio),
          proven === undefined ? "" : median(proven),
          provenRatio === undefined ? "" : median(provenRatio),
        ],
      ];
    }),
  );
  return table(["load", "precopy", "QEMU, its best setting", "ratio", "target", "with digest and audit", "its ratio"], rows);
}

/** A row for each figure, a column for each file. */
function sideBySide(files: readonly { readonly name: string; readonly entries: readonly EntryResult[] }[]): string {
  const columns = files.map(({ name, entries }) => ({
    name,
    figures: new Map(entries.flatMap((entry) => entry.figures.map((figure) => [`${entry.name}: ${figure.name}, ${figure.unit}`, figure]))),
  }));
  const rows = [...new Set(columns.flatMap(({ figures }) => [...figures.keys()]))];
  const cell = (figure: Figure | undefined): string => (figure === undefined ? "" : spread(figure));
  return table(
    ["figure", ...columns.map(({ name }) => name)],
    rows.map((row) => [row, ...columns.map(({ figures }) => cell(figures.get(row)))]),
  );
}

function render(entries: readonly EntryResult[]): string {
  if (entries.every(({ name }) => name.startsWith("versus-"))) return versus(entries);
  if (entries.every(({ name }) => name.startsWith("pauses-"))) return pivot(entries.flatMap(({ figures }) => figures));
  return entries
    .map(({ name, figures }) => {
      const points = figures.filter((figure) => POINT.test(figure.name));
      const rest = figures.filter((figure) => !points.includes(figure));
      const tables = [...(rest.length > 0 ? [list(rest)] : []), ...(points.length > 0 ? [pivot(points)] : [])];
      return (entries.length > 1 ? [`**${name}**`, ...tables] : tables).join("\n\n");
    })
    .join("\n\n");
}

const text = readFileSync(DOCUMENT, "utf8");
writeFileSync(
  DOCUMENT,
  text.replace(BLOCK, (_, begin: string, names: string, end: string) => {
    const files = names.split(" ").map((name) => ({ name, file: resultFile(name) }));
    const read = files.flatMap(({ name, file }) => (existsSync(file) ? [{ name, entries: readResults(file) }] : []));
    const shown = names.startsWith("node-") ? sideBySide(read) : render(read.flatMap(({ entries }) => entries));
    const missing = files.filter(({ file }) => !existsSync(file)).map(({ name }) => `Not measured yet: ${name}.`);
    return [begin, ...(read.length > 0 ? [shown, ""] : []), ...missing, ...(missing.length > 0 ? [""] : []), end].join("\n");
  }),
);
