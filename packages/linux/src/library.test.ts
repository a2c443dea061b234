import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { it } from "node:test";
import { Worker } from "node:worker_threads";
import { isLinuxAvailable } from "./library.js";

const MODULE = new URL("./library.js", import.meta.url).href;

/** Says what `expression` gives in a thread that has imported the library. */
async function inThread(expression: string): Promise<unknown> {
  const code = `import(${JSON.stringify(MODULE)}).then((library) => require("node:worker_threads").parentPort.postMessage(${expression}));`;
  const [answer]: unknown[] = await once(new Worker(code, { eval: true }), "message");
  return answer;
}

it("a worker thread knows whether system calls can be made", async () => {
  assert.equal(await inThread("library.isLinuxAvailable"), isLinuxAvailable);
});

it("a thread that makes no system call loads nothing, and leaves nothing of the address space taken when it ends", {
  skip: isLinuxAvailable ? false : "no system calls here",
}, async () => {
  const areas = (): number => readFileSync("/proc/self/maps", "utf8").split("\n").length;
  const grown = async (expression: string): Promise<number> => {
    await inThread(expression); // pools fill
    const before = areas();
    for (let thread = 0; thread < 20; thread++) await inThread(expression);
    await new Promise((resolve) => setTimeout(resolve, 100));
    return areas() - before;
  };
  const quiet = await grown("library.isLinuxAvailable");
  const calling = await grown("library.addressOf(Buffer.alloc(4096)) > 0n");
  assert.ok(quiet < 20, `${quiet} areas more after 20 threads`);
  assert.ok(calling > quiet, `${calling} areas after 20 threads that called: nothing to spare any more`);
});
