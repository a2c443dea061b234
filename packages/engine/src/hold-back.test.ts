import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Bitmap } from "@precopy/guest";
import { pagesOf } from "./fake-ports.js";
import { HoldBack } from "./hold-back.js";

const PAGES = 100;
const bitmapOf = (pages: readonly number[]): Bitmap => {
  const bitmap = new Bitmap(PAGES);
  for (const page of pages) bitmap.setRun(page, 1);
  return bitmap;
};
const span = (first: number, pages: number): number[] => Array.from({ length: pages }, (_, at) => first + at);
const after = (holdBack: HoldBack, dirtied: readonly number[]): number[] => {
  const collected = bitmapOf(dirtied);
  holdBack.take(collected);
  return pagesOf(collected);
};

describe("HoldBack", () => {
  it("holds what was dirtied in two rounds in a row, and sends the rest", () => {
    const holdBack = new HoldBack(PAGES);
    assert.deepEqual(after(holdBack, [1, 2, ...span(10, 20)]), [1, 2, ...span(10, 20)]);
    assert.deepEqual(after(holdBack, [1, 2, ...span(40, 10)]), span(40, 10));
    assert.equal(holdBack.heldPages, 2);
  });

  it("goes on holding a page that is held, written again or not", () => {
    const holdBack = new HoldBack(PAGES);
    after(holdBack, [1, 2, ...span(10, 20)]);
    after(holdBack, [1, 2, ...span(40, 10)]);
    assert.deepEqual(after(holdBack, [1, ...span(60, 5)]), span(60, 5));
    assert.equal(holdBack.heldPages, 2);
  });

  it("gives all of it back when little else is left, and holds nothing any more", () => {
    const holdBack = new HoldBack(PAGES);
    const hot = span(0, 8);
    after(holdBack, [...hot, ...span(10, 20)]);
    assert.deepEqual(after(holdBack, [...hot, 50, 51, 52]), [50, 51, 52]);
    assert.deepEqual(after(holdBack, [...hot, 60, 61]), [...hot, 60, 61]);
    assert.equal(holdBack.heldPages, 0);
    assert.deepEqual(after(holdBack, hot), hot);
  });

  it("loses no page: what was dirtied is sent or held, and what is held is given back", () => {
    const holdBack = new HoldBack(PAGES);
    const owed = new Set<number>();
    for (let round = 0; round < 20; round++) {
      const dirtied = span(0, PAGES).filter((page) => (page * 7 + round * 13) % (page < 20 ? 2 : 9) === 0);
      for (const page of dirtied) owed.add(page);
      for (const page of after(holdBack, dirtied)) owed.delete(page);
      assert.equal(owed.size, holdBack.heldPages, `round ${round}`);
    }
    const last = bitmapOf([]);
    holdBack.release(last);
    for (const page of pagesOf(last)) owed.delete(page);
    assert.equal(owed.size, 0);
  });

  it("does nothing to a guest that dirties other pages each round", () => {
    const holdBack = new HoldBack(PAGES);
    for (let round = 0; round < 5; round++) assert.deepEqual(after(holdBack, span(20 * round, 15)), span(20 * round, 15));
  });
});
