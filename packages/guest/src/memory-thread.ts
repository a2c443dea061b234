import { parentPort } from "node:worker_threads";
import { PIECES_MAX, PagemapScanner, Pieces, adviseHugePages, freePages, freePieces, isLinuxAvailable, trimHeap } from "@precopy/linux";
import { MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { AuditResult, ErrorCode } from "@precopy/protocol";
import { Bitmap } from "./bitmap.js";
import { BarrierDirtyLog } from "./dirty-log-barrier.js";
import type { SharedBarrier } from "./dirty-log-barrier.js";
import { ForgetfulDirtyLog } from "./dirty-log-forgetful.js";
import { MmuDirtyLog } from "./dirty-log-mmu.js";
import { partialDirtyLog } from "./dirty-log-partial.js";
import type { DirtyLog, FirstList } from "./dirty-log.js";
import { GuestMemory } from "./guest-memory.js";
import type { SharedMemory } from "./guest-memory.js";
import { PageHashes } from "./page-hashes.js";
import type { HashTable } from "./page-hashes.js";

/** What tests and benches may ask of a dirty log. */
export interface DirtyLogOptions {
  /** 0, or how many written pages it takes until the dirty log loses one: only to see that it is found out. */
  readonly forgetEvery: number;
  readonly firstList: FirstList;
}

/** Everything that walks a whole guest: it runs here, so that the main thread goes on serving control and network card. */
export type MemoryTask =
  | ({ readonly task: "attach"; readonly memory: SharedMemory; readonly barrier: SharedBarrier | undefined } & DirtyLogOptions)
  | { readonly task: "start" | "peek" | "list" | "look"; readonly into: Uint32Array }
  | { readonly task: "collect"; readonly into: Uint32Array; readonly known: Uint32Array | undefined }
  | { readonly task: "watch"; readonly pages: Uint32Array }
  | { readonly task: "stop" | "unwatch" | "free" | "detach" }
  | { readonly task: "audit" | "digest" | "digest-of-hashes"; readonly hashes: HashTable }
  | { readonly task: "discard"; readonly pages: Uint32Array; readonly hashes: HashTable | undefined };
export type MemoryRequest = MemoryTask & { readonly id: number };
export type MemoryReply =
  | {
      readonly id: number;
      readonly ok: true;
      readonly ms: number;
      readonly audit: AuditResult | undefined;
      readonly digest: bigint | undefined;
    }
  | { readonly id: number; readonly ok: false; readonly code: ErrorCode; readonly message: string };

const port = parentPort;
if (port === null) throw new Error("memory-thread.js runs as a worker");

let memory: GuestMemory | undefined;
let barrier: SharedBarrier | undefined;
let log: DirtyLog | undefined;
/** Of some pages, while nothing is migrated. */
let watching: DirtyLog | undefined;

function attached(): { memory: GuestMemory; log: DirtyLog } {
  if (memory === undefined || log === undefined) throw new MigrationError("ERR_NO_GUEST", "No guest memory is attached");
  return { memory, log };
}

/** Adds every page that holds something, from the page tables where they can be asked; else every page there is. */
function listPopulated(guest: GuestMemory, populated: Bitmap): void {
  try {
    const scanner = new PagemapScanner();
    try {
      for (let at = 0, page = 0; at < guest.views.length; page += guest.views[at++]!.byteLength / PAGE_BYTES) {
        const base = page;
        scanner.listPopulated(guest.ranges()[at]!, (first, pages, isZeroPage) => {
          if (!isZeroPage) populated.setRun(base + first, pages);
        });
      }
    } finally {
      scanner.close();
    }
  } catch {
    populated.setRun(0, guest.pages); // no PAGEMAP_SCAN on this kernel: read everything
  }
}

/** What a first round would have to look at: as the dirty log would list it, and without arming it. */
function list(guest: GuestMemory, into: Bitmap): void {
  if (barrier === undefined) listPopulated(guest, into);
  else into.join(new Bitmap(guest.pages, barrier.populated));
}

/**
 * Compares every page of a frozen image with its hash. Unlike the digest this sees a write that the dirty log lost: there the hash is
 * that of the version sent, and the image has a newer one.
 */
function audit(guest: GuestMemory, table: HashTable): AuditResult {
  const started = performance.now();
  const hashes = new PageHashes(guest, table);
  const populated = new Bitmap(guest.pages);
  listPopulated(guest, populated);
  let mismatched = 0;
  // A page that was sent with data and holds nothing any more was lost just the same.
  for (let page = 0; page < guest.pages; page++)
    if ((table[2 * page] !== 0 || table[2 * page + 1] !== 0) && !populated.has(page)) mismatched++;
  populated.forEachRun((first, pages) => {
    for (let page = first; page < first + pages; page++) if (!hashes.matches(page)) mismatched++;
  });
  return { pages: populated.count(), mismatched, ms: performance.now() - started };
}

/** What the frozen image holds, whatever was sent of it. The table is overwritten. */
function digest(guest: GuestMemory, table: HashTable): bigint {
  const hashes = new PageHashes(guest, table.fill(0));
  const populated = new Bitmap(guest.pages);
  listPopulated(guest, populated);
  populated.forEachRun((first, pages) => {
    for (let page = first; page < first + pages; page++) if (!hashes.isZeroPage(page)) hashes.renew(page, 1);
  });
  return hashes.digest();
}

/** Gives back what is here of these pages, and forgets their hashes. */
function discard(guest: GuestMemory, pages: Bitmap, table: HashTable | undefined): void {
  const pieces = new Pieces(PIECES_MAX);
  let count = 0;
  const free = (): void => {
    freePieces(pieces, count);
    count = 0;
  };
  pages.forEachRun((first, run) => {
    pieces.set(count++, guest.addressOf(first), run * PAGE_BYTES); // of one stripe, and so of one segment
    if (count === PIECES_MAX) free();
    table?.fill(0, 2 * first, 2 * (first + run));
  });
  free();
}

function perform(request: MemoryTask): AuditResult | bigint | undefined {
  switch (request.task) {
    case "attach": {
      if (memory !== undefined) throw new MigrationError("ERR_INTERNAL", "The memory of another guest is attached");
      const { forgetEvery, firstList } = request;
      memory = new GuestMemory(request.memory);
      barrier = request.barrier;
      log = barrier === undefined ? new MmuDirtyLog(memory.ranges(), firstList) : new BarrierDirtyLog(barrier, firstList);
      if (forgetEvery > 0) log = new ForgetfulDirtyLog(log, forgetEvery, memory.pages);
      return undefined;
    }
    case "start":
      attached().log.start(new Bitmap(attached().memory.pages, request.into));
      return undefined;
    case "collect": {
      const { pages } = attached().memory;
      attached().log.collect(new Bitmap(pages, request.into), request.known && new Bitmap(pages, request.known));
      return undefined;
    }
    case "peek":
      attached().log.peek(new Bitmap(attached().memory.pages, request.into));
      return undefined;
    case "stop":
      attached().log.stop();
      return undefined;
    case "list":
      list(attached().memory, new Bitmap(attached().memory.pages, request.into));
      return undefined;
    case "watch":
      watching = partialDirtyLog(attached().memory, barrier, new Bitmap(attached().memory.pages, request.pages));
      watching.start(new Bitmap(attached().memory.pages)); // what is there already is not of interest
      return undefined;
    case "look":
      watching?.peek(new Bitmap(attached().memory.pages, request.into));
      return undefined;
    case "unwatch":
      watching?.stop();
      watching = undefined;
      return undefined;
    case "free":
      for (const view of attached().memory.views) if (!isLinuxAvailable) view.fill(0);
      if (isLinuxAvailable)
        for (const { address, bytes } of attached().memory.ranges()) {
          freePages(address, bytes);
          adviseHugePages(address, bytes, false); // the next guest there may be a sparse one
        }
      trimHeap();
      return undefined;
    case "detach":
      log?.stop();
      watching?.stop();
      log = watching = barrier = undefined;
      memory = undefined;
      return undefined;
    case "audit":
      return audit(attached().memory, request.hashes);
    case "digest":
      return digest(attached().memory, request.hashes);
    case "digest-of-hashes":
      return new PageHashes(attached().memory, request.hashes).digestOfTable();
    case "discard":
      discard(attached().memory, new Bitmap(attached().memory.pages, request.pages), request.hashes);
      return undefined;
  }
}

port.on("message", (request: MemoryRequest) => {
  const started = performance.now();
  let reply: MemoryReply;
  try {
    const result = perform(request);
    const [audited, digested] = typeof result === "bigint" ? [undefined, result] : [result, undefined];
    reply = { id: request.id, ok: true, ms: performance.now() - started, audit: audited, digest: digested };
  } catch (thrown) {
    const error = MigrationError.from(thrown);
    reply = { id: request.id, ok: false, code: error.code, message: error.message };
  }
  port.postMessage(reply);
});
port.postMessage({ id: 0, ok: true, ms: performance.now(), audit: undefined, digest: undefined } satisfies MemoryReply); // its modules are loaded
