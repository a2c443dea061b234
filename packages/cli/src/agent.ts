import { hostname } from "node:os";
import {
  FileArbiter,
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
import type { Arbiter, DirtyLogKind, GuestHost, VcpuOrder } from "@precopy/guest";
import { bootId, forbidCoreDumps } from "@precopy/linux";
import { MigrationError, formatAddress, guestTag, isLoopback, macOf, parseAddress } from "@precopy/protocol";
import type {
  Address,
  DirtyRate,
  LiveParameters,
  MigrationParameters,
  MigrationPlanReport,
  MigrationReport,
  Ownership,
  ProgressEvent,
} from "@precopy/protocol";
import { whyOutOfTime } from "@precopy/security";
import { SourceAgent } from "@precopy/source-agent";
import type { SourceSwitches } from "@precopy/source-agent";
import { TargetAgent } from "@precopy/target-agent";
import { AgentPort, ChannelThreads, askWhoOwns, choosePump } from "@precopy/transport";
import type { Security } from "@precopy/transport";
import type { Logger } from "pino";
import type { AgentOptions } from "./agent-args.js";
import type { GuestOptions } from "./guest-options.js";
import { RELEASE } from "./release.js";
import type { Resolution, ResolveRequest, WhoOwnsAnswer } from "./command-socket.js";
import { Discard } from "./discard.js";
import { forgetDirtyEvery, reachPoint, switchedOff } from "./fault-points.js";
import { History, historyEntry } from "./history.js";
import { Lease } from "./lease.js";
import { loadSecurity } from "./load-security.js";
import { RefusalLog } from "./refusal-log.js";
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
  /** And the name under which this agent owns guests there. */
  readonly #arbiter: { readonly arbiter: Arbiter; readonly owner: string } | undefined;
  readonly #lease: Lease | undefined;
  readonly #discard: Discard | undefined;
  readonly #history: History;
  readonly #security: Security;
  /** When the copy that runs here was taken, if later operations were given up for it; ISO 8601. */
  #copyAt: string | null = null;
  readonly #listeners = new Set<(event: ProgressEvent) => void>();
  #port: AgentPort | undefined;
  #isClosed = false;

  private constructor(
    options: AgentOptions,
    host: GuestHost,
    channelThreads: ChannelThreads,
    switches: SourceSwitches,
    security: Security,
    reach: (point: string) => Promise<void>,
    log: Logger,
  ) {
    this.#options = options;
    this.#security = security;
    this.#log = log;
    this.#host = host;
    this.#channelThreads = channelThreads;
    this.#registry = new GuestRegistry(new Journal(options.stateDir), options.memoryLimitBytes);
    this.#history = new History(options.stateDir);
    // Two agents of one name on two hosts are two owners; and so is the agent that a restarted host has.
    const owner = `${options.name}@${formatAddress(options.listen)}@${bootId() ?? hostname()}`;
    this.#arbiter = options.arbiter === undefined ? undefined : { arbiter: new FileArbiter(options.arbiter), owner };
    const roles = {
      registry: this.#registry,
      guests: host,
      threads: channelThreads,
      security,
      release: RELEASE,
      arbiter: this.#arbiter,
      reach,
    };
    this.#source = new SourceAgent(
      {
        ...roles,
        ...switches,
        onEvent: (event) => this.#publish(event),
        address: () => this.#port?.address,
        handoverCosts: (to) => this.#history.handoverCosts(to),
      },
      () => this.address,
    );
    this.#target = new TargetAgent({
      ...roles,
      pump: choosePump(options.pump, security),
      ownership: (guest) => this.ownership(guest),
      onOwned: (guest) => this.#source.forget(guest),
      onPhase: (guest, epoch, phase, cause) => {
        const failure = cause === undefined ? {} : { code: cause.code, remedy: cause.remedy, reason: cause.message };
        log[cause === undefined ? "info" : "warn"]({ guest, epoch, phase, ...failure }, `incoming guest ${phase}`);
        if (phase !== "active") return;
        this.#copyAt = null; // the source's very last state
        this.#discard?.arrived();
      },
    });
    const afterMs = options.discardAfterMs;
    this.#discard =
      afterMs === undefined
        ? undefined
        : new Discard({
            afterMs,
            owned: () => (this.#source.isDecided ? undefined : this.#registry.guest),
            settled: async () => {
              await this.#target.settled();
              await this.#source.ended();
            },
            end: (guest) => this.#endGuest(guest, `--discard-after ${afterMs} ms`),
            onFailure: (guest, error) =>
              log.error({ guest: guest.manifest.id, err: error, code: error.code, remedy: error.remedy }, "a guest could not be discarded"),
          });
    this.#lease =
      this.#arbiter &&
      new Lease({
        ...this.#arbiter,
        owned: () => (this.#source.isDecided || this.#discard?.guest !== undefined ? undefined : this.#registry.guest),
        onHeld: (guest, { code, remedy, message }) =>
          log.error({ guest: guest.manifest.id, code, remedy }, `the guest stands still: ${message}`),
        onReleased: (guest) => log.warn({ guest: guest.manifest.id }, "the arbiter's lease holds again, the guest goes on"),
      });
  }

  /** Starts threads, then listens. @throws {MigrationError} ERR_INSECURE_LISTEN, ERR_PORT_IN_USE, ERR_DIRTY_LOG_UNAVAILABLE, ERR_PARAMETER */
  static async start(options: AgentOptions, log: Logger): Promise<Agent> {
    forbidCoreDumps(); // certificates, the token and what guests hold are in this process's memory
    const security = loadSecurity(options.security);
    if (!isLoopback(options.listen.host) && !options.isInsecure && security.tls === undefined && security.token === undefined)
      throw new MigrationError("ERR_INSECURE_LISTEN", `${options.listen.host} is not a loopback address, and peers are not authenticated`);
    for (const [name, pair] of [
      ["server", security.tls?.settings.server],
      ["client", security.tls?.settings.client],
    ] as const) {
      const why = pair && whyOutOfTime(pair.cert);
      if (why !== undefined) log.warn({ code: "ERR_TLS_EXPIRED" }, `peers will not take ${name}-cert.pem: ${why}`);
    }
    // Before there is a thread: a refusal ends the process at once.
    const reach = reachPoint(process.env, options.hasFaultPoints);
    const forgetEvery = forgetDirtyEvery(process.env, options.hasFaultPoints);
    const without = switchedOff(process.env, options.hasFaultPoints);
    const workloads = new WorkloadCatalogue();
    if (options.workloads.directory !== undefined) workloads.addDirectory(options.workloads.directory);
    for (const { name, file } of options.workloads.files) workloads.add(name, file);
    const dirtyLog = chooseDirtyLog(options.dirtyLog, log);
    if (forgetEvery > 0) log.warn({ forgetEvery }, "PRECOPY_FORGET_DIRTY is set: the dirty log loses pages on purpose");
    if (without.size > 0) log.warn({ without: [...without] }, "PRECOPY_WITHOUT is set: optimisations are switched off on purpose");
    const switches: SourceSwitches = {
      zeroCheck: without.has("vector-zero-check") ? "scalar" : "vector",
      isCleanUpDeferred: !without.has("deferred-cleanup"),
    };
    const threads = new VcpuThreads(READY_VCPUS);
    const channelThreads = new ChannelThreads();
    const host: GuestHost = {
      segments: new SegmentPool(),
      threads,
      memory: new MemoryService({ forgetEvery, firstList: without.has("populated-map") ? "all" : "populated" }),
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
    const agent = new Agent(options, host, channelThreads, switches, security, reach, log);
    try {
      await Promise.all([threads.refill(), channelThreads.prepare(READY_CHANNELS)]);
      // No rehearsal is worth an agent that does not start.
      if (!without.has("rehearsal"))
        await rehearse(host, channelThreads, choosePump(options.pump, security), RELEASE, switches).catch((error: unknown) =>
          log.warn({ err: error }, "the rehearsal failed"),
        );
      const refusals = new RefusalLog(log);
      agent.#port = await AgentPort.listen(
        options.listen,
        {
          onControl: (control) => agent.#target.onControl(control),
          onPageChannel: (name, socket) => agent.#target.onPageChannel(name, socket),
          onFaultChannel: (name, socket) => agent.#target.onFaultChannel(name, socket),
          isExpectingChannels: () => agent.#target.isExpectingChannels,
          onRefused: (peer, error) => refusals.refused(peer, error),
        },
        RELEASE,
        { security, threads: channelThreads },
      );
      const shows = { tls: security.tls !== undefined, token: security.token !== undefined };
      log.info({ ...agent.address, dirtyLog, pump: choosePump(options.pump, security), ...shows, name: options.name }, "agent listens");
      for (const { guest, epoch } of agent.#registry.journal.settle())
        log.warn({ guest, epoch }, "a copy was prepared here when an earlier process ended: it never ran, and never will");
      agent.#source.recover();
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
    await this.#checkNobodyHasIt(id);
    const reservation = this.#registry.reserve(id, options.memoryBytes, undefined);
    try {
      const epoch = Math.max(reservation.epoch, ((await this.#arbiter?.arbiter.read(id))?.epoch ?? 0) + 1);
      await this.#arbiter?.arbiter.acquire(id, this.#arbiter.owner, epoch);
      const guest = await Guest.create(manifest, this.#host);
      try {
        await guest.boot(); // may take longer than a lease lasts
        await this.#arbiter?.arbiter.renew(id, this.#arbiter.owner, epoch);
        this.#registry.journal.record(id, epoch, "booted");
        await guest.run(epoch, false);
      } catch (error) {
        await guest.destroy();
        throw error;
      }
      reservation.keep(guest);
      this.#log.info({ guest: id, epoch, memoryBytes: options.memoryBytes, dirtyLog: guest.dirtyLog }, "guest runs");
    } finally {
      reservation.release();
    }
  }

  /**
   * The last word here is of an attempt whose other side may have a copy, or run it: that side is asked before a new guest of this id boots.
   * @throws {MigrationError} ERR_OWNED_ELSEWHERE, ERR_UNRESOLVED if it cannot be asked
   */
  async #checkNobodyHasIt(id: string): Promise<void> {
    const last = this.#registry.journal.read(id).at(-1);
    if (last === undefined || !["offered", "aborted", "prepared", "refused"].includes(last.decision)) return;
    const { there, thereError } = await this.whoOwns(id, undefined);
    if (there === null)
      throw new MigrationError(
        "ERR_UNRESOLVED",
        `Guest ${id} was to move at epoch ${last.epoch}, and the other side ${last.peer ?? ""} cannot be asked: ${thereError?.message ?? "it is not known"}`,
      );
    if (["owner", "in-doubt", "receiving", "prepared"].includes(there.standing))
      throw new MigrationError("ERR_OWNED_ELSEWHERE", `Guest ${id} is ${there.standing} at ${String(last.peer)}, epoch ${there.epoch}`);
  }

  /** @throws {MigrationError} whatever ended it; the guest then runs here as before. */
  async migrate(to: Address, parameters: Partial<MigrationParameters>, onEvent: (event: ProgressEvent) => void): Promise<MigrationReport> {
    if (this.#target.isReceiving) throw new MigrationError("ERR_BUSY", "A guest is on its way here");
    if (this.#discard?.guest !== undefined) throw new MigrationError("ERR_NO_GUEST", "The guest that was here has been discarded");
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

  /** What this agent knows of a guest. */
  ownership(guest: string): Ownership {
    const { journal } = this.#registry;
    const { standing, last } = journal.standing(guest);
    const left = journal.departure(guest);
    const at = left ?? last;
    const known = { guest, epoch: journal.latestEpoch(guest), at: at?.at ?? null, peer: at?.peer || null };
    if (this.guestId === guest)
      // In doubt it is about the attempt's epoch, which the journal has; an owner runs at the guest's own.
      return this.#source.isDecided
        ? { ...known, standing: "in-doubt" }
        : { ...known, standing: "owner", epoch: this.#registry.require().epoch };
    const { incoming } = this.#target;
    if (incoming?.guest.manifest.id === guest) {
      const phase = incoming.state.phase === "prepared" ? "prepared" : "receiving";
      return { ...known, standing: phase, epoch: incoming.state.epoch, peer: incoming.peer ?? null };
    }
    // A later offer that came to nothing does not change where the guest went.
    return { ...known, standing: left === undefined ? standing : left.decision === "completed" ? "moved" : "in-doubt" };
  }

  /** Asks the other side, too. @param peer where to ask; default what the journal knows of it. @throws {MigrationError} ERR_NO_GUEST */
  async whoOwns(guest: string | undefined, peer: string | undefined): Promise<WhoOwnsAnswer> {
    const id = guest ?? this.guestId ?? this.#target.incoming?.guest.manifest.id;
    if (id === undefined) throw new MigrationError("ERR_NO_GUEST", "No guest is here: name one with --guest");
    const here = this.ownership(id);
    const there = peer ?? here.peer;
    if (there === null) return { here, there: null, thereError: null };
    try {
      return { here, there: await askWhoOwns(parseAddress(there), id, this.#security), thereError: null };
    } catch (thrown) {
      const { code, message } = MigrationError.from(thrown);
      return { here, there: null, thereError: { code, message } };
    }
  }

  /** An operator's word on a guest in doubt. @throws {MigrationError} what makes it unsafe, or ERR_NOTHING_TO_RESOLVE */
  async resolve(request: ResolveRequest): Promise<Resolution> {
    const { guest } = request;
    const told = (copyAt: number | undefined): string | null => (copyAt === undefined ? null : new Date(copyAt).toISOString());
    if (this.#target.incoming?.guest.manifest.id === guest) {
      const { there } = await this.whoOwns(guest, undefined);
      const done = await this.#target.resolve(guest, request, there ?? undefined);
      this.#copyAt = told(done.copyAt);
      this.#log.warn({ ...done, copyAt: this.#copyAt }, `guest ${guest} ${done.outcome} by the operator`);
      return { ...done, guest, isRolledBack: done.copyAt !== undefined, copyAt: this.#copyAt };
    }
    const { standing } = this.ownership(guest);
    const isJournalOnly = standing === "moved" || standing === "gone" || standing === "refused" || standing === "unknown";
    if (request.way === "give-up" && isJournalOnly) return this.#forgetGuest(request, standing);
    const done = await this.#source.resolve(guest, request);
    if (done.copyAt !== undefined) this.#copyAt = told(done.copyAt);
    this.#log.warn({ ...done }, `guest ${guest} ${done.outcome} by the operator`);
    return { ...done, guest, isRolledBack: done.copyAt !== undefined, copyAt: told(done.copyAt) };
  }

  /** Only the journal knows of it: with this it may be booted anew. */
  #forgetGuest({ guest, isOtherSideFenced }: ResolveRequest, standing: string): Resolution {
    const { epoch, peer } = this.ownership(guest);
    if (epoch === 0) throw new MigrationError("ERR_NOTHING_TO_RESOLVE", `Guest ${guest} was never here`);
    if (peer !== null && !isOtherSideFenced)
      throw new MigrationError("ERR_NOT_FENCED", `Guest ${guest} is ${standing} here at epoch ${epoch}, and may run at ${peer}`);
    this.#registry.journal.record(guest, epoch, "given-up");
    return { guest, epoch, outcome: "given-up", isRolledBack: false, copyAt: null };
  }

  /** What a migration would come to. @throws {MigrationError} ERR_BUSY, ERR_NO_GUEST, and what a migration would be refused with */
  plan(to: Address, given: Partial<MigrationParameters>): Promise<MigrationPlanReport> {
    return this.#source.plan(to, { pump: this.#options.pump, ...given });
  }

  /** How fast the guest dirties its pages. @throws {MigrationError} ERR_BUSY, ERR_NO_GUEST */
  dirtyRate(): Promise<DirtyRate> {
    return this.#source.dirtyRate();
  }

  get isMigrating(): boolean {
    return this.#source.isMigrating;
  }

  /** Resolves when the migration in progress has ended, however it does. */
  migrationEnded(): Promise<void> {
    return this.#source.ended();
  }

  /** Changes the migration in progress. @throws {MigrationError} ERR_PARAMETER, ERR_NO_MIGRATION */
  set(changes: Partial<LiveParameters>): MigrationParameters {
    return this.#source.set(changes);
  }

  /** The migration in progress goes to post-copy after the round under way. @throws {MigrationError} ERR_NO_MIGRATION */
  startPostcopy(): void {
    this.#source.startPostcopy();
  }

  /** Tries at once to make the broken link of a post-copy migration again. @throws {MigrationError} ERR_NO_MIGRATION */
  recoverPostcopy(): void {
    this.#source.recoverPostcopy();
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
              "copy-at": guest === undefined ? null : this.#copyAt,
              "missing-pages": this.#target.fetching?.fetching?.missingPages ?? null,
            },
      unresolved: this.#registry.journal
        .guests()
        .map((id) => this.ownership(id))
        .filter(({ guest: id, standing }) => id !== this.guestId && standing === "in-doubt"),
      "query-migrate": this.#source.query(),
      verdict: this.#source.verdict ?? null,
    };
  }

  #phaseOfOwn(): string {
    if (this.#source.isInDoubt) return "in-doubt";
    if (this.#registry.guest?.failure !== undefined) return "failed";
    const fetching = this.#target.fetching?.fetching;
    if (fetching !== undefined) return fetching.isPaused ? "postcopy-paused" : "postcopy-active";
    return this.#source.isMigrating ? "migrating" : "running";
  }

  /** A guest that nobody wants to keep ends for good; then the next one may come. The journal's `owner` now means that it ended here. */
  async #endGuest(guest: Guest, why: string): Promise<void> {
    const { manifest, epoch } = guest;
    await guest.destroy();
    this.#registry.remove(guest);
    await this.#arbiter?.arbiter.release(manifest.id, this.#arbiter.owner, epoch).catch(() => {}); // its lease ends by itself
    this.#log.info({ guest: manifest.id, epoch }, `the guest is discarded (${why}); this agent is empty`);
  }

  /** Cancels what may be cancelled, ends the guest, and lets go of everything. True if a guest was left in doubt. */
  async close(): Promise<boolean> {
    if (this.#isClosed) return false;
    this.#isClosed = true;
    await this.#discard?.stop();
    const isLeftInDoubt = await this.#source.close();
    await this.#target.close();
    await this.#port?.close();
    const { guest } = this.#registry;
    await guest?.destroy();
    this.#lease?.end();
    // Only when nothing of it runs any more may somebody else have it.
    if (guest !== undefined && !isLeftInDoubt)
      await this.#arbiter?.arbiter.release(guest.manifest.id, this.#arbiter.owner, guest.epoch).catch(() => {}); // its lease ends by itself
    this.#registry.journal.close();
    await Promise.all([this.#host.threads.end(), this.#channelThreads.end(), this.#host.memory.end()]);
    return isLeftInDoubt;
  }

  #remember(report: MigrationReport): void {
    try {
      this.#history.add(historyEntry(report));
    } catch (thrown) {
      this.#log.warn({ err: thrown }, "the migration is not in the history");
    }
  }

  #publish(event: ProgressEvent): void {
    if (event.type === "phase") this.#log.info({ phase: event.phase, atMs: Math.round(event.atMs) }, "migration phase");
    else if (event.type === "round") this.#log.debug(event, "round");
    else if (event.type === "set") this.#log.info({ parameters: event.parameters }, "parameters changed");
    else if (event.type === "link") this.#log.warn(event, event.what);
    else if (event.type === "failed") this.#log.warn({ code: event.code, phase: event.phase, remedy: event.remedy }, event.message);
    else if (event.type === "done") this.#log.info({ verdict: event.report.verdict }, "migration done");
    if ((event.type === "done" || event.type === "failed") && event.report !== undefined) this.#remember(event.report);
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
    const writes = { ...fill, rate: options.dirtyPagesPerSecond, workingSet: options.workingSetBytes, pattern: options.writePattern };
    if (workload === "random-writer") return { workload, options: { ...writes, hotFraction: options.hotFraction } };
    return { workload, options: workload === "sequential-writer" ? writes : fill };
  });
}
