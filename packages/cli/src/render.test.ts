import assert from "node:assert/strict";
import { Writable } from "node:stream";
import { describe, it } from "node:test";
import { stripVTControlCharacters } from "node:util";
import { DEFAULT_PARAMETERS, reportParameters } from "@precopy/protocol";
import type { MigrationParameters, MigrationReport, ProgressEvent, RoundProgress } from "@precopy/protocol";
import type { Resolution, WhoOwnsAnswer } from "./command-socket.js";
import {
  Renderer,
  mayColour,
  renderComparison,
  renderOwnership,
  renderReport,
  renderResolution,
  renderStatus,
  rendererKind,
} from "./render.js";
import type { AgentStatus, RendererKind } from "./render.js";

class Screen extends Writable {
  readonly isTTY: boolean;
  columns = 80;
  text = "";
  constructor(isTTY: boolean) {
    super();
    this.isTTY = isTTY;
  }
  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.text += chunk.toString();
    done();
  }
}

function report(mode: MigrationParameters["mode"] = "precopy", ms = 12.34, more: Partial<MigrationReport> = {}): MigrationReport {
  return {
    guest: "guest-1a2b3c",
    from: "127.0.0.1:4646",
    to: "[2001:db8::1]:4646",
    "owner-epoch": 2,
    "query-migrate": {
      status: "completed",
      "total-time": ms * 100,
      downtime: ms,
      "setup-time": 8,
      ram: {
        transferred: 2 ** 30,
        remaining: 0,
        total: 2 ** 31,
        duplicate: 400_000,
        normal: 262_144,
        "normal-bytes": 2 ** 30,
        "dirty-pages-rate": 25_000,
        mbps: 9850,
        "dirty-sync-count": 4,
        "page-size": 4096,
        "multifd-bytes": 2 ** 30,
        "precopy-bytes": 2 ** 30,
        "downtime-bytes": 2 ** 20,
        "pages-per-second": 262_144,
        "postcopy-requests": 0,
        "postcopy-bytes": 0,
      },
    },
    iterations: [{}, {}],
    "downtime-breakdown": { pause: 1.2, collect: 0.5, transfer: 6.4, prepare: 3.2, commit: 1.04 },
    forecasts: [],
    outcome: null,
    clocks: { "source-ms": ms, "host-ms": null, "guest-ms": ms - 1, "client-ms": null },
    "digest-equal": true,
    audit: { pages: 262_144, mismatched: 0, ms: 120 },
    postcopy: null,
    "channel-losses": 0,
    "control-rejoins": 0,
    "resent-pages": 0,
    "resent-bytes": 0,
    verdict: "converged: expected downtime 11 ms within the limit of 300 ms after 4 rounds, and nothing was lost on the way",
    parameters: reportParameters({ ...DEFAULT_PARAMETERS, mode }),
    error: null,
    ...more,
  };
}
const failure = (mode: MigrationParameters["mode"]): MigrationReport => ({
  ...report(mode),
  "query-migrate": { status: "failed", "error-desc": "Link lost" },
  "downtime-breakdown": null,
  clocks: { "source-ms": null, "host-ms": null, "guest-ms": null, "client-ms": null },
  "digest-equal": null,
  audit: null,
  verdict: "failed",
  error: { code: "ERR_LINK_LOST", message: `Link lost\u001b[2J ${"x".repeat(100)}`, remedy: "See the peer's log." },
});

