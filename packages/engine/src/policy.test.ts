import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DEFAULT_PARAMETERS, PAGE_BYTES } from "@precopy/protocol";
import fc from "fast-check";
import { decide as decideBy } from "./policy.js";
import type { Decision, PolicyParameters, RoundOutlook } from "./policy.js";

const limitedTo = (downtimeLimitMs: number): PolicyParameters => ({ ...DEFAULT_PARAMETERS, downtimeLimitMs });
/** With nothing withheld. */
const decide = (history: readonly RoundOutlook[], downtimeLimitMs: number): Decision => decideBy(history, limitedTo(downtimeLimitMs));
/** Of a round that held nothing back. */
const free = { sentPages: 0, throttlePercent: 0, throttleStepPercent: 0 };

/** A guest that dirties `dirtyPagesPerMs` pages of a working set, on a link of constant speed. */
interface Model {
  readonly pages: number;
  readonly pagesPerMs: number;
  readonly dirtyPagesPerMs: number;
  readonly workingSet: number;
  /** Of every round and of the pause. */
  readonly fixedMs: number;
}

function outlookAfter(roundMs: number, { pagesPerMs, dirtyPagesPerMs, workingSet, fixedMs }: Model): RoundOutlook {
  const dirtied = (ms: number): number => Math.min(Math.round(dirtyPagesPerMs * ms), workingSet);
  const remainingPages = dirtied(roundMs);
  const nextRoundMs = remainingPages / pagesPerMs + fixedMs;
  return {
    ...free,
    remainingPages,
    dirtyPagesPerSecond: (remainingPages / roundMs) * 1000,
    sendPagesPerSecond: pagesPerMs * 1000,
    expectedDowntimeMs: fixedMs + remainingPages / pagesPerMs,
    nextRoundMs,
    forecastDowntimeMs: fixedMs + Math.min(dirtied(nextRoundMs), remainingPages) / pagesPerMs,
  };
}

/** Decides and applies until the policy ends it, or for `roundsMax` rounds. */
function play(model: Model, downtimeLimitMs: number, roundsMax: number): { history: RoundOutlook[]; decision: Decision } {
  const history: RoundOutlook[] = [];
  let decision = decide(history, downtimeLimitMs);
  for (let roundMs = model.pages / model.pagesPerMs + model.fixedMs; decision.action === "next round" && history.length < roundsMax; ) {
    history.push(outlookAfter(roundMs, model));
    roundMs = history.at(-1)?.nextRoundMs ?? 0;
    decision = decide(history, downtimeLimitMs);
  }
  return { history, decision };
}

/** 1 GiB at 1 GB/s or so. */
const idle: Model = { pages: 2 ** 18, pagesPerMs: 250, dirtyPagesPerMs: 0, workingSet: 0, fixedMs: 2 };
const flat = (expectedDowntimeMs: number): RoundOutlook => ({
  ...free,
  remainingPages: 25_000,
  dirtyPagesPerSecond: 250_000,
  sendPagesPerSecond: 125_000,
  expectedDowntimeMs,
  nextRoundMs: 100,
  forecastDowntimeMs: expectedDowntimeMs,
});
const repeat = (outlook: RoundOutlook, times: number): RoundOutlook[] => Array.from({ length: times }, () => outlook);

