import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { SourceHandover } from "@precopy/engine";
import {
  ACTIVE_TIMEOUT_MS,
  ARBITRATION_AFTER_MS,
  ASK_AGAIN_MS,
  MigrationError,
  formatAddress,
  offer,
  recoverSource,
} from "@precopy/protocol";
import type { ControlMessage, OwnerAnswer, SourcePhase } from "@precopy/protocol";
import { AgentPort, ControlChannel } from "@precopy/transport";
import { Commitment } from "./commitment.js";
import type { Arbitration } from "./commitment.js";

const ATTEMPT = { guest: "g1", epoch: 7, session: "00000000-0000-4000-8000-000000000001" };
const CUT = new MigrationError("ERR_LINK_LOST", "the target cut it");
const OVER = new MigrationError("ERR_LINK_LOST", "the test is over");
const NOT_FENCED = new MigrationError("ERR_NOT_FENCED", "say that it is fenced");
const owner = (phase: OwnerAnswer): ControlMessage => ({ type: "owner", epoch: ATTEMPT.epoch, phase });
const ACTIVE: ControlMessage = { type: "active", epoch: ATTEMPT.epoch, resumeMs: 1 };
const neverForced = (answer: OwnerAnswer | "unreachable"): void => assert.fail(`the operator's word decided: the target said ${answer}`);

/** From before any test replaced it. */
const realTimeout = setTimeout;
/** Polled, because what is waited for happens on sockets; what never comes true fails the test instead of hanging it. */
async function until(what: string, isSo: () => boolean): Promise<void> {
  for (const started = Date.now(); !isSo(); await new Promise((resolve) => realTimeout(resolve, 2)))
    assert.ok(Date.now() - started < 20_000, `${what} did not come true within 20 s`);
}

/**
 * Time-outs end when `pass` says so. Not node:test's: to those every timer is of the test that runs, so a socket of one test that closes in
 * the next would end a time-out there.
 */
function fakeTime(context: TestContext): (ms: number) => void {
  const pending = new Map<object, { readonly at: number; readonly run: () => void }>();
  let nowMs = performance.now();
  context.mock.method(performance, "now", () => nowMs);
  context.mock.method(globalThis, "setTimeout", (run: () => void, ms: number) => {
    const timer = { unref: () => timer };
    pending.set(timer, { at: nowMs + ms, run });
    return timer;
  });
  context.mock.method(globalThis, "clearTimeout", (timer: object) => pending.delete(timer));
  return (ms) => {
    nowMs += ms;
    for (const [timer, { at, run }] of [...pending]) if (at <= nowMs && pending.delete(timer)) run();
  };
}

type Answer = (message: ControlMessage, channel: ControlChannel) => void;
/** Says one thing to each COMMIT or question after another, and nothing once they are used up. */
const script = (...answers: readonly (ControlMessage | "silence" | "cut")[]): Answer => {
  const left = [...answers];
  return ({ type }, channel) => {
    if (type !== "commit" && type !== "ask") return;
    const answer = left.shift() ?? "silence";
    if (answer === "cut") channel.close(CUT);
    else if (answer !== "silence") channel.send(answer);
  };
};

interface Bench {
  readonly commitment: Commitment;
  readonly handover: SourceHandover;
  readonly phase: () => SourcePhase;
  /** What was written down before it held. */
  readonly decided: string[];
  /** Messages of the reasons told. */
  readonly doubts: string[];
  /** Types that no question waited for. */
  readonly others: string[];
  /** Types that the target heard, in order, over all connections. */
  readonly heard: string[];
  readonly channels: ControlChannel[];
  /** The target hears nothing any more, and nobody can connect. */
  readonly vanish: () => Promise<void>;
  /** Nothing but this lets the commitment's time pass. */
  readonly pass: (ms: number) => void;
  /** Until nothing more happens by itself: the commitment rests between two questions. */
  readonly rested: (heard: number) => Promise<void>;
}

