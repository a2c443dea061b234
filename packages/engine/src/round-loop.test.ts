import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DEFAULT_PARAMETERS, MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { MigrationParameters } from "@precopy/protocol";
import { FakePorts, pagesOf } from "./fake-ports.js";
import { preCopy } from "./round-loop.js";
import type { RoundLoopResult } from "./round-loop.js";
import { Throttling } from "./throttling.js";

const PAGES = 400;
const STARTED_AT = 900; // the fake clock begins at 1000

function run(ports: FakePorts, given: () => Partial<MigrationParameters> = () => ({}), isForced = () => false): Promise<RoundLoopResult> {
  const parameters = (): MigrationParameters => ({ ...DEFAULT_PARAMETERS, ...given() });
  const plan = { pages: PAGES, acceptedAtMs: STARTED_AT, parameters, forced: () => (isForced() ? "switch over" : undefined) } as const;
  return preCopy(plan, ports, new Throttling(ports, parameters), (round) => ports.onRound(round));
}

/** So many pages in a row. */
const span = (pages: number, first = 0): number[] => Array.from({ length: pages }, (_, at) => first + at);

describe("preCopy", () => {
  it("starts the log, and then collects only after each round was acknowledged: collect, send, collect, send, collect", async () => {
    const ports = new FakePorts();
    ports.pageMs = 0.125;
    ports.finds = [span(400), span(80), span(80, 40)];
    await run(ports);
    assert.deepEqual(ports.calls, [
      `start ${JSON.stringify(span(400))}`,
      `sendRound 1 ${JSON.stringify(span(400))}`,
      `collect ${JSON.stringify(span(80))}`,
      `sendRound 2 ${JSON.stringify(span(80))}`,
      `collect ${JSON.stringify(span(80, 40))}`, // as much as before: a third round is not worth it
    ]);
  });

  it("keeps a round's bits until its acknowledgement, and sends none of them again unless they were dirtied again", async () => {
    const ports = new FakePorts();
    ports.pageMs = 0.125;
    ports.finds = [span(360), span(80, 320), span(80)];
    const { link } = ports;
    const { sendRound } = link;
    const before: number[][] = [];
    const after: number[][] = [];
    link.sendRound = async (round, pages) => {
      before.push(pagesOf(pages));
      const sent = await sendRound(round, pages);
      await new Promise((resolve) => setImmediate(resolve));
      after.push(pagesOf(pages)); // still the link's: nothing is cleared before it has answered
      return sent;
    };
    await run(ports);
    assert.deepEqual(before, [span(360), span(80, 320)]);
    assert.deepEqual(after, before);
  });

  it("returns exactly the pages of the last collection, none of which was sent since", async () => {
    const ports = new FakePorts();
    ports.pageMs = 0.125;
    ports.finds = [span(400), span(80), span(76, 7), [99]];
    const { remaining, rounds } = await run(ports);
    assert.deepEqual(pagesOf(remaining), span(76, 7));
    assert.equal(rounds, 2);
    assert.equal(ports.calls.at(-1), `collect ${JSON.stringify(span(76, 7))}`);
  });

  it("reports each round with its own numbers, on a clock that began when the command was accepted", async () => {
    const ports = new FakePorts();
    ports.costMs = { start: 4, collect: 3 };
    ports.pageMs = 0.125;
    ports.finds = [span(400), span(80), span(80)];
    const { expectedDowntimeMs } = await run(ports);
    const [first, second] = ports.rounds;
    assert.equal(ports.rounds.length, 2);
    const bandwidth = ((400 * PAGE_BYTES) / (50 - 0.1)) * 1000; // the round trip left out
    assert.deepEqual(
      { ...first, decision: first?.decision.split(":")[0], expectedDowntimeMs: undefined, verdict: first?.verdict?.converges },
      {
        round: 1,
        startMs: 104,
        durationMs: 50,
        collectMs: 4,
        dirtyPages: 400,
        normalPages: 400,
        zeroPages: 0,
        bytes: 400 * PAGE_BYTES,
        bandwidthBytesPerSecond: bandwidth,
        dirtyPagesPerSecond: undefined, // what the guest held is not what it dirtied
        expectedDowntimeMs: undefined,
        remainingPages: 80,
        throttlePercent: 0,
        xbzrle: undefined,
        isReady: false,
        decision: "next round",
        verdict: true,
      },
    );
    // Dirtied between the two collections: 80 pages in 50 ms of sending and 3 ms of collecting.
    assert.ok(Math.abs((second?.dirtyPagesPerSecond ?? 0) - 80_000 / 53) < 1e-6, String(second?.dirtyPagesPerSecond));
    assert.deepEqual([second?.startMs, second?.collectMs, second?.dirtyPages, second?.decision.split(":")[0]], [157, 3, 80, "switch over"]);
    assert.equal(second?.expectedDowntimeMs, expectedDowntimeMs);
  });

  it("gives up with ERR_NOT_CONVERGING, the rounds it took and the policy's verdict, when every round leaves as much as before", async () => {
    const ports = new FakePorts();
    ports.costMs = { sendRound: 5000 };
    ports.finds = Array.from({ length: 50 }, () => span(400));
    const error = await run(ports).then(() => assert.fail("it converged"), MigrationError.from);
    assert.equal(error.code, "ERR_NOT_CONVERGING");
    assert.match(
      error.message,
      /^After 6 rounds: dirtying .*, sending .*: the best reachable pause is about \d+ ms, downtime-limit is 300 ms; what would help: /,
    );
    assert.equal(ports.rounds.length, 6, "the round that decided it is reported, too");
    assert.match(ports.rounds.at(-1)?.decision ?? "", /^give up: /);
  });

  it("passes on what a port throws, wherever it throws, and asks no port for anything after that", async () => {
    for (const call of ["start", "sendRound", "collect"] as const) {
      const ports = new FakePorts();
      ports.finds = [span(3)];
      const broken = new MigrationError("ERR_LINK_LOST", call);
      ports.during = (at) => {
        if (at === call) throw broken;
      };
      await assert.rejects(run(ports), (error) => error === broken);
      assert.equal(ports.calls.at(-1)?.split(" ")[0], call);
    }
  });

  /** Every round leaves as much as before. */
  function stubborn(): FakePorts {
    const ports = new FakePorts();
    ports.costMs = { sendRound: 5000 };
    ports.finds = Array.from({ length: 50 }, () => span(400));
    return ports;
  }

  it("obeys a downtime limit that was raised while it runs, from the next decision on", async () => {
    const ports = stubborn();
    let downtimeLimitMs = 300;
    ports.onRoundDone = ({ round }) => {
      if (round === 3) downtimeLimitMs = 10_000;
    };
    assert.equal((await run(ports, () => ({ downtimeLimitMs }))).rounds, 4);
  });

  it("judges anew when the cap on the link was changed: the rounds before it count no more, and their bandwidth is the least", async () => {
    const ports = stubborn();
    let maxBandwidthBytesPerSecond = 400_000;
    ports.onRoundDone = ({ round }) => {
      if (round === 5) [maxBandwidthBytesPerSecond, ports.costMs, ports.pageMs] = [0, {}, 0.01];
    };
    const { rounds, expectedDowntimeMs } = await run(ports, () => ({ maxBandwidthBytesPerSecond }));
    assert.equal(rounds, 6, "the round in which it would have been given up, had nothing changed");
    assert.ok(expectedDowntimeMs < 10, `${expectedDowntimeMs} ms`);
  });

  it("with pause-before-switchover goes on with rounds until it is switched off, however many that takes", async () => {
    const ports = stubborn();
    ports.finds = Array.from({ length: 400 }, () => span(4));
    ports.costMs = {};
    ports.pageMs = 0.125;
    let isPauseBeforeSwitchoverOn = true;
    ports.onRoundDone = ({ round }) => {
      if (round === 200) isPauseBeforeSwitchoverOn = false;
      setImmediate(() => {
        for (let look = 0; look < 60; look++) ports.tick(); // the time of a rest
      });
    };
    const { rounds } = await run(ports, () => ({ isPauseBeforeSwitchoverOn }));
    assert.equal(rounds, 201);
    const waiting = ports.rounds.filter(({ isReady }) => isReady);
    assert.ok(waiting.length > 190 && waiting.every(({ decision }) => decision.startsWith("wait: expected ")), `${waiting.length}`);
    assert.equal(ports.rounds.at(-1)?.isReady, false);
  });

  it("with the time up, the round under way is the last one, whatever the pause will be", async () => {
    const ports = stubborn();
    const { rounds } = await run(ports, undefined, () => ports.rounds.length === 2);
    assert.equal(rounds, 3);
    assert.match(ports.rounds.at(-1)?.decision ?? "", /^switch over: time is up/);
  });

  it("withholds what auto-converge asks for, step by step, reports what was withheld, and leaves it so for the pause", async () => {
    const ports = stubborn();
    const taken: number[] = [];
    ports.onRoundDone = ({ round, throttlePercent }) => {
      taken.push(Math.round(throttlePercent));
      if (round === 5) ports.finds = []; // it is slow enough now
    };
    await run(ports, () => ({ throttle: "auto-converge", maxCpuThrottlePercent: 30 }));
    assert.deepEqual(ports.withheld, [[0.2], [0.3]]);
    assert.deepEqual(taken.slice(0, 5), [0, 0, 20, 20, 30]);
  });

  it("with hold-back on lets pages wait that are dirtied round after round, sends them when little else is left, and forgets none", async () => {
    const ports = new FakePorts();
    ports.pageMs = 30; // 300 ms permit a handful
    const hot = span(20);
    ports.finds = [
      span(400),
      [...hot, ...span(100, 100)],
      [...hot, ...span(40, 200)],
      [...hot, ...span(4, 300)],
      [...hot, 310],
      hot.slice(0, 5),
    ];
    const { remaining } = await run(ports, () => ({ isHoldBackOn: true }));
    const sent = ports.calls.filter((call) => call.startsWith("sendRound")).map((call) => JSON.parse(call.split(" ")[2]!) as number[]);
    const rounds = [[...hot, ...span(100, 100)], span(40, 200), [...hot, ...span(4, 300)], [...hot, 310], hot.slice(0, 5)];
    assert.deepEqual(sent.slice(1), rounds);
    assert.equal(remaining.count(), 0);
  });

  it("with hold-back on does not pause for held pages that a round would take away, though the limit permits it", async () => {
    const ports = new FakePorts();
    ports.pageMs = 10;
    const hot = span(20);
    const cooling = [...span(15), ...span(6, 300)]; // 30 pages took 300 ms: a round leaves seven tenths of what it sends
    ports.finds = [span(400), [...hot, ...span(100, 100)], [...hot, ...span(30, 200)], cooling, [0, 1]];
    const { remaining } = await run(ports, () => ({ isHoldBackOn: true }));
    const sent = ports.calls.filter((call) => call.startsWith("sendRound")).map((call) => JSON.parse(call.split(" ")[2]!) as number[]);
    assert.deepEqual(sent[3], [...hot, ...span(6, 300)], "260 ms would be within the limit");
    assert.ok(remaining.count() <= 2);
  });

  it("sends a round even if nothing is dirty: its acknowledgement measures the fixed part", async () => {
    const ports = new FakePorts();
    const { remaining, rounds } = await run(ports);
    assert.equal(rounds, 1);
    assert.equal(remaining.count(), 0);
    assert.ok(ports.calls.includes("sendRound 1 []"));
  });
});