describe("over downtime-limit", () => {
  it("a guest that dirties a tenth of what the link carries is switched over, with the limit met", () => {
    const { history, decision } = play({ ...idle, dirtyPagesPerMs: 25, workingSet: 2 ** 18 }, 20, 200);
    assert.equal(decision.action, "switch over");
    assert.ok((history.at(-1)?.expectedDowntimeMs ?? Infinity) <= 20);
    assert.ok(history.length <= 5, `${history.length} rounds`);
  });

  it("rounds go on while each brings a shorter pause, however far the limit is", () => {
    for (let rounds = 1; rounds < 12; rounds++) {
      const history = Array.from({ length: rounds }, (_, at) => flat(100_000 * 0.7 ** at));
      assert.equal(decide(history, 300).action, "next round", `after ${rounds} rounds`);
    }
  });

  it("a flat history is given up after 6 rounds and not before: 5 in a row brought nothing", () => {
    for (let rounds = 1; rounds <= 5; rounds++)
      assert.equal(decide(repeat(flat(1000), rounds), 300).action, "next round", `${rounds} rounds`);
    assert.equal(decide(repeat(flat(1000), 6), 300).action, "give up");
  });

  it("one round that brings a pause shorter by more than 2 % buys five more", () => {
    const history = [...repeat(flat(1000), 5), flat(970)];
    assert.equal(decide(history, 300).action, "next round");
    assert.equal(decide([...history, ...repeat(flat(970), 4)], 300).action, "next round");
    assert.equal(decide([...history, ...repeat(flat(970), 5)], 300).action, "give up");
  });

  it("an improvement of less than 2 % counts as none", () => {
    assert.equal(decide([...repeat(flat(1000), 5), flat(985)], 300).action, "give up");
  });

  it("does not give up a guest that was within the limit once, but waits for it to be so again, for 150 rounds", () => {
    const history = [...repeat(flat(1000), 3), flat(216), ...repeat(flat(500), 8)];
    assert.equal(decide(history, 300).action, "next round");
    assert.equal(decide([...history, flat(250)], 300).action, "switch over");
    assert.equal(decide([...history, ...repeat(flat(500), 150 - history.length)], 300).action, "give up");
  });

  it("the verdict holds dirty rate, bandwidth, best pause and limit, so that a person can choose a remedy", () => {
    const { action, reason } = decide([flat(2900), ...repeat(flat(3100), 5)], 300);
    assert.equal(action, "give up");
    const gbit = (bytesPerSecond: number): string => `${((bytesPerSecond * 8) / 1e9).toFixed(2)} Gbit/s`;
    assert.equal(
      reason,
      `dirtying ${gbit(250_000 * PAGE_BYTES)}, sending ${gbit(125_000 * PAGE_BYTES)}: the best reachable pause is about 2900 ms, downtime-limit is 300 ms; what would help: --throttle sdps, --downtime-limit 2900, a faster link`,
    );
  });

  it("the verdict says what it does not know instead of dividing by zero", () => {
    const { reason } = decide(repeat({ ...flat(1000), sendPagesPerSecond: Infinity }, 6), 300);
    assert.match(reason, /sending \?:/);
    assert.doesNotMatch(reason, /NaN|Infinity/);
  });

  it("a guest that dirties 99 % of what the link carries is given up after 150 rounds, although each brings a little", () => {
    const { history, decision } = play({ ...idle, pages: 2 ** 24, dirtyPagesPerMs: 0.99 * 250, workingSet: 2 ** 24 }, 300, 1000);
    assert.deepEqual([decision.action, history.length], ["give up", 150]);
  });

  it("a downtime-limit of 0 can never be met, so it ends in giving up", () => {
    assert.equal(play(idle, 0, 200).decision.action, "give up");
  });
});

describe("under downtime-limit", () => {
  const permitted: RoundOutlook = {
    ...free,
    remainingPages: 5000,
    dirtyPagesPerSecond: 1000,
    sendPagesPerSecond: 250_000,
    expectedDowntimeMs: 22,
    nextRoundMs: 22,
    forecastDowntimeMs: 3,
  };

  it("another round is sent while it is forecast to save much of the pause for little total time", () => {
    const { action, reason } = decide([permitted], 300);
    assert.equal(action, "next round");
    assert.match(reason, /19\.0 ms/);
  });
  it("the switch is made when a round would save less than a tenth of the pause", () => {
    assert.equal(decide([{ ...permitted, forecastDowntimeMs: 20 }], 300).action, "switch over");
  });
  it("the switch is made when a round would save less than 0.3 ms", () => {
    assert.equal(
      decide([{ ...permitted, expectedDowntimeMs: 0.4, nextRoundMs: 0.4, forecastDowntimeMs: 0.15 }], 300).action,
      "switch over",
    );
  });
  it("the switch is made when a millisecond of pause would cost more than 20 ms of total time", () => {
    assert.equal(decide([{ ...permitted, nextRoundMs: 20 * 19 }], 300).action, "next round");
    assert.equal(decide([{ ...permitted, nextRoundMs: 20 * 19 + 1 }], 300).action, "switch over");
  });
  it("the switch is made when two rounds in a row did not bring what was forecast", () => {
    assert.equal(decide(repeat(permitted, 2), 300).action, "next round");
    assert.equal(decide(repeat(permitted, 3), 300).action, "switch over");
  });
  it("the limit itself permits the switch, and the least bit over it does not", () => {
    const exact = { ...permitted, expectedDowntimeMs: 300, forecastDowntimeMs: 300 };
    assert.equal(decide([exact], 300).action, "switch over");
    assert.equal(decide([{ ...exact, expectedDowntimeMs: 300.001 }], 300).action, "next round");
  });
  it("an idle guest is switched over after its second round: the first one's leftovers are worth no third", () => {
    const { history, decision } = play(idle, 300, 200);
    assert.equal(decision.action, "switch over");
    assert.ok(history.length <= 2, `${history.length} rounds`);
  });
});

