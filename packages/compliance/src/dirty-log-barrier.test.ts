import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BarrierDirtyLog, Bitmap, WriteBarrier, allocateBarrier } from "@precopy/guest";
import { dirtyLogSuite } from "./dirty-log-suite.js";

dirtyLogSuite("barrier", (memory) => {
  const barrier = allocateBarrier(memory.pages);
  return { log: new BarrierDirtyLog(barrier), barrier };
});

function interleavings<A, B>(a: readonly A[], b: readonly B[]): (A | B)[][] {
  const [firstOfA, ...restOfA] = a;
  const [firstOfB, ...restOfB] = b;
  if (firstOfA === undefined || firstOfB === undefined) return [[...a, ...b]];
  return [...interleavings(restOfA, b).map((rest) => [firstOfA, ...rest]), ...interleavings(a, restOfB).map((rest) => [firstOfB, ...rest])];
}

/** Schedules of one writer and one collector that leave the target stale with no mark left, so that no later round repairs it. */
function lostByCollect(writer: readonly ("write" | "mark")[]): string[][] {
  return interleavings(writer, ["clear", "copy"] as const).filter((steps) => {
    const shared = allocateBarrier(1);
    const barrier = new WriteBarrier(shared);
    const log = new BarrierDirtyLog(shared);
    log.start(new Bitmap(1));
    const taken = new Bitmap(1);
    let source = 0;
    let target = 0;
    for (const step of steps) {
      if (step === "write") source = 1;
      else if (step === "mark") barrier.mark(0);
      else if (step === "clear") log.collect(taken);
      else if (taken.has(0)) target = source;
    }
    const later = new Bitmap(1);
    log.collect(later);
    return target !== source && !later.has(0);
  });
}

/** The same for start(): `mark` and `start` in their single accesses, so their order is a model's; see dirty-log-barrier.ts. */
function lostByStart(writer: readonly ("write" | "populate" | "mark")[], starter: readonly ("clear" | "list" | "copy")[]): string[][] {
  return interleavings(writer, starter).filter((steps) => {
    const is = { write: false, populate: false, mark: false };
    let isListed = false;
    let target = false;
    for (const step of steps) {
      if (step === "clear") is.mark = false;
      else if (step === "list") isListed = is.populate;
      else if (step !== "copy") is[step] = true;
      else if (isListed) target = is.write;
    }
    return target !== is.write && !is.mark;
  });
}

describe("one write and one collection, in every order of their steps", () => {
  it("write-then-mark loses no write in any of the 6 interleavings with clear-then-copy", () => {
    assert.equal(interleavings(["write", "mark"], ["clear", "copy"]).length, 6);
    assert.deepEqual(lostByCollect(["write", "mark"]), []);
  });
  it("mark-then-write loses one, so the test above can fail", () =>
    assert.deepEqual(lostByCollect(["mark", "write"]), [["mark", "clear", "copy", "write"]]));
});

describe("one first write and a start, in every order of their steps", () => {
  it("write, populate, mark loses no write in any of the 20 interleavings with clear, list, copy", () => {
    assert.equal(interleavings(["write", "populate", "mark"], ["clear", "list", "copy"]).length, 20);
    assert.deepEqual(lostByStart(["write", "populate", "mark"], ["clear", "list", "copy"]), []);
  });
  it("marking before populating loses some, and so does listing before clearing: the test above can fail", () => {
    assert.notDeepEqual(lostByStart(["write", "mark", "populate"], ["clear", "list", "copy"]), []);
    assert.notDeepEqual(lostByStart(["write", "populate", "mark"], ["list", "clear", "copy"]), []);
  });
});

it("mark() sets the populated bit before the mark, and always by a read-modify-write, also where the bit is set already", (context) => {
  const shared = allocateBarrier(64);
  const barrier = new WriteBarrier(shared);
  const seen: string[] = [];
  const { or } = Atomics;
  context.mock.method(Atomics, "or", (words: Uint32Array, at: number, bits: number) => {
    seen.push(words === shared.marks ? "marks" : "populated");
    return or(words, at, bits);
  });
  barrier.mark(40);
  barrier.mark(40);
  assert.deepEqual(seen, ["populated", "marks", "marks"]);
  assert.deepEqual([...shared.marks, ...shared.populated], [0, 256, 0, 256]);
});

it("collect() takes the marks of a word by one exchange, so that none can come between reading and clearing", (context) => {
  const shared = allocateBarrier(100);
  const log = new BarrierDirtyLog(shared);
  log.start(new Bitmap(100));
  for (const page of [0, 31, 64]) new WriteBarrier(shared).mark(page);
  const taken: number[] = [];
  const { exchange } = Atomics;
  context.mock.method(Atomics, "exchange", (words: Uint32Array, at: number, value: number) => {
    assert.equal(words, shared.marks);
    taken.push(at);
    return exchange(words, at, value);
  });
  const into = new Bitmap(100);
  log.collect(into);
  assert.deepEqual(taken, [0, 2]);
  assert.deepEqual([...into.words], [0x80000001, 0, 1, 0]);
});
