import { MigrationError, PAGE_BYTES, VCPUS_MAX, macOf } from "@precopy/protocol";
import type { DeviceManifest, GuestManifest } from "@precopy/protocol";
import { GuestClock, hostTime } from "./clock.js";
import type { Device } from "./device.js";
import { allocateBarrier } from "./dirty-log-barrier.js";
import type { SharedBarrier } from "./dirty-log-barrier.js";
import type { DirtyLogKind } from "./dirty-log.js";
import { GuestMemory } from "./guest-memory.js";
import type { SegmentPool } from "./guest-memory.js";
import { MemoryAccess } from "./memory-access.js";
import type { MemoryService } from "./memory-service.js";
import { MissingPages } from "./missing-pages.js";
import type { HashTable } from "./page-hashes.js";
import { NIC_BYTES } from "./nic-ring.js";
import type { VcpuRegisters } from "./vcpu-thread.js";
import { Vcpu } from "./vcpu.js";
import type { VcpuThreads } from "./vcpu.js";
import type { WorkloadCatalogue } from "./workload.js";

/** The main thread has other things to do than to wait for a long step. */
const PROBE_MS_MAX = 20;

/** What an agent lends its guest. */
export interface GuestHost {
  readonly segments: SegmentPool;
  readonly threads: VcpuThreads;
  readonly memory: MemoryService;
  readonly workloads: WorkloadCatalogue;
  readonly dirtyLog: DirtyLogKind;
  /** A vCPU's program threw or its thread ended: that vCPU does not run any more. */
  onGuestFailure(guestId: string, error: MigrationError): void;
  /** Opens the back end of a device; it starts later. @throws {MigrationError} ERR_DEVICE_UNAVAILABLE */
  openDevice(device: DeviceManifest, guestId: string, access: MemoryAccess, wakeGuest: () => void): Promise<Device>;
}

/** All of a guest that is not memory, taken while it is paused. */
export interface GuestState {
  readonly registers: readonly VcpuRegisters[];
  readonly devices: readonly unknown[];
  /** Guest time at the pause. */
  readonly clockMs: number;
}

/** What one vCPU did so far. */
export interface VcpuActivity {
  readonly dirtiedPages: number;
  readonly withheldMs: number;
}

export interface VcpuOrder {
  readonly workload: string;
  readonly options: Record<string, string | number | boolean>;
  /** Exact size of its region; those without share what is left. */
  readonly regionBytes?: number;
}

/** Lays out a new guest: the card first, then each vCPU's region. @throws {MigrationError} ERR_PARAMETER, ERR_WORKLOAD_UNKNOWN */
export function layOutGuest(
  id: string,
  memoryBytes: number,
  vcpus: readonly VcpuOrder[],
  hasNic: boolean,
  workloads: WorkloadCatalogue,
): GuestManifest {
  if (vcpus.length < 1 || vcpus.length > VCPUS_MAX)
    throw new MigrationError("ERR_PARAMETER", `${vcpus.length} vCPUs; give 1 to ${VCPUS_MAX}`);
  for (const { regionBytes = PAGE_BYTES } of vcpus)
    if (!(regionBytes >= PAGE_BYTES) || regionBytes % PAGE_BYTES !== 0)
      throw new MigrationError("ERR_PARAMETER", `Region of ${regionBytes} B: give a multiple of ${PAGE_BYTES}`);
  let start = hasNic ? NIC_BYTES : 0;
  const fixed = vcpus.reduce((sum, { regionBytes = 0 }) => sum + regionBytes, start);
  const sharing = vcpus.filter(({ regionBytes }) => regionBytes === undefined).length;
  const share = sharing === 0 ? 0 : Math.floor((memoryBytes - fixed) / sharing / PAGE_BYTES) * PAGE_BYTES;
  if (fixed > memoryBytes || (sharing > 0 && share < PAGE_BYTES))
    throw new MigrationError("ERR_PARAMETER", `${memoryBytes} B of guest memory are too few: card and fixed regions take ${fixed} B`);
  return {
    id,
    memoryBytes,
    vcpus: vcpus.map(({ workload, options, regionBytes = share }) => {
      const region = { start, bytes: regionBytes };
      start += regionBytes;
      return { workload, sha256: workloads.find(workload).sha256, options, region };
    }),
    devices: hasNic ? [{ kind: "nic", mac: macOf(id) }] : [],
  };
}

