import {
  Guest,
  GuestRegistry,
  Journal,
  LEDGER_REGION_BYTES,
  MemoryService,
  Nic,
  SegmentPool,
  UdpBackend,
  VcpuThreads,
  WorkloadCatalogue,
  layOutGuest,
  whyNoMmuDirtyLog,
} from "@precopy/guest";
import type { DirtyLogKind, GuestHost, VcpuOrder } from "@precopy/guest";
import { MigrationError, formatAddress, guestTag, isLoopback, macOf } from "@precopy/protocol";
import type { Address, MigrationParameters, MigrationReport, ProgressEvent } from "@precopy/protocol";
import { SourceAgent } from "@precopy/source-agent";
import { TargetAgent } from "@precopy/target-agent";
import { AgentPort, ChannelThreads, choosePump } from "@precopy/transport";
import type { Logger } from "pino";
import { RELEASE } from "./args.js";
import type { AgentOptions, GuestOptions } from "./args.js";
import { holdAt } from "./hold.js";
import { rehearse } from "./rehearsal.js";
import type { AgentStatus } from "./render.js";

/** Threads kept ready: what a guest with two vCPUs and the default channels needs. */
const READY_VCPUS = 2;
const READY_CHANNELS = 2;

/** One agent: port, guest registry, source and target role together. */
export class Agent {
  readonly #options: AgentOptions;
  readonly #log: Logger;
  readonly #registry: GuestRegistry;
  readonly #host: GuestHost;
  readonly #channelThreads: ChannelThreads;
  readonly #source: SourceAgent;
  readonly #target: TargetAgent;
  readonly #listeners = new Set<(event: ProgressEvent) => void>();
  #port: AgentPort | undefined;
  #isClosed = false;