const round: RoundProgress = {
  round: 1,
  startMs: 8,
  durationMs: 431.2,
  collectMs: 1.2,
  dirtyPages: 524_288,
  normalPages: 65_800,
  zeroPages: 458_488,
  bytes: 270_000_000,
  bandwidthBytesPerSecond: 1.25e9,
  dirtyPagesPerSecond: undefined,
  expectedDowntimeMs: undefined,
  remainingPages: 1000,
  throttlePercent: 0,
  xbzrle: undefined,
  isReady: false,
  verdict: undefined,
  decision: "next round: expected downtime 431 ms is above the limit of 300 ms",
};
/** As large as figures get: 16 TiB in one round over 999 Gbit/s. */
const largest: RoundProgress = {
  ...round,
  round: 1000,
  durationMs: 1e9,
  dirtyPages: 2 ** 32,
  normalPages: 2 ** 32,
  zeroPages: 2 ** 32,
  bytes: 2 ** 44,
  bandwidthBytesPerSecond: 124.99e9,
  dirtyPagesPerSecond: 999_999_999,
  expectedDowntimeMs: 99_999.9,
  decision: "d".repeat(200),
};
const events: readonly ProgressEvent[] = [
  {
    type: "started",
    guest: "g".repeat(64),
    to: "127.0.0.1:4646",
    epoch: 2,
    parameters: DEFAULT_PARAMETERS,
    dirtyLog: "mmu",
    pump: "direct",
  },
  { type: "phase", phase: "active", atMs: 8.2 },
  { type: "round", ...round },
  { type: "round", ...largest },
  { type: "round", ...round, round: 2, dirtyPagesPerSecond: 25_100.4, expectedDowntimeMs: 12.3, decision: "switch over" },
  { type: "link", what: "channel-lost", channel: 15, code: "ERR_LINK_LOST", message: `\u001b[2J${"x".repeat(100)}`, atMs: 450 },
  { type: "link", what: "control-rejoined", channel: null, code: null, message: "", atMs: 460 },
  { type: "phase", phase: "device", atMs: 900 },
  { type: "switchover", breakdown: { pause: 1, collect: 1, transfer: 1, prepare: 1, commit: 1 }, downtimeMs: 12.3 },
  {
    type: "failed",
    phase: "device",
    code: "ERR_LINK_LOST",
    message: `Link\nlost\u001b[2J ${"x".repeat(100)}`,
    remedy: "See the peer's log.",
  },
  { type: "done", report: report() },
  {
    type: "started",
    guest: "other",
    to: "127.0.0.1:4646",
    epoch: 3,
    parameters: DEFAULT_PARAMETERS,
    dirtyLog: "barrier",
    pump: "portable",
  },
  { type: "round", ...round },
];

function show(kind: RendererKind, isColoured = false): string {
  const screen = new Screen(kind === "terminal");
  const renderer = new Renderer(kind, screen, isColoured);
  for (const event of events) renderer.show(event);
  renderer.close();
  return screen.text;
}

const assertFits = (text: string): void => {
  for (const line of text.split(/[\n\r]/)) assert.ok(line.length <= 80, `${line.length}: ${line}`);
};
/** Everything but line ends. */
const CONTROL = /(?!\n)\p{Cc}/u;

describe("plain", () => {
  it("has no line above 80 columns and no control code, whatever a peer says", () => {
    const text = show("plain", true);
    assertFits(text);
    assert.doesNotMatch(text, CONTROL);
  });

  it("aligns the rounds below a header, once a migration", () => {
    const lines = show("plain").split("\n");
    assert.deepEqual(lines.slice(1, 6), [
      "phase active at 8.20 ms",
      "rnd  dirty normal   zero     sent   bandwidth    ms dirty/s  down decision",
      "  1 524288  65800 458488  257 MiB 10.0 Gbit/s   431       -     - next round: e…",
      lines[4],
      "  2 524288  65800 458488  257 MiB 10.0 Gbit/s   431   25100  12.3 switch over",
    ]);
    assert.equal(lines.filter((line) => line.startsWith("rnd")).length, 2);
  });
});

