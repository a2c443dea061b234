import { randomUUID } from "node:crypto";
import { endianness, tmpdir } from "node:os";
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { after } from "node:test";
import type { TestContext } from "node:test";
import { GuestRegistry, Journal, MemoryService, SegmentPool, VcpuThreads, WorkloadCatalogue } from "@precopy/guest";
import { MigrationError, PAGE_BYTES, PROTOCOL_VERSION } from "@precopy/protocol";
import type { Address, Message, Ownership } from "@precopy/protocol";
import { ChannelKey } from "@precopy/security";
import { AgentPort, ChannelThreads, ControlChannel } from "@precopy/transport";
import type { ChannelName, ChannelSocket, ShownKey } from "@precopy/transport";
import { TargetAgent } from "./target-agent.js";

export const workloads = new WorkloadCatalogue();
// Of every target of a test file: one takes longer to start than most tests last.
const channels = new ChannelThreads();
after(() => channels.end());
export const MEMORY_BYTES = 2 ** 20;

export type Admit = Message<"admit">;
export type Manifest = Admit["manifest"];
export const vcpu = (
  region: Manifest["vcpus"][number]["region"],
  given: Partial<Manifest["vcpus"][number]> = {},
): Manifest["vcpus"][number] => ({
  workload: "idle",
  sha256: workloads.find("idle").sha256,
  options: {},
  region,
  ...given,
});
export const WHOLE = { start: 0, bytes: MEMORY_BYTES };

export function offer(given: Partial<Admit> = {}, manifest: Partial<Manifest> = {}): Admit {
  return {
    type: "admit",
    protocolVersion: PROTOCOL_VERSION,
    release: "1.0.0",
    session: randomUUID(),
    epoch: 1,
    pageBytes: PAGE_BYTES,
    endianness: endianness(),
    channels: 1,
    capabilities: ["lz4", "xbzrle", "digest"],
    digest: true,
    from: null,
    arbiterEpoch: null,
    postcopy: false,
    manifest: { id: "g1", memoryBytes: MEMORY_BYTES, vcpus: [vcpu(WHOLE)], devices: [], ...manifest },
    ...given,
  };
}

export interface Target {
  readonly registry: GuestRegistry;
  readonly agent: TargetAgent;
  readonly segments: CountedSegments;
  readonly address: Address;
  readonly threads: ChannelThreads;
  /** Offers a guest on a channel of its own; resolves when it is admitted. */
  offer(admit: Admit): Promise<ControlChannel>;
  /** Of the latest admission. */
  key(): ChannelKey;
}

/** Tells how much memory was ever asked for. */
export class CountedSegments extends SegmentPool {
  taken = 0;
  isEmpty = false;
  override take(bytes: number): ReturnType<SegmentPool["take"]> {
    if (this.isEmpty) throw new MigrationError("ERR_MEMORY", "No address space");
    this.taken++;
    return super.take(bytes);
  }
}

/** A target agent behind a port of its own. */
export async function listen(context: TestContext, memoryLimitBytes?: number): Promise<Target> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-admission-"));
  const journal = new Journal(folder);
  const registry = new GuestRegistry(journal, memoryLimitBytes);
  const segments = new CountedSegments();
  const threads = new VcpuThreads(0);
  const memory = new MemoryService();
  const openDevice = (): Promise<never> => Promise.reject(new MigrationError("ERR_DEVICE_UNAVAILABLE", "No switch here"));
  const onGuestFailure = (_: string, error: MigrationError): never => {
    throw error;
  };
  const guests = { segments, threads, memory, workloads, dirtyLog: "barrier" as const, onGuestFailure, openDevice };
  const ownership = (guest: string): Ownership => ({ guest, standing: "unknown", epoch: 0, at: null, peer: null });
  const agent = new TargetAgent({ registry, guests, threads: channels, pump: "portable", release: "1.0.0", arbiter: undefined, ownership });
  const handlers = {
    onControl: (control: ControlChannel) => agent.onControl(control),
    onPageChannel: (name: ChannelName & ShownKey, socket: ChannelSocket) => agent.onPageChannel(name, socket),
    onFaultChannel: () => false,
  };
  const port = await AgentPort.listen({ host: "127.0.0.1", port: 0 }, handlers, "1.0.0");
  context.after(async () => {
    await agent.close();
    await port.close();
    await Promise.all([threads.end(), memory.end()]);
    journal.close();
    rmSync(folder, { recursive: true });
  });
  let key: ChannelKey | undefined;
  return {
    registry,
    agent,
    segments,
    address: port.address,
    threads: channels,
    key: () => {
      if (key === undefined) throw new MigrationError("ERR_INTERNAL", "Nothing was admitted");
      return key;
    },
    offer: async (admit) => {
      const control = await ControlChannel.connect(port.address);
      context.after(() => control.close(new MigrationError("ERR_LINK_LOST", "the test is over")));
      const admitted = control.expect(["admitted"], 5000, () => new MigrationError("ERR_PEER_DEAD", "no answer"));
      control.send(admit);
      key = new ChannelKey((await admitted).channelSecret);
      return control;
    },
  };
}
