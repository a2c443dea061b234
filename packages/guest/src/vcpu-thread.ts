import { parentPort } from "node:worker_threads";
import { threadId } from "@precopy/linux";
import type { VcpuManifest } from "@precopy/protocol";
import { GuestClock, hostNowMs } from "./clock.js";
import type { SharedBarrier } from "./dirty-log-barrier.js";
import { GuestMemory } from "./guest-memory.js";
import type { SharedMemory } from "./guest-memory.js";
import { MemoryAccess } from "./memory-access.js";
import { NicDriver } from "./nic-ring.js";
import { VcpuCounter, VcpuRequest, VcpuWord, allocateVcpuControl, withheldShare } from "./vcpu-control.js";
import type { VcpuControl } from "./vcpu-control.js";
import { Withholding } from "./withholding.js";
import type { Program, Workload } from "./workload.js";

/** First message to a vCPU thread. */
export interface VcpuSetup {
  readonly type: "setup";
  readonly vcpu: number;
  readonly url: string;
  readonly manifest: VcpuManifest;
  readonly memory: SharedMemory;
  readonly barrier: SharedBarrier | undefined;
  readonly clock: Float64Array;
  readonly control: VcpuControl;
  /** Guest address of the network card's rings, for the vCPU that has it. */
  readonly nicAt: number | undefined;
}
/** What a vCPU carries apart from guest memory. */
export interface VcpuRegisters {
  readonly program: unknown;
  /** Guest time of its last tick. */
  readonly lastTickMs: number;
}
export type ToVcpu = VcpuSetup | { readonly type: "boot" } | { readonly type: "load"; readonly registers: VcpuRegisters };
export type FromVcpu =
  /** thread: its number for the system, where that has one. */
  | { readonly type: "ready"; readonly isDirectWriter: boolean; readonly thread: number | undefined }
  /** up: once, when the thread has loaded its modules. */
  | { readonly type: "up" | "booted" | "loaded" | "running" | "kick" }
  | { readonly type: "paused"; readonly pause: number; readonly registers: VcpuRegisters }
  /** It stands still, but `save` threw or gave what no message can carry. */
  | { readonly type: "unsaved"; readonly pause: number; readonly message: string }
  /** After each run: the gap between the last tick before and the first one after. */
  | { readonly type: "ticked"; readonly gapMs: number }
  | { readonly type: "failed"; readonly message: string; readonly stack: string | undefined };

/** A guest tick every millisecond, whatever the workload: what the guest itself notices of a pause. */
const TICK_MS = 1;

const port = parentPort;
if (port === null) throw new Error("vcpu-thread.js runs as a worker");
const post = (message: FromVcpu): void => port.postMessage(message);

let program: Program | undefined;
let memoryAccess: MemoryAccess | undefined;
let { words, counters } = allocateVcpuControl();
let clock: GuestClock | undefined;
let lastTickMs = -1;

async function setUp(setup: VcpuSetup): Promise<void> {
  const module: { default?: Workload } = await import(setup.url);
  const workload = module.default;
  if (typeof workload?.create !== "function") throw new Error(`${setup.manifest.workload}: its default export has no create()`);
  const memory = new GuestMemory(setup.memory);
  const access = new MemoryAccess(memory, setup.barrier);
  const guestClock = new GuestClock(setup.clock);
  ({ words, counters } = setup.control);
  memoryAccess = access;
  clock = guestClock;
  program = workload.create({
    vcpu: setup.vcpu,
    options: setup.manifest.options,
    region: setup.manifest.region,
    memory: access,
    segments: memory.segments,
    nic: setup.nicAt === undefined ? undefined : new NicDriver(access, setup.nicAt, () => post({ type: "kick" })),
    now: () => guestClock.now(),
  });
  post({ type: "ready", isDirectWriter: workload.isDirectWriter === true, thread: threadId() });
}

function publishDirtied(): void {
  counters[VcpuCounter.DIRTIED_PAGES] = memoryAccess?.dirtiedPages ?? 0;
}

