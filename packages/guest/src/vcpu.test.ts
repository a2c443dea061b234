import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import type { MigrationError } from "@precopy/protocol";
import { GuestClock } from "./clock.js";
import { GuestMemory, SegmentPool } from "./guest-memory.js";
import { MemoryAccess } from "./memory-access.js";
import { Vcpu, VcpuThreads } from "./vcpu.js";

/** Counts its steps in guest memory, and saves the count: registers that are not of this very pause give themselves away. */
const COUNTER = `export default { create: ({ memory }) => {
  const count = () => memory.loadU32(0);
  return { step() { memory.storeU32(0, count() + 1); return 0; }, save: count, load() {} };
} };
`;
const pool = new SegmentPool();

async function withCounter(use: (vcpu: Vcpu, count: () => number) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-vcpu-"));
  const file = join(folder, "counter.mjs");
  writeFileSync(file, COUNTER);
  const memory = GuestMemory.allocate(2 ** 20, pool);
  const access = new MemoryAccess(memory, undefined);
  const clock = new GuestClock();
  clock.set(0);
  const vcpu = new Vcpu(new VcpuThreads(0).take(), "counter");
  const region = { start: 0, bytes: memory.bytes };
  try {
    await vcpu.setUp({
      vcpu: 0,
      url: pathToFileURL(file).href,
      manifest: { workload: "counter", sha256: "", options: {}, region },
      memory: memory.share(),
      barrier: undefined,
      clock: clock.share(),
      nicAt: undefined,
    });
    await vcpu.boot();
    await vcpu.run();
    await use(vcpu, () => access.loadU32(0));
  } finally {
    await vcpu.end();
    rmSync(folder, { recursive: true });
  }
}
/** Keeps this thread busy, so that no message arrives meanwhile, until the vCPU has made steps or stands still. */
function blockUntil(isSo: () => boolean): void {
  const started = performance.now();
  while (!isSo()) assert.ok(performance.now() - started < 5000, "it did not come true within 5 s");
}
function blockUntilStill(count: () => number): void {
  let last = -1;
  let changedAt = performance.now();
  blockUntil(() => {
    if (count() !== last) changedAt = performance.now();
    last = count();
    return performance.now() - changedAt > 20;
  });
}

describe("Vcpu", () => {
  it("withheld, it stands for that share of the time by its own measure, makes as many steps fewer, and goes on in full when it is lifted", () =>
    withCounter(async (vcpu, count) => {
      const during = async (share: number): Promise<{ steps: number; stood: number }> => {
        vcpu.withhold(share);
        const [steps, withheldMs, started] = [count(), vcpu.withheldMs, performance.now()];
        await sleep(500);
        return { steps: count() - steps, stood: (vcpu.withheldMs - withheldMs) / (performance.now() - started) };
      };
      await during(0); // until its code is compiled
      const check = async (): Promise<void> => {
        const [free, held, again] = [await during(0), await during(0.9), await during(0)];
        assert.equal(free.stood, 0);
        assert.ok(held.stood > 0.8 && held.stood < 0.95, `stood ${held.stood} of the time`);
        assert.ok(held.steps < free.steps / 2 && held.steps > 0, `${held.steps} steps, ${free.steps} without`);
        assert.ok(again.steps > held.steps && again.stood < 0.05, `${again.steps} steps when it was lifted`);
      };
      for (let left = 6; left > 0; left--)
        try {
          return await check();
        } catch {
          continue; // the host may have had other work for that long
        }
      await check();
    }));

  it("a vCPU that is withheld almost entirely is paused at once all the same, and answers a probe", () =>
    withCounter(async (vcpu, count) => {
      vcpu.withhold(0.99);
      await sleep(20);
      for (let turn = 0; turn < 20; turn++) {
        const asked = performance.now();
        vcpu.awaitSign(vcpu.askForSign(), asked + 1000);
        const { program } = await vcpu.pause();
        assert.equal(program, count());
        assert.ok(performance.now() - asked < 90, "it stood to the end of its turn, which is 99 ms");
        vcpu.resume();
      }
    }));

  it("stands still from the moment a pause resolves, with the registers of that moment", () =>
    withCounter(async (vcpu, count) => {
      for (let turn = 0; turn < 100; turn++) {
        const { program } = await vcpu.pause();
        assert.equal(program, count(), `turn ${turn}`);
        vcpu.resume();
        if (turn % 2 === 0) blockUntil(() => count() > Number(program));
      }
    }));

  it("is paused anew by a pause right after a resume that it had no time to notice", () =>
    withCounter(async (vcpu, count) => {
      await vcpu.pause();
      vcpu.resume();
      assert.equal((await vcpu.pause()).program, count());
    }));

  it("takes no late acknowledgement of a pause that was called off for that of the next one", () =>
    withCounter(async (vcpu, count) => {
      const first = assert.rejects(vcpu.pause(), { message: /called off/ });
      blockUntilStill(count); // the vCPU has acknowledged; the message waits
      const before = count();
      vcpu.resume();
      blockUntil(() => count() > before);
      assert.equal((await vcpu.pause()).program, count());
      await first;
    }));

  it("is not failed by being ended, and refuses everything afterwards", () =>
    withCounter(async (vcpu) => {
      const failures: MigrationError[] = [];
      vcpu.onFailure = (error) => failures.push(error);
      await vcpu.end();
      assert.deepEqual(failures, []);
      await assert.rejects(vcpu.pause(), { code: "ERR_WORKLOAD_FAILED" });
    }));

  it("is probed without being stopped", () =>
    withCounter(async (vcpu, count) => {
      for (let turn = 0; turn < 20; turn++) {
        const until = performance.now() + 1000;
        vcpu.awaitSign(vcpu.askForSign(), until);
        assert.ok(performance.now() < until, "the sign came");
      }
      const before = count();
      blockUntil(() => count() > before);
    }));
});

it("VcpuThreads lends the threads that it prepared, then new ones, and ends what it still has", async () => {
  const threads = new VcpuThreads(2);
  await threads.refill();
  const taken = [threads.take(), threads.take(), threads.take()];
  assert.equal(new Set(taken).size, 3);
  await threads.refill();
  await threads.end();
  await threads.refill(); // nothing any more
  const codes = await Promise.all(taken.map((worker) => worker.terminate()));
  assert.equal(codes.length, 3);
});
