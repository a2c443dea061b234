import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { it } from "node:test";
import { GuestMemory, MemoryAccess, SegmentPool } from "@precopy/guest";
import { readTold, toldWriter } from "./told-writer.js";

it("what a guest tells of its work is what it saves, in order, by the reader's clock", async () => {
  const folder = mkdtempSync(join(tmpdir(), "precopy-told-"));
  try {
    const bytes = 2 ** 20;
    const memory = GuestMemory.allocate(bytes, new SegmentPool());
    const workload = await toldWriter(folder, { rate: 0, workingSet: bytes / 2 });
    const program = workload.create({
      vcpu: 0,
      options: { fill: 4096, fillKind: "zeros" },
      region: { start: 0, bytes },
      memory: new MemoryAccess(memory, undefined),
      segments: memory.segments,
      nic: undefined,
      now: () => performance.now(),
    });
    const started = performance.now();
    program.boot?.();
    const steps: number[] = [];
    const booted = performance.now();
    while (performance.now() < booted + 20 || steps.length < 100) {
      program.step();
      steps.push((program.save() as { written: number }).written); // random-writer's registers
    }
    const ended = performance.now();

    const { atMs, pages } = readTold(folder, process.pid);
    assert.ok(pages.length > 1 && pages.length <= ended - started + 1 && pages.every((told) => steps.includes(told)), String(pages));
    assert.deepEqual(
      pages,
      pages.toSorted((one, other) => one - other),
    );
    // The two clocks are read one after the other.
    assert.ok(
      atMs.every((told, at) => told > started - 1 && told < ended + 1 && told >= (atMs[at - 1] ?? 0)),
      String(atMs),
    );
    assert.ok(
      memory.view(bytes / 2 / 4096, bytes / 2 / 4096).every((byte) => byte === 0),
      "the options are the writer's",
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
