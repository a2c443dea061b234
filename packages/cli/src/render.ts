import { clearLine, cursorTo } from "node:readline";
import type { Writable } from "node:stream";
import { median } from "@precopy/lab/sweep-summary";
import type {
  DowntimeBreakdown,
  MigrationReport,
  PostcopyReport,
  Ownership,
  ProgressEvent,
  QueryMigrate,
  RoundProgress,
  Verdict,
} from "@precopy/protocol";
import type { Resolution, WhoOwnsAnswer } from "./command-socket.js";
import { oneLine } from "./exit-code.js";
import {
  COLUMNS,
  LABEL_COLUMNS,
  bandwidth,
  bytes,
  clip,
  commandLines,
  count,
  milliseconds,
  paint,
  paragraph,
  row,
  shown,
  time,
  wrap,
} from "./figures.js";
import type { Figure, Format } from "./figures.js";
import { verdictOf } from "./ownership-verdict.js";
import { forecastText, outcomeText } from "./render-forecast.js";

/** What `precopy status` asks for. */
export interface AgentStatus {
  readonly agent: { readonly name: string; readonly listen: string; readonly pid: number; readonly release: string };
  readonly guest: {
    readonly id: string;
    readonly epoch: number;
    readonly "memory-bytes": number;
    readonly vcpus: number;
    readonly phase: string;
    readonly "dirty-log": string;
    /** ISO 8601 time of the copy that it was rolled back to by an operator; null if it was not. */
    readonly "copy-at": string | null;
    /** In post-copy, of its memory; null once it is all here. */
    readonly "missing-pages": number | null;
  } | null;
  /** Guests that are not here, and whose hand-over from here nobody has answered. */
  readonly unresolved: readonly Ownership[];
  readonly "query-migrate": QueryMigrate;
  /** Of the migration in progress, else of the last one; null if there was none. */
  readonly verdict: string | null;
}

/** terminal: colours, and the phase redrawn in place. plain: the same lines, for a pipe. json: every event, one object a line. */
export type RendererKind = "terminal" | "plain" | "json";

type Stream = Writable & { readonly isTTY?: boolean; readonly columns?: number };

export const rendererKind = (stream: Stream, isJson: boolean): RendererKind =>
  isJson ? "json" : stream.isTTY === true ? "terminal" : "plain";

/** @param noColor the environment's NO_COLOR; empty counts as unset (no-color.org). */
export const mayColour = (stream: Stream, noColor: string | undefined): boolean => stream.isTTY === true && (noColor ?? "") === "";

/** ISO 8601 as people read it. */
const moment = (at: string): string => at.replace(/^(\d{4}-\d{2}-\d{2})T/, "$1 ");

const ROUND_WIDTHS = [3, 6, 6, 6, 8, 11, 5, 7, 5, -13] as const;
const ROUND_HEADER = row(ROUND_WIDTHS, ["rnd", "dirty", "normal", "zero", "sent", "bandwidth", "ms", "dirty/s", "down", "decision"]);

const roundLine = (round: RoundProgress): string =>
  row(ROUND_WIDTHS, [
    String(round.round),
    count(round.dirtyPages),
    count(round.normalPages),
    count(round.zeroPages),
    bytes(round.bytes),
    bandwidth(round.bandwidthBytesPerSecond),
    milliseconds(round.durationMs),
    count(round.dirtyPagesPerSecond),
    milliseconds(round.expectedDowntimeMs),
    oneLine(`${round.throttlePercent < 0.5 ? "" : `${round.throttlePercent.toFixed(0)}% held; `}${round.decision}`),
  ]);

type LinkEvent = Extract<ProgressEvent, { type: "link" }>;

function linkText({ what, channel, code, message, atMs }: LinkEvent): string {
  const page = `page channel ${channel ?? "-"}`;
  const happened = {
    "channel-lost": `${page} lost`,
    "channel-made-again": `${page} made again`,
    "lane-carried": `${page} carries more`,
    "control-lost": "control channel lost",
    "control-rejoined": "control channel rejoined",
    "postcopy-paused": "post-copy waits for the link",
  }[what];
  return [`${happened} at ${time(atMs)}`, ...(code === null ? [] : [code]), ...(message === "" ? [] : [message])].join(": ");
}

