import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Worker } from "node:worker_threads";
import { STRIPE_PAGES, laneOfPage } from "@precopy/protocol";
import fc from "fast-check";
import { Bitmap } from "./bitmap.js";

type Run = readonly [firstPage: number, pages: number];

/** A bitmap and the same pages as a plain set. Sizes are rarely multiples of 32 or of a stripe. */
const filled = fc
  .integer({ min: 1, max: 4 * STRIPE_PAGES + 70 })
  .chain((pages) =>
    fc.record({
      pages: fc.constant(pages),
      runs: fc.array(
        fc.tuple(fc.integer({ min: 0, max: pages - 1 }), fc.oneof(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: pages }))),
        { maxLength: 12 },
      ),
    }),
  )
  .map(({ pages, runs }) => {
    const model = new Set<number>();
    const bitmap = new Bitmap(pages);
    for (const [first, wanted] of runs) {
      const count = Math.min(wanted, pages - first);
      bitmap.setRun(first, count);
      for (let page = first; page < first + count; page++) model.add(page);
    }
    return { bitmap, model };
  });
const sorted = (model: ReadonlySet<number>): number[] => [...model].sort((a, b) => a - b);
const pagesOf = (runs: readonly Run[]): number[] => runs.flatMap(([first, pages]) => Array.from({ length: pages }, (_, at) => first + at));
const runsOf = (bitmap: Bitmap): Run[] => {
  const runs: Run[] = [];
  bitmap.forEachRun((...run) => runs.push(run));
  return runs;
};
const stripeOf = (page: number): number => Math.floor(page / STRIPE_PAGES);

