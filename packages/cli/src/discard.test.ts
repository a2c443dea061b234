import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import type { Guest } from "@precopy/guest";
import { Discard } from "./discard.js";

/** As Discard uses one: by its identity. */
const guestOf = (id: string): Guest => ({ manifest: { id } }) as unknown as Guest;

async function settle(): Promise<void> {
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** An agent that discards after 500 ms, whose time passes only as the test says. */
function agent(context: TestContext) {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const rig = {
    owned: undefined as Guest | undefined,
    ended: [] as Guest[],
    failures: [] as string[],
    settled: async (): Promise<void> => {},
    end: async (): Promise<void> => {},
    pass: async (ms: number): Promise<void> => {
      context.mock.timers.tick(ms);
      await settle();
    },
    come: (guest: Guest): void => {
      rig.owned = guest;
      discard.arrived();
    },
  };
  const discard = new Discard({
    afterMs: 500,
    owned: () => rig.owned,
    settled: () => rig.settled(),
    end: async (guest) => {
      rig.ended.push(guest);
      await rig.end();
      rig.owned = undefined;
    },
    onFailure: (guest, { code }) => rig.failures.push(`${guest.manifest.id} ${code}`),
  });
  return { discard, rig };
}

describe("Discard", () => {
  it("ends a guest that came when its time is over, and not a moment before; and the next one, too", async (context) => {
    const { rig } = agent(context);
    for (const id of ["a", "b"]) {
      const guest = guestOf(id);
      rig.come(guest);
      await rig.pass(499);
      assert.equal(rig.ended.includes(guest), false);
      await rig.pass(1);
      assert.equal(rig.ended.at(-1), guest);
    }
  });

  it("leaves a guest alone that came later than the one whose time is over", async (context) => {
    const { rig } = agent(context);
    rig.come(guestOf("a"));
    await rig.pass(400);
    rig.come(guestOf("b"));
    await rig.pass(400);
    assert.equal(rig.ended.length, 0);
    await rig.pass(100);
    assert.deepEqual(
      rig.ended.map(({ manifest }) => manifest.id),
      ["b"],
    );
  });

  it("waits for the hand-overs, and ends nothing that left by one", async (context) => {
    const { rig } = agent(context);
    let release = (): void => {};
    const guest = guestOf("a");
    for (const isStaying of [false, true]) {
      rig.settled = () => new Promise((resolve) => (release = resolve));
      rig.come(guest);
      await rig.pass(500);
      assert.deepEqual(rig.ended, []);
      rig.owned = isStaying ? guest : undefined;
      release();
      await settle();
      assert.deepEqual(rig.ended, isStaying ? [guest] : []);
    }
  });

  it("says which guest is being ended while it is, and stop() waits for that", async (context) => {
    const { discard, rig } = agent(context);
    let release = (): void => {};
    rig.end = () => new Promise((resolve) => (release = resolve));
    const guest = guestOf("a");
    rig.come(guest);
    assert.equal(discard.guest, undefined);
    await rig.pass(500);
    assert.equal(discard.guest, guest);
    let isStopped = false;
    const stopped = discard.stop().then(() => (isStopped = true));
    await settle();
    assert.equal(isStopped, false);
    release();
    await stopped;
    assert.equal(discard.guest, undefined);
  });

  it("stop() does not wait for a hand-over, which may take until somebody ends its doubt", async (context) => {
    const { discard, rig } = agent(context);
    let release = (): void => {};
    rig.settled = () => new Promise((resolve) => (release = resolve));
    rig.come(guestOf("a"));
    await rig.pass(500);
    await discard.stop();
    release();
    await settle();
    assert.deepEqual(rig.ended, []);
  });

  it("ends nothing after stop()", async (context) => {
    const { discard, rig } = agent(context);
    rig.come(guestOf("a"));
    await discard.stop();
    await rig.pass(1000);
    rig.come(guestOf("b"));
    await rig.pass(1000);
    assert.deepEqual(rig.ended, []);
  });

  it("tells of a guest that could not be ended, and goes on with the next", async (context) => {
    const { rig } = agent(context);
    rig.end = () => Promise.reject(new Error("no"));
    rig.come(guestOf("a"));
    await rig.pass(500);
    assert.deepEqual(rig.failures, ["a ERR_INTERNAL"]);
    rig.end = async () => {};
    rig.come(guestOf("b"));
    await rig.pass(500);
    assert.deepEqual(
      rig.ended.map(({ manifest }) => manifest.id),
      ["a", "b"],
    );
  });
});
