import { PagePlacing, UserFaults, addressOf, adviseHugePages, isLinuxAvailable } from "@precopy/linux";
import { PAGE_BYTES } from "@precopy/protocol";
import { Bitmap } from "./bitmap.js";
import type { GuestMemory } from "./guest-memory.js";
import { newSharedMemory } from "./webassembly.js";

/** The pages of a guest that are not here, in post-copy: whoever touches one stops there until it is placed. Devices must not. */
export class MissingPages {
  readonly #memory: GuestMemory;
  /** Shared; its bits are cleared by whoever places the pages. */
  readonly bitmap: Bitmap;
  /** One shared word: 0, or one more than the descriptor that pages are placed by. */
  readonly listening = new Int32Array(new SharedArrayBuffer(4));
  #faults: UserFaults | undefined;
  #isOver = false;

  /** @param memory with nothing in it yet. From here on the kernel makes no huge pages of it: one store would make 512 pages present. */
  constructor(memory: GuestMemory) {
    this.#memory = memory;
    this.bitmap = new Bitmap(memory.pages);
    for (const { address, bytes } of memory.ranges()) adviseHugePages(address, bytes, false);
  }

  /** Stops every thread at missing pages from now on. @returns the descriptor to place pages by. @throws {MigrationError} ERR_SYSTEM_CALL */
  listen(): number {
    this.#faults ??= new UserFaults(this.#memory.ranges());
    Atomics.store(this.listening, 0, this.#faults.descriptor + 1);
    return this.#faults.descriptor;
  }

  /** Some of the guest's memory may be missing. */
  get isListening(): boolean {
    return this.#faults !== undefined && !this.#isOver;
  }

  /** Lets go, see UserFaults.close: only when nothing is missing any more, or when every vCPU was told to end. */
  close(): void {
    this.#isOver = true;
    this.#faults?.close();
  }
}

let answer: { readonly why: string | undefined } | undefined;

/** Undefined if it works here, else why not. Found by doing it, once: places a page of its own. */
export function whyNoMissingPages(): string | undefined {
  answer ??= { why: tryMissingPages() };
  return answer.why;
}

function tryMissingPages(): string | undefined {
  if (!isLinuxAvailable) return `no system calls on ${process.platform} ${process.arch}`;
  try {
    const memory = new Uint8Array(newSharedMemory(64 * 1024).buffer);
    const address = addressOf(memory);
    const faults = new UserFaults([{ address, bytes: memory.byteLength }]);
    try {
      const page = new Uint8Array(PAGE_BYTES).fill(7);
      const placed = new PagePlacing(faults.descriptor).copy(Number(address), Number(addressOf(page)), PAGE_BYTES);
      return placed === PAGE_BYTES && memory[0] === 7 ? undefined : "the kernel did not place a page where one was missing";
    } finally {
      faults.close();
    }
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
