import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  SOURCE_EVENTS,
  SOURCE_PHASES,
  isServing,
  offer,
  recoverSource,
  sourceMayAbort,
  sourceMayRunGuest,
  stepSource,
} from "./source-state.js";
import type { HandoverEffect, SourceEvent, SourcePhase, SourceState } from "./source-state.js";

/** Every phase and event a second time, by hand. `.` changes nothing and asks for nothing; `!` throws. */
const EXPECTED = `
                  rounds pause  split  prepared   silence         active    discarded  unknown resumed         placed    fail   cancel    fenced     give-up
  setup           active device device .          .               .         .          .       !               .         failed cancelled !          !
  active          !      device device .          .               .         .          .       !               .         failed cancelled !          !
  device          !      !      !      committing .               .         .          .       !               .         failed cancelled !          !
  committing      !      !      !      .          in-doubt        completed taken-back .       !               .         !      !         !          !
  in-doubt        !      !      !      in-doubt   .               completed taken-back .       !               .         !      !         taken-back given-up
  postcopy-active !      !      !      .          postcopy-paused .         .          .       !               completed !      !         !          !
  postcopy-paused !      !      !      .          .               .         .          .       postcopy-active completed !      !         taken-back given-up
  completed       !      !      !      .          .               .         .          .       !               .         !      !         !          !
  failed          !      !      !      .          .               .         .          .       !               .         !      !         !          !
  cancelled       !      !      !      .          .               .         .          .       !               .         !      !         !          !
  taken-back      !      !      !      .          .               .         .          .       !               .         !      !         !          !
  given-up        !      !      !      .          .               .         .          .       !               .         !      !         !          !
  lost            !      !      !      .          .               .         .          .       !               .         !      !         !          !
`;
const [head = [], ...rows] = EXPECTED.trim()
  .split("\n")
  .map((line) => line.trim().split(/ +/));
const expected = (phase: SourcePhase, event: SourceEvent): string | undefined =>
  rows.find(([name]) => name === phase)?.[1 + head.indexOf(event)];

/** After `split`. */
const expectedSplit = (phase: SourcePhase, event: SourceEvent): string | undefined => {
  const next = expected(phase, event);
  return event === "active" && next === "completed" ? "postcopy-active" : next;
};

const at = (phase: SourcePhase): SourceState => ({ phase, epoch: 7, epochBefore: 4, hasImage: true, isSplit: false });
const split = (phase: SourcePhase): SourceState => ({ ...at(phase), isSplit: true });
const journal = (decision: "completed" | "aborted" | "taken-back" | "lost", epoch: number): HandoverEffect => ({
  effect: "journal",
  decision,
  epoch,
});
const send = (message: "abort" | "commit"): HandoverEffect => ({ effect: "send", message });
const run = (epoch: number): HandoverEffect => ({ effect: "run", epoch });
const FREE: HandoverEffect = { effect: "free" };

/** Every phase that these events lead to, one after the other in any order. */
function reachable(from: SourcePhase, without: readonly SourceEvent[] = [], table = expected): SourcePhase[] {
  const found = new Set([from]);
  for (const phase of found) // grows while it is walked
    for (const event of SOURCE_EVENTS.filter((one) => !without.includes(one))) {
      const next = table(phase, event);
      const to = SOURCE_PHASES.find((one) => one === next);
      if (to !== undefined) found.add(to);
    }
  found.delete(from);
  return [...found];
}