describe("auto-converge", () => {
  const parameters: PolicyParameters = { ...limitedTo(300), throttle: "auto-converge" };
  /** A round that left so many pages of a thousand that it sent, at one step. */
  const left = (remainingPages: number, throttleStepPercent: number): RoundOutlook => ({
    ...flat(1000),
    sentPages: 1000,
    remainingPages,
    throttleStepPercent,
    throttlePercent: throttleStepPercent,
  });
  const stepAfter = (...history: RoundOutlook[]): number | undefined => {
    const decision = decideBy(history, parameters);
    return decision.action === "next round" ? decision.throttlePercent : assert.fail(decision.reason);
  };

  it("takes the first step after two rounds in which more than half of what was sent was dirtied", () => {
    assert.equal(stepAfter(left(501, 0)), undefined);
    assert.equal(stepAfter(left(501, 0), left(501, 0)), 20);
    assert.equal(stepAfter(left(501, 0), left(500, 0)), undefined);
  });

  it("takes the next step after two such rounds at the last one, up to the maximum and no further", () => {
    assert.equal(stepAfter(left(900, 0), left(900, 0), left(900, 20)), undefined);
    assert.equal(stepAfter(left(900, 20), left(900, 20)), 30);
    assert.equal(stepAfter(left(900, 95), left(900, 95)), 99);
    assert.equal(stepAfter(left(900, 99), left(900, 99)), undefined);
  });

  it("does not give up while there is a step left, nor before five rounds at the last brought nothing", () => {
    assert.equal(decideBy(repeat(left(900, 80), 20), parameters).action, "next round");
    assert.equal(decideBy([...repeat(left(900, 80), 20), ...repeat(left(900, 99), 4)], parameters).action, "next round");
    assert.equal(decideBy([...repeat(left(900, 80), 20), ...repeat(left(900, 99), 5)], parameters).action, "give up");
  });
});

describe("sdps", () => {
  const parameters: PolicyParameters = { ...limitedTo(300), throttle: "sdps" };
  const held = (throttlePercent: number): RoundOutlook => ({ ...flat(1000), throttlePercent });

  it("does not give up while more could be withheld, and does when five rounds with nothing left to withhold brought nothing", () => {
    assert.equal(decideBy(repeat(held(60), 20), parameters).action, "next round");
    assert.equal(decideBy([...repeat(held(60), 2), ...repeat(held(98), 5)], parameters).action, "give up");
  });
  it("asks for no steps: its controller does not wait for the ends of rounds", () => {
    const decision = decideBy(repeat({ ...held(0), sentPages: 1000, remainingPages: 5000 }, 2), parameters);
    assert.ok(decision.action === "next round" && decision.throttlePercent === undefined);
  });
});

describe("when the operator's time is up", () => {
  it("the guest is paused, whatever is expected", () => {
    const decision = decideBy([flat(9000)], limitedTo(300), "switch over");
    assert.equal(decision.action, "switch over");
    assert.match(decision.reason, /time is up, expected 9000.0 ms/);
  });
});

