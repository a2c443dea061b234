import type { Socket } from "node:net";
import type { HashTable, SharedMemory } from "@precopy/guest";
import { Bell } from "@precopy/linux";
import type { NativeThread, SocketHandle } from "@precopy/linux";
import { MigrationError } from "@precopy/protocol";
import type { FaultStatistics } from "@precopy/protocol";
import { FaultEnd } from "./fault-end.js";
import type { FromFaultEnd, ToFaultEnd } from "./fault-end.js";
import type { ServedPages } from "./fault-server.js";
import type { ChannelThreads } from "./channel-threads.js";
import { switchingToFaults } from "./page-channel.js";
import type { ChannelSocket } from "./page-channel.js";
import type { PumpKind } from "./pump.js";
import { SecuredSocket } from "./secured-socket.js";
import { closedTooEarly, mayTakeDescriptor, takeDescriptor } from "./take-descriptor.js";

/** The source's end of one life of a fault channel: answers whatever the target asks for. */
export class FaultServing {
  readonly #threads: ChannelThreads;
  readonly #thread: NativeThread | undefined;
  readonly #handle: SocketHandle | undefined;
  readonly #socket: Socket | undefined;
  readonly #stop = new Int32Array(new SharedArrayBuffer(4));
  readonly #ended: Promise<void>;
  #markEnded: () => void = () => {};
  #isOver = false;
  #isEnding = false;
  /** Why it ended without being told to. */
  failure: MigrationError | undefined;
  /** It ended without being told to. */
  onFailure: (error: MigrationError) => void = () => {};

