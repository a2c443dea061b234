import { BROADCAST_MAC, MigrationError, PAGE_BYTES } from "@precopy/protocol";
import {
  LEDGER_CLIENTS_MAX,
  LEDGER_REGION_BYTES,
  LEDGER_SLOT_BYTES,
  LEDGER_WINDOW_IDS,
  LedgerKind,
  decodeLedgerFrame,
  encodeLedgerFrame,
} from "../ledger-frames.js";
import type { LedgerFrame } from "../ledger-frames.js";
import type { Program, Workload, WorkloadContext } from "../workload.js";

/** Frames a step answers at most, so that a step stays short. */
const BATCH = 16;
/** A frame that arrives ends the rest sooner. */
const REST_MS = 1000;
/** How soon a reply that found the transmit ring full is tried again. */
const RETRY_MS = 1;

/**
 * Its region, u32 words: 0 counter | 4 clients known | 8 their numbers, LEDGER_CLIENTS_MAX of them; then from the next page on a window a
 * client, LEDGER_WINDOW_IDS slots of request id and result; request `id` has slot `id` modulo the window, id 0 is a slot never used.
 */
const CLIENTS_AT = 4;
const NUMBERS_AT = 8;
const WINDOWS_AT = PAGE_BYTES;

/**
 * A counter that outside clients add to, exactly once a request id, however often they repeat it. All its state is in guest memory: what a
 * migration loses or runs twice shows in the counter or in the results. The counter and the ids are u32: the counter wraps, and a client
 * has used up its ids after 49 days of one a millisecond. Option: mac (the guest's card). Without a card it idles.
 */
class Ledger implements Program {
  readonly #context: WorkloadContext;
  readonly #mac: string;
  /**
   * A reply that found the transmit ring full; nothing is received until it is sent. It is not in `save()`: a pause between two steps may
   * lose a reply, never what it reports, and the client repeats the request by its id and gets the stored result.
   */
  #unsent: Uint8Array | undefined;

  /** @throws {MigrationError} ERR_PARAMETER without the option `mac`, or in a region that is too small. */
  constructor(context: WorkloadContext) {
    const mac = context.options["mac"];
    if (context.nic !== undefined && typeof mac !== "string") throw new MigrationError("ERR_PARAMETER", "ledger: option mac is missing");
    if (context.nic !== undefined && context.region.bytes < LEDGER_REGION_BYTES)
      throw new MigrationError("ERR_PARAMETER", `ledger: its region has ${context.region.bytes} B; it takes ${LEDGER_REGION_BYTES} B`);
    this.#context = context;
    this.#mac = String(mac);
  }

  step(): number {
    const { nic } = this.#context;
    if (nic === undefined) return REST_MS;
    if (this.#unsent !== undefined && !nic.send(this.#unsent)) return RETRY_MS;
    this.#unsent = undefined;
    for (let handled = 0; handled < BATCH; handled++) {
      const frame = nic.receive();
      if (frame === undefined) return REST_MS;
      const reply = this.#answer(decodeLedgerFrame(frame));
      if (reply === undefined || nic.send(reply)) continue;
      this.#unsent = reply;
      return RETRY_MS;
    }
    return 0;
  }

  /** Undefined for what is no request to this guest. */
  #answer(request: LedgerFrame | undefined): Uint8Array | undefined {
    if (request === undefined || (request.targetMac !== this.#mac && request.targetMac !== BROADCAST_MAC)) return undefined;
    const reply = (kind: LedgerKind, value: number): Uint8Array =>
      encodeLedgerFrame({ ...request, targetMac: request.sourceMac, sourceMac: this.#mac, kind, value });
    if (request.kind === LedgerKind.Read) return reply(LedgerKind.Value, this.#context.memory.loadU32(this.#context.region.start));
    if (request.kind !== LedgerKind.Apply) return undefined;
    const result = this.#apply(request);
    return result === undefined ? reply(LedgerKind.Refused, 0) : reply(LedgerKind.Applied, result);
  }

  /** The counter after this request, now or when it first came; undefined if its slot is a later one's, or the client is one too many. */
  #apply({ client, id, value }: LedgerFrame): number | undefined {
    const { memory, region } = this.#context;
    const window = this.#windowOf(client);
    if (window === undefined) return undefined;
    const slot = window + (id % LEDGER_WINDOW_IDS) * LEDGER_SLOT_BYTES;
    const stored = memory.loadU32(slot);
    if (stored === id) return memory.loadU32(slot + 4);
    if (stored > id) return undefined;
    const counter = (memory.loadU32(region.start) + value) >>> 0;
    memory.storeU32(region.start, counter);
    memory.storeU32(slot + 4, counter);
    memory.storeU32(slot, id);
    return counter;
  }

  /** Guest address of a client's window; a new client gets the next one as long as there is one. */
  #windowOf(client: number): number | undefined {
    const { memory, region } = this.#context;
    const known = Math.min(memory.loadU32(region.start + CLIENTS_AT), LEDGER_CLIENTS_MAX);
    let at = 0;
    while (at < known && memory.loadU32(region.start + NUMBERS_AT + at * 4) !== client) at++;
    if (at === LEDGER_CLIENTS_MAX) return undefined;
    if (at === known) {
      memory.storeU32(region.start + NUMBERS_AT + at * 4, client);
      memory.storeU32(region.start + CLIENTS_AT, at + 1);
    }
    return region.start + WINDOWS_AT + at * LEDGER_WINDOW_IDS * LEDGER_SLOT_BYTES;
  }

  save(): null {
    return null;
  }

  load(): void {}
}

const ledger: Workload = { create: (context) => new Ledger(context) };
export default ledger;
