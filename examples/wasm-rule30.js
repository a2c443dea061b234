import { writeSync } from "node:fs";

/**
 * A WebAssembly workload: cellular automaton rule 30 on a ring of 64 cells, one row a millisecond, ROWS rows kept in the region. The module
 * stores into guest memory by itself, past the accessor, so `isDirectWriter` is true and only the mmu dirty log can follow it.
 *
 *   (import "env" "memory" (memory 1 65536 shared))
 *   (func (export "grow") (param $from i32) (param $to i32)   ;; a row is an i64
 *     (i64.store (local.get $to) (i64.xor (i64.rotl (i64.load (local.get $from)) (i64.const 1))
 *       (i64.or (i64.load (local.get $from)) (i64.rotr (i64.load (local.get $from)) (i64.const 1))))))
 */
const sections = [
  [1, [1, 0x60, 2, 0x7f, 0x7f, 0]], // one type: (i32, i32) -> ()
  [2, [1, 3, ...Buffer.from("env"), 6, ...Buffer.from("memory"), 2, 3, 1, 0x80, 0x80, 4]], // shared, 1 to 65,536 pages
  [3, [1, 0]],
  [7, [1, 4, ...Buffer.from("grow"), 0, 0]],
  // biome-ignore format: one instruction group a line
  [10, [1, 30, 0, 0x20, 1,
    0x20, 0, 0x29, 3, 0, 0x42, 1, 0x89, // rotl(row, 1)
    0x20, 0, 0x29, 3, 0, 0x20, 0, 0x29, 3, 0, 0x42, 1, 0x8a, 0x84, // row | rotr(row, 1)
    0x85, 0x37, 3, 0, 0x0b]],
];
const module = new WebAssembly.Module(
  Uint8Array.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, ...sections.flatMap(([id, body]) => [id, body.length, ...body])]),
);

const ROWS = 512;
const SEGMENT_BYTES = 2 ** 32;
const grown = (row) => BigInt.asUintN(64, ((row << 1n) | (row >> 63n)) ^ (row | (row >> 1n) | (row << 63n)));

/** @type {import("@precopy/guest").Workload} */
const rule30 = {
  isDirectWriter: true,
  create({ segments, region }) {
    const memory = segments[Math.floor(region.start / SEGMENT_BYTES)];
    const at = region.start % SEGMENT_BYTES; // guest address to address in its segment
    const { grow } = new WebAssembly.Instance(module, { env: { memory } }).exports;
    const rows = new BigUint64Array(memory.buffer, at, ROWS);
    let row = 0;
    let hasArrived = false;
    const check = () => {
      hasArrived = false;
      let isRight = true;
      for (let next = Math.max(1, row - ROWS + 2); next <= row; next++) isRight &&= rows[next % ROWS] === grown(rows[(next - 1) % ROWS]);
      writeSync(2, `rule 30: goes on after row ${row}, history ${isRight ? "in order" : "DAMAGED"}\n`);
    };
    return {
      boot: () => void (rows[0] = 1n << 32n),
      step() {
        if (hasArrived) check();
        grow(at + (row % ROWS) * 8, at + (++row % ROWS) * 8);
        return 1;
      },
      save: () => row,
      load: (registers) => void ([row, hasArrived] = [Number(registers), true]),
    };
  },
};
export default rule30;