/** Stands still for `ms`, whatever the guest's devices have to say meanwhile; a request, a probe or another share ends it early. */
function stand(ms: number, share: number): void {
  publishDirtied();
  const started = performance.now();
  for (let left = ms; left > 0; left = ms - (performance.now() - started)) {
    const seen = Atomics.load(words, VcpuWord.WAKE);
    if (Atomics.load(words, VcpuWord.REQUEST) !== VcpuRequest.Run || withheldShare(words) !== share) break;
    if (Atomics.load(words, VcpuWord.PROBE) !== Atomics.load(words, VcpuWord.PROBED)) break;
    Atomics.wait(words, VcpuWord.WAKE, seen, left);
  }
  counters[VcpuCounter.WITHHELD_MS]! += performance.now() - started;
}

/**
 * Waits for the first run, then steps until told to end. The thread never returns to its event loop from here on: requests come by shared
 * words, which a vCPU that stands still sees without a message having to be delivered to it.
 */
function run(running: Program, guestClock: GuestClock): void {
  while (Atomics.load(words, VcpuWord.REQUEST) === VcpuRequest.Stand) Atomics.wait(words, VcpuWord.REQUEST, VcpuRequest.Stand, 1000);
  counters[VcpuCounter.RAN_AT_MS] = hostNowMs();
  post({ type: "running" });
  let isFirstTick = true;
  const withholding = new Withholding(guestClock.now());
  for (;;) {
    const seen = Atomics.load(words, VcpuWord.WAKE);
    const request = Atomics.load(words, VcpuWord.REQUEST);
    if (request !== VcpuRequest.Run) {
      if (request === VcpuRequest.End) return;
      try {
        post({ type: "paused", pause: request, registers: { program: running.save() ?? null, lastTickMs } });
      } catch (error) {
        post({ type: "unsaved", pause: request, message: error instanceof Error ? error.message : String(error) }); // the guest goes on
      }
      while (Atomics.load(words, VcpuWord.REQUEST) === request) Atomics.wait(words, VcpuWord.REQUEST, request, 1000);
      isFirstTick = true;
      withholding.restart(guestClock.now());
      continue;
    }
    const probe = Atomics.load(words, VcpuWord.PROBE);
    if (probe !== Atomics.load(words, VcpuWord.PROBED)) {
      Atomics.store(words, VcpuWord.PROBED, probe);
      Atomics.notify(words, VcpuWord.PROBED);
    }
    const restMs = running.step();
    const now = guestClock.now();
    if (now - lastTickMs >= TICK_MS) {
      if (isFirstTick) post({ type: "ticked", gapMs: lastTickMs < 0 ? 0 : now - lastTickMs });
      isFirstTick = false;
      lastTickMs = now;
      publishDirtied();
    }
    const share = withheldShare(words);
    const standMs = withholding.standMs(now, share);
    if (standMs > 0) {
      stand(standMs, share);
      withholding.restart(guestClock.now());
      continue;
    }
    if (restMs > 0) Atomics.wait(words, VcpuWord.WAKE, seen, Math.min(restMs, Math.max(lastTickMs + TICK_MS - now, 0)));
  }
}

async function handle(message: ToVcpu): Promise<void> {
  if (message.type === "setup") return setUp(message);
  if (program === undefined || clock === undefined) throw new Error(`${message.type} before setup`);
  switch (message.type) {
    case "boot":
      program.boot?.();
      post({ type: "booted" });
      return run(program, clock);
    case "load":
      program.load(message.registers.program);
      lastTickMs = message.registers.lastTickMs;
      post({ type: "loaded" });
      return run(program, clock);
  }
}

port.on("message", (message: ToVcpu) => {
  handle(message).catch((error: unknown) => {
    const failure = error instanceof Error ? error : new Error(String(error));
    post({ type: "failed", message: failure.message, stack: failure.stack });
  });
});
post({ type: "up" });
