import { NativeThread } from "@precopy/linux";
import { MigrationError } from "@precopy/protocol";
import type { AuditResult } from "@precopy/protocol";
import type { Bitmap } from "./bitmap.js";
import type { SharedBarrier } from "./dirty-log-barrier.js";
import type { GuestMemory } from "./guest-memory.js";
import type { DirtyLogOptions, MemoryReply, MemoryTask } from "./memory-thread.js";
import type { HashTable } from "./page-hashes.js";

/** The main thread's end of memory-thread.ts: the dirty log of the guest here, its audit, and its end. One task after another. */
export class MemoryService {
  readonly #thread = new NativeThread(new URL("./memory-thread.js", import.meta.url), { resourceLimits: { maxYoungGenerationSizeMb: 4 } });
  readonly #waiting = new Map<number, { resolve: (reply: MemoryReply & { ok: true }) => void; reject: (error: Error) => void }>();
  readonly #options: DirtyLogOptions;
  #id = 0;
  #end: MigrationError | undefined;

  /** @param options by default the dirty log loses nothing, and lists what is populated. */
  constructor({ forgetEvery = 0, firstList = "populated" }: Partial<DirtyLogOptions> = {}) {
    this.#options = { forgetEvery, firstList };
    this.#thread.on("message", (reply: MemoryReply) => {
      const pending = this.#waiting.get(reply.id);
      this.#waiting.delete(reply.id);
      if (reply.ok) pending?.resolve(reply);
      else pending?.reject(new MigrationError(reply.code, reply.message));
    });
    const fail = (cause: unknown): void => {
      this.#end ??= new MigrationError("ERR_INTERNAL", "The memory thread ended", { cause });
      for (const { reject } of this.#waiting.values()) reject(this.#end);
      this.#waiting.clear();
    };
    this.#thread.on("error", fail);
    this.#thread.on("exit", fail);
  }

  /** The guest whose memory the other calls mean. @param barrier given for the barrier log, undefined for mmu. */
  async attach(memory: GuestMemory, barrier: SharedBarrier | undefined): Promise<void> {
    await this.#perform({ task: "attach", memory: memory.share(), barrier, ...this.#options });
  }

  /** See DirtyLog.start. `into` belongs to the dirty log until this resolves with the ms it took. */
  async start(into: Bitmap): Promise<number> {
    return (await this.#perform({ task: "start", into: into.words })).ms;
  }

  /** See DirtyLog.collect. */
  async collect(into: Bitmap, known?: Bitmap): Promise<number> {
    return (await this.#perform({ task: "collect", into: into.words, known: known?.words })).ms;
  }

  /** See DirtyLog.peek. */
  async peek(into: Bitmap): Promise<number> {
    return (await this.#perform({ task: "peek", into: into.words })).ms;
  }

  /** Adds what a first round would have to look at, and changes nothing. Resolves with the ms it took. */
  async list(into: Bitmap): Promise<number> {
    return (await this.#perform({ task: "list", into: into.words })).ms;
  }

  /** Watches these pages, and no others, until `unwatch`. Not while the dirty log is armed. */
  async watch(pages: Bitmap): Promise<void> {
    await this.#perform({ task: "watch", pages: pages.words });
  }

  /** Adds the watched pages that were written since `watch`. */
  async look(into: Bitmap): Promise<void> {
    await this.#perform({ task: "look", into: into.words });
  }

  async unwatch(): Promise<void> {
    await this.#perform({ task: "unwatch" });
  }

  async stop(): Promise<void> {
    await this.#perform({ task: "stop" });
  }

  /** Compares the frozen image with the hashes of what was sent. */
  async audit(hashes: HashTable): Promise<AuditResult> {
    const { audit } = await this.#perform({ task: "audit", hashes });
    if (audit === undefined) throw new MigrationError("ERR_INTERNAL", "The audit gave no result");
    return audit;
  }

  /** The digest of the frozen image as it is. The table is overwritten. */
  async digest(hashes: HashTable): Promise<bigint> {
    return this.#digested({ task: "digest", hashes });
  }

  /** The digest of an image by the hashes of its pages, which were renewed as they were stored. */
  async digestOfHashes(hashes: HashTable): Promise<bigint> {
    return this.#digested({ task: "digest-of-hashes", hashes });
  }

  async #digested(task: MemoryTask): Promise<bigint> {
    const { digest } = await this.#perform(task);
    if (digest === undefined) throw new MigrationError("ERR_INTERNAL", "No digest was made");
    return digest;
  }

  /** Lets go of these pages, whatever they hold, and of their hashes; nobody may be storing on them. */
  async discard(pages: Bitmap, hashes: HashTable | undefined): Promise<void> {
    await this.#perform({ task: "discard", pages: pages.words, hashes });
  }

  /** Gives the guest's pages back to the system. Nobody may run on them any more. */
  async free(): Promise<void> {
    await this.#perform({ task: "free" });
  }

  async detach(): Promise<void> {
    await this.#perform({ task: "detach" });
  }

  async end(): Promise<void> {
    await this.#thread.terminate();
  }

  #perform(task: MemoryTask): Promise<MemoryReply & { ok: true }> {
    if (this.#end !== undefined) return Promise.reject(this.#end);
    const id = ++this.#id;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#thread.postMessage({ ...task, id });
    });
  }
}