/** A source right after COMMIT was decided, or one that was started anew, and a target that answers by the script. */
async function decided(
  context: TestContext,
  answer: Answer,
  options: { readonly arbitration?: Arbitration; readonly isRecovered?: boolean } = {},
): Promise<Bench> {
  const [told, doubts, others, heard]: string[][] = [[], [], [], []];
  const channels: ControlChannel[] = [];
  const port = await AgentPort.listen(
    { host: "127.0.0.1", port: 0 },
    {
      onControl: (channel) => {
        channels.push(channel);
        channel.onMessage = (message) => {
          heard!.push(message.type);
          answer(message, channel);
        };
      },
      onPageChannel: () => false,
      onFaultChannel: () => false,
    },
    "test",
  );
  let closing: Promise<void> | undefined;
  const vanish = (): Promise<void> => (closing ??= port.close());
  context.after(vanish);
  const { isRecovered = false, arbitration } = options;
  const handover = new SourceHandover(isRecovered ? recoverSource(ATTEMPT.epoch) : offer(ATTEMPT.epoch - 1, ATTEMPT.epoch).state, {
    decide: (decision) => told!.push(decision),
    onPhase: () => {},
  });
  if (!isRecovered) for (const event of ["rounds", "pause", "prepared"] as const) handover.step(event);
  const control = isRecovered ? undefined : await ControlChannel.connect(port.address);
  const commitment = new Commitment(
    {
      to: formatAddress(port.address),
      security: undefined,
      attempt: ATTEMPT,
      handover,
      arbitration,
      elapsedMs: () => 12.5,
      onDoubt: ({ message }) => doubts!.push(message),
      onMessage: ({ type }) => others!.push(type),
    },
    control,
  );
  context.after(() => {
    commitment.abandon();
    commitment.control?.close(OVER);
  });
  return {
    commitment,
    handover,
    phase: () => handover.state.phase,
    decided: told!,
    doubts: doubts!,
    others: others!,
    heard: heard!,
    channels,
    vanish,
    pass: fakeTime(context),
    rested: async (count) => {
      await until(`the target hears ${count} messages`, () => heard!.length >= count);
      for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => realTimeout(resolve, 1));
    },
  };
}

describe("COMMIT", () => {
  it("that is answered completes the hand-over, and nothing was in doubt", async (context) => {
    const told: ControlMessage[] = [];
    const bench = await decided(context, (message, channel) => {
      told.push(message);
      script(ACTIVE)(message, channel);
    });
    await bench.commitment.run();
    assert.deepEqual(told, [{ type: "commit", epoch: ATTEMPT.epoch, elapsedMs: 12.5 }]);
    assert.deepEqual([bench.phase(), bench.decided, bench.doubts], ["completed", ["committed"], []]);
    assert.deepEqual(
      bench.handover.takeEffects().map(({ effect }) => effect),
      ["journal", "free"],
    );
  });

  it("that is not answered in time is in doubt, and is asked about; each reason is told once, however often it recurs", async (context) => {
    const bench = await decided(context, script("silence", "silence", "silence", "silence", owner("active")));
    const run = bench.commitment.run();
    await bench.rested(1);
    bench.pass(ACTIVE_TIMEOUT_MS - 1);
    assert.equal(bench.phase(), "committing");
    bench.pass(1);
    await until("it is in doubt", () => bench.phase() === "in-doubt");
    for (let asked = 1; asked <= 4; asked++) {
      await bench.rested(asked);
      bench.pass(ASK_AGAIN_MS);
      await bench.rested(1 + asked);
      if (asked < 4) bench.pass(ACTIVE_TIMEOUT_MS);
    }
    await run;
    assert.deepEqual(bench.heard, ["commit", "ask", "ask", "ask", "ask"]);
    assert.deepEqual(bench.doubts, ["The target did not answer COMMIT", "The target did not answer the question who owns the guest"]);
    assert.equal(bench.phase(), "completed");
  });

  for (const [what, answer, doubt] of [
    ["a link that breaks", "cut", "The peer closed the control channel"],
    ["a peer that speaks of a failure", { type: "failed", code: "ERR_MEMORY", message: "none left" }, "none left"],
  ] as const)
    it(`is not decided by ${what}: the target is asked, and was the owner`, async (context) => {
      const bench = await decided(context, script(answer, owner("active")));
      const run = bench.commitment.run();
      await until("it is in doubt", () => bench.phase() === "in-doubt");
      await bench.rested(1);
      bench.pass(ASK_AGAIN_MS);
      await run;
      assert.deepEqual([bench.phase(), bench.doubts], ["completed", [doubt]]);
    });

  it("is asked about on a new connection if the old one broke, and what else comes there is handed on", async (context) => {
    const bench = await decided(context, script("cut", owner("active")));
    const run = bench.commitment.run();
    await until("it is in doubt", () => bench.phase() === "in-doubt");
    await bench.rested(1);
    bench.pass(ASK_AGAIN_MS);
    await run;
    assert.equal(bench.channels.length, 2);
    assert.equal(bench.commitment.control?.closed, undefined);
    bench.channels[1]?.send({ type: "arrived", epoch: ATTEMPT.epoch, guestGapMs: 3, ranAt: null });
    await until("it is handed on", () => bench.others.length > 0);
    assert.deepEqual(bench.others, ["arrived"]);
  });
});