describe("an event of the link", () => {
  type LinkEvent = Extract<ProgressEvent, { type: "link" }>;
  const line = (event: Omit<LinkEvent, "type" | "atMs">): string => {
    const screen = new Screen(false);
    new Renderer("plain", screen).show({ type: "link", ...event, atMs: 12.34 });
    return screen.text;
  };

  it("is one line that says what broke and why, or how it was mended", () => {
    const [code, message] = ["ERR_PEER_DEAD", "Silent for 5000 ms"] as const;
    assert.deepEqual(
      [
        line({ what: "channel-lost", channel: 1, code, message }),
        line({ what: "channel-made-again", channel: 1, code: null, message: "generation 2" }),
        line({ what: "lane-carried", channel: 0, code: null, message: "the pages of channel 1" }),
        line({ what: "control-lost", channel: null, code, message }),
        line({ what: "control-rejoined", channel: null, code: null, message: "" }),
      ],
      [
        "page channel 1 lost at 12.3 ms: ERR_PEER_DEAD: Silent for 5000 ms\n",
        "page channel 1 made again at 12.3 ms: generation 2\n",
        "page channel 0 carries more at 12.3 ms: the pages of channel 1\n",
        "control channel lost at 12.3 ms: ERR_PEER_DEAD: Silent for 5000 ms\n",
        "control channel rejoined at 12.3 ms\n",
      ],
    );
  });
});

describe("terminal", () => {
  it("has no line above 80 columns", () => {
    for (const text of [show("terminal"), show("terminal", true)]) assertFits(stripVTControlCharacters(text.replaceAll("\u001b[1G", "\n")));
  });

  it("redraws the phase in place: what stays is the plain text without the phases", () => {
    const plain = show("plain").replaceAll(/^phase .*\n/gm, "");
    const screen = show("terminal")
      .split("\n")
      .map((line) => stripVTControlCharacters(line.split("\u001b[1G").at(-1) ?? "")) // back to the first column, then the line is erased
      .join("\n");
    assert.equal(screen, plain);
    assert.match(show("terminal"), /active at 8\.20 ms/);
  });

  it("shows a phase whole where the terminal does not know its width", () => {
    const screen = new Screen(true);
    screen.columns = 0;
    new Renderer("terminal", screen).show({ type: "phase", phase: "active", atMs: 8.2 });
    assert.match(screen.text, /active at 8\.20 ms$/);
  });

  it("colours only when told to", () => {
    const colour = (code: number): boolean => code !== 0;
    const codes = (text: string): number[] => text.split("\u001b[").map((piece) => Number(/^(\d+)m/.exec(piece)?.[1] ?? 0));
    assert.deepEqual(codes(show("terminal")).filter(colour), []);
    assert.notDeepEqual(codes(show("terminal", true)).filter(colour), []);
    assert.equal(stripVTControlCharacters(renderReport(report(), true)), renderReport(report()));
    assert.equal(
      stripVTControlCharacters(renderComparison([report(), report(), failure("precopy")], true)),
      renderComparison([report(), report(), failure("precopy")]),
    );
  });

  it("is chosen for a terminal only, and coloured unless NO_COLOR has a value", () => {
    const [terminal, pipe] = [new Screen(true), new Screen(false)];
    assert.deepEqual(
      [rendererKind(terminal, false), rendererKind(pipe, false), rendererKind(terminal, true)],
      ["terminal", "plain", "json"],
    );
    assert.deepEqual(
      [mayColour(terminal, undefined), mayColour(terminal, ""), mayColour(terminal, "1"), mayColour(pipe, undefined)],
      [true, true, false, false],
    );
  });
});

describe("json", () => {
  it("is every event, whole, one object a line", () => {
    const lines = show("json").trimEnd().split("\n");
    assert.deepEqual(
      lines.map((line): unknown => JSON.parse(line)),
      JSON.parse(JSON.stringify(events)),
    );
  });

  it("shows what JSON made of a figure that was not there as a dash", () => {
    const screen = new Screen(false);
    const event: ProgressEvent = { type: "round", ...round, bandwidthBytesPerSecond: Infinity, dirtyPagesPerSecond: NaN };
    new Renderer("plain", screen).show(event);
    new Renderer("plain", screen).show(JSON.parse(JSON.stringify(event)) as ProgressEvent);
    const [, first, , second] = screen.text.split("\n");
    assert.equal(first, second);
    assert.match(first ?? "", /257 MiB {11}- +431 +- +- next/);
  });
});