describe("source state", () => {
  for (const phase of SOURCE_PHASES)
    for (const event of SOURCE_EVENTS) {
      const next = expected(phase, event);
      it(`${phase}: ${event} ${next === "!" ? "is a mistake of ours" : next === "." ? "changes nothing" : `leads to ${next}`}`, () => {
        const from = at(phase);
        if (next === "!") assert.throws(() => stepSource(from, event), { code: "ERR_ILLEGAL_TRANSITION" });
        else if (next === ".") assert.deepEqual(stepSource(from, event), { state: from, decide: undefined, effects: [] });
        else assert.equal(stepSource(from, event).state.phase, next);
      });
    }

  it("begins with a guest in hand, at an epoch that is written down before anything else happens", () =>
    assert.deepEqual(offer(4, 7), { state: at("setup"), decide: "offered", effects: [] }));

  it("decides COMMIT in the journal before it asks for it to be sent", () =>
    assert.deepEqual(stepSource(at("device"), "prepared"), { state: at("committing"), decide: "committed", effects: [send("commit")] }));

  it("sends COMMIT again, and only that, when a target in doubt is still prepared", () =>
    assert.deepEqual(stepSource(at("in-doubt"), "prepared"), { state: at("in-doubt"), decide: undefined, effects: [send("commit")] }));

  it("tells the target, then runs on at the epoch it had, then writes it down: a full disk freezes no guest", () => {
    for (const [event, phase] of [
      ["fail", "failed"],
      ["cancel", "cancelled"],
    ] as const)
      for (const from of ["setup", "active", "device"] as const)
        assert.deepEqual(stepSource(at(from), event), {
          state: at(phase),
          decide: undefined,
          effects: [send("abort"), run(4), journal("aborted", 7)],
        });
  });

  it("takes back at one epoch above the attempt's, and nowhere else changes the epoch", () => {
    for (const [from, event] of [
      ["committing", "discarded"],
      ["in-doubt", "discarded"],
      ["in-doubt", "fenced"],
      ["postcopy-paused", "fenced"],
    ] as const)
      assert.deepEqual(stepSource(at(from), event), {
        state: { ...at("taken-back"), epoch: 8 },
        decide: undefined,
        effects: [journal("taken-back", 8), run(8)],
      });
    for (const phase of SOURCE_PHASES)
      for (const event of SOURCE_EVENTS)
        if (!["!", "taken-back"].includes(expected(phase, event) ?? "")) assert.equal(stepSource(at(phase), event).state.epoch, 7);
  });

  it("lets go of the guest only when the target runs it and lacks nothing, or its operator says so, in writing", () => {
    for (const [from, event] of [
      [at("committing"), "active"],
      [at("in-doubt"), "active"],
      [split("postcopy-active"), "placed"],
      [split("postcopy-paused"), "placed"],
    ] as const)
      assert.deepEqual(stepSource(from, event), {
        state: { ...from, phase: "completed", hasImage: false },
        decide: undefined,
        effects: [journal("completed", 7), FREE],
      });
    for (const from of [at("in-doubt"), split("in-doubt"), split("postcopy-paused")])
      assert.deepEqual(stepSource(from, "give-up"), {
        state: { ...from, phase: "given-up", hasImage: false },
        decide: "given-up",
        effects: [FREE],
      });
    for (const [table, of] of [
      [expected, at],
      [expectedSplit, split],
    ] as const)
      for (const phase of SOURCE_PHASES)
        for (const event of SOURCE_EVENTS) {
          if (["!", "completed", "given-up"].includes(table(phase, event) ?? "")) continue;
          const { state, effects } = stepSource(of(phase), event);
          assert.ok(state.hasImage && !effects.some(({ effect }) => effect === "free"), `${phase} ${event}`);
        }
  });

  it("after split differs in nothing but where ACTIVE leads: to post-copy, and for that nothing is to be done", () => {
    for (const phase of SOURCE_PHASES)
      for (const event of SOURCE_EVENTS) {
        const next = expectedSplit(phase, event);
        if (next === "!") assert.throws(() => stepSource(split(phase), event), { code: "ERR_ILLEGAL_TRANSITION" });
        else if (next === "postcopy-active")
          assert.deepEqual(stepSource(split(phase), event), { state: split(next), decide: undefined, effects: [] });
        else {
          const { state, decide, effects } = stepSource(at(phase), event);
          assert.deepEqual(stepSource(split(phase), event), { state: { ...state, isSplit: true }, decide, effects });
        }
      }
  });

  it("remembers split up to the target's answer, through a doubt as well", () => {
    let state = offer(4, 7).state;
    const take = (event: SourceEvent, phase: SourcePhase, isSplit: boolean): void => {
      state = stepSource(state, event).state;
      assert.deepEqual(state, { ...at(phase), isSplit });
    };
    take("rounds", "active", false);
    take("split", "device", true);
    take("prepared", "committing", true);
    take("silence", "in-doubt", true);
    take("prepared", "in-doubt", true);
    take("active", "postcopy-active", true);
    take("silence", "postcopy-paused", true);
    take("resumed", "postcopy-active", true);
  });

  it("is split by split only", () => {
    for (const phase of SOURCE_PHASES)
      for (const event of SOURCE_EVENTS)
        if (expected(phase, event) !== "!")
          assert.equal(stepSource(at(phase), event).state.isSplit, event === "split", `${phase} ${event}`);
  });

  it("comes to post-copy only by split, and after a restart never", () => {
    assert.deepEqual(SOURCE_PHASES.filter(isServing), ["postcopy-active", "postcopy-paused"]);
    const isMet = (from: SourceState, without: readonly SourceEvent[]): boolean => {
      const met = new Map([[JSON.stringify(from), from]]);
      for (const state of met.values()) // grows while it is walked
        for (const event of SOURCE_EVENTS) {
          if (without.includes(event) || expected(state.phase, event) === "!" || (event === "fenced" && !state.hasImage)) continue;
          const next = stepSource(state, event).state;
          met.set(JSON.stringify(next), next);
        }
      return [...met.values()].some(({ phase }) => isServing(phase));
    };
    assert.equal(isMet(offer(4, 7).state, []), true);
    assert.equal(isMet(offer(4, 7).state, ["split"]), false);
    assert.equal(isMet(recoverSource(7), []), false);
  });

  it("without an image has nothing to take back: a refusal is the end of the guest, and fenced is a mistake", () => {
    const hollow = recoverSource(7);
    assert.deepEqual(hollow, { phase: "in-doubt", epoch: 7, epochBefore: 6, hasImage: false, isSplit: false });
    const lost = { state: { ...hollow, phase: "lost" }, decide: undefined, effects: [journal("lost", 7)] };
    assert.deepEqual(stepSource(hollow, "discarded"), lost);
    assert.throws(() => stepSource(hollow, "fenced"), { code: "ERR_ILLEGAL_TRANSITION", message: /without an image/ });
    assert.deepEqual(stepSource(hollow, "prepared").effects, [send("commit")]);
    assert.equal(stepSource(hollow, "active").state.phase, "completed");
    assert.equal(stepSource(hollow, "give-up").state.phase, "given-up");
  });

  it("never asks for a guest without an image to run, whatever the order of events", () => {
    const seen = new Set<string>();
    const visit = (state: SourceState): void => {
      if (seen.has(JSON.stringify(state))) return;
      seen.add(JSON.stringify(state));
      for (const event of SOURCE_EVENTS) {
        if (expected(state.phase, event) === "!" || event === "fenced") continue;
        const step = stepSource(state, event);
        assert.equal(step.effects.filter(({ effect }) => effect === "run").length, 0, `${state.phase} ${event}`);
        visit(step.state);
      }
    };
    visit(recoverSource(7));
    assert.ok(seen.size >= 4);
  });

  it("may run the guest exactly in setup, active, failed, cancelled and taken-back", () =>
    assert.deepEqual(
      SOURCE_PHASES.filter((phase) => sourceMayRunGuest(at(phase))),
      ["setup", "active", "failed", "cancelled", "taken-back"],
    ));

  it("may abort exactly where fail and cancel are allowed, which is before COMMIT", () => {
    assert.deepEqual(SOURCE_PHASES.filter(sourceMayAbort), ["setup", "active", "device"]);
    for (const phase of SOURCE_PHASES)
      for (const event of ["fail", "cancel"] as const) assert.equal(expected(phase, event) !== "!", sourceMayAbort(phase), phase);
  });

  it("once COMMIT is decided ends only by active, discarded, fenced or give-up", () => {
    assert.deepEqual(reachable("committing", ["active", "discarded", "fenced", "give-up"]), ["in-doubt"]);
    for (const event of ["active", "discarded", "fenced", "give-up"] as const)
      assert.ok(
        reachable("in-doubt", ["active", "discarded", "fenced", "give-up"].filter((one) => one !== event) as SourceEvent[]).length > 0,
      );
  });

  it("in post-copy ends only by placed, fenced or give-up, and the last two only while the link is gone", () => {
    assert.deepEqual(reachable("postcopy-active", ["placed", "fenced", "give-up"], expectedSplit), ["postcopy-paused"]);
    assert.deepEqual(reachable("postcopy-active", ["placed", "silence"], expectedSplit), []);
  });

  it("once COMMIT is decided runs the guest again only by discarded or fenced", () => {
    const mayRun = (phases: readonly SourcePhase[]): SourcePhase[] => phases.filter((phase) => sourceMayRunGuest(at(phase)));
    for (const table of [expected, expectedSplit]) {
      assert.deepEqual(mayRun(reachable("committing", [], table)), ["taken-back"]);
      assert.deepEqual(mayRun(reachable("committing", ["discarded", "fenced"], table)), []);
    }
  });

  it("comes to COMMIT only with the guest paused, and only by PREPARED", () => {
    assert.ok(reachable("setup").includes("committing"));
    for (const without of [["pause", "split"], ["prepared"]] as const)
      assert.ok(!reachable("setup", without).includes("committing"), without.join());
    assert.equal(sourceMayRunGuest(at("device")), false);
  });

  it("can always end: every phase is one, or reaches one, that nothing changes any more", () => {
    const isEnd = (phase: SourcePhase): boolean => reachable(phase).length === 0;
    for (const phase of SOURCE_PHASES) assert.ok([phase, ...reachable(phase)].some(isEnd), phase);
  });
});
