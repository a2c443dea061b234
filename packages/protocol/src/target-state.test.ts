import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { standingOf } from "./journal-entry.js";
import type { HandoverEffect } from "./source-state.js";
import { OWNER_ANSWERS, TARGET_EVENTS, TARGET_PHASES, admitted, ownerAnswer, stepTarget, targetMayRunGuest } from "./target-state.js";
import type { TargetEvent, TargetPhase, TargetState } from "./target-state.js";

/** Every phase and event a second time, by hand. `.` changes nothing and asks for nothing; `!` throws. */
const EXPECTED = `
              verified  commit   abort      silence    fail       cancel     superseded  outvoted   claim    starved
  receiving   prepared  .        discarded  discarded  discarded  discarded  discarded   !          !        !
  prepared    !         active   discarded  .          discarded  discarded  discarded   discarded  claimed  !
  active      !         active   .          .          !          !          .           !          !        lost
  discarded   !         .        .          .          !          !          .           !          !        !
  lost        !         .        .          .          !          !          .           !          !        !
  claimed     !         claimed  .          .          !          !          .           !          !        !
`;
const [head = [], ...rows] = EXPECTED.trim()
  .split("\n")
  .map((line) => line.trim().split(/ +/));
const expected = (phase: TargetPhase, event: TargetEvent): string | undefined =>
  rows.find(([name]) => name === phase)?.[1 + head.indexOf(event)];

const at = (phase: TargetPhase, epoch = 7): TargetState => ({ phase, epoch });
const send = (message: "prepared" | "active" | "failed"): HandoverEffect => ({ effect: "send", message });
const run = (epoch: number): HandoverEffect => ({ effect: "run", epoch });

describe("target state", () => {
  for (const phase of TARGET_PHASES)
    for (const event of TARGET_EVENTS) {
      const next = expected(phase, event);
      it(`${phase}: ${event} ${next === "!" ? "is a mistake of ours" : next === "." ? "changes nothing" : `leads to ${next}`}`, () => {
        const from = at(phase);
        if (next === "!") assert.throws(() => stepTarget(from, event), { code: "ERR_ILLEGAL_TRANSITION" });
        else if (next === ".") assert.deepEqual(stepTarget(from, event), { state: from, decide: undefined, effects: [] });
        else assert.equal(stepTarget(from, event).state.phase, next);
      });
    }

  it("begins with nothing decided", () => assert.deepEqual(admitted(7), at("receiving")));

  it("writes PREPARED down before it says so", () =>
    assert.deepEqual(stepTarget(at("receiving"), "verified"), { state: at("prepared"), decide: "prepared", effects: [send("prepared")] }));

  it("writes down that it is the owner, then runs the guest, then says so", () =>
    assert.deepEqual(stepTarget(at("prepared"), "commit"), {
      state: at("active"),
      decide: "owner",
      effects: [run(7), send("active")],
    }));

  it("answers every further COMMIT, and starts nothing for it", () => {
    for (const phase of ["active", "claimed"] as const)
      assert.deepEqual(stepTarget(at(phase), "commit"), { state: at(phase), decide: undefined, effects: [send("active")] });
  });

  it("lets go of what it received whichever way it is discarded, and says so; of PREPARED it also leaves a record", () => {
    const free: HandoverEffect[] = [send("failed"), { effect: "free" }];
    const refused: HandoverEffect = { effect: "journal", decision: "refused", epoch: 7 };
    for (const phase of ["receiving", "prepared"] as const)
      for (const event of TARGET_EVENTS)
        if (expected(phase, event) === "discarded")
          assert.deepEqual(stepTarget(at(phase), event), {
            state: at("discarded"),
            decide: undefined,
            effects: phase === "prepared" ? [refused, ...free] : free,
          });
  });

  it("runs a claimed copy one epoch above the attempt's, written down first, and tells nobody", () =>
    assert.deepEqual(stepTarget(at("prepared"), "claim"), { state: at("claimed", 8), decide: "claimed", effects: [run(8)] }));

  it("keeps the attempt's epoch in every other step", () => {
    for (const phase of TARGET_PHASES)
      for (const event of TARGET_EVENTS)
        if (event !== "claim" && expected(phase, event) !== "!") assert.equal(stepTarget(at(phase), event).state.epoch, 7);
  });

  it("may run the guest exactly in active and claimed, and asks for it to run exactly when it enters them", () => {
    assert.deepEqual(
      TARGET_PHASES.filter((phase) => targetMayRunGuest(at(phase))),
      ["active", "claimed"],
    );
    for (const phase of TARGET_PHASES)
      for (const event of TARGET_EVENTS) {
        if (expected(phase, event) === "!") continue;
        const { state, effects } = stepTarget(at(phase), event);
        const isEntered = targetMayRunGuest(state) && !targetMayRunGuest(at(phase));
        assert.equal(effects.filter(({ effect }) => effect === "run").length, isEntered ? 1 : 0, `${phase} ${event}`);
      }
  });

  it("comes to run the guest only out of prepared, by COMMIT or an operator, and never stops being the owner but by starving", () => {
    for (const phase of TARGET_PHASES)
      for (const event of TARGET_EVENTS) {
        const next = expected(phase, event) ?? "";
        if (["active", "claimed"].includes(next) && next !== phase)
          assert.deepEqual([phase, event], ["prepared", next === "active" ? "commit" : "claim"]);
        if (["receiving", "prepared"].includes(phase) || (phase === "active" && event === "starved")) continue;
        assert.ok([phase, ".", "!"].includes(next), `${phase} ${event}`);
      }
  });

  it("stays prepared when the link is gone: only the source, an operator, the arbiter or a failure here ends it", () =>
    assert.deepEqual(
      TARGET_EVENTS.filter((event) => !["prepared", ".", "!"].includes(expected("prepared", event) ?? "")),
      ["commit", "abort", "fail", "cancel", "superseded", "outvoted", "claim"],
    ));

  it("lets go of a guest that starved, and writes nothing down: the last line says gone of it, as this process does from now on", () => {
    const owner = stepTarget(at("prepared"), "commit").decide;
    assert.deepEqual(stepTarget(at("active"), "starved"), { state: at("lost"), decide: undefined, effects: [{ effect: "free" }] });
    assert.equal(owner, "owner");
    assert.equal(standingOf([{ at: "", epoch: 7, decision: owner, boot: "b" }], "b").standing, ownerAnswer(at("lost")));
  });

  it("tells a source that asks what it is, of a claimed copy that it runs, and of a lost guest that it is gone", () => {
    const answers = TARGET_PHASES.map((phase) => ownerAnswer(at(phase)));
    assert.deepEqual(answers, ["receiving", "prepared", "active", "discarded", "gone", "active"]);
    for (const answer of answers) assert.ok(OWNER_ANSWERS.includes(answer));
  });
});
