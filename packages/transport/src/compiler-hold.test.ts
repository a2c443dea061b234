import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { it } from "node:test";

const MODULE = new URL("./compiler-hold.js", import.meta.url).href;

/** Whether V8 optimized a function that was made hot while the compiler was held, and two others, tried so often: after that, and without holds. */
function optimized(tries: number, ...options: readonly string[]): unknown {
  const code = `
    const tries = ${tries};
    const { holdCompiler, withoutHolds } = await import(${JSON.stringify(MODULE)});
    const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    const isOptimized = async (hot, tries, before) => {
      for (let at = 0; at < tries && (%GetOptimizationStatus(hot) & 16) === 0; at++) {
        before();
        for (let i = 0; i < 20000; i++) hot(i);
        await sleep(20); // it is compiled beside this thread
      }
      return (%GetOptimizationStatus(hot) & 16) !== 0;
    };
    const during = (at) => { let sum = at; for (let i = 0; i < 50; i++) sum = (sum * 31 + i) | 0; return sum; };
    const rehearsed = (at) => { let sum = at; for (let i = 0; i < 50; i++) sum = (sum * 41 + i) | 0; return sum; };
    const after = (at) => { let sum = at; for (let i = 0; i < 50; i++) sum = (sum * 37 + i) | 0; return sum; };
    const seen = [await isOptimized(during, 5, holdCompiler)];
    await sleep(150);
    seen.push(await isOptimized(after, tries, () => {}));
    await withoutHolds(async () => seen.push(await isOptimized(rehearsed, tries, holdCompiler)));
    console.log(JSON.stringify(seen));`;
  const { stdout, stderr } = spawnSync(process.execPath, ["--allow-natives-syntax", ...options, "--input-type=module", "-e", code], {
    encoding: "utf8",
  });
  assert.notEqual(stdout, "", stderr);
  return JSON.parse(stdout);
}

it("nothing new is optimized for 100 ms after holdCompiler, and it is again after that", () => {
  assert.deepEqual(optimized(200), [false, true, true]);
  assert.deepEqual(optimized(200, "--no-maglev"), [false, true, true]);
});

it("a process that was started without the optimizing compilers gets none", () => {
  for (const option of ["--no-opt", "--no-turbofan"]) assert.deepEqual(optimized(5, option, "--no-maglev"), [false, false, false], option);
});
