import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES } from "@precopy/protocol";
import { addressOf, isLinuxAvailable } from "./library.js";
import { freePages } from "./memory.js";
import { PagemapScanner, hostPageBytes } from "./pagemap-scan.js";
import { WriteProtection } from "./userfaultfd.js";

/** Page-aligned shared memory that nobody has touched: 64 KiB units, as a guest's. */
function newMemory(bytes: number): Uint8Array {
  // @types/node 20 does not declare WebAssembly; its Memory is a constructor with a shared buffer (ECMAScript's JavaScript Interface).
  const wasm = Reflect.get(globalThis, "WebAssembly") as { Memory: new (limits: object) => { buffer: SharedArrayBuffer } };
  const units = bytes / 65536;
  return new Uint8Array(new wasm.Memory({ initial: units, maximum: units, shared: true }).buffer);
}

interface Tracked {
  readonly view: Uint8Array;
  /** Pages written since the last call, zero pages negative: -8 is page 8 mapped to the kernel's page of zeros. */
  taken(): string;
  listed(): string;
  protectAll(): void;
}
function withTracked(use: (tracked: Tracked) => void): void {
  const view = newMemory(2 ** 20);
  const range = { address: addressOf(view), bytes: view.byteLength };
  const protection = new WriteProtection([range]);
  const scanner = new PagemapScanner();
  const told = (scan: PagemapScanner["takeWritten"]): string => {
    const runs: string[] = [];
    scan.call(scanner, range, (first, pages, isZeroPage) => runs.push(`${first}+${pages}${isZeroPage ? " zero" : ""}`));
    return runs.join(", ");
  };
  try {
    use({
      view,
      taken: () => told(scanner.takeWritten),
      listed: () => told(scanner.listPopulated),
      protectAll: () => protection.protectAll([range]),
    });
  } finally {
    scanner.close();
    protection.close();
    freePages(range.address, range.bytes);
  }
}

function whyNot(): string | undefined {
  if (!isLinuxAvailable) return `no system calls on ${process.platform} ${process.arch}`;
  if (hostPageBytes() !== PAGE_BYTES) return `host pages of ${hostPageBytes()} B`;
  try {
    withTracked(({ taken }) => void taken());
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  return undefined;
}
const why = whyNot();
const skip = why === undefined ? false : `no asynchronous write protection here: ${why}`;

describe("write protection and page table scan", () => {
  it("tell a written page once, and again only after it was written again", { skip }, () =>
    withTracked(({ view, taken }) => {
      view[5 * PAGE_BYTES] = 1;
      assert.equal(taken(), "5+1");
      assert.equal(taken(), "");
      view[5 * PAGE_BYTES + 4095] = 1;
      assert.equal(taken(), "5+1");
      assert.equal(taken(), "");
    }),
  );

  it("tell neighbouring pages as one run and others as several, in order, at both ends of the range", { skip }, () =>
    withTracked(({ view, taken }) => {
      for (const page of [0, 1, 2, 30, 100, 101, 255]) view[page * PAGE_BYTES] = 1;
      assert.equal(taken(), "0+3, 30+1, 100+2, 255+1");
    }),
  );

  it("do not tell memory that nobody touched, which stays unpopulated", { skip }, () =>
    withTracked(({ view, taken, listed }) => {
      assert.equal(taken(), "");
      view[9 * PAGE_BYTES] = 1;
      assert.equal(taken(), "9+1");
      assert.equal(listed(), "9+1");
    }),
  );

  it("flag a page that was read and never written as a zero page, and no longer once it is written", { skip }, () =>
    withTracked(({ view, taken, listed }) => {
      assert.equal(view[7 * PAGE_BYTES], 0);
      view[8 * PAGE_BYTES] = 1;
      assert.equal(taken(), "7+1 zero, 8+1");
      assert.equal(view[7 * PAGE_BYTES + 1], 0);
      assert.equal(taken(), "", "reading is not writing");
      view[7 * PAGE_BYTES] = 1;
      assert.equal(taken(), "7+1");
      assert.equal(listed(), "7+2");
    }),
  );

  it("see a page that holds zeros as data if they were written", { skip }, () =>
    withTracked(({ view, taken }) => {
      view.fill(0, 3 * PAGE_BYTES, 4 * PAGE_BYTES);
      assert.equal(taken(), "3+1");
    }),
  );

  it("listPopulated changes nothing: the next takeWritten tells all the same", { skip }, () =>
    withTracked(({ view, taken, listed }) => {
      view[2 * PAGE_BYTES] = 1;
      assert.equal(listed(), "2+1");
      assert.equal(taken(), "2+1");
      assert.equal(listed(), "2+1");
    }),
  );

  it("protectAll protects what nobody touched, too: to read it is not to write it, and each write is told once", { skip }, () =>
    withTracked(({ view, taken, protectAll }) => {
      view[5 * PAGE_BYTES] = 1;
      protectAll();
      assert.equal(taken(), "");
      for (let page = 0; page < 256; page++) assert.equal(view[page * PAGE_BYTES], page === 5 ? 1 : 0);
      assert.equal(taken(), "");
      for (const page of [5, 8, 255]) view[page * PAGE_BYTES] = 0;
      assert.equal(taken(), "5+1, 8+1, 255+1");
      assert.equal(taken(), "");
    }),
  );

  it("tell more runs than fit into one answer of the kernel", { skip }, () => {
    const view = newMemory(2 ** 28);
    const range = { address: addressOf(view), bytes: view.byteLength };
    const protection = new WriteProtection([range]);
    const scanner = new PagemapScanner();
    try {
      for (let page = 0; page < 2 ** 16; page += 2) view[page * PAGE_BYTES] = 1; // 32,768 runs; one answer has 16,384
      for (const expected of [2 ** 15, 0]) {
        let [runs, last] = [0, -2];
        scanner.takeWritten(range, (first, pages) => {
          assert.equal(pages, 1);
          assert.equal(first, last + 2);
          last = first;
          runs++;
        });
        assert.equal(runs, expected);
      }
    } finally {
      scanner.close();
      protection.close();
      freePages(range.address, range.bytes);
    }
  });

  it("freePages makes memory read as zeros and unpopulated again", { skip }, () => {
    const view = newMemory(2 ** 20);
    const range = { address: addressOf(view), bytes: view.byteLength };
    view.fill(1);
    freePages(range.address, range.bytes);
    const scanner = new PagemapScanner();
    const runs: number[] = [];
    scanner.listPopulated(range, (first, pages) => runs.push(first, pages));
    scanner.close();
    assert.deepEqual(runs, []);
    assert.ok(view.every((byte) => byte === 0));
  });

  it("refuse a range that is no memory with ERR_SYSTEM_CALL, and name the call", { skip }, () => {
    assert.throws(() => new WriteProtection([{ address: 4096n, bytes: PAGE_BYTES }]), {
      code: "ERR_SYSTEM_CALL",
      message: /UFFDIO_REGISTER: E/,
    });
    const view = newMemory(65536);
    const scanner = new PagemapScanner();
    const unregistered = { address: addressOf(view), bytes: view.byteLength };
    assert.throws(() => scanner.takeWritten(unregistered, () => {}), { code: "ERR_SYSTEM_CALL", message: /PAGEMAP_SCAN: E/ });
    scanner.close();
  });
});