/** In doubt after one silent COMMIT, with the next question about to be asked. */
async function doubted(context: TestContext, answer: Answer, options: Parameters<typeof decided>[2] = {}) {
  const bench = await decided(context, answer, options);
  const run = bench.commitment.run();
  run.catch(() => {}); // whoever needs it awaits it
  if (options.isRecovered !== true) {
    await bench.rested(1);
    bench.pass(ACTIVE_TIMEOUT_MS);
  }
  await until("it is in doubt", () => bench.phase() === "in-doubt");
  await bench.rested(bench.heard.length);
  return { ...bench, run };
}

describe("in doubt", () => {
  it("a target that is still prepared gets COMMIT again", async (context) => {
    const bench = await doubted(context, script("silence", owner("prepared"), ACTIVE));
    bench.pass(ASK_AGAIN_MS);
    await bench.run;
    assert.deepEqual([bench.heard, bench.phase()], [["commit", "ask", "commit"], "completed"]);
  });

  it("a target that has discarded the attempt gives the guest back, one epoch higher", async (context) => {
    const bench = await doubted(context, script("silence", owner("discarded")));
    bench.pass(ASK_AGAIN_MS);
    await bench.run;
    assert.deepEqual([bench.phase(), bench.handover.state.epoch], ["taken-back", ATTEMPT.epoch + 1]);
  });

  for (const isOurs of [true, false])
    it(`a target that has discarded the attempt gives the guest back ${isOurs ? "with the arbiter's word" : "to nobody against the arbiter's word"}`, async (context) => {
      const asked: boolean[] = [];
      const arbitration: Arbitration = {
        takeBack: async (hasRefused) => {
          asked.push(hasRefused);
          return isOurs;
        },
      };
      const bench = await doubted(context, script("silence", owner("discarded"), owner("active")), { arbitration });
      bench.pass(ASK_AGAIN_MS);
      await bench.rested(2);
      assert.deepEqual([bench.phase(), asked], [isOurs ? "taken-back" : "in-doubt", [true]]);
      if (isOurs) return bench.run;
      assert.match(bench.doubts.at(-1) ?? "", /the arbiter has given the guest to somebody else/);
      bench.pass(ASK_AGAIN_MS);
      await bench.run;
      assert.equal(bench.phase(), "completed");
    });

  for (const answer of ["unknown", "gone", "receiving"] as const)
    it(`"${answer}" is no refusal: it asks on, and the guest stands still`, async (context) => {
      const bench = await doubted(context, script("silence", owner(answer), owner(answer), owner("active")));
      for (const heard of [2, 3]) {
        bench.pass(ASK_AGAIN_MS);
        await bench.rested(heard);
        assert.equal(bench.phase(), "in-doubt");
      }
      bench.pass(ASK_AGAIN_MS);
      await bench.run;
      assert.equal(bench.phase(), "completed");
    });

  it("an answer to COMMIT that comes late is an answer", async (context) => {
    const bench = await doubted(context, script("silence", ACTIVE));
    bench.pass(ASK_AGAIN_MS);
    await bench.run;
    assert.deepEqual([bench.phase(), bench.heard], ["completed", ["commit", "ask"]]);
  });

  it("abandoned, it ends with ERR_IN_DOUBT between two questions, and asks no more", async (context) => {
    const bench = await doubted(context, script());
    bench.commitment.abandon();
    await assert.rejects(bench.run, { code: "ERR_IN_DOUBT" });
    assert.deepEqual([bench.phase(), bench.heard], ["in-doubt", ["commit"]]);
  });

  it("abandoned while a question waits, it does not wait for the answer", async (context) => {
    const bench = await doubted(context, script());
    bench.pass(ASK_AGAIN_MS);
    await bench.rested(2);
    bench.commitment.abandon();
    await assert.rejects(bench.run, { code: "ERR_IN_DOUBT" });
    assert.equal(bench.phase(), "in-doubt");
  });
});

