import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { standingOf } from "./journal-entry.js";
import type { Decision, JournalEntry, Standing } from "./journal-entry.js";
import { offer, recoverSource, stepSource } from "./source-state.js";
import type { Step } from "./source-state.js";
import { admitted, stepTarget } from "./target-state.js";

const entry = (decision: Decision, epoch = 7, boot?: string): JournalEntry => ({
  at: "2026-11-20T00:00:00.000Z",
  epoch,
  decision,
  ...(boot === undefined ? {} : { boot }),
});
/** What the last line says once its process has ended, whichever start of the host wrote it; `offered` and `prepared` have tests of their own. */
const EXPECTED: Readonly<Record<Exclude<Decision, "offered" | "prepared">, Standing>> = {
  booted: "gone",
  committed: "in-doubt",
  completed: "moved",
  aborted: "gone",
  "taken-back": "gone",
  "given-up": "given-up",
  lost: "gone",
  owner: "gone",
  refused: "refused",
  claimed: "gone",
};
/** The lines that a step leaves if everything that it asks for is done. */
const lines = ({ state, decide, effects }: Step<{ readonly epoch: number }>): JournalEntry[] => [
  ...(decide === undefined ? [] : [entry(decide, state.epoch, "b1")]),
  ...effects.flatMap((one) => (one.effect === "journal" ? [entry(one.decision, one.epoch)] : [])),
];

describe("what a journal says of a guest whose process has ended", () => {
  it("of a guest it never met: unknown", () => assert.deepEqual(standingOf([], "b1"), { standing: "unknown", last: undefined }));

  for (const [decision, standing] of Object.entries(EXPECTED) as [Decision, Standing][])
    it(`after ${decision}: ${standing}, under the same start of the host or another`, () => {
      for (const [written, asked] of [
        ["b1", "b1"],
        ["b1", "b2"],
        [undefined, "b1"],
        ["b1", undefined],
        [undefined, undefined],
      ])
        assert.equal(standingOf([entry(decision, 7, written)], asked).standing, standing);
    });

  it("after prepared: refused only under the same start, named on both sides; else unknown, because `owner` may be lost", () => {
    const standing = (written: string | undefined, asked: string | undefined): Standing =>
      standingOf([entry("prepared", 7, written)], asked).standing;
    assert.equal(standing("b1", "b1"), "refused");
    for (const [written, asked] of [
      ["b1", "b2"],
      ["b1", undefined],
      [undefined, "b1"],
      [undefined, undefined],
    ])
      assert.equal(standing(written, asked), "unknown");
  });

  it("after offered: gone only under the same start, named on both sides; else unknown, because `committed` may be lost", () => {
    const standing = (written: string | undefined, asked: string | undefined): Standing =>
      standingOf([entry("offered", 7, written)], asked).standing;
    assert.equal(standing("b1", "b1"), "gone");
    for (const [written, asked] of [
      ["b1", "b2"],
      ["b1", undefined],
      [undefined, "b1"],
      [undefined, undefined],
    ])
      assert.equal(standing(written, asked), "unknown");
  });

  it("the last line counts, and comes along", () => {
    const entries = [entry("booted", 1), entry("offered", 2, "b1"), entry("committed", 2), entry("taken-back", 3)];
    for (let length = 1; length <= entries.length; length++) {
      const { standing, last } = standingOf(entries.slice(0, length), "b1");
      assert.equal(last, entries[length - 1]);
      assert.equal(standing, length === 3 ? "in-doubt" : "gone");
    }
  });

  it("what each step of a source leaves behind is what holds after it", () => {
    const device = stepSource(stepSource(offer(4, 7).state, "rounds").state, "pause").state;
    const committing = stepSource(device, "prepared").state;
    const doubt = stepSource(committing, "silence").state;
    const standing = (...steps: Step<{ readonly epoch: number }>[]): Standing => standingOf(steps.flatMap(lines), "b1").standing;
    assert.equal(standing(offer(4, 7)), "gone");
    assert.equal(standing(offer(4, 7), stepSource(device, "fail")), "gone");
    assert.equal(standing(stepSource(device, "prepared")), "in-doubt");
    assert.equal(standing(stepSource(committing, "active")), "moved");
    assert.equal(standing(stepSource(doubt, "discarded")), "gone");
    assert.equal(standing(stepSource(doubt, "give-up")), "given-up");
    assert.equal(standing(stepSource(recoverSource(7), "discarded")), "gone");
  });

  it("what each step of a target leaves behind is what holds after it", () => {
    const here = (step: Step<{ readonly epoch: number }>): Standing =>
      standingOf(
        lines(step).map((line) => ({ ...line, boot: "b1" })),
        "b1",
      ).standing;
    const prepared = stepTarget(admitted(7), "verified");
    assert.equal(here(prepared), "refused");
    assert.equal(here(stepTarget(prepared.state, "commit")), "gone");
    assert.equal(here(stepTarget(prepared.state, "cancel")), "refused");
    assert.equal(here(stepTarget(prepared.state, "claim")), "gone");
    assert.equal(here(stepTarget(admitted(7), "cancel")), "unknown"); // nobody can have had its PREPARED
  });
});