/**
 * Shows the events of migrations, one after another; the summary, `renderReport`, is for whoever has the report when it is complete.
 * Writes do not wait: events are few.
 */
export class Renderer {
  readonly #kind: RendererKind;
  readonly #stream: Stream;
  readonly #isColoured: boolean;
  #hasHeader = false;
  #isWarned = false;
  #phaseLine = "";

  /** @param isColoured see `mayColour`; only a terminal is ever coloured. */
  constructor(kind: RendererKind, stream: Stream, isColoured = false) {
    this.#kind = kind;
    this.#stream = stream;
    this.#isColoured = isColoured && kind === "terminal";
  }

  show(event: ProgressEvent): void {
    if (this.#kind === "json") this.#stream.write(`${JSON.stringify(event)}\n`);
    else this.#showText(event);
  }

  /** Ends the phase line, so that whatever is written next starts on a line of its own. */
  close(): void {
    this.#drawPhase("");
  }

  #showText(event: ProgressEvent): void {
    switch (event.type) {
      case "started":
        this.#hasHeader = this.#isWarned = false;
        return this.#line(
          `${event.guest} -> ${event.to}: ${event.parameters.mode}, ${event.dirtyLog} dirty log, ${event.pump} pump, epoch ${event.epoch}`,
          "bold",
        );
      case "phase":
        return this.#showPhase(`${event.phase} at ${time(event.atMs)}`);
      case "round":
        if (!this.#hasHeader) this.#line(ROUND_HEADER, "dim");
        this.#hasHeader = true;
        this.#line(roundLine(event));
        return this.#showVerdict(event.verdict);
      case "set":
        return this.#line(`parameters changed at ${time(event.atMs)}`, "dim");
      case "link":
        return this.#line(linkText(event), event.what === "channel-lost" || event.what === "control-lost" ? "yellow" : "dim");
      case "forecast":
        for (const line of paragraph("", `expected: ${forecastText(event.forecast)}`)) this.#line(line.trimStart(), "dim");
        return undefined;
      case "switchover":
        return this.#line(`switched over, guest paused ${time(event.downtimeMs)} at the source`);
      case "failed":
        this.#phaseLine = "";
        return this.#line(`failed in phase ${event.phase}: ${event.code}: ${event.message}`, "red");
      case "done":
        return this.close();
    }
  }