describe("hybrid", () => {
  const hybrid: PolicyParameters = { ...DEFAULT_PARAMETERS, mode: "hybrid" };
  const after = (expectedDowntimeMs: number, forecastDowntimeMs: number): RoundOutlook => ({
    ...flat(expectedDowntimeMs),
    forecastDowntimeMs,
  });

  it("goes on with rounds while each takes half of the pause away, and to post-copy when one does not", () => {
    assert.equal(decideBy([after(9000, 4000)], hybrid).action, "next round");
    const { action, reason } = decideBy([after(9000, 5000)], hybrid);
    assert.equal(action, "go to post-copy");
    assert.match(reason, /9000 ms is over the limit/);
  });

  it("switches over as ever once the pause is within the limit, and never gives up", () => {
    assert.equal(decideBy([after(9000, 100), after(100, 100)], hybrid).action, "switch over");
    for (let rounds = 1; rounds < 200; rounds++) assert.notEqual(decideBy(Array(rounds).fill(after(9000, 9000)), hybrid).action, "give up");
  });

  it("goes to post-copy when it is asked to, within the limit or not", () => {
    for (const expected of [100, 9000])
      assert.equal(decideBy([after(expected, expected / 10)], hybrid, "go to post-copy").action, "go to post-copy");
  });
});

describe("decide", () => {
  it("asks for a first round when nothing is known", () => assert.equal(decide([], 300).action, "next round"));

  const models = fc.record({
    pages: fc.integer({ min: 256, max: 2 ** 26 }), // 1 MiB to 256 GiB
    pagesPerMs: fc.double({ min: 0.1, max: 12_500, noNaN: true }), // 0.4 MB/s to 50 GB/s
    // Of what the link carries; just below all of it is where convergence takes longest.
    dirtyShare: fc.oneof(fc.double({ min: 0, max: 3, noNaN: true }), fc.double({ min: 0.9, max: 1, noNaN: true })),
    setShare: fc.oneof(fc.double({ min: 0, max: 1, noNaN: true }), fc.constant(1)), // of the guest
    fixedMs: fc.double({ min: 0.05, max: 200, noNaN: true }),
    downtimeLimitMs: fc.integer({ min: 0, max: 5000 }),
  });

  it("ends every migration of a steady guest over a steady link in fewer than 200 rounds, by switching over or giving up", () =>
    fc.assert(
      fc.property(models, ({ pages, pagesPerMs, dirtyShare, setShare, fixedMs, downtimeLimitMs }) => {
        const model = { pages, pagesPerMs, dirtyPagesPerMs: dirtyShare * pagesPerMs, workingSet: Math.round(setShare * pages), fixedMs };
        const { history, decision } = play(model, downtimeLimitMs, 200);
        assert.notEqual(decision.action, "next round", `still going after ${history.length} rounds`);
        if (decision.action === "switch over")
          assert.ok((history.at(-1)?.expectedDowntimeMs ?? Infinity) <= downtimeLimitMs, "over the limit");
      }),
      { numRuns: 2000 },
    ));

  const outlooks = fc.record(
    {
      remainingPages: fc.nat(),
      sentPages: fc.nat(),
      throttlePercent: fc.double({ min: 0, max: 100, noNaN: true }),
      throttleStepPercent: fc.integer({ min: 0, max: 99 }),
      dirtyPagesPerSecond: fc.double({ min: 0, max: 1e9, noNaN: true }),
      sendPagesPerSecond: fc.double({ min: 0, noNaN: true }),
      expectedDowntimeMs: fc.double({ min: 0, max: 1e6, noNaN: true }),
      nextRoundMs: fc.double({ min: 0, max: 1e6, noNaN: true }),
      forecastDowntimeMs: fc.double({ min: 0, max: 1e6, noNaN: true }),
    },
    { noNullPrototype: true },
  );

  it("depends on nothing but its arguments, and changes none of them", () =>
    fc.assert(
      fc.property(
        fc.array(outlooks, { maxLength: 20 }),
        fc.integer({ min: 0, max: 5000 }),
        fc.array(outlooks, { maxLength: 5 }),
        (history, limit, other) => {
          const frozen = Object.freeze(history.map((outlook) => Object.freeze({ ...outlook })));
          const first = decide(frozen, limit);
          decide(other, limit);
          assert.deepEqual(decide(structuredClone(history), limit), first);
          assert.deepEqual(frozen, history);
        },
      ),
    ));

  it("never switches over while the expected downtime is over the limit, and never gives up while it is within", () =>
    fc.assert(
      fc.property(fc.array(outlooks, { minLength: 1, maxLength: 20 }), fc.integer({ min: 0, max: 1_000_000 }), (history, limit) => {
        const isWithin = (history.at(-1)?.expectedDowntimeMs ?? Infinity) <= limit;
        assert.notEqual(decide(history, limit).action, isWithin ? "give up" : "switch over");
      }),
    ));
});
