import { median } from "@precopy/lab/sweep-summary";
import { PAGE_BYTES } from "@precopy/protocol";
import type { DirtyRate, Forecast, ForecastOutcome, ForecastRange, MigrationPlanReport, PlannedChange } from "@precopy/protocol";
import type { HistoryEntry } from "./history.js";
import { bandwidth, bytes, count, milliseconds, paint, paragraph, row, time } from "./figures.js";

const percent = (share: number): string => `${share.toFixed(share < 10 ? 1 : 0)} %`;
const range = ({ low, expected, high }: ForecastRange, show: (value: number) => string): string =>
  `${show(expected)} (${show(low)} to ${show(high)})`;

const CURVE_WIDTHS = [9, 9, 9, 13] as const;

/** The working-set curve, and what it cost to look. */
export function renderDirtyRate(rate: DirtyRate): string {
  const { curve, "populated-pages": populated, "watched-pages": watched } = rate;
  const lines = curve.map(({ ms, pages, "error-pages": error }) =>
    row(CURVE_WIDTHS, [time(ms), count(pages), error === 0 ? "" : `±${count(error)}`, bandwidth((pages * PAGE_BYTES * 1000) / ms)]),
  );
  return [
    row(CURVE_WIDTHS, ["within", "pages", "", "dirty rate"]),
    ...lines,
    ...paragraph("watched", `${count(watched)} of ${count(populated)} populated pages, ${rate["dirty-log"]} dirty log`),
    ...paragraph("cost", `${percent(rate["cost-percent"])} of the guest's time`),
  ].join("\n");
}

/** What is expected, as a person says it. */
export function forecastText({
  ends,
  failure,
  "total-ms": total,
  "downtime-ms": downtime,
  bytes: sent,
  rounds,
  "lost-percent": lost,
  "blocked-ms": blocked,
}: Forecast): string {
  if (!ends) return `does not end: ${failure}`;
  const throttled = lost < 0.5 ? "" : `, ${percent(lost)} of the guest's time withheld`;
  const waits = blocked.high === 0 ? "" : `, ${range(blocked, time)} of the guest's time at pages still to come`;
  return `total ${range(total, time)}, pause ${range(downtime, time)}, ${bytes(sent.expected)} in ${rounds + 1} rounds${throttled}${waits}`;
}

const partsText = ({ pause, collect, send, commit }: Forecast["downtime-parts"]): string =>
  `pause ${milliseconds(pause)} collect ${milliseconds(collect)} send ${milliseconds(send)} commit ${milliseconds(commit)}`;

const changeLines = ({ option, price, forecast }: PlannedChange): string[] =>
  paragraph("or", `${option}: total ${time(forecast["total-ms"].expected)}; costs ${price}`);

/** The answer first, then what it was made from. */
export function renderPlan(plan: MigrationPlanReport, isColoured = false): string {
  const { forecast, changes, pages, link, "dirty-rate": rate } = plan;
  const { curve } = rate;
  const zero = percent(pages["zero-share"] * 100);
  const ratio = pages["lz4-ratio"];
  const label = forecast.ends ? "ends" : "stays";
  const [first = "", ...others] = paragraph(label, forecastText(forecast));
  return [
    `${plan.guest} -> ${plan.to}: simulated from what was measured just now`,
    paint(isColoured, forecast.ends ? "green" : "yellow", label) + first.slice(label.length),
    ...others,
    ...(forecast.ends ? paragraph("split, ms", partsText(forecast["downtime-parts"])) : []),
    ...changes.flatMap(changeLines),
    ...paragraph(
      "guest",
      `${bytes(rate["populated-pages"] * PAGE_BYTES)} populated, ${zero} of it zeros${ratio === null ? "" : `, LZ4 leaves ${percent(ratio * 100)}`}; dirties ${curve
        .filter(({ ms }) => ms > 60)
        .map(({ ms, pages: dirtied }) => `${bytes(dirtied * PAGE_BYTES)} in ${time(ms)}`)
        .join(", ")}`,
    ),
    ...paragraph(
      "link",
      `${bandwidth(link["bandwidth-bytes-per-second"])} ± ${percent(link.spread * 100)}, round trip ${time(link["round-trip-ms"])}, ${bytes(link["probed-bytes"])} sent in ${time(link["probe-ms"])} to find out`,
    ),
    ...paragraph("cost", `${percent(rate["cost-percent"])} of the guest's time while it was watched`),
  ].join("\n");
}