/** A running program with all its state: memory, vCPUs, devices, clock. Whether it may run is decided elsewhere (source-state, target-state). */
export class Guest {
  readonly manifest: GuestManifest;
  readonly memory: GuestMemory;
  readonly barrier: SharedBarrier | undefined;
  readonly dirtyLog: DirtyLogKind;
  readonly clock = new GuestClock();
  readonly #host: GuestHost;
  readonly #vcpus: readonly Vcpu[];
  #devices: readonly Device[] = [];
  #hashes: HashTable | undefined;
  #arrived: Uint32Array | undefined;
  #missing: MissingPages | undefined;
  /** Somebody let it run, and nobody paused it since. */
  #mayRun = false;
  #isHeld = false;
  #hasRun = false;
  #isMoved = false;
  /** Owner epoch; raised by every hand-over. */
  epoch = 0;
  /** Why it does not run any more, or not in full. */
  failure: MigrationError | undefined;
  /** For whoever moves this guest; the host is told in any case. */
  onFailure: (error: MigrationError) => void = () => {};
  /** The longest gap any vCPU saw between its last tick before a pause and the first one after. */
  onTicked: (gapMs: number) => void = () => {};

  private constructor(manifest: GuestManifest, memory: GuestMemory, host: GuestHost) {
    this.manifest = manifest;
    this.memory = memory;
    this.dirtyLog = host.dirtyLog;
    this.barrier = host.dirtyLog === "barrier" ? allocateBarrier(memory.pages) : undefined;
    this.#host = host;
    this.#vcpus = manifest.vcpus.map(({ workload }, at) => new Vcpu(host.threads.take(), `vCPU ${at} (${workload})`));
  }

  /**
   * Reserves memory and makes vCPUs and devices, quiet and without contents: boot or load comes next.
   * @throws {MigrationError} ERR_MEMORY, ERR_WORKLOAD_UNKNOWN, ERR_WORKLOAD_DIFFERS, ERR_WORKLOAD_FAILED, ERR_DEVICE_UNAVAILABLE
   */
  static async create(manifest: GuestManifest, host: GuestHost): Promise<Guest> {
    const files = manifest.vcpus.map(({ workload, sha256 }) => host.workloads.find(workload, sha256));
    const guest = new Guest(manifest, GuestMemory.allocate(manifest.memoryBytes, host.segments), host);
    try {
      await host.memory.attach(guest.memory, guest.barrier);
    } catch (error) {
      await guest.#end();
      throw error;
    }
    try {
      await guest.#setUp(files.map(({ url }) => url));
      return guest;
    } catch (error) {
      await guest.destroy();
      throw error;
    }
  }

