import { PagemapScanner, WriteProtection, addressOf, hostPageBytes, isLinuxAvailable } from "@precopy/linux";
import type { AddressRange, VisitRun } from "@precopy/linux";
import { MigrationError, PAGE_BYTES } from "@precopy/protocol";
import { Bitmap } from "./bitmap.js";
import type { DirtyLog, FirstList } from "./dirty-log.js";
import { newSharedMemory } from "./webassembly.js";

/**
 * Written pages, told by the processor: asynchronous write protection (userfaultfd) and PAGEMAP_SCAN. The writer needs no change and
 * cannot forget. Cost to the guest: about 1 us for the first write to a page after each collection.
 */
export class MmuDirtyLog implements DirtyLog {
  readonly kind = "mmu";
  readonly #ranges: readonly AddressRange[];
  readonly #firstList: FirstList;
  #armed: { readonly protection: WriteProtection; readonly scanner: PagemapScanner } | undefined;

  /** @param ranges page-aligned, in the order of the page index. */
  constructor(ranges: readonly AddressRange[], firstList: FirstList = "populated") {
    this.#ranges = ranges;
    this.#firstList = firstList;
  }

  start(into: Bitmap): void {
    if (this.#armed !== undefined) throw new MigrationError("ERR_ALREADY_TRACKING", "The dirty log is in use");
    const scanner = new PagemapScanner();
    try {
      this.#armed = { protection: new WriteProtection(this.#ranges), scanner };
    } catch (error) {
      scanner.close();
      throw error;
    }
    try {
      // Fresh from registration nothing is protected, so every populated page counts as written: this scan lists and arms at once.
      // A page mapped to the kernel's page of zeros is armed by it and holds nothing to send.
      if (this.#firstList === "populated")
        this.#visit(
          (range, visit) => scanner.takeWritten(range, visit),
          (first, pages, isZeroPage) => {
            if (!isZeroPage) into.setRun(first, pages);
          },
        );
      else this.#takeAll(into);
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  collect(into: Bitmap, known?: Bitmap): void {
    if (this.#armed === undefined) throw new MigrationError("ERR_NOT_TRACKING", "collect() before start()");
    const { scanner } = this.#armed;
    // From here on a page of zeros may stand where data was sent before, so it is listed like any other.
    this.#visit(
      (range, visit, base) => {
        const take = (first: number, pages: number): void =>
          scanner.takeWritten(
            { address: range.address + BigInt((first - base) * PAGE_BYTES), bytes: pages * PAGE_BYTES },
            (at, run, isZeroPage) => visit(first - base + at, run, isZeroPage),
          );
        const pages = range.bytes / PAGE_BYTES;
        if (known === undefined) take(base, pages);
        else known.forEachUnfilled(base, base + pages, take);
      },
      (first, pages) => into.setRun(first, pages),
    );
  }

  /** Protected while it is still unpopulated, or else the next collection would list all that the sender is about to read. */
  #takeAll(into: Bitmap): void {
    this.#armed?.protection.protectAll(this.#ranges);
    into.setRun(0, into.pages);
  }

  peek(into: Bitmap): void {
    if (this.#armed === undefined) throw new MigrationError("ERR_NOT_TRACKING", "peek() before start()");
    const { scanner } = this.#armed;
    this.#visit(
      (range, visit) => scanner.listWritten(range, visit),
      (first, pages) => into.setRun(first, pages),
    );
  }

  /** All ranges, with pages counted over all of them. */
  #visit(scan: (range: AddressRange, visit: VisitRun, base: number) => void, visit: VisitRun): void {
    let base = 0;
    for (const range of this.#ranges) {
      scan(range, (first, pages, isZeroPage) => visit(base + first, pages, isZeroPage), base);
      base += range.bytes / PAGE_BYTES;
    }
  }

  stop(): void {
    this.#armed?.protection.close();
    this.#armed?.scanner.close();
    this.#armed = undefined;
  }
}

const COSTED_BYTES = 2 * 2 ** 20;

/** What the first write to an armed page costs the writer here and now, ms; measured on memory of its own. @throws {MigrationError} ERR_SYSTEM_CALL */
export function firstWriteMs(): number {
  costed ??= new Uint8Array(newSharedMemory(COSTED_BYTES).buffer).fill(1); // V8 never gives shared memory back
  const pages = COSTED_BYTES / PAGE_BYTES;
  const log = new MmuDirtyLog([{ address: addressOf(costed), bytes: COSTED_BYTES }]);
  log.start(new Bitmap(pages));
  const started = performance.now();
  for (let at = 0; at < COSTED_BYTES; at += PAGE_BYTES) costed[at]!++;
  const ms = performance.now() - started;
  log.stop();
  return ms / pages;
}
let costed: Uint8Array | undefined;

/** Undefined if it works here, else why not. Found by doing it: arms one page, writes it, and looks whether the log saw it. */
export function whyNoMmuDirtyLog(): string | undefined {
  if (!isLinuxAvailable) return `no system calls on ${process.platform} ${process.arch}`;
  try {
    if (hostPageBytes() !== PAGE_BYTES) return `host pages of ${hostPageBytes()} B`;
    const memory = newSharedMemory(64 * 1024);
    const view = new Uint8Array(memory.buffer);
    const range = { address: addressOf(view), bytes: view.byteLength };
    const protection = new WriteProtection([range]);
    const scanner = new PagemapScanner();
    try {
      const written = (): number[] => {
        const seen: number[] = [];
        scanner.takeWritten(range, (first, pages) => seen.push(first, pages));
        return seen;
      };
      view[5 * PAGE_BYTES] = 1;
      const first = written();
      const quiet = written();
      view[5 * PAGE_BYTES + 1] = 1;
      const again = written();
      const isRight = first.join() === "5,1" && quiet.length === 0 && again.join() === "5,1";
      return isRight ? undefined : `the kernel told ${first.join()} / ${quiet.join()} / ${again.join()} for one written page`;
    } finally {
      protection.close();
      scanner.close();
    }
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
