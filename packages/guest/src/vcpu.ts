import { NativeThread, minorFaults } from "@precopy/linux";
import { MigrationError, PAUSE_TIMEOUT_MS } from "@precopy/protocol";
import type { DirtyLogKind } from "./dirty-log.js";
import { VcpuCounter, VcpuRequest, VcpuWord, allocateVcpuControl, setWithheld, wake } from "./vcpu-control.js";
import type { FromVcpu, ToVcpu, VcpuRegisters, VcpuSetup } from "./vcpu-thread.js";

const THREAD = new URL("./vcpu-thread.js", import.meta.url);

/** Threads without a guest yet: starting one takes 30 to 50 ms, which no migration should wait for. */
export class VcpuThreads {
  readonly #idle: NativeThread[] = [];
  readonly #ready: number;
  #isEnded = false;

  /** @param ready how many wait here for the next guest. */
  constructor(ready: number) {
    this.#ready = ready;
  }

  /** Starts threads until enough wait here. Resolves when they are up. */
  async refill(): Promise<void> {
    if (this.#isEnded) return;
    const fresh = Array.from({ length: Math.max(0, this.#ready - this.#idle.length) }, () => new NativeThread(THREAD));
    this.#idle.push(...fresh);
    await Promise.all(fresh.map((thread) => thread.up()));
  }

  take(): NativeThread {
    return this.#idle.pop() ?? new NativeThread(THREAD);
  }

  async end(): Promise<void> {
    this.#isEnded = true;
    await Promise.all(this.#idle.splice(0).map((thread) => thread.terminate()));
  }
}

type Pending = { readonly resolve: (message: FromVcpu) => void; readonly reject: (error: Error) => void };

/** One virtual CPU: a thread that runs a workload's program, and what the main thread may ask of it. */
export class Vcpu {
  readonly #thread: NativeThread;
  readonly #control = allocateVcpuControl();
  readonly #words = this.#control.words;
  readonly #waiting = new Map<FromVcpu["type"], Pending>();
  readonly #name: string;
  #failure: MigrationError | undefined;
  #threadId: number | undefined;
  /** Number of the latest pause; see VcpuRequest. */
  #pause: number = VcpuRequest.FirstPause;
  /** The guest's transmit ring has news. */
  onKick: () => void = () => {};
  onTicked: (gapMs: number) => void = () => {};
  /** The program threw, or its thread ended by itself. It does not run any more. */
  onFailure: (error: MigrationError) => void = () => {};
  isDirectWriter = false;
  readonly #onMessage = (message: FromVcpu): void => this.#receive(message);
  readonly #onError = (cause: Error): void =>
    this.#fail(new MigrationError("ERR_WORKLOAD_FAILED", `${this.#name}: ${cause.message}`, { cause }));
  readonly #onExit = (): void => this.#fail(new MigrationError("ERR_WORKLOAD_FAILED", `${this.#name}: its thread ended`));

  constructor(thread: NativeThread, name: string) {
    this.#thread = thread;
    this.#name = name;
    thread.on("message", this.#onMessage);
    thread.on("error", this.#onError);
    thread.on("exit", this.#onExit);
  }

  /** Loads the workload. Nothing of guest memory is written. @throws {MigrationError} ERR_WORKLOAD_FAILED */
  async setUp(setup: Omit<VcpuSetup, "type" | "control">): Promise<void> {
    const ready = await this.#ask({ type: "setup", control: this.#control, ...setup }, "ready");
    if (ready.type !== "ready") return;
    this.isDirectWriter = ready.isDirectWriter;
    this.#threadId = ready.thread;
  }

  async boot(): Promise<void> {
    await this.#ask({ type: "boot" }, "booted");
  }

  async load(registers: VcpuRegisters): Promise<void> {
    await this.#ask({ type: "load", registers }, "loaded");
  }

  /** After boot or load. Resolves when the first step is about to begin. */
  async run(): Promise<void> {
    const running = this.#expect("running");
    Atomics.store(this.#words, VcpuWord.REQUEST, VcpuRequest.Run);
    Atomics.notify(this.#words, VcpuWord.REQUEST);
    await running;
  }

  /** Resolves with the registers once the vCPU stands between two steps, and stays there. @throws {MigrationError} ERR_WORKLOAD_FAILED */
  async pause(): Promise<VcpuRegisters> {
    const paused = this.#expect("paused");
    this.#pause = Math.max((this.#pause + 1) | 0, VcpuRequest.FirstPause);
    Atomics.store(this.#words, VcpuWord.REQUEST, this.#pause);
    Atomics.notify(this.#words, VcpuWord.REQUEST);
    wake(this.#words);
    const timer = setTimeout(
      () =>
        this.#settle("paused", new MigrationError("ERR_WORKLOAD_FAILED", `${this.#name}: a step took more than ${PAUSE_TIMEOUT_MS} ms`)),
      PAUSE_TIMEOUT_MS,
    );
    try {
      const message = await paused;
      if (message.type !== "paused") throw new MigrationError("ERR_INTERNAL", `${this.#name}: ${message.type} instead of paused`);
      return message.registers;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Goes on where it stood; also calls off a pause that was not acknowledged. */
  resume(): void {
    this.#settle("paused", new MigrationError("ERR_INTERNAL", `${this.#name}: its pause was called off`));
    Atomics.store(this.#words, VcpuWord.REQUEST, VcpuRequest.Run);
    Atomics.notify(this.#words, VcpuWord.REQUEST);
    wake(this.#words);
  }

  /** An interrupt: the card delivered a frame. */
  wake(): void {
    wake(this.#words);
  }

  /** Withholds this share of its time, 0 to 0.9999, until told otherwise: it stands in turns of some ms. A pause or a probe is not kept waiting. */
  withhold(share: number): void {
    setWithheld(this.#words, share);
  }

  /** How long it was withheld since its thread began, ms. */
  get withheldMs(): number {
    return this.#control.counters[VcpuCounter.WITHHELD_MS]!;
  }

  /** When it began its first step, ms on the host's monotonic clock; 0 if it never ran. */
  get ranAtMs(): number {
    return this.#control.counters[VcpuCounter.RAN_AT_MS]!;
  }

  /**
   * How often it dirtied a page that was clean, since its thread began. With the barrier log it counts by itself; with mmu each such write is a
   * minor fault of its thread, as are a few others. @param kind of the guest's dirty log.
   */
  dirtiedPages(kind: DirtyLogKind): number {
    if (kind === "barrier") return this.#control.counters[VcpuCounter.DIRTIED_PAGES]!;
    return (this.#threadId === undefined ? undefined : minorFaults(this.#threadId)) ?? 0;
  }

  /** Asks for a sign at the end of the current step, without stopping there. Returns the number of the sign. */
  askForSign(): number {
    const probe = Atomics.add(this.#words, VcpuWord.PROBE, 1) + 1;
    wake(this.#words);
    return probe;
  }

  /** Blocks until the sign is there, or until `untilMs` on performance.now(). */
  awaitSign(probe: number, untilMs: number): void {
    for (let left = untilMs - performance.now(); left > 0; left = untilMs - performance.now()) {
      const probed = Atomics.load(this.#words, VcpuWord.PROBED);
      if (probed === probe) return;
      Atomics.wait(this.#words, VcpuWord.PROBED, probed, left);
    }
  }

  /** Of its thread, for the system; undefined where that has none. */
  get threadId(): number | undefined {
    return this.#threadId;
  }

  /**
   * Ends program and thread, wherever it stands. After this nobody of it touches guest memory.
   * @param onTold called when it is bound to end: one that waits for a missing page may be let go then.
   */
  async end(onTold?: () => void): Promise<void> {
    this.onFailure = () => {}; // it was asked for
    this.#thread.off("message", this.#onMessage);
    this.#thread.off("exit", this.#onExit);
    this.#thread.on("error", () => {}).off("error", this.#onError); // an error while it ends has nobody left to concern
    Atomics.store(this.#words, VcpuWord.REQUEST, VcpuRequest.End);
    Atomics.notify(this.#words, VcpuWord.REQUEST);
    wake(this.#words);
    await this.#thread.terminate(onTold);
    this.#fail(new MigrationError("ERR_WORKLOAD_FAILED", `${this.#name}: ended`));
  }

  #ask(message: ToVcpu, answer: FromVcpu["type"]): Promise<FromVcpu> {
    const answered = this.#expect(answer);
    this.#thread.postMessage(message);
    return answered;
  }

  #expect(type: FromVcpu["type"]): Promise<FromVcpu> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const earlier = this.#waiting.get(type); // the same answer is for both
    return new Promise((resolve, reject) =>
      this.#waiting.set(type, {
        resolve: (message) => {
          earlier?.resolve(message);
          resolve(message);
        },
        reject: (error) => {
          earlier?.reject(error);
          reject(error);
        },
      }),
    );
  }

  #settle(type: FromVcpu["type"], outcome: FromVcpu | MigrationError): void {
    const pending = this.#waiting.get(type);
    this.#waiting.delete(type);
    if (outcome instanceof MigrationError) pending?.reject(outcome);
    else pending?.resolve(outcome);
  }

  #receive(message: FromVcpu): void {
    if (message.type === "kick") this.onKick();
    else if (message.type === "ticked") this.onTicked(message.gapMs);
    else if (message.type === "failed")
      this.#fail(new MigrationError("ERR_WORKLOAD_FAILED", `${this.#name}: ${message.message}`, { cause: message.stack }));
    else if (message.type === "unsaved") {
      if (message.pause === this.#pause)
        this.#settle("paused", new MigrationError("ERR_WORKLOAD_FAILED", `${this.#name}: save(): ${message.message}`));
    } else if (message.type !== "paused" || message.pause === this.#pause) this.#settle(message.type, message);
  }

  #fail(error: MigrationError): void {
    const isFirst = this.#failure === undefined;
    this.#failure ??= error;
    for (const type of [...this.#waiting.keys()]) this.#settle(type, error);
    if (isFirst) this.onFailure(error);
  }
}