describe("Bitmap", () => {
  it("has exactly the pages that were set", () =>
    fc.assert(
      fc.property(filled, ({ bitmap, model }) => {
        for (let page = 0; page < bitmap.pages; page++) assert.equal(bitmap.has(page), model.has(page), `page ${page}`);
        assert.equal(bitmap.has(bitmap.pages), false);
      }),
    ));

  it("visits exactly the set pages, in order, in the longest runs that cross no stripe", () =>
    fc.assert(
      fc.property(filled, ({ bitmap, model }) => {
        const runs = runsOf(bitmap);
        assert.deepEqual(pagesOf(runs), sorted(model));
        runs.forEach(([first, pages], at) => {
          assert.equal(stripeOf(first), stripeOf(first + pages - 1), `run ${first}+${pages}`);
          const before = runs[at - 1];
          if (before !== undefined && before[0] + before[1] === first) assert.equal(first % STRIPE_PAGES, 0, `cut at ${first}`);
        });
      }),
      { numRuns: 300 },
    ));

  it("visits and counts stripe by stripe what it visits and counts as a whole", () =>
    fc.assert(
      fc.property(filled, ({ bitmap, model }) => {
        const runs: Run[] = [];
        assert.equal(bitmap.stripes, Math.ceil(bitmap.pages / STRIPE_PAGES));
        for (let stripe = 0; stripe < bitmap.stripes; stripe++) {
          bitmap.forEachRunOfStripe(stripe, (...run) => runs.push(run));
          assert.equal(bitmap.countStripe(stripe), sorted(model).filter((page) => stripeOf(page) === stripe).length);
        }
        assert.deepEqual(runs, runsOf(bitmap));
      }),
    ));

  it("counts all pages, and for 1 to 4 lanes those of each one, from any page on", () =>
    fc.assert(
      fc.property(filled, fc.integer({ min: 1, max: 4 }), fc.nat(5 * STRIPE_PAGES), ({ bitmap, model }, lanes, from) => {
        assert.equal(bitmap.count(), model.size);
        for (let lane = 0; lane < lanes; lane++) {
          const own = sorted(model).filter((page) => laneOfPage(page, lanes) === lane);
          assert.equal(bitmap.count(lane, lanes), own.length);
          assert.equal(bitmap.count(lane, lanes, from), own.filter((page) => page >= from).length, `from ${from}`);
        }
        assert.equal(bitmap.count(0, 1, 2 ** 32), 0);
      }),
    ));

  it("passes over gaps of any length, at blocks' ends and past the last one, and over no page", () => {
    const pages = 3 * 32_768 + 1000; // three blocks of stripes and a piece
    for (const page of [0, 511, 512, 32_767, 32_768, 65_535, 65_536, 98_303, 98_304, pages - 1]) {
      const bitmap = new Bitmap(pages);
      bitmap.setRun(page, 1);
      assert.equal(bitmap.count(), 1, `page ${page}`);
      assert.equal(bitmap.count(0, 1, page), 1, `from page ${page}`);
      assert.equal(bitmap.count(0, 1, page + 1), 0, `behind page ${page}`);
      assert.deepEqual(runsOf(bitmap), [[page, 1]]);
      assert.ok(bitmap.skipEmpty(0) <= Math.floor(page / 512), `page ${page} was passed over`);
    }
    assert.equal(new Bitmap(pages).skipEmpty(0), new Bitmap(pages).stripes);
  });

  it("visits what is not in a filled stripe, each page once and in order, in runs as long as can be", () =>
    fc.assert(
      fc.property(filled, fc.nat(5), fc.nat(3 * STRIPE_PAGES), fc.nat(5 * STRIPE_PAGES), ({ bitmap }, full, from, more) => {
        const whole = (stripe: number) => bitmap.countStripe(stripe) === STRIPE_PAGES;
        if ((full + 1) * STRIPE_PAGES <= bitmap.pages) bitmap.setRun(full * STRIPE_PAGES, STRIPE_PAGES);
        const end = Math.min(bitmap.pages, from + more);
        const expected: number[] = [];
        for (let page = from; page < end; page++) if (!whole(stripeOf(page))) expected.push(page);
        const visited: number[] = [];
        let runs = 0;
        bitmap.forEachUnfilled(from, end, (first, pages) => {
          runs++;
          for (let page = first; page < first + pages; page++) visited.push(page);
        });
        assert.deepEqual(visited, expected);
        assert.equal(runs, expected.filter((page, at) => at === 0 || expected[at - 1] !== page - 1).length);
      }),
      { numRuns: 300 },
    ));

  it("joins as sets do, leaves the other as it was, and is empty after clear()", () =>
    fc.assert(
      fc.property(filled, fc.array(fc.nat(), { maxLength: 20 }), ({ bitmap, model }, pages) => {
        const other = new Bitmap(bitmap.pages);
        const own = new Set(pages.map((page) => page % bitmap.pages));
        for (const page of own) other.setRun(page, 1);
        bitmap.join(other);
        assert.deepEqual(pagesOf(runsOf(bitmap)), sorted(new Set([...model, ...own])));
        assert.deepEqual(pagesOf(runsOf(other)), sorted(own));
        bitmap.clear();
        assert.deepEqual([bitmap.count(), runsOf(bitmap)], [0, []]);
        assert.equal(other.count(), own.size);
      }),
    ));

  it("keeps the bits past its last page zero, however it was filled", () =>
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 2000 }), (pages) => {
        const bitmap = new Bitmap(pages);
        bitmap.setRun(0, pages);
        assert.equal(bitmap.count(), pages);
        assert.equal(pagesOf(runsOf(bitmap)).length, pages);
        if (pages % 32 !== 0) assert.equal(bitmap.words.at(-1), 2 ** (pages % 32) - 1);
      }),
    ));

  it("refuses every run that is not inside it with ERR_RUN_OUT_OF_RANGE, and sets nothing", () => {
    for (const pages of [1, 31, 32, 33, 1000]) {
      const bitmap = new Bitmap(pages);
      const bad: Run[] = [
        [pages, 1],
        [0, pages + 1],
        [pages - 1, 2],
        [-1, 1],
        [-1, 2],
        [0, 0],
        [0, -1],
        [2 ** 32, 1],
      ];
      for (const [first, count] of bad)
        assert.throws(() => bitmap.setRun(first, count), { code: "ERR_RUN_OUT_OF_RANGE" }, `${first}+${count} of ${pages}`);
      assert.equal(bitmap.count(), 0);
    }
  });

  it("is one memory for all who hold its words, and takes no words of another size", () => {
    const bitmap = new Bitmap(100);
    const same = new Bitmap(100, bitmap.words);
    assert.ok(bitmap.words.buffer instanceof SharedArrayBuffer);
    same.setRun(99, 1);
    assert.equal(bitmap.has(99), true);
    for (const words of [3, 5]) assert.throws(() => new Bitmap(100, new Uint32Array(words)), { code: "ERR_INTERNAL" });
  });
});

