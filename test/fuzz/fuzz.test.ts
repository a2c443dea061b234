import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import type { FuzzTarget } from "./fuzz-target.js";
import { fuzz, nameOf, randomOf } from "./fuzzer.js";
import { INPUT_BYTES_MAX, mutate } from "./mutate.js";
import { planted } from "./planted.js";
import { makeTarget, targetNames } from "./targets.js";

const CORPUS = fileURLToPath(new URL("../../fuzz/corpus", import.meta.url));
const corpusOf = (name: string): Buffer[] =>
  existsSync(`${CORPUS}/${name}`) ? readdirSync(`${CORPUS}/${name}`).map((file) => readFileSync(`${CORPUS}/${name}/${file}`)) : [];

describe("what reads a peer's bytes", () => {
  for (const name of targetNames())
    it(`${name} reads or refuses every input of the corpus, and some more`, async (context) => {
      const target = makeTarget(name);
      if (target === undefined) return context.skip("this host has not what it reads with");
      const { executions, findings } = await fuzz(target, corpusOf(name), 300, 1);
      assert.deepEqual(
        findings.map(({ what }) => what),
        [],
      );
      assert.ok(executions > corpusOf(name).length);
    });
});

describe("the fuzzer", () => {
  const target: FuzzTarget = { name: "planted", covers: ["fuzz/planted"], words: [], seeds: () => [Buffer.from("....")], read: planted };

  it("finds what stands behind four bytes in a row that no seed has, because each of them is something new", async () => {
    const { findings, corpus, covered } = await fuzz(target, [], 60_000, 7, () => {}, 1);
    assert.match(findings[0]?.what ?? "", /found/);
    assert.ok(findings[0]!.input.subarray(0, 4).equals(Buffer.from("fuzz")));
    assert.ok(corpus.length >= 4 && covered > 0);
  });

  it("takes what a target throws for a finding, once for each place", async () => {
    const refuses: FuzzTarget = {
      ...target,
      read: (input) => {
        if (input.byteLength % 2 === 0) throw new RangeError("out of range");
      },
    };
    assert.equal((await fuzz(refuses, [], 50, 1)).findings.length, 1);
    assert.equal((await fuzz({ ...target, read: () => {} }, [], 50, 1)).findings.length, 0);
  });

  it("takes what keeps the processor busy for a finding, not what stood still", async () => {
    const busy = (): void => {
      const before = process.cpuUsage(); // as much on a busy machine, which gives it a part of its time
      for (let us = 0; us < 1_500_000; ) {
        const { user, system } = process.cpuUsage(before);
        us = user + system;
      }
    };
    assert.match((await fuzz({ ...target, read: busy }, [], 1, 1, () => {}, 1)).findings[0]?.what ?? "", /^It took \d+ ms$/);
    let calls = 0; // an input that is slow is read a second time
    const waits = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, calls++ < 2 ? 1100 : 0));
    assert.deepEqual((await fuzz({ ...target, read: waits }, [], 1, 1)).findings, []);
  });

  it("makes the same inputs of the same seed, none too long", () => {
    const some = (seed: number): string[] => {
      const random = randomOf(seed);
      return Array.from({ length: 50 }, () =>
        nameOf(mutate(Buffer.alloc(INPUT_BYTES_MAX, 1), Buffer.from("other"), [Buffer.from("word")], random)),
      );
    };
    assert.deepEqual(some(3), some(3));
    assert.notDeepEqual(some(3), some(4));
    const random = randomOf(5);
    for (let left = 200; left > 0; left--)
      assert.ok(mutate(Buffer.alloc(INPUT_BYTES_MAX), Buffer.alloc(1000), [], random).byteLength <= INPUT_BYTES_MAX);
  });
});