  async #setUp(urls: readonly string[]): Promise<void> {
    const { memory, barrier, clock, manifest } = this;
    const nicAt = manifest.devices.length > 0 ? 0 : undefined;
    const [first] = this.#vcpus;
    this.#vcpus.forEach((vcpu) => {
      vcpu.onFailure = (error) => {
        this.failure ??= error;
        this.#host.onGuestFailure(manifest.id, error);
        this.onFailure(error);
      };
    });
    const gaps = new Map<Vcpu, number>();
    for (const vcpu of this.#vcpus)
      vcpu.onTicked = (gapMs) => {
        gaps.set(vcpu, gapMs);
        if (gaps.size < this.#vcpus.length) return;
        this.onTicked(Math.max(...gaps.values()));
        gaps.clear();
      };
    await Promise.all(
      this.#vcpus.map((vcpu, at) =>
        vcpu.setUp({
          vcpu: at,
          url: urls[at] ?? "",
          manifest: manifest.vcpus[at]!, // one vCPU was made for each entry
          memory: memory.share(),
          barrier,
          clock: clock.share(),
          nicAt: at === 0 ? nicAt : undefined,
        }),
      ),
    );
    const access = new MemoryAccess(memory, barrier);
    const devices: Device[] = [];
    this.#devices = devices;
    for (const device of manifest.devices) devices.push(await this.#host.openDevice(device, manifest.id, access, () => first?.wake()));
    if (first !== undefined) first.onKick = () => devices.forEach((device) => device.kick());
  }

  /** One hash a page, all zero: a migration begins with it. One migration at a time. */
  freshHashTable(): HashTable {
    if (this.#hashes !== undefined) return this.#hashes.fill(0);
    this.#hashes = this.#host.segments.takeWords(this.memory.pages * 2);
    return this.#hashes;
  }

  /** Bitmap words of the pages that may be other than zero, for whoever stores arriving pages. With the barrier log it is that log's own map. */
  get populatedWords(): Uint32Array {
    if (this.barrier !== undefined) return this.barrier.populated;
    this.#arrived ??= this.#host.segments.takeWords(Math.ceil(this.memory.pages / 32));
    return this.#arrived;
  }

  /** For a guest that may run before all of its memory is here; asked for before any page is. */
  get missing(): MissingPages {
    this.#missing ??= new MissingPages(this.memory);
    return this.#missing;
  }

  /** False while some of its memory may be elsewhere. */
  get isWhole(): boolean {
    return this.#missing?.isListening !== true;
  }

  /** Its first pages, which devices use from outside. */
  get devicePages(): number {
    return this.manifest.devices.length > 0 ? NIC_BYTES / PAGE_BYTES : 0;
  }

  /** The vCPUs' threads, by their numbers for the system. */
  get threads(): number[] {
    return this.#vcpus.flatMap(({ threadId }) => threadId ?? []);
  }

  /** True if some program writes past the accessor, which only the mmu dirty log sees. */
  get hasDirectWriter(): boolean {
    return this.#vcpus.some(({ isDirectWriter }) => isDirectWriter);
  }

  /** First boot: fills memory and sets the clock to zero. `run` comes next. */
  async boot(): Promise<void> {
    this.clock.set(0);
    await Promise.all(this.#vcpus.map((vcpu) => vcpu.boot()));
  }

  /** Registers and devices as they were saved. @throws {MigrationError} ERR_WORKLOAD_FAILED */
  async load(state: GuestState): Promise<void> {
    if (state.registers.length !== this.#vcpus.length || state.devices.length !== this.#devices.length)
      throw new MigrationError("ERR_BAD_MESSAGE", "State of another number of vCPUs or devices");
    this.clock.set(state.clockMs); // programs may look at it while they load; it is moved on before they run
    this.#devices.forEach((device, at) => device.load(state.devices[at]));
    await Promise.all(this.#vcpus.map((vcpu, at) => vcpu.load(state.registers[at]!))); // counted above
  }

  /** After boot or load. Resolves when every vCPU runs. */
  async run(epoch: number, isMoved: boolean): Promise<void> {
    this.epoch = epoch;
    this.#mayRun = true;
    this.#isMoved = isMoved;
    if (this.#isHeld) return; // release() starts it
    this.#hasRun = true;
    await Promise.all(this.#vcpus.map((vcpu) => vcpu.run()));
    for (const device of this.#devices) device.start(epoch, isMoved);
  }

  /** Since when all of it runs here; undefined where hosts have no name. After `run`. */
  get ranAt(): ReturnType<typeof hostTime> {
    return hostTime(Math.max(...this.#vcpus.map(({ ranAtMs }) => ranAtMs)));
  }

  /** How long a pause would take now, in ms: until every vCPU reaches the end of a step. Blocks for that long, PROBE_MS_MAX at most. */
  probeMs(): number {
    const started = performance.now();
    const signs = this.#vcpus.map((vcpu) => vcpu.askForSign());
    this.#vcpus.forEach((vcpu, at) => vcpu.awaitSign(signs[at] ?? 0, started + PROBE_MS_MAX));
    return performance.now() - started;
  }

  /** Withholds of each vCPU this share of its time, 0 to 0.9999; a migration that throttles lifts it however it ends. */
  withhold(shares: readonly number[]): void {
    this.#vcpus.forEach((vcpu, at) => vcpu.withhold(shares[at] ?? 0));
  }

  /** Of each vCPU: pages it dirtied, each once between two collections, and for how long it was withheld. Counters, for rates. */
  activity(): VcpuActivity[] {
    return this.#vcpus.map((vcpu) => ({ dirtiedPages: vcpu.dirtiedPages(this.dirtyLog), withheldMs: vcpu.withheldMs }));
  }

  /**
   * Stops every vCPU between two steps, then the devices, and takes the state. If one does not stop the rest goes on.
   * @throws {MigrationError} ERR_WORKLOAD_FAILED
   */
  async pause(): Promise<GuestState> {
    this.#mayRun = false;
    try {
      const registers = await Promise.all(this.#vcpus.map((vcpu) => vcpu.pause()));
      const clockMs = this.clock.now();
      for (const device of this.#devices) device.quiesce();
      return { registers, devices: this.#devices.map((device) => device.save()), clockMs };
    } catch (error) {
      this.resume();
      throw error;
    }
  }

  /** After a pause: everything goes on where it stood, as if nothing had happened. */
  resume(epoch = this.epoch): void {
    this.epoch = epoch;
    this.#mayRun = true;
    if (!this.#isHeld) this.#goOn();
  }

  #goOn(): void {
    for (const vcpu of this.#vcpus) vcpu.resume();
    for (const device of this.#devices) device.start(this.epoch, false);
  }

  /** Keeps it still until `release`, whoever pauses and resumes it meanwhile. @throws {MigrationError} ERR_WORKLOAD_FAILED */
  async hold(): Promise<void> {
    this.#isHeld = true;
    if (!this.#mayRun || !this.#hasRun) return;
    await Promise.all(this.#vcpus.map((vcpu) => vcpu.pause()));
    if (this.#isHeld && this.#mayRun) for (const device of this.#devices) device.quiesce();
  }

  /** After `hold`: it goes on if it would have run all the while. */
  release(): void {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    if (!this.#mayRun) return;
    if (this.#hasRun) this.#goOn();
    else this.run(this.epoch, this.#isMoved).catch((error: unknown) => this.onFailure(MigrationError.from(error)));
  }

  /** Ends it: threads first, then its pages, then its segments go back for the next guest. */
  async destroy(): Promise<void> {
    for (const device of this.#devices) device.close();
    let running = this.#vcpus.length;
    // One that waits for a missing page goes on when nobody holds it there any more: on a page of zeros, and not further than to its end.
    const onTold = (): void => {
      if (--running === 0) this.#missing?.close();
    };
    await Promise.all(this.#vcpus.map((vcpu) => vcpu.end(onTold)));
    await this.#host.memory.stop();
    await this.#host.memory.free();
    await this.#host.memory.detach();
    await this.#end();
  }

  /** Nobody touches its memory any more, and its pages are free. */
  async #end(): Promise<void> {
    await Promise.all(this.#vcpus.map((vcpu) => vcpu.end()));
    this.#host.segments.give(this.memory.segments);
    for (const words of [this.#hashes, this.#arrived]) if (words !== undefined) this.#host.segments.giveWords(words);
    await this.#host.threads.refill(); // for the next guest
  }
}
