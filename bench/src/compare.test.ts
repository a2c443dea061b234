import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { compare, readResults } from "./compare.js";

describe("compare", () => {
  it("shows a difference only where each median lies outside of the other's spread", () => {
    assert.equal(compare([10, 11, 12], [5, 6, 7], "lower"), "better");
    assert.equal(compare([10, 11, 12], [5, 6, 7], "higher"), "worse");
    assert.equal(compare([10, 11, 12], [15, 16, 17], "lower"), "worse");
    assert.equal(compare([10, 11, 12], [11, 12, 13], "lower"), "no difference shown");
    assert.equal(compare([10, 11, 30], [15, 16, 17], "lower"), "no difference shown");
    assert.equal(compare([10, 11], [20, 21], "lower"), "no difference shown", "of two runs");
  });
});

describe("readResults", () => {
  const figure = { name: "total", unit: "ms", better: "lower", values: [1, 2] };
  it("reads a run of many entries, and the file of one", (context) => {
    const folder = mkdtempSync(join(tmpdir(), "precopy-compare-"));
    context.after(() => rmSync(folder, { recursive: true }));
    const file = (content: unknown): string => {
      writeFileSync(join(folder, "results.json"), JSON.stringify(content));
      return join(folder, "results.json");
    };
    const one = { name: "lz4", figures: [figure] };
    assert.deepEqual(readResults(file({ entries: [one, { ...one, name: "b" }] })).length, 2);
    assert.deepEqual(readResults(file({ ...one, environment: {} })), [one]);
    for (const wrong of [{}, [], { entries: [{}] }, { ...one, figures: [{ ...figure, values: [] }] }, { ...one, figures: [{ name: 1 }] }])
      assert.throws(() => readResults(file(wrong)), /was not written by/);
  });
});
