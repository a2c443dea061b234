import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { describe, it } from "node:test";
import { minorFaults, threadId } from "./thread-faults.js";

const PAGE_BYTES = 4096;
const PAGES = 2000;

describe("thread faults", { skip: existsSync("/proc/thread-self") ? false : "no /proc here" }, () => {
  it("the first touch of each page is one minor fault of the thread that touches it", () => {
    const thread = threadId();
    assert.ok(thread !== undefined);
    const before = minorFaults(thread) ?? NaN;
    const fresh = new Uint8Array(new SharedArrayBuffer(PAGES * PAGE_BYTES));
    for (let page = 0; page < PAGES; page++) fresh[page * PAGE_BYTES] = 1;
    const faults = (minorFaults(thread) ?? NaN) - before;
    // Huge pages would take fewer; what else this thread does, the compiler's arenas say, a few more.
    assert.ok(faults >= PAGES / 512 && faults < 3 * PAGES, `${faults} faults for ${PAGES} pages`);
  });

  it("a thread that is no more has none", () => {
    assert.equal(minorFaults(2 ** 22 + 1), undefined);
  });
});
