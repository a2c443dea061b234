import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES, SEGMENT_BYTES } from "@precopy/protocol";
import fc from "fast-check";
import { GuestMemory, SegmentPool } from "./guest-memory.js";
import { pageKernels, zeroDetector } from "./page-kernels.js";

const PAGES = 64;
const memory = GuestMemory.allocate(2 ** 20, new SegmentPool());

/** Of a full segment. */
const LAST = SEGMENT_BYTES / PAGE_BYTES - 1;

for (const check of ["vector", "scalar"] as const)
  describe(`zeroDetector, ${check}`, () => {
    const detect = zeroDetector(memory, check);
    const found = (first: number, pages: number): unknown[] => {
      const runs: unknown[] = [];
      detect(first, pages, (...run) => runs.push(run));
      return runs;
    };

    it("takes a page for zero only if no bit of it is set, at every byte of the page", () => {
      const page = memory.view(1, 1);
      for (let at = 0; at < PAGE_BYTES; at++)
        for (const bit of [0, 7]) {
          page[at] = 1 << bit;
          assert.deepEqual(found(1, 1), [[1, 1, false]], `bit ${bit} of byte ${at}`);
          page[at] = 0;
        }
      assert.deepEqual(found(1, 1), [[1, 1, true]]);
    });

    it("visits any run of pages once, in order and in runs as long as they can be, whatever lies beside it", () => {
      fc.assert(
        fc.property(
          fc.array(fc.boolean(), { minLength: PAGES, maxLength: PAGES }),
          fc.nat(PAGES - 1),
          fc.nat(PAGES - 1),
          (holdsData, one, other) => {
            holdsData.forEach((holds, page) => memory.view(page, 1).fill(holds ? 0x80 : 0, 1000, 1001));
            const [first, last] = [Math.min(one, other), Math.max(one, other)];
            const expected: [number, number, boolean][] = [];
            for (let page = first; page <= last; page++) {
              const run = expected.at(-1);
              if (run?.[2] === !holdsData[page]) run[1]++;
              else expected.push([page, 1, !holdsData[page]]);
            }
            assert.deepEqual(found(first, last - first + 1), expected);
          },
        ),
      );
    });

    it("finds the same in the last pages of a full segment, where addresses end, and in the first of the next", () => {
      const large = GuestMemory.allocate(SEGMENT_BYTES + PAGE_BYTES, new SegmentPool());
      const runs: unknown[] = [];
      const look = (page: number, pages: number): void => zeroDetector(large, check)(page, pages, (...run) => runs.push(run));
      large.view(LAST, 1)[PAGE_BYTES - 1] = 0x80;
      large.view(LAST + 1, 1)[0] = 1;
      look(LAST - 1, 2);
      look(LAST + 1, 1);
      assert.deepEqual(runs, [
        [LAST - 1, 1, true],
        [LAST, 1, false],
        [LAST + 1, 1, false],
      ]);
    });

    it("refuses a page outside with ERR_RUN_OUT_OF_RANGE", () => {
      assert.throws(() => detect(LAST + 1, 1, () => {}), { code: "ERR_RUN_OUT_OF_RANGE" });
    });
  });

it("the last page of a full segment, where addresses end, is filled and hashed like any other", () => {
  const [kernels] = pageKernels(GuestMemory.allocate(SEGMENT_BYTES, new SegmentPool()));
  assert.ok(kernels !== undefined);
  const pages = [LAST - 1, LAST].map((page) => page * PAGE_BYTES);
  const hashes = (): number[] => pages.map((at) => kernels.hashPage(at));
  const [zero, zeroToo] = hashes();
  assert.equal(zero, zeroToo);
  for (const at of pages) kernels.fillRandom(at, PAGE_BYTES, 5n);
  const [random, randomToo] = hashes();
  assert.equal(random, randomToo);
  assert.notEqual(random, zero);
  for (const at of pages) assert.equal(kernels.isZero(at), 0);
});