/** Changes every other page of word 1, over and over, until it is told to stop; counts how often, and how often they were not as it had left them. */
const HOSTILE = `
  const { words, control } = require("node:worker_threads").workerData;
  let left = 0;
  while (Atomics.load(control, 0) === 0) {
    if ((Atomics.xor(words, 1, 0xaaaaaaaa) & 0xaaaaaaaa) !== left) Atomics.add(control, 2, 1);
    left ^= 0xaaaaaaaa;
    Atomics.add(control, 1, 1);
  }
  if ((words[1] & 0xaaaaaaaa) !== left) Atomics.add(control, 2, 1);`;
const OURS = 0x55555555;

/** Plays against a second thread that changes the other pages of the same word. @returns how often that found its own pages changed by us */
async function lostAgainst(turn: (bitmap: Bitmap) => void): Promise<number> {
  const bitmap = new Bitmap(96);
  const control = new Int32Array(new SharedArrayBuffer(12));
  const hostile = new Worker(HOSTILE, { eval: true, workerData: { words: bitmap.words, control } });
  try {
    while (Atomics.load(control, 1) === 0) await new Promise(setImmediate);
    for (let turns = 0; turns < 300_000; turns++) turn(bitmap); // without a pause: both are at that word all the time
  } finally {
    Atomics.store(control, 0, 1);
    await new Promise((resolve) => hostile.once("exit", resolve));
  }
  return Atomics.load(control, 2);
}

describe("Bitmap under several threads", () => {
  it("setRunShared and clearRunShared make of any bitmap what sets of pages say, at every edge of a word", () =>
    fc.assert(
      fc.property(
        filled,
        fc.array(fc.tuple(fc.boolean(), fc.nat(), fc.oneof(fc.integer({ min: 1, max: 5 }), fc.nat(200))), { maxLength: 12 }),
        ({ bitmap, model }, changes) => {
          for (const [isSet, at, wanted] of changes) {
            const first = at % bitmap.pages;
            const count = Math.min(wanted, bitmap.pages - first);
            if (isSet) bitmap.setRunShared(first, count);
            else bitmap.clearRunShared(first, count);
            for (let page = first; page < first + count; page++) model[isSet ? "add" : "delete"](page);
          }
          assert.deepEqual(pagesOf(runsOf(bitmap)), sorted(model));
        },
      ),
      { numRuns: 300 },
    ));

  it("lose no page of their own and none of another thread's that changes pages of the same word all the while", {
    timeout: 60_000,
  }, async () => {
    const lost = await lostAgainst((bitmap) => {
      for (let page = 32; page < 64; page += 2) bitmap.setRunShared(page, 1);
      if ((bitmap.words[1]! & OURS) !== OURS) assert.fail("a page that was set is gone");
      for (let page = 32; page < 64; page += 2) bitmap.clearRunShared(page, 1);
      if ((bitmap.words[1]! & OURS) !== 0) assert.fail("a page that was cleared is back");
    });
    assert.equal(lost, 0);
  });

  it("takeShared gives what is there of the pages it names, once, and takes none of another thread's out", {
    timeout: 60_000,
  }, async () => {
    const lost = await lostAgainst((bitmap) => {
      for (let page = 32; page < 64; page += 2) bitmap.setRunShared(page, 1);
      if (bitmap.takeShared(1, OURS) !== OURS) assert.fail("a page that was there was not given");
      if (bitmap.takeShared(1, OURS) !== 0) assert.fail("a page was given twice");
    });
    assert.equal(lost, 0);
  });

  it("setRun does lose some, so the test above can fail", { timeout: 60_000 }, async (context) => {
    let lost = 0;
    for (let games = 0; lost === 0 && games < 20; games++)
      lost = await lostAgainst((bitmap) => {
        for (let page = 32; page < 64; page += 2) bitmap.setRun(page, 1);
      });
    if (lost === 0) context.skip("the two threads never met: one processor?");
  });
});