describe("renderReport", () => {
  it("gives times, bytes, three clocks, the largest part of the pause and the verdict", () => {
    const text = renderReport(report());
    assertFits(text);
    assert.deepEqual(text.split("\n"), [
      "completed  1234 ms in all, 8.00 ms setup, 4 rounds, 1.00 GiB, 9.85 Gbit/s",
      "downtime   source 12.3 ms, guest 11.3 ms, client -",
      "split, ms  most transfer 6.40; pause 1.20 collect 0.50 prepare 3.20 commit 1.04",
      "verified   digest equal; audit 0 of 262144 pages differ (120 ms)",
      "verdict    converged: expected downtime 11 ms within the limit of 300 ms after 4",
      "           rounds, and nothing was lost on the way",
    ]);
  });

  it("neither claims a digest that was off nor hides one that differs", () => {
    const parameters = reportParameters({ ...DEFAULT_PARAMETERS, isDigestOn: false, isAuditOn: false });
    assert.match(
      renderReport(report("precopy", 1, { "digest-equal": null, audit: null, parameters })),
      /^verified {3}digest off; audit off$/m,
    );
    const text = renderReport(report("precopy", 1, { "digest-equal": false, audit: { pages: 10, mismatched: 3, ms: 1 } }));
    assert.match(text, /^verified {3}digest DIFFER; audit 3 of 10 pages differ \(1\.00 ms\)$/m);
  });

  it("speaks of the link only if something of it broke", () => {
    const link = (channels: number, rejoins: number, resent: number): string | undefined => {
      const lost = { "channel-losses": channels, "control-rejoins": rejoins, "resent-pages": resent / 4096, "resent-bytes": resent };
      const text = renderReport(report("precopy", 1, lost));
      assertFits(text);
      return /^link {7}(.*)$/m.exec(text)?.[1];
    };
    assert.equal(link(0, 0, 0), undefined);
    assert.equal(link(1, 1, 794 * 4096), "1 page channel made again, control rejoined once, 3.10 MiB re-sent");
    assert.equal(link(2, 0, 0), "2 page channels made again, 0 B re-sent");
    assert.equal(link(0, 2, 4096), "control rejoined twice, 4.00 KiB re-sent");
    assert.equal(link(64, 1_000_000, 2 ** 44), "64 page channels made again, control rejoined 1.00M times, 16.0 TiB");
  });

  it("fits when it failed, with the code", () => {
    const text = renderReport(failure("precopy"));
    assertFits(text);
    assert.doesNotMatch(text, CONTROL);
    assert.match(text, /^failed {5}- in all/);
    assert.match(text, /ERR_LINK_LOST: Link lost/);
  });
});