  /** Once when it does not converge as things are, and again only if it did meanwhile. */
  #showVerdict(verdict: Verdict | undefined): void {
    const isNew = verdict?.converges === false && !this.#isWarned;
    if (verdict !== undefined) this.#isWarned = !verdict.converges;
    if (isNew) for (const line of paragraph("", verdict.text)) this.#line(line.trimStart(), "yellow");
  }

  #showPhase(text: string): void {
    if (this.#kind === "terminal") this.#drawPhase(text);
    else this.#stream.write(`phase ${text}\n`);
  }

  #drawPhase(text: string): void {
    if (this.#kind !== "terminal" || (text === "" && this.#phaseLine === "")) return;
    this.#phaseLine = text;
    cursorTo(this.#stream, 0);
    clearLine(this.#stream, 0);
    if (text !== "") this.#stream.write(paint(this.#isColoured, "dim", clip(text, Math.min(COLUMNS, this.#stream.columns || COLUMNS) - 1)));
  }

  /** A line that stays; the phase line moves below it. */
  #line(text: string, format?: Format): void {
    const line = clip(text.replace(/\p{Cc}+/gu, " "));
    if (this.#kind === "terminal") {
      cursorTo(this.#stream, 0);
      clearLine(this.#stream, 0);
    }
    this.#stream.write(`${format === undefined ? line : paint(this.#isColoured, format, line)}\n`);
    if (this.#phaseLine !== "") this.#drawPhase(this.#phaseLine);
  }
}

const averageBandwidth = ({ ram }: QueryMigrate): number | undefined => (ram === undefined ? undefined : (ram.mbps * 1e6) / 8);
const roundsOf = (report: MigrationReport): number => report["query-migrate"].ram?.["dirty-sync-count"] ?? report.iterations.length;

/** The largest part first, by name; the others in the order in which they happen. */
function breakdownText(breakdown: DowntimeBreakdown): string {
  const parts = (["pause", "collect", "transfer", "prepare", "commit"] as const).map((name) => ({ name, ms: breakdown[name] }));
  const largest = parts.reduce((most, part) => (part.ms > most.ms ? part : most));
  const show = ({ name, ms }: { readonly name: string; readonly ms: number }): string => `${name} ${milliseconds(ms)}`;
  return `most ${show(largest)}; ${parts
    .filter((part) => part !== largest)
    .map(show)
    .join(" ")}`;
}

function digestText(report: MigrationReport): string {
  if (report["digest-equal"] === true) return "equal";
  if (report["digest-equal"] === false) return "DIFFER";
  return report.parameters["digest"] === false ? "off" : "-";
}

function auditText(audits: readonly MigrationReport["audit"][], parameters: MigrationReport["parameters"] | undefined): string {
  const done = audits.flatMap((audit) => audit ?? []);
  if (done.length === 0) return parameters?.["audit"] === false ? "off" : "-";
  const mismatched = done.reduce((sum, audit) => sum + audit.mismatched, 0);
  return mismatched === 0 ? "clean" : `${count(mismatched)}!`;
}

const times = (number: number): string => (number === 1 ? "once" : number === 2 ? "twice" : `${count(number)} times`);

/** What of the link broke while the guest ran on; undefined if nothing did. */
function linkSummary(report: MigrationReport): string | undefined {
  const { "channel-losses": channels, "control-rejoins": rejoins } = report;
  const mended = [
    ...(channels > 0 ? [`${count(channels)} page channel${channels === 1 ? "" : "s"} made again`] : []),
    ...(rejoins > 0 ? [`control rejoined ${times(rejoins)}`] : []),
  ];
  return mended.length === 0 ? undefined : [...mended, `${bytes(report["resent-bytes"])} re-sent`].join(", ");
}

function postcopyText({ requests, "latency-us": latency, "pushed-pages": pushed, "fetch-ms": fetchMs, pauses }: PostcopyReport): string {
  const asked =
    requests === 0
      ? "none asked for"
      : `${count(requests)} asked for, ${time(latency.median / 1000)} each (p99 ${time(latency.p99 / 1000)})`;
  const broken = pauses === 0 ? "" : `; link gone ${times(pauses)}`;
  return `${count(pushed + requests)} pages in ${time(fetchMs)}: ${asked}${broken}`;
}

/** What one migration came to: some lines of at most 80 columns, times in ms. */
export function renderReport(report: MigrationReport, isColoured = false): string {
  const { "query-migrate": query, "downtime-breakdown": breakdown, clocks, audit, error } = report;
  const total = `${time(query["total-time"])} in all, ${time(query["setup-time"])} setup, ${roundsOf(report)} rounds, `;
  const sent = `${bytes(query.ram?.transferred)}, ${bandwidth(averageBandwidth(query))}`;
  const audited =
    audit === null
      ? auditText([null], report.parameters)
      : `${count(audit.mismatched)} of ${count(audit.pages)} pages differ (${time(audit.ms)})`;
  const link = linkSummary(report);
  const status = oneLine(query.status).slice(0, LABEL_COLUMNS);
  const [first = "", ...others] = [
    ...paragraph(status, total + sent),
    ...paragraph("downtime", `source ${time(clocks["source-ms"])}, guest ${time(clocks["guest-ms"])}, client ${time(clocks["client-ms"])}`),
    ...(breakdown === null ? [] : paragraph("split, ms", breakdownText(breakdown))),
    ...(report.outcome === null ? [] : report.forecasts.flatMap((one) => paragraph("forecast", outcomeText(one, report.outcome!)))),
    ...(link === undefined ? [] : paragraph("link", link)),
    ...(report.postcopy === null ? [] : paragraph("post-copy", postcopyText(report.postcopy))),
    ...paragraph("verified", `digest ${digestText(report)}; audit ${audited}`),
    ...paragraph("verdict", report.verdict),
    ...(error === null ? [] : paragraph("error", `${error.code}: ${error.message}`)),
  ];
  return [paint(isColoured, error === null ? "green" : "red", status) + first.slice(status.length), ...others].join("\n");
}

const TABLE_WIDTHS = [-13, 6, 4, 8, 11, 6, 6, 6, 6, 5] as const;
const TABLE_HEADER = [
  row(TABLE_WIDTHS, ["", "total", "", "", "average", "source", "guest", "client", "", ""]),
  row(TABLE_WIDTHS, ["mode", "ms", "rnds", "sent", "bandwidth", "ms", "ms", "ms", "digest", "audit"]),
];

/** One report, or the median of several: figure by figure, and the worst of what was verified. */
function tableRow(name: string, reports: readonly MigrationReport[]): string {
  const of = (figure: (report: MigrationReport) => Figure): number | undefined => median(reports.map(figure));
  const digests = reports.map(digestText);
  return row(TABLE_WIDTHS, [
    name,
    milliseconds(of((report) => report["query-migrate"]["total-time"])),
    shown(of(roundsOf), (rounds) => String(rounds)),
    bytes(of((report) => report["query-migrate"].ram?.transferred)),
    bandwidth(of((report) => averageBandwidth(report["query-migrate"]))),
    milliseconds(of(({ clocks }) => clocks["source-ms"])),
    milliseconds(of(({ clocks }) => clocks["guest-ms"])),
    milliseconds(of(({ clocks }) => clocks["client-ms"])),
    digests.find((digest) => digest === "DIFFER") ?? digests.find((digest) => digest !== "equal") ?? digests[0] ?? "-",
    auditText(
      reports.map(({ audit }) => audit),
      reports[0]?.parameters,
    ),
  ]);
}

const isCompleted = ({ "query-migrate": query, error }: MigrationReport): boolean => query.status === "completed" && error === null;

/** The demo's closing table, at most 80 columns: a row a migration, the median of a mode that completed several times, what failed. */
export function renderComparison(reports: readonly MigrationReport[], isColoured = false): string {
  const modes = [...new Set(reports.map(({ parameters }) => String(parameters["mode"])))];
  const lines = modes.flatMap((mode) => {
    const repeats = reports.filter(({ parameters }) => String(parameters["mode"]) === mode);
    const completed = repeats.filter(isCompleted);
    const rows = repeats.map((report) => paint(isColoured && !isCompleted(report), "red", tableRow(mode, [report])));
    return completed.length < 2 ? rows : [...rows, paint(isColoured, "bold", tableRow(`median (${completed.length})`, completed))];
  });
  const failures = reports.flatMap((report, at) =>
    isCompleted(report)
      ? []
      : paragraph(
          `no. ${at + 1}`,
          report.error === null ? `${report["query-migrate"].status}: ${report.verdict}` : `${report.error.code}: ${report.error.message}`,
        ),
  );
  return [...TABLE_HEADER.map((line) => paint(isColoured, "dim", line)), ...lines, ...failures].join("\n");
}

const guestText = ({
  id,
  phase,
  epoch,
  vcpus,
  "memory-bytes": memory,
  "dirty-log": dirtyLog,
  "copy-at": copyAt,
  "missing-pages": missing,
}: NonNullable<AgentStatus["guest"]>): string =>
  `${id}: ${phase}, ${bytes(memory)}, ${vcpus} vCPU${vcpus === 1 ? "" : "s"}, ${dirtyLog} dirty log, epoch ${epoch}${
    missing === null ? "" : `, ${count(missing)} pages still to come`
  }${copyAt === null ? "" : `, rolled back to a copy of ${moment(copyAt)}`}`;

const standingText = ({ guest, standing, epoch, at }: Ownership): string =>
  `${guest}: ${standing}, epoch ${epoch}${at === null ? "" : `, since ${moment(at)}`}`;

/** For `precopy status`: some lines of at most 80 columns. @param selection see `renderOwnership`. */
export function renderStatus(status: AgentStatus, selection = ""): string {
  const { agent, guest, unresolved, "query-migrate": query, verdict } = status;
  const { ram } = query;
  const figures = [
    ...(ram === undefined
      ? []
      : [
          `${ram["dirty-sync-count"]} rounds`,
          `${bytes(ram.transferred)} sent`,
          `${bytes(ram.remaining)} remaining`,
          bandwidth(averageBandwidth(query)),
        ]),
    ...(query["expected-downtime"] === undefined ? [] : [`expected downtime ${time(query["expected-downtime"])}`]),
    ...(query.downtime === undefined ? [] : [`downtime ${time(query.downtime)}`]),
    ...(query["total-time"] === undefined ? [] : [`${time(query["total-time"])} in all`]),
  ];
  return [
    ...paragraph("agent", `${agent.name} listens on ${agent.listen} (pid ${agent.pid}, release ${agent.release})`),
    ...paragraph("guest", guest === null ? "none" : guestText(guest)),
    ...unresolved.flatMap((ownership) => [
      ...paragraph("unresolved", standingText(ownership)),
      ...commandLines(LABEL_COLUMNS, `precopy who-owns --guest ${ownership.guest}${selection}`),
    ]),
    ...paragraph("migration", [query.status, ...figures].join(", ")),
    ...(query["error-desc"] === undefined ? [] : paragraph("error", query["error-desc"])),
    ...(verdict === null ? [] : paragraph("verdict", verdict)),
  ].join("\n");
}

const OWNERSHIP_WIDTHS = [-5, -9, 6, -30] as const;

/**
 * For `precopy who-owns`: a table of who says what, and what that comes to, in lines of at most 80 columns.
 * @param selection options by which the commands shown find the same agent, with a space before each.
 */
export function renderOwnership(answer: WhoOwnsAnswer, selection = "", isColoured = false): string {
  const { here, there, thereError } = answer;
  const { owner, text, command } = verdictOf(answer);
  const line = (side: string, says: Ownership | null): string =>
    row(
      OWNERSHIP_WIDTHS,
      says === null
        ? [side, "-", "-", "-"]
        : [side, says.standing, says.epoch === 0 ? "-" : String(says.epoch), says.at === null ? "-" : oneLine(moment(says.at))],
    );
  const colour = owner === "unknown" ? "red" : owner === "nobody" ? "yellow" : "green";
  return [
    paint(isColoured, "dim", row(OWNERSHIP_WIDTHS, ["side", "says", "epoch", "since"])),
    line("here", here),
    line("there", there),
    ...(thereError === null ? [] : wrap(`${thereError.code}: ${thereError.message}`, COLUMNS)),
    ...wrap(command === null ? text : `${text}:`, COLUMNS).map((part) => paint(isColoured, colour, part)),
    ...(command === null ? [] : commandLines(2, `${command}${selection}`)),
  ].join("\n");
}

/** For `precopy resolve`: what became of the guest, in words. */
export function renderResolution({ guest, epoch, outcome, isRolledBack, copyAt }: Resolution): string {
  const runs = (): string => {
    if (isRolledBack)
      return (
        `guest ${guest}: the copy of ${copyAt === null ? "an earlier time" : moment(copyAt)} runs here, at epoch ${epoch}. ` +
        `ROLLED BACK: what it did after that is lost.`
      );
    return `guest ${guest} runs here${outcome === "taken-back" ? " again" : ""}, at epoch ${epoch}`;
  };
  const text = (): string => {
    switch (outcome) {
      case "taken-back":
      case "claimed":
        return runs();
      case "given-up":
        return `guest ${guest} is given up: nothing of it is left here`;
      case "discarded":
        return `guest ${guest}: the copy that waited here is discarded, for good`;
      case "completed":
        return `guest ${guest} runs at the target already: nothing is left here`;
    }
  };
  return wrap(text(), COLUMNS).join("\n");
}
