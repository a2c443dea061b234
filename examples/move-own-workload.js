// Moves a guest that runs counter.js between a source and a target role in one process: `node examples/move-own-workload.js`.
// packages/cli/src/agent.ts puts the same parts together for two processes.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  Guest,
  GuestRegistry,
  Journal,
  MemoryAccess,
  MemoryService,
  SegmentPool,
  VcpuThreads,
  WorkloadCatalogue,
  layOutGuest,
  whyNoMmuDirtyLog,
} from "@precopy/guest";
import { SourceAgent } from "@precopy/source-agent";
import { TargetAgent } from "@precopy/target-agent";
import { AgentPort, ChannelThreads, choosePump } from "@precopy/transport";

const RELEASE = "example";
const folder = mkdtempSync(join(tmpdir(), "precopy-example-"));

/** What either role needs: threads that wait for a guest, the workloads it may run, a place for the guest, a journal. */
async function makeHost(name) {
  const workloads = new WorkloadCatalogue();
  workloads.add("counter", fileURLToPath(new URL("./counter.js", import.meta.url)));
  const vcpus = new VcpuThreads(1); // one waits for the next guest
  const channels = new ChannelThreads();
  await Promise.all([vcpus.refill(), channels.prepare(2)]);
  const guests = {
    segments: new SegmentPool(),
    threads: vcpus,
    memory: new MemoryService(),
    workloads,
    dirtyLog: whyNoMmuDirtyLog() === undefined ? "mmu" : "barrier",
    onGuestFailure: (id, error) => console.error(`${id}: ${error.message}`),
    openDevice: () => Promise.reject(new Error("this guest has no devices")),
  };
  const registry = new GuestRegistry(new Journal(join(folder, name)), undefined);
  const end = async () => {
    await registry.guest?.destroy();
    registry.journal.close();
    await Promise.all([vcpus.end(), channels.end(), guests.memory.end()]);
  };
  return { guests, registry, threads: channels, release: RELEASE, end };
}

/** The counter as it stands in guest memory. */
const countOf = (guest) => new MemoryAccess(guest.memory, guest.barrier).loadU32(guest.manifest.vcpus[0].region.start);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const here = await makeHost("here");
const there = await makeHost("there");
const target = new TargetAgent({ ...there, pump: choosePump("auto") });
const port = await AgentPort.listen(
  { host: "127.0.0.1", port: 0 },
  { onControl: (control) => target.onControl(control), onPageChannel: (name, socket) => target.onPageChannel(name, socket) },
  RELEASE,
);
const source = new SourceAgent(
  { ...here, onEvent: (event) => event.type === "phase" && console.log(`phase ${event.phase}`) },
  () => port.address,
);

// Boot: lay it out, reserve its place, create, fill, run.
const manifest = layOutGuest("example", 64 * 2 ** 20, [{ workload: "counter", options: {} }], false, here.guests.workloads);
const reservation = here.registry.reserve(manifest.id, manifest.memoryBytes, undefined);
const guest = await Guest.create(manifest, here.guests);
await guest.boot();
await guest.run(reservation.epoch, false);
here.registry.journal.record(manifest.id, reservation.epoch, "booted");
reservation.keep(guest);

await sleep(300);
const before = countOf(guest);
console.log(`here, epoch ${guest.epoch}: ${before > 0 ? "counting" : "STANDING STILL"}`);
const report = await source.migrate(port.address);
const moved = there.registry.require();
const arrived = countOf(moved);
await sleep(300);
console.log(`there, epoch ${moved.epoch}: ${arrived > before && countOf(moved) > arrived ? "went on counting" : "LOST COUNT"}`);
console.log(`digests and audit agree: ${report["digest-equal"]}; left here: ${here.registry.guest?.manifest.id ?? "nothing"}`);

await target.close();
await port.close();
await Promise.all([here.end(), there.end()]);
rmSync(folder, { recursive: true });