describe("take-back", () => {
  it("revokes a target that is prepared, and the guest comes back when that has let go", async (context) => {
    const isDiscarded = { value: false };
    const bench = await doubted(context, ({ type }, channel) => {
      if (type === "ask") channel.send(owner(isDiscarded.value ? "discarded" : "prepared"));
      if (type !== "abort") return;
      isDiscarded.value = true;
      channel.close(CUT); // as a target does that has let go
    });
    assert.deepEqual(await bench.commitment.takeBack(neverForced), { answer: "discarded", wasForced: false });
    await bench.run;
    assert.deepEqual([bench.phase(), bench.heard], ["taken-back", ["commit", "ask", "abort", "ask"]]);
  });

  it("that comes before COMMIT has gone out keeps it here for good, and the guest is left to be resumed one epoch higher", async (context) => {
    const bench = await decided(context, script(owner("discarded")));
    // Both are asked for in one turn of the event loop, the operator first: what ends the hand-over is not there yet when `run` begins.
    const taking = bench.commitment.takeBack(neverForced);
    const run = bench.commitment.run();
    assert.deepEqual(await taking, { answer: "discarded", wasForced: false });
    await run;
    assert.deepEqual([bench.phase(), bench.heard], ["taken-back", ["ask"]]);
    const effects = bench.handover.takeEffects();
    assert.deepEqual(
      effects.find(({ effect }) => effect === "run"),
      { effect: "run", epoch: ATTEMPT.epoch + 1 },
    );
  });

  it("finds out that the target became the owner, before the abort or in spite of it, and the guest is the target's", async (context) => {
    for (const answers of [[owner("active")], [owner("prepared"), owner("active")]]) {
      const bench = await doubted(context, script("silence", ...answers));
      assert.deepEqual(await bench.commitment.takeBack(neverForced), { answer: "active", wasForced: false });
      await bench.run;
      assert.equal(bench.phase(), "completed");
      context.mock.restoreAll(); // its time ends with it
    }
  });

  for (const [answer, given] of [
    ["unreachable", "cut"],
    ["gone", owner("gone")],
    ["unknown", owner("unknown")],
  ] as const)
    it(`of a guest whose target is ${answer} is the operator's to force, and if that is not allowed nothing has changed`, async (context) => {
      const bench = await doubted(context, script("silence", given, given));
      const refused: string[] = [];
      const refuse = (told: string): never => {
        refused.push(told);
        throw NOT_FENCED;
      };
      await assert.rejects(bench.commitment.takeBack(refuse), (error) => error === NOT_FENCED);
      assert.deepEqual([refused, bench.phase(), bench.decided], [[answer], "in-doubt", ["committed"]]);
      if (answer === "unreachable") await bench.vanish();
      assert.deepEqual(await bench.commitment.takeBack(() => {}), { answer, wasForced: true });
      await bench.run;
      assert.deepEqual([bench.phase(), bench.handover.state.epoch], ["taken-back", ATTEMPT.epoch + 1]);
    });

  it("against the arbiter's word is not for the operator to force, and nothing has changed", async (context) => {
    const asked: boolean[] = [];
    const arbitration: Arbitration = { takeBack: async (hasRefused) => asked.push(hasRefused) < 0 };
    const bench = await doubted(context, script(), { arbitration });
    await bench.vanish();
    await assert.rejects(
      bench.commitment.takeBack(() => {}),
      { code: "ERR_ARBITER" },
    );
    assert.deepEqual([asked, bench.phase()], [[true], "in-doubt"]);
  });

  it("that comes while COMMIT waits for its answer waits, too, and takes nothing back once it is there", async (context) => {
    let answer = (): void => {};
    const bench = await decided(context, (_, channel) => {
      answer = () => channel.send(ACTIVE);
    });
    const run = bench.commitment.run();
    await bench.rested(1);
    const taking = bench.commitment.takeBack(neverForced);
    await bench.rested(1);
    answer();
    assert.equal((await taking).wasForced, false);
    await run;
    assert.deepEqual([bench.phase(), bench.heard], ["completed", ["commit"]]);
  });
});

