import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { Guest, GuestRegistry, Journal, MemoryService, SegmentPool, layOutGuest } from "@precopy/guest";
import type { GuestHost } from "@precopy/guest";
import { SourceAgent } from "@precopy/source-agent";
import type { SourceSwitches } from "@precopy/source-agent";
import { TargetAgent } from "@precopy/target-agent";
import { AgentPort, withoutHolds } from "@precopy/transport";
import type { ChannelThreads, PumpKind } from "@precopy/transport";

const MEMORY_BYTES = 32 * 2 ** 20;
const FILL_BYTES = 16 * 2 ** 20;
const PASSES = 3;

/**
 * Moves a small guest back and forth between two roles in this process before anybody waits for it. The first hand-over of a fresh process
 * otherwise runs, with a guest standing still, through code that the engine has never compiled (docs/adr/0008). What runs here for the first time
 * becomes machine code at once, not optimized, in place of being interpreted the next times too.
 * @param host this agent's; its threads are the ones to be warmed. Nothing of the rehearsal stays in it.
 */
export async function rehearse(
  host: GuestHost,
  channelThreads: ChannelThreads,
  pump: PumpKind,
  release: string,
  switches: SourceSwitches,
): Promise<void> {
  setFlagsFromString("--always-sparkplug");
  try {
    await withoutHolds(() => moveBackAndForth(host, channelThreads, pump, release, switches));
  } finally {
    setFlagsFromString("--no-always-sparkplug");
  }
}

async function moveBackAndForth(
  host: GuestHost,
  channelThreads: ChannelThreads,
  pump: PumpKind,
  release: string,
  switches: SourceSwitches,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-rehearsal-"));
  const memory = new MemoryService();
  const segments = new SegmentPool();
  const roles = [host.memory, memory].map((service, at) => ({
    registry: new GuestRegistry(new Journal(join(folder, String(at))), undefined),
    guests: { ...host, segments, memory: service },
    threads: channelThreads,
    release,
    arbiter: undefined,
  }));
  const targets = roles.map(
    (role) => new TargetAgent({ ...role, pump, ownership: (guest) => ({ guest, standing: "unknown", epoch: 0, at: null, peer: null }) }),
  );
  const ports: AgentPort[] = [];
  try {
    for (const target of targets)
      ports.push(
        await AgentPort.listen(
          { host: "127.0.0.1", port: 0 },
          {
            onControl: (control) => target.onControl(control),
            onPageChannel: (name, socket) => target.onPageChannel(name, socket),
            onFaultChannel: () => false,
          },
          release,
        ),
      );
    const [first] = roles;
    if (first === undefined) return;
    const options = { fill: FILL_BYTES, rate: 20_000, workingSet: FILL_BYTES };
    const manifest = layOutGuest("rehearsal", MEMORY_BYTES, [{ workload: "random-writer", options }], false, host.workloads);
    const reservation = first.registry.reserve(manifest.id, MEMORY_BYTES, undefined);
    const guest = await Guest.create(manifest, first.guests);
    reservation.keep(guest);
    await guest.boot();
    await guest.run(reservation.epoch, false);
    for (let pass = 0; pass < PASSES; pass++) {
      const role = roles[pass % 2];
      const port = ports[(pass + 1) % 2];
      if (role !== undefined && port !== undefined)
        await new SourceAgent({ ...role, ...switches }, () => port.address).migrate(port.address, { pump });
    }
  } finally {
    for (const port of ports) await port.close();
    for (const { registry } of roles) {
      await registry.guest?.destroy();
      registry.journal.close();
    }
    await memory.end();
    rmSync(folder, { recursive: true, force: true });
  }
}