  private constructor(options: AgentOptions, host: GuestHost, channelThreads: ChannelThreads, log: Logger) {
    this.#options = options;
    this.#log = log;
    this.#host = host;
    this.#channelThreads = channelThreads;
    this.#registry = new GuestRegistry(new Journal(options.stateDir), options.memoryLimitBytes);
    const roles = { registry: this.#registry, guests: host, threads: channelThreads, release: RELEASE, holdAt };
    this.#source = new SourceAgent({ ...roles, onEvent: (event) => this.#publish(event) }, () => this.address);
    this.#target = new TargetAgent({
      ...roles,
      pump: choosePump(options.pump),
      onPhase: (guest, epoch, phase, cause) => {
        const failure = cause === undefined ? {} : { code: cause.code, remedy: cause.remedy, reason: cause.message };
        log[cause === undefined ? "info" : "warn"]({ guest, epoch, phase, ...failure }, `incoming guest ${phase}`);
      },
    });
  }

  /** Starts threads, then listens. @throws {MigrationError} ERR_INSECURE_LISTEN, ERR_PORT_IN_USE, ERR_DIRTY_LOG_UNAVAILABLE, ERR_PARAMETER */
  static async start(options: AgentOptions, log: Logger): Promise<Agent> {
    if (!isLoopback(options.listen.host) && !options.isInsecure)
      throw new MigrationError(
        "ERR_INSECURE_LISTEN",
        `${options.listen.host} is not a loopback address, and peers are not authenticated yet`,
      );
    const workloads = new WorkloadCatalogue();
    if (options.workloads.directory !== undefined) workloads.addDirectory(options.workloads.directory);
    for (const { name, file } of options.workloads.files) workloads.add(name, file);
    const dirtyLog = chooseDirtyLog(options.dirtyLog, log);
    const forgetEvery = Number(process.env["PRECOPY_FORGET_DIRTY"] ?? 0);
    if (forgetEvery > 0) log.warn({ forgetEvery }, "PRECOPY_FORGET_DIRTY is set: the dirty log loses pages on purpose");
    const threads = new VcpuThreads(READY_VCPUS);
    const channelThreads = new ChannelThreads();
    const host: GuestHost = {
      segments: new SegmentPool(),
      threads,
      memory: new MemoryService(forgetEvery),
      workloads,
      dirtyLog,
      onGuestFailure: (guest, error) => log.error({ guest, err: error, code: error.code, remedy: error.remedy }, "the guest failed"),
      openDevice: async (device, guestId, access, wakeGuest) => {
        if (options.switchAddress === undefined)
          throw new MigrationError("ERR_DEVICE_UNAVAILABLE", `Guest ${guestId} has a network card, and this agent no --switch`);
        const backend = await UdpBackend.open(options.switchAddress, guestTag(guestId));
        return new Nic({ access, at: 0, mac: device.mac, backend, wakeGuest });
      },
    };
    const agent = new Agent(options, host, channelThreads, log);
    try {
      await Promise.all([threads.refill(), channelThreads.prepare(READY_CHANNELS)]);
      // No rehearsal is worth an agent that does not start.
      await rehearse(host, channelThreads, choosePump(options.pump), RELEASE).catch((error: unknown) =>
        log.warn({ err: error }, "the rehearsal failed"),
      );
      agent.#port = await AgentPort.listen(
        options.listen,
        {
          onControl: (control) => agent.#target.onControl(control),
          onPageChannel: (name, socket) => agent.#target.onPageChannel(name, socket),
        },
        RELEASE,
      );
      log.info({ ...agent.address, dirtyLog, pump: choosePump(options.pump), name: options.name }, "agent listens");
      return agent;
    } catch (error) {
      await agent.close();
      throw error;
    }
  }

  get address(): Address {
    return this.#port?.address ?? this.#options.listen;
  }

  /** Boots a guest here. @throws {MigrationError} ERR_AGENT_FULL, ERR_MEMORY, ERR_PARAMETER, ERR_WORKLOAD_FAILED, ... */
  async boot(id: string, options: GuestOptions): Promise<void> {
    const hasNic = this.#options.switchAddress !== undefined;
    const manifest = layOutGuest(id, options.memoryBytes, vcpuOrders(id, options), hasNic, this.#host.workloads);
    const reservation = this.#registry.reserve(id, options.memoryBytes, undefined);
    try {
      const guest = await Guest.create(manifest, this.#host);
      try {
        await guest.boot();
        await guest.run(reservation.epoch, false);
      } catch (error) {
        await guest.destroy();
        throw error;
      }
      this.#registry.journal.record(id, reservation.epoch, "booted");
      reservation.keep(guest);
      this.#log.info({ guest: id, epoch: reservation.epoch, memoryBytes: options.memoryBytes, dirtyLog: guest.dirtyLog }, "guest runs");
    } finally {
      reservation.release();
    }
  }

  /** @throws {MigrationError} whatever ended it; the guest then runs here as before. */
  async migrate(to: Address, parameters: Partial<MigrationParameters>, onEvent: (event: ProgressEvent) => void): Promise<MigrationReport> {
    if (this.#target.isReceiving) throw new MigrationError("ERR_BUSY", "A guest is on its way here");
    this.#listeners.add(onEvent);
    try {
      return await this.#source.migrate(to, { pump: this.#options.pump, ...parameters });
    } finally {
      this.#listeners.delete(onEvent);
    }
  }

  /** The last finished migration's report, however it ended. */
  get report(): MigrationReport | undefined {
    return this.#source.report;
  }

  get guestId(): string | undefined {
    return this.#registry.guest?.manifest.id;
  }

  /** Of the migration in progress, whichever way it goes. @throws {MigrationError} ERR_NO_GUEST, ERR_CANCEL_TOO_LATE */
  async cancel(): Promise<void> {
    if (this.#target.isReceiving) await this.#target.cancel();
    else await this.#source.cancel();
  }

  status(): AgentStatus {
    const { guest } = this.#registry;
    const { incoming } = this.#target;
    const shown = guest ?? incoming?.guest;
    return {
      agent: { name: this.#options.name, listen: formatAddress(this.address), pid: process.pid, release: RELEASE },
      guest:
        shown === undefined
          ? null
          : {
              id: shown.manifest.id,
              epoch: guest?.epoch ?? incoming?.state.epoch ?? 0,
              "memory-bytes": shown.manifest.memoryBytes,
              vcpus: shown.manifest.vcpus.length,
              phase: guest === undefined ? (incoming?.state.phase ?? "") : this.#phaseOfOwn(),
              "dirty-log": shown.dirtyLog,
            },
      "query-migrate": this.#source.query(),
      verdict: this.#source.report?.verdict ?? null,
    };
  }

  #phaseOfOwn(): string {
    if (this.#source.isInDoubt) return "in-doubt";
    if (this.#registry.guest?.failure !== undefined) return "failed";
    return this.#source.isMigrating ? "migrating" : "running";
  }

  /** Cancels what may be cancelled, ends the guest, and lets go of everything. True if a guest was left in doubt. */
  async close(): Promise<boolean> {
    if (this.#isClosed) return false;
    this.#isClosed = true;
    const isLeftInDoubt = await this.#source.close();
    await this.#target.close();
    await this.#port?.close();
    await this.#registry.guest?.destroy();
    this.#registry.journal.close();
    await Promise.all([this.#host.threads.end(), this.#channelThreads.end(), this.#host.memory.end()]);
    return isLeftInDoubt;
  }

  #publish(event: ProgressEvent): void {
    if (event.type === "phase") this.#log.info({ phase: event.phase, atMs: Math.round(event.atMs) }, "migration phase");
    else if (event.type === "round") this.#log.debug(event, "round");
    else if (event.type === "failed") this.#log.warn({ code: event.code, phase: event.phase, remedy: event.remedy }, event.message);
    else if (event.type === "done") this.#log.info({ verdict: event.report.verdict }, "migration done");
    this.#port?.publish(event);
    for (const listener of this.#listeners) listener(event);
  }
}

/** mmu where it works, else barrier; said in the log. @throws {MigrationError} ERR_DIRTY_LOG_UNAVAILABLE if `mmu` was asked for and does not. */
function chooseDirtyLog(wanted: AgentOptions["dirtyLog"], log: Logger): DirtyLogKind {
  if (wanted === "barrier") return "barrier";
  const why = whyNoMmuDirtyLog();
  if (why === undefined) return "mmu";
  if (wanted === "mmu") throw new MigrationError("ERR_DIRTY_LOG_UNAVAILABLE", `The mmu dirty log does not work here: ${why}`);
  log.warn({ dirtyLog: "barrier", why }, "the mmu dirty log does not work here; writes are tracked by the guest's own barrier");
  return "barrier";
}

/** What each vCPU is to run. The fill goes to the last one's region: its working set lies at the start of it. */
function vcpuOrders(id: string, options: GuestOptions): VcpuOrder[] {
  return options.vcpus.map((workload, at): VcpuOrder => {
    if (workload === "ledger") return { workload, options: { mac: macOf(id) }, regionBytes: LEDGER_REGION_BYTES };
    const isFilled = at === options.vcpus.length - 1 && options.fill.bytes > 0;
    const fill = isFilled ? { fill: options.fill.bytes, fillKind: options.fill.kind } : {};
    if (workload !== "random-writer") return { workload, options: fill };
    const { dirtyPagesPerSecond, workingSetBytes, hotFraction } = options;
    return { workload, options: { ...fill, rate: dirtyPagesPerSecond, workingSet: workingSetBytes, hotFraction } };
  });
}