describe("give-up", () => {
  it("of a guest whose target is prepared sends COMMIT again: the guest is given, not lost", async (context) => {
    const bench = await doubted(context, script("silence", owner("prepared"), ACTIVE));
    assert.equal((await bench.commitment.giveUp(neverForced)).wasForced, false);
    await bench.run;
    assert.deepEqual([bench.phase(), bench.heard], ["completed", ["commit", "ask", "commit"]]);
  });

  it("of a guest whose target does not answer is the operator's to force, is written down first, and frees what is here", async (context) => {
    const bench = await doubted(context, script());
    await bench.vanish();
    await assert.rejects(
      bench.commitment.giveUp(() => {
        throw NOT_FENCED;
      }),
      (error) => error === NOT_FENCED,
    );
    assert.deepEqual([bench.phase(), bench.decided], ["in-doubt", ["committed"]]);
    assert.deepEqual(await bench.commitment.giveUp(() => {}), { answer: "unreachable", wasForced: true });
    await bench.run;
    assert.deepEqual([bench.phase(), bench.decided], ["given-up", ["committed", "given-up"]]);
    assert.deepEqual(bench.handover.takeEffects(), [{ effect: "free" }]);
  });
});

describe("a source that was started anew, without an image", () => {
  for (const [answers, phase, heard] of [
    [[owner("prepared"), ACTIVE], "completed", ["ask", "commit"]],
    [[owner("gone")], "completed", ["ask"]],
    [[owner("discarded")], "lost", ["ask"]],
    [[owner("unknown"), owner("active")], "completed", ["ask", "ask"]],
  ] as const)
    it(`never revokes: ${answers.map((one) => (one.type === "owner" ? one.phase : "ACTIVE")).join(", then ")} ends it as ${phase}`, async (context) => {
      const bench = await doubted(context, script(...answers), { isRecovered: true });
      for (let asked = 0; !bench.handover.isOver && asked < 3; asked++) {
        const before = bench.heard.length;
        bench.pass(ASK_AGAIN_MS);
        await bench.rested(before + 1);
      }
      await bench.run;
      assert.deepEqual([bench.phase(), bench.heard], [phase, heard]);
    });

  it("and whose operator gives up sends COMMIT to a target that is prepared", async (context) => {
    const bench = await doubted(context, script(owner("prepared"), ACTIVE), { isRecovered: true });
    await bench.commitment.giveUp(neverForced);
    await bench.run;
    assert.deepEqual([bench.phase(), bench.heard], ["completed", ["ask", "commit"]]);
  });
});

describe("the arbiter", () => {
  /** In doubt, with a target that nobody can reach. @param answers one a call, the last one again and again. */
  const unreachable = async (context: TestContext, ...answers: readonly (boolean | MigrationError)[]) => {
    const asked: boolean[] = [];
    const arbitration: Arbitration = {
      takeBack: async (hasRefused) => {
        asked.push(hasRefused);
        const answer = answers[Math.min(asked.length, answers.length) - 1] ?? false;
        if (answer instanceof MigrationError) throw answer;
        return answer;
      },
    };
    const bench = await doubted(context, script(), { arbitration });
    await bench.vanish();
    /** One more question into the void. */
    const ask = async (): Promise<void> => {
      bench.pass(ASK_AGAIN_MS);
      for (let turn = 0; turn < 40; turn++) await new Promise((resolve) => realTimeout(resolve, 1));
    };
    return { ...bench, asked, ask };
  };

  it("decides when the target was silent for ARBITRATION_AFTER_MS, and not before", async (context) => {
    const bench = await unreachable(context, true);
    for (let ms = ACTIVE_TIMEOUT_MS; ms + ASK_AGAIN_MS <= ARBITRATION_AFTER_MS; ms += ASK_AGAIN_MS) {
      await bench.ask();
      assert.deepEqual(bench.asked, [], `${ms + ASK_AGAIN_MS} ms after COMMIT`);
    }
    bench.pass(ASK_AGAIN_MS);
    await bench.run;
    assert.deepEqual([bench.asked, bench.phase()], [[false], "taken-back"]);
  });

  it("that gives the guest to the target leaves it standing still here, and so does one that does not answer", async (context) => {
    const bench = await unreachable(context, false, new MigrationError("ERR_ARBITER", "no such folder"), true);
    bench.pass(ARBITRATION_AFTER_MS);
    for (const doubt of [/the guest is the target's/, /no such folder/]) {
      await until(`it is told that ${doubt.source}`, () => doubt.test(bench.doubts.at(-1) ?? ""));
      await bench.rested(0);
      assert.equal(bench.phase(), "in-doubt");
      bench.pass(ASK_AGAIN_MS);
    }
    await bench.run;
    assert.deepEqual([bench.phase(), bench.asked], ["taken-back", [false, false, false]]);
  });
});
