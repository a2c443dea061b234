import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  Bitmap,
  Guest,
  GuestRegistry,
  Journal,
  MemoryService,
  SegmentPool,
  VcpuThreads,
  WorkloadCatalogue,
  layOutGuest,
  whyNoMmuDirtyLog,
} from "@precopy/guest";
import type { DirtyLogKind } from "@precopy/guest";
import { MigrationError } from "@precopy/protocol";
import type { MigrationReport } from "@precopy/protocol";
import { SourceAgent } from "@precopy/source-agent";
import type { SourceSwitches } from "@precopy/source-agent";
import { TargetAgent } from "@precopy/target-agent";
import { AgentPort, ChannelThreads, choosePump } from "@precopy/transport";

const MIB = 2 ** 20;
const PAGES = 4096;

// A thread takes as long to start as a guest of this size to be moved: these serve every test.
const threads = new ChannelThreads();
const vcpus = new VcpuThreads(0);
after(() => Promise.all([threads.end(), vcpus.end()]));

interface Roles {
  readonly source: SourceAgent;
  readonly guest: Guest;
  /** Where the guest is. */
  owner(): "source" | "target" | undefined;
  migrate(mode?: "precopy" | "stop-and-copy"): Promise<MigrationReport>;
}

/** A guest that writes, at a source role of this process, and a target role for it. @param memory the source's. */
async function roles(
  context: TestContext,
  dirtyLog: DirtyLogKind,
  memory: MemoryService,
  switches: SourceSwitches,
  reach: (point: string) => Promise<void> = async () => {},
): Promise<Roles> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-switched-off-"));
  const arrived = new MemoryService();
  const [workloads, segments] = [new WorkloadCatalogue(), new SegmentPool()];
  const role = (name: string, service: MemoryService) => ({
    registry: new GuestRegistry(new Journal(join(folder, name)), undefined),
    guests: {
      ...{ segments, threads: vcpus, memory: service, workloads, dirtyLog },
      onGuestFailure: (_: string, error: MigrationError): never => {
        throw error;
      },
      openDevice: (): Promise<never> => Promise.reject(new MigrationError("ERR_DEVICE_UNAVAILABLE", "No switch here")),
    },
    threads,
    release: "1.0.0",
    arbiter: undefined,
  });
  const [from, to] = [role("source", memory), role("target", arrived)];
  const target = new TargetAgent({
    ...to,
    pump: choosePump("auto"),
    ownership: (guest) => ({ guest, standing: "unknown", epoch: 0, at: null, peer: null }),
  });
  const port = await AgentPort.listen(
    { host: "127.0.0.1", port: 0 },
    {
      onControl: (control) => target.onControl(control),
      onPageChannel: (name, socket) => target.onPageChannel(name, socket),
      onFaultChannel: () => false,
    },
    "1.0.0",
  );
  const options = { fill: 4 * MIB, rate: 5000, workingSet: MIB };
  const manifest = layOutGuest("g", 16 * MIB, [{ workload: "random-writer", options }], false, workloads);
  const guest = await Guest.create(manifest, from.guests);
  const reservation = from.registry.reserve("g", 16 * MIB, undefined);
  reservation.keep(guest);
  await guest.boot();
  await guest.run(reservation.epoch, false);
  const source = new SourceAgent({ ...from, ...switches, reach }, () => port.address);
  context.after(async () => {
    await source.close();
    await target.close();
    await port.close();
    for (const { registry } of [from, to]) {
      await registry.guest?.destroy();
      registry.journal.close();
    }
    await Promise.all([memory.end(), arrived.end()]);
    rmSync(folder, { recursive: true });
  });
  return {
    source,
    guest,
    owner: () => (from.registry.guest !== undefined ? "source" : to.registry.guest === undefined ? undefined : "target"),
    migrate: (mode = "precopy") => source.migrate(port.address, { mode, isDigestOn: true, isAuditOn: true }),
  };
}

/** A paused one gives no sign. */
async function runs(guest: Guest): Promise<boolean> {
  for (let tries = 0; tries < 100; tries++) {
    if (guest.probeMs() < 15) return true;
    await sleep(20);
  }
  return false;
}

/** A memory service that does something else first when it is told to stop, once. */
class InterruptedService extends MemoryService {
  onStop: (() => unknown) | undefined;

  override async stop(): Promise<void> {
    const { onStop } = this;
    this.onStop = undefined;
    await onStop?.();
    await super.stop();
  }
}

const why = whyNoMmuDirtyLog();
const KINDS = { barrier: false, mmu: why === undefined ? false : `no mmu dirty log here: ${why}` } as const;

for (const kind of ["barrier", "mmu"] as const)
  describe(`a guest that writes arrives with equal digests and a clean audit, with the ${kind} log`, { skip: KINDS[kind] }, () => {
    for (const [isCleanUpDeferred, mode] of [
      [true, "precopy"],
      [false, "precopy"],
      [false, "stop-and-copy"],
    ] as const)
      it(`${mode}: its log is ${isCleanUpDeferred ? "still armed" : "stopped already"} when COMMIT is about to be sent`, async (context) => {
        const memory = new MemoryService();
        const seen: unknown[] = [];
        const { migrate, owner } = await roles(context, kind, memory, { isCleanUpDeferred }, async (point) => {
          if (point !== "source.committing") return;
          await memory.collect(new Bitmap(PAGES)).then(
            () => seen.push("armed"),
            (error: unknown) => seen.push(MigrationError.from(error).code),
          );
        });
        assert.equal((await migrate(mode))["digest-equal"], true);
        assert.equal(owner(), "target");
        assert.deepEqual(seen, [isCleanUpDeferred ? "armed" : "ERR_NOT_TRACKING"]);
      });

    it("without the map of populated pages: each page is looked at, once, and no more of them come as data", async (context) => {
      const usual = await (await roles(context, kind, new MemoryService(), {})).migrate();
      const report = await (await roles(context, kind, new MemoryService({ firstList: "all" }), {})).migrate();
      const [first, ...others] = report.iterations;
      assert.equal(report["digest-equal"], true);
      assert.equal(first?.["dirty-pages"], PAGES);
      assert.equal(first["normal-pages"], usual.iterations[0]?.["normal-pages"]);
      for (const { "zero-pages": zeroPages } of others) assert.equal(zeroPages, 0);
    });

    it("without the vector zero check, and without that map", async (context) => {
      const { migrate } = await roles(context, kind, new MemoryService({ firstList: "all" }), { zeroCheck: "scalar" });
      const report = await migrate();
      assert.equal(report["digest-equal"], true);
      assert.ok(Number(report.iterations[0]?.["zero-pages"]) > PAGES / 2);
    });

    it("after a cancel and a failure in a clean-up that is not deferred: each leaves it running at the source", async (context) => {
      const memory = new InterruptedService();
      const { migrate, owner, guest, source } = await roles(context, kind, memory, { isCleanUpDeferred: false });
      const failure = new MigrationError("ERR_SYSTEM_CALL", "close: EIO");
      for (const [code, onStop] of [
        ["ERR_CANCELLED", () => void source.cancel()],
        ["ERR_SYSTEM_CALL", () => Promise.reject(failure)],
      ] as const) {
        memory.onStop = onStop;
        await assert.rejects(migrate(), { code });
        assert.deepEqual([memory.onStop, owner(), await runs(guest)], [undefined, "source", true]);
      }
      assert.equal((await migrate())["digest-equal"], true);
      assert.equal(owner(), "target");
    });
  });
