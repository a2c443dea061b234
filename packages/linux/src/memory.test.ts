import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES } from "@precopy/protocol";
import fc from "fast-check";
import { addressOf, isLinuxAvailable } from "./library.js";
import { freePieces } from "./memory.js";
import { hostPageBytes } from "./pagemap-scan.js";
import { PIECES_MAX, Pieces } from "./socket.js";

const PAGES = 2 * PIECES_MAX + 7;

/** Page-aligned shared memory, as a guest's. */
function newMemory(bytes: number): Uint8Array {
  // @types/node 20 does not declare WebAssembly; its Memory is a constructor with a shared buffer (ECMAScript's JavaScript Interface).
  const wasm = Reflect.get(globalThis, "WebAssembly") as { Memory: new (limits: object) => { buffer: SharedArrayBuffer } };
  const units = Math.ceil(bytes / 65536);
  return new Uint8Array(new wasm.Memory({ initial: units, maximum: units, shared: true }).buffer);
}
type Run = readonly [firstPage: number, pages: number];
const piecesOf = (memory: Uint8Array, runs: readonly Run[]): Pieces => {
  const start = Number(addressOf(memory));
  const pieces = new Pieces(runs.length);
  runs.forEach(([first, pages], at) => pieces.set(at, start + first * PAGE_BYTES, pages * PAGE_BYTES));
  return pieces;
};

const why = !isLinuxAvailable
  ? `no system calls on ${process.platform} ${process.arch}`
  : hostPageBytes() === PAGE_BYTES
    ? undefined
    : `host pages of ${hostPageBytes()} B`;

describe("freePieces", { skip: why ?? false }, () => {
  /** Pages that hold something. */
  const kept = (memory: Uint8Array): number[] => {
    const pages: number[] = [];
    for (let page = 0; page < PAGES; page++) {
      const bytes = memory.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
      const isKept = bytes[0] === 7 && bytes[PAGE_BYTES - 1] === 7;
      assert.ok(isKept || (bytes[0] === 0 && bytes[PAGE_BYTES - 1] === 0), `page ${page} is half of one`);
      if (isKept) pages.push(page);
    }
    return pages;
  };
  const all = Array.from({ length: PAGES }, (_, page) => page);

  it("frees exactly the pages of the pieces, in whatever order they come and whether they overlap: those read zero, the others stay", () => {
    const memory = newMemory(PAGES * PAGE_BYTES);
    const run = fc
      .integer({ min: 0, max: PAGES - 1 })
      .chain((first) => fc.tuple(fc.constant(first), fc.integer({ min: 1, max: Math.min(40, PAGES - first) })));
    fc.assert(
      fc.property(fc.array(run, { maxLength: 60 }), (runs) => {
        memory.fill(7);
        freePieces(piecesOf(memory, runs), runs.length);
        const freed = new Set(runs.flatMap(([first, pages]) => Array.from({ length: pages }, (_, at) => first + at)));
        assert.deepEqual(
          kept(memory),
          all.filter((page) => !freed.has(page)),
        );
      }),
      { numRuns: 40 },
    );
  });

  it("takes no piece, one, and as many as fit into a call, and nothing behind those it was told to take", () => {
    const memory = newMemory(PAGES * PAGE_BYTES);
    const every = Array.from({ length: PIECES_MAX }, (_, at) => [2 * at, 1] as const);
    for (const count of [0, 1, PIECES_MAX - 1, PIECES_MAX]) {
      memory.fill(7);
      freePieces(piecesOf(memory, every), count);
      assert.deepEqual(
        kept(memory),
        all.filter((page) => page % 2 === 1 || page >= 2 * count),
        `${count} pieces`,
      );
    }
  });

  it("frees pieces of more than 2 GiB together, of which the kernel takes a part only in one call", () => {
    const GIB = 2 ** 30;
    const memory = newMemory(3 * GIB);
    const marks = [0, GIB - 1, GIB, 2 * GIB - PAGE_BYTES, 2 * GIB, 3 * GIB - 1];
    for (const at of marks) memory[at] = 7;
    const pages = GIB / PAGE_BYTES;
    freePieces(
      piecesOf(
        memory,
        [0, 1, 2].map((part) => [part * pages, pages] as const),
      ),
      3,
    );
    assert.deepEqual(
      marks.map((at) => memory[at]),
      marks.map(() => 0),
    );
  });

  it("throws ERR_SYSTEM_CALL for what is no memory or no whole page, wherever it stands in the row", () => {
    const memory = newMemory(PAGES * PAGE_BYTES);
    const good = [[0, 1] as const, [1, 1] as const];
    for (const at of [0, 1, 2])
      for (const [address, message] of [
        [4096, "madvise: ENOMEM"],
        [Number(addressOf(memory)) + 1, "madvise: EINVAL"],
      ] as const) {
        const pieces = piecesOf(memory, [...good, [2, 1]]);
        pieces.set(at, address, PAGE_BYTES);
        assert.throws(() => freePieces(pieces, 3), { code: "ERR_SYSTEM_CALL", message });
      }
  });
});
