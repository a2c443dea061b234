import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Device } from "./device.js";
import { Guest, layOutGuest } from "./guest.js";
import type { GuestState } from "./guest.js";
import { SegmentPool } from "./guest-memory.js";
import { MemoryService } from "./memory-service.js";
import { VcpuThreads } from "./vcpu.js";
import { WorkloadCatalogue } from "./workload.js";

const MIB = 2 ** 20;
const STILL_MS = 50;

/** Two writers and a card that says what it was told. */
interface Bench {
  readonly guest: Guest;
  readonly calls: string[];
  /** Fails if a byte of memory changes in STILL_MS. */
  standsStill(when: string): Promise<void>;
  /** Fails if none does in 5 s. */
  goesOn(when: string): Promise<void>;
}

async function withGuest(use: (bench: Bench) => Promise<void>, isRunning = true): Promise<void> {
  const threads = new VcpuThreads(2);
  const memory = new MemoryService();
  const workloads = new WorkloadCatalogue();
  const calls: string[] = [];
  const card: Device = {
    start: (epoch) => void calls.push(`start ${epoch}`),
    kick: () => {},
    quiesce: () => void calls.push("quiesce"),
    save: () => null,
    load: () => {},
    close: () => {},
  };
  const writer = { workload: "random-writer", options: {} };
  const guest = await Guest.create(layOutGuest("g1", 4 * MIB, [writer, writer], true, workloads), {
    segments: new SegmentPool(),
    threads,
    memory,
    workloads,
    dirtyLog: "barrier",
    onGuestFailure: (_, error) => assert.fail(error),
    openDevice: async () => card,
  });
  const image = (): Buffer => Buffer.concat(guest.memory.views);
  const standsStill = async (when: string): Promise<void> => {
    const before = image();
    await delay(STILL_MS); // the time is what is tested
    assert.equal(Buffer.compare(image(), before), 0, `it runs ${when}`);
  };
  const goesOn = async (when: string): Promise<void> => {
    const before = image();
    for (const started = performance.now(); Buffer.compare(image(), before) === 0; await delay(1))
      assert.ok(performance.now() - started < 5000, `it stands still ${when}`);
  };
  try {
    await guest.boot();
    if (isRunning) {
      await guest.run(3, false);
      await goesOn("after boot");
    }
    await use({ guest, calls, standsStill, goesOn });
  } finally {
    await guest.destroy();
    await threads.end();
    await memory.end();
  }
}
/** By all its writers. */
const writtenOf = ({ registers }: GuestState): number =>
  registers.reduce((sum, { program }) => sum + Number(Reflect.get(Object(program), "written")), 0);

describe("a guest that is held", () => {
  it("stands still until release, whoever resumes it, or pauses and resumes it, meanwhile", () =>
    withGuest(async ({ guest, standsStill, goesOn }) => {
      await guest.hold();
      await standsStill("after hold");
      guest.resume();
      await standsStill("after a resume");
      await guest.pause();
      guest.resume();
      await standsStill("after a pause and a resume");
      await guest.hold();
      await standsStill("after a second hold");
      guest.release();
      await goesOn("after release, once for all holds");
    }));

  it("can be paused like one that runs, with the registers that it has, and runs on at the epoch that it was resumed with", () =>
    withGuest(async ({ guest, goesOn }) => {
      await guest.hold();
      const first = writtenOf(await guest.pause());
      guest.resume(7);
      assert.equal(writtenOf(await guest.pause()), first);
      guest.resume();
      guest.release();
      await goesOn("after release");
      assert.equal(guest.epoch, 7);
      assert.ok(writtenOf(await guest.pause()) > first);
    }));

  it("and is paused by a migration does not run at release, and does when the migration lets it", () =>
    withGuest(async ({ guest, standsStill, goesOn }) => {
      await guest.hold();
      await guest.pause();
      guest.release();
      await standsStill("though it is paused");
      guest.resume();
      await goesOn("after the resume");
    }));

  it("while it is paused by a migration does not run at release either, nor at a resume before it", () =>
    withGuest(async ({ guest, standsStill, goesOn }) => {
      await guest.pause();
      await guest.hold();
      guest.release();
      await standsStill("though it is paused");
      await guest.hold();
      guest.resume();
      await standsStill("though it is held");
      guest.release();
      await goesOn("after release");
    }));

  it("has its devices quiet from the hold to the release, and started there once", () =>
    withGuest(async ({ guest, calls }) => {
      await guest.hold();
      await guest.pause();
      guest.resume(4);
      assert.deepEqual(calls.splice(0), ["start 3", "quiesce", "quiesce"]);
      guest.release();
      assert.deepEqual(calls, ["start 4"]);
    }));

  it("and released before all of it stood still goes on", () =>
    withGuest(async ({ guest, goesOn }) => {
      const held = guest.hold().catch(() => {}); // it was called off
      guest.release();
      await held;
      await goesOn("after release");
    }));

  it("and paused at the same moment stands still for both, and both are told", {}, () =>
    withGuest(async ({ guest, standsStill }) => {
      const held = guest.hold().then(() => "told");
      await guest.pause();
      guest.resume();
      await standsStill("though it is held");
      assert.equal(await Promise.race([held, delay(1500, "not told")]), "told");
    }),
  );

  it("before it was ever run stands still when it is run, until release", () =>
    withGuest(async ({ guest, standsStill }) => {
      await guest.hold();
      await guest.run(1, false);
      await standsStill("though it is held");
    }, false));
});

describe("a release without a hold", () => {
  it("is nothing to a guest that runs", () =>
    withGuest(async ({ guest, calls, goesOn }) => {
      guest.release();
      await goesOn("after a release");
      assert.deepEqual(calls, ["start 3"]);
    }));

  it("is nothing to a guest that is paused", () =>
    withGuest(async ({ guest, standsStill }) => {
      await guest.pause();
      guest.release();
      await standsStill("after a release");
    }));

  it("is nothing the second time", () =>
    withGuest(async ({ guest, standsStill }) => {
      await guest.hold();
      guest.release();
      await guest.pause();
      guest.release();
      await standsStill("after a second release");
    }));
});