  private constructor(
    threads: ChannelThreads,
    thread: NativeThread | undefined,
    handle: SocketHandle | undefined,
    socket: Socket | undefined,
  ) {
    this.#threads = threads;
    this.#handle = handle;
    this.#socket = socket;
    this.#thread = thread;
    this.#thread?.on("message", this.#onMessage).on("error", this.#onError);
    this.#ended = new Promise((resolve) => {
      this.#markEnded = resolve;
    });
  }

  /** @param socket from connectFaultChannel. @param memory of a guest that stands still here. @throws {MigrationError} ERR_LINK_LOST */
  static async open(
    socket: ChannelSocket,
    threads: ChannelThreads,
    pump: PumpKind,
    memory: SharedMemory,
    served: ServedPages,
  ): Promise<FaultServing> {
    if (socket.destroyed) throw closedTooEarly();
    const order = { type: "serve-faults", pump, memory, served } as const;
    if (socket instanceof SecuredSocket) {
      const { thread, handle } = socket.release();
      const serving = new FaultServing(threads, thread, handle, undefined);
      thread.postMessage({ ...order, pump: "portable", fd: undefined, stop: serving.#stop } satisfies ToFaultEnd);
      return serving;
    }
    const handle = mayTakeDescriptor(socket) ? await takeDescriptor(socket) : undefined;
    const serving = new FaultServing(threads, handle && threads.take(), handle, socket);
    const fd = handle === undefined ? undefined : pump === "direct" ? handle.fd : handle.duplicate(); // a socket of Node's closes its own
    const whole: ToFaultEnd = { ...order, fd, stop: serving.#stop };
    if (serving.#thread !== undefined) serving.#thread.postMessage(whole);
    else new FaultEnd((message) => serving.#receive(message), socket).handle(whole);
    return serving;
  }

  /** Ends it wherever it stands. */
  async end(): Promise<void> {
    this.#isEnding = true;
    if (!this.#isOver) {
      Atomics.store(this.#stop, 0, 1);
      this.#handle?.shutdown();
      this.#socket?.destroy();
    }
    await this.#ended;
  }

  readonly #onMessage = (message: FromFaultEnd): void => this.#receive(message);
  readonly #onError = (cause: Error): void => this.#receive({ type: "serving-ended", code: "ERR_INTERNAL", message: cause.message }, true);

  #receive(message: FromFaultEnd, isThreadGone = false): void {
    if (message.type !== "serving-ended" || this.#isOver) return;
    this.#isOver = true;
    this.#handle?.close();
    this.#thread?.off("message", this.#onMessage).off("error", this.#onError);
    if (this.#thread !== undefined && !isThreadGone) this.#threads.give(this.#thread);
    this.#markEnded();
    if (this.#isEnding) return;
    this.failure = new MigrationError(message.code ?? "ERR_LINK_LOST", message.message || "The fault channel was closed");
    this.onFailure(this.failure);
  }
}

/** What a target has to say of the guest whose faults are handled. */
export interface FaultOrder {
  /** Of UserFaults. */
  readonly descriptor: number;
  readonly memory: SharedMemory;
  readonly table: HashTable | undefined;
  readonly missing: Uint32Array;
  readonly populated: Uint32Array;
  /** The vCPUs' threads, by their numbers for the system. */
  readonly threads: readonly number[];
}

/** The target's hold on the thread that stands at missing pages, through all lives of the fault channel. */
export class FaultHandling {
  readonly #threads: ChannelThreads;
  readonly #thread: NativeThread;
  readonly #bell = new Bell();
  readonly #handles = new Map<number, SocketHandle>();
  readonly #ended: Promise<FaultStatistics | undefined>;
  #markEnded: (faults: FaultStatistics | undefined) => void = () => {};
  #isOver = false;
  /** A life of the channel is over; the guest waits for the next one. */
  onLost: (generation: number, error: MigrationError) => void = () => {};
  /** Nobody stands at the missing pages any more, though nobody said so: vCPUs that need one wait for ever. */
  onFailure: (error: MigrationError) => void = () => {};

  constructor(threads: ChannelThreads, order: FaultOrder) {
    this.#threads = threads;
    this.#thread = threads.take();
    this.#ended = new Promise((resolve) => {
      this.#markEnded = resolve;
    });
    this.#thread.on("message", this.#onMessage).on("error", this.#onError);
    this.#tell({ type: "handle-faults", bell: this.#bell.descriptor, ...order });
  }

  /** @param socket on which the Upgrade to a fault channel has come, and nothing else. @throws {MigrationError} ERR_LINK_LOST */
  async connect(generation: number, socket: ChannelSocket): Promise<void> {
    const handle = socket instanceof SecuredSocket ? socket.relay() : await takeDescriptor(socket);
    if (this.#isOver) return handle.close();
    this.#handles.set(generation, handle);
    this.#tell({ type: "fault-channel", generation, fd: handle.fd, answer: switchingToFaults() });
  }

  /** Only when nothing is missing, or when all who may wait were told to end. Undefined if its thread has crashed. */
  async end(): Promise<FaultStatistics | undefined> {
    if (!this.#isOver) this.#tell({ type: "end" });
    return this.#ended;
  }

  #tell(message: ToFaultEnd): void {
    this.#thread.postMessage(message);
    this.#bell.ring();
  }

  readonly #onMessage = (message: FromFaultEnd): void => {
    if (message.type === "fault-channel-lost") {
      this.#handles.get(message.generation)?.close();
      this.#handles.delete(message.generation);
      this.onLost(message.generation, new MigrationError(message.code, message.message));
    } else if (message.type === "faults-ended") {
      this.#release(message.faults, true);
      if (message.error !== undefined) this.onFailure(new MigrationError(message.error.code, message.error.message));
    }
  };
  readonly #onError = (cause: Error): void => {
    this.#release(undefined, false);
    this.onFailure(new MigrationError("ERR_INTERNAL", "The thread that handles faults ended", { cause }));
  };

  #release(faults: FaultStatistics | undefined, isThreadThere: boolean): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#thread.off("message", this.#onMessage).off("error", this.#onError);
    if (isThreadThere) this.#threads.give(this.#thread);
    for (const handle of this.#handles.values()) handle.close();
    this.#handles.clear();
    this.#bell.close();
    this.#markEnded(faults);
  }
}