describe("renderComparison", () => {
  it("has one row a migration within 80 columns", () => {
    const text = renderComparison([
      report("precopy", 12.34),
      report("stop-and-copy", 4321, { "digest-equal": false, audit: { pages: 9, mismatched: 3, ms: 1 } }),
    ]);
    assertFits(text);
    assert.deepEqual(text.split("\n"), [
      "               total                   average source  guest client",
      "mode              ms rnds     sent   bandwidth     ms     ms     ms digest audit",
      "precopy         1234    4 1.00 GiB 9.85 Gbit/s   12.3   11.3      -  equal clean",
      "stop-and-copy   432s    4 1.00 GiB 9.85 Gbit/s   4321   4320      - DIFFER    3!",
    ]);
  });

  it("adds the median of several repeats, for an odd and an even number of them", () => {
    const median = (values: readonly number[]): string | undefined =>
      renderComparison([...values.map((ms) => report("precopy", ms)), report("stop-and-copy")])
        .split("\n")
        .find((line) => line.startsWith("median"));
    assert.match(median([30, 10, 20]) ?? "", /^median \(3\) +2000 .* 20\.0 +19\.0 +- +equal clean$/);
    assert.match(median([40, 10, 20, 30]) ?? "", /^median \(4\) +2500 .* 25\.0 +24\.0 /);
    assert.equal(median([10]), undefined);
  });

  it("keeps what failed out of the median and says why it failed", () => {
    const text = renderComparison([report("precopy", 10), failure("precopy"), report("precopy", 20)]);
    assertFits(text);
    assert.doesNotMatch(text, CONTROL);
    assert.match(text, /^median \(2\) +1500 /m);
    assert.match(text, /^no\. 2 {6}ERR_LINK_LOST: Link lost/m);
  });

  it("lets one bad audit spoil the median row", () => {
    const bad = report("precopy", 10, { "digest-equal": false, audit: { pages: 9, mismatched: 3, ms: 1 } });
    assert.match(renderComparison([report("precopy"), bad, report("precopy")]), /^median \(3\) .* DIFFER +3!$/m);
  });
});

describe("renderStatus", () => {
  const status: AgentStatus = {
    agent: { name: "default", listen: "127.0.0.1:4646", pid: 4711, release: "0.1.0" },
    guest: {
      id: "guest-1a2b3c",
      epoch: 1,
      "memory-bytes": 2 ** 31,
      vcpus: 2,
      phase: "running",
      "dirty-log": "mmu",
      "copy-at": null,
      "missing-pages": null,
    },
    unresolved: [],
    "query-migrate": { ...report()["query-migrate"], status: "active" },
    verdict: null,
  };

  it("shows agent, guest and migration within 80 columns", () => {
    const text = renderStatus(status);
    assertFits(text);
    assert.deepEqual(text.split("\n").slice(0, 3), [
      "agent      default listens on 127.0.0.1:4646 (pid 4711, release 0.1.0)",
      "guest      guest-1a2b3c: running, 2.00 GiB, 2 vCPUs, mmu dirty log, epoch 1",
      "migration  active, 4 rounds, 1.00 GiB sent, 0 B remaining, 9.85 Gbit/s, downtime",
    ]);
  });

  it("says so when there is no guest and was no migration", () => {
    const text = renderStatus({ ...status, guest: null, "query-migrate": { status: "none" } });
    assert.match(text, /^guest {6}none\nmigration {2}none$/m);
  });

  it("does not hide that a guest was rolled back", () => {
    const guest = { ...(status.guest as NonNullable<AgentStatus["guest"]>), "copy-at": "2026-11-20T12:00:01.123Z" };
    const text = renderStatus({ ...status, guest });
    assertFits(text);
    assert.match(text.replaceAll(/\s+/g, " "), /epoch 1, rolled back to a copy of 2026-11-20 12:00:01\.123Z migration/);
  });

  it("lists guests in doubt that are not here, with the command to look further", () => {
    const doubt = { guest: "g", standing: "in-doubt", epoch: 5, at: "2026-11-20T12:00:01.123Z", peer: "b:1" } as const;
    const text = renderStatus({ ...status, guest: null, unresolved: [doubt, { ...doubt, guest: "h".repeat(64), at: null }] }, " --name b");
    assertFits(text);
    assert.deepEqual(text.split("\n").slice(1, 8), [
      "guest      none",
      "unresolved g: in-doubt, epoch 5, since 2026-11-20 12:00:01.123Z",
      "           precopy who-owns --guest g --name b",
      `unresolved ${"h".repeat(64)}:`,
      "           in-doubt, epoch 5",
      "           precopy who-owns --guest \\",
      `           ${"h".repeat(64)} \\`,
    ]);
  });
});

