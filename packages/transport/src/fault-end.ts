import { parentPort } from "node:worker_threads";
import { Socket } from "node:net";
import { GuestMemory } from "@precopy/guest";
import type { SharedMemory } from "@precopy/guest";
import { MigrationError } from "@precopy/protocol";
import type { ErrorCode } from "@precopy/protocol";
import { FaultHandler } from "./fault-handler.js";
import type { FromFaultHandler, ToFaultHandler } from "./fault-handler.js";
import { serveFaultsDirect, serveFaultsPortable } from "./fault-server.js";
import type { ServedPages } from "./fault-server.js";
import { ChannelStopped } from "./page-store.js";
import type { PumpKind } from "./pump.js";
import { closedTooEarly } from "./take-descriptor.js";

/** Serves one fault channel until it ends. */
export interface ServeFaults {
  readonly type: "serve-faults";
  readonly pump: PumpKind;
  /** Undefined where the end has its socket already. */
  readonly fd: number | undefined;
  readonly memory: SharedMemory;
  readonly served: ServedPages;
  /** One word: other than zero tells a blocked thread to stop. */
  readonly stop: Int32Array;
}
export type ToFaultEnd = ServeFaults | ToFaultHandler;
export type FromFaultEnd =
  | { readonly type: "serving-ended"; readonly code: ErrorCode | undefined; readonly message: string }
  | FromFaultHandler;

/** One end of a fault channel, on whichever thread it lives. */
export class FaultEnd {
  readonly #reply: (message: FromFaultEnd) => void;
  readonly #socket: Socket | undefined;

  /** @param socket in place of a descriptor: with TLS, and on the main thread, where none can be taken over. */
  constructor(reply: (message: FromFaultEnd) => void, socket: Socket | undefined) {
    this.#reply = reply;
    this.#socket = socket;
  }

  handle(message: ToFaultEnd): void {
    if (message.type === "serve-faults") void this.#serve(message);
    else if (message.type === "handle-faults" && parentPort !== null) new FaultHandler(parentPort, message).run();
  }

  #socketOf(fd: number | undefined): Socket {
    if (this.#socket?.destroyed === false) return this.#socket;
    if (fd === undefined) throw closedTooEarly(); // what there was of it tells nobody any more
    return new Socket({ fd, readable: true, writable: true });
  }

  async #serve({ pump, fd, memory, served, stop }: ServeFaults): Promise<void> {
    const service = { memory: new GuestMemory(memory), served };
    const mayGoOn = (): boolean => Atomics.load(stop, 0) === 0;
    try {
      if (pump === "direct" && fd !== undefined) serveFaultsDirect(fd, service, mayGoOn);
      else await serveFaultsPortable(this.#socketOf(fd), service, mayGoOn);
      this.#reply({ type: "serving-ended", code: undefined, message: "" });
    } catch (thrown) {
      const { code, message } = MigrationError.from(thrown);
      this.#reply({ type: "serving-ended", code: thrown instanceof ChannelStopped ? undefined : code, message });
    }
  }
}
