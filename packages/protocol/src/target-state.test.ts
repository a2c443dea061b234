import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { enterTarget, targetMayRunGuest } from "./target-state.js";
import type { TargetPhase, TargetState } from "./target-state.js";

const EVERY: { readonly [P in TargetPhase]: TargetState & { readonly phase: P } } = {
  receiving: { phase: "receiving", epoch: 2 },
  prepared: { phase: "prepared", epoch: 2, digest: "0123456789abcdef" },
  active: { phase: "active", epoch: 2 },
  discarded: { phase: "discarded", epoch: 2, cause: "x" },
};
const PHASES = Object.values(EVERY).map(({ phase }) => phase);
/** What may follow what, written down a second time, by hand. */
const EXPECTED: Readonly<Record<TargetPhase, readonly TargetPhase[]>> = {
  receiving: ["prepared", "discarded"],
  prepared: ["active", "discarded"],
  active: [],
  discarded: [],
};

describe("target state", () => {
  for (const from of PHASES)
    it(`${from} leads to ${EXPECTED[from].join(" and ") || "nothing"} and to no other phase`, () => {
      for (const to of PHASES) {
        // The cast asks at run time what the compiler refuses.
        const enter = (): TargetState => enterTarget(EVERY[from], EVERY[to] as never);
        if (EXPECTED[from].includes(to)) assert.equal(enter(), EVERY[to]);
        else assert.throws(enter, { code: "ERR_ILLEGAL_TRANSITION" }, `${from} -> ${to}`);
      }
    });

  it("keeps its epoch: every legal step to another epoch is refused", () => {
    for (const from of PHASES)
      for (const to of EXPECTED[from])
        for (const epoch of [1, 3, Number.NaN])
          assert.throws(
            () => enterTarget(EVERY[from], { ...EVERY[to], epoch } as never),
            { code: "ERR_ILLEGAL_TRANSITION" },
            `${from} -> ${to} at ${epoch}`,
          );
  });

  it("may run the guest exactly in active", () =>
    assert.deepEqual(
      PHASES.filter((phase) => targetMayRunGuest(EVERY[phase])),
      ["active"],
    ));

  it("comes to active only through prepared, and never leaves active or discarded", () => {
    assert.deepEqual(
      PHASES.filter((phase) => EXPECTED[phase].includes("active")),
      ["prepared"],
    );
    assert.deepEqual([EXPECTED.active, EXPECTED.discarded], [[], []]);
  });
});