describe("renderOwnership", () => {
  const at = "2026-11-20T12:00:01.123Z";
  const doubt = { guest: "g", standing: "in-doubt", epoch: 5, at, peer: "10.0.0.2:4646" } as const;
  const unanswered: WhoOwnsAnswer = {
    here: doubt,
    there: null,
    thereError: { code: "ERR_UNREACHABLE", message: "Cannot reach 10.0.0.2:4646" },
  };

  it("is a table, what it comes to, and the command that helps", () => {
    assert.deepEqual(renderOwnership(unanswered, " --name b").split("\n"), [
      "side  says       epoch since",
      "here  in-doubt       5 2026-11-20 12:00:01.123Z",
      "there -              - -",
      "ERR_UNREACHABLE: Cannot reach 10.0.0.2:4646",
      "guest g is in doubt: COMMIT is out, and the other side cannot be asked",
      "(ERR_UNREACHABLE). The source asks on by itself. If 10.0.0.2:4646 is gone for",
      "good, it can be taken back, or only given up if the agent here was started anew",
      "since:",
      "  precopy resolve --guest g --take-back --other-side-is-fenced --name b",
    ]);
  });

  it("is over after the conclusion where no command helps", () => {
    const prepared = { ...doubt, standing: "prepared", at: null, peer: "10.0.0.1:4646" } as const;
    assert.deepEqual(renderOwnership({ here: doubt, there: prepared, thereError: null }).split("\n").slice(2), [
      "there prepared       5 -",
      "nobody runs guest g now: COMMIT has not arrived there. The source here repeats",
      "COMMIT by itself",
    ]);
  });

  it("fits whatever a peer says, and a long command stays one for the shell", () => {
    const guest = "g".repeat(64);
    const hostile = { guest, standing: "gone", epoch: 2 ** 53, at: `\u001b[2J${"9".repeat(60)}`, peer: `\n${"p".repeat(299)}` } as const;
    const here = { ...doubt, guest, standing: "prepared" } as const;
    const colourless = renderOwnership({ here, there: hostile, thereError: null });
    assertFits(colourless);
    assert.doesNotMatch(colourless, CONTROL);
    const command = colourless.slice(colourless.indexOf("  precopy")).replaceAll(/ \\\n +/g, " ");
    assert.equal(command, `  precopy resolve --guest ${guest} --take-back --accept-rollback`);
    assert.equal(stripVTControlCharacters(renderOwnership(unanswered, "", true)), renderOwnership(unanswered));
    assert.notEqual(renderOwnership(unanswered, "", true), renderOwnership(unanswered));
  });
});

describe("renderResolution", () => {
  const resolution: Resolution = { guest: "g", epoch: 5, outcome: "taken-back", isRolledBack: false, copyAt: null };
  const rolledBack = { outcome: "claimed", isRolledBack: true, copyAt: "2026-11-20T12:00:01.123Z" } as const;

  it("says in words where the guest is, and what it cost", () => {
    const texts = ([{}, { outcome: "claimed" }, { outcome: "given-up" }, { outcome: "discarded" }, { outcome: "completed" }] as const).map(
      (more) => renderResolution({ ...resolution, ...more }),
    );
    assert.deepEqual(texts, [
      "guest g runs here again, at epoch 5",
      "guest g runs here, at epoch 5",
      "guest g is given up: nothing of it is left here",
      "guest g: the copy that waited here is discarded, for good",
      "guest g runs at the target already: nothing is left here",
    ]);
    assert.equal(
      renderResolution({ ...resolution, ...rolledBack }),
      "guest g: the copy of 2026-11-20 12:00:01.123Z runs here, at epoch 5. ROLLED\nBACK: what it did after that is lost.",
    );
  });

  it("has no line above 80 columns", () => {
    for (const outcome of ["taken-back", "claimed", "given-up", "discarded", "completed"] as const)
      assertFits(renderResolution({ ...resolution, ...rolledBack, outcome, guest: "g".repeat(64), epoch: 2 ** 53 }));
  });
});