/** Of what was expected, how far off it was, percent; positive: it took longer. */
const off = (expected: number, came: number): number => (came / expected - 1) * 100;
const signed = (value: number): string => `${value < 0 ? "" : "+"}${value.toFixed(0)}%`;

/** The forecast beside the outcome, for the report of one migration. */
export const outcomeText = (forecast: Forecast, outcome: ForecastOutcome): string =>
  forecast.ends
    ? `by ${forecast.by}: total ${time(forecast["total-ms"].expected)} (${signed(off(forecast["total-ms"].expected, outcome["total-ms"]))}), pause ${time(forecast["downtime-ms"].expected)} (${signed(off(forecast["downtime-ms"].expected, outcome["downtime-ms"]))})`
    : `by ${forecast.by}: would not end`;

const BY = { plan: "plan", "first-round": "rnd 1" } as const;
const HISTORY_WIDTHS = [-14, -7, -9, -5, 7, 7, 5, 6, 6, 5] as const;
const HISTORY_HEADER = [
  row(HISTORY_WIDTHS, ["", "", "", "", "total,", "ms", "", "pause,", "ms", ""]),
  row(HISTORY_WIDTHS, ["when", "guest", "status", "by", "exp.", "came to", "off", "exp.", "came", "off"]),
];

/** A row a migration and forecast; then the median error of each kind of forecast. */
export function renderHistory(entries: readonly HistoryEntry[]): string {
  if (entries.length === 0) return "no migrations yet";
  const errors = new Map<string, { total: number[]; pause: number[] }>();
  const lines = entries.flatMap(({ at, guest, status, code, forecasts, outcome }) => {
    const head = [at.replace("T", " ").slice(5, 19), guest.slice(0, 7), (code === null ? status : code.replace(/^ERR_/, "")).slice(0, 9)];
    if (forecasts.length === 0 || outcome === null)
      return [row(HISTORY_WIDTHS, [...head, "", "", milliseconds(outcome?.["total-ms"]), "", "", milliseconds(outcome?.["downtime-ms"])])];
    return forecasts.map(({ by, ends, "total-ms": total, "downtime-ms": downtime }) => {
      if (!ends)
        return row(HISTORY_WIDTHS, [
          ...head,
          BY[by],
          "no end",
          milliseconds(outcome["total-ms"]),
          "",
          "",
          milliseconds(outcome["downtime-ms"]),
        ]);
      const [totalOff, pauseOff] = [off(total.expected, outcome["total-ms"]), off(downtime.expected, outcome["downtime-ms"])];
      const known = errors.get(by) ?? { total: [], pause: [] };
      errors.set(by, known);
      known.total.push(Math.abs(totalOff));
      known.pause.push(Math.abs(pauseOff));
      return row(HISTORY_WIDTHS, [
        ...head,
        BY[by],
        milliseconds(total.expected),
        milliseconds(outcome["total-ms"]),
        signed(totalOff),
        milliseconds(downtime.expected),
        milliseconds(outcome["downtime-ms"]),
        signed(pauseOff),
      ]);
    });
  });
  const medians = [...errors].flatMap(([by, { total, pause }]) =>
    paragraph("", `by ${by}: median error of ${total.length}: total ${percent(median(total) ?? 0)}, pause ${percent(median(pause) ?? 0)}`),
  );
  return [...HISTORY_HEADER, ...lines, ...medians].join("\n");
}
