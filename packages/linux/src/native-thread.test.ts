import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { it } from "node:test";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort } from "node:worker_threads";
import { trimHeap } from "./memory.js"; // in the main thread, too: what it finds there spares the threads the loading until their first call
import { NativeThread } from "./native-thread.js";

// Three in one: the test, a process that stops threads at every moment of their loading, and such a thread. It loads when it is up, at its first call.
const THREADS = 60;
const self = new URL(import.meta.url);

if (!isMainThread) {
  parentPort?.postMessage("up");
  setImmediate(trimHeap);
} else if (process.argv[2] === "stops threads") {
  for (let thread = 0; thread < THREADS; thread++) {
    const starting = new NativeThread(self);
    await starting.up();
    for (const until = performance.now() + thread / 5; performance.now() < until; ); // a timer would not be that exact
    await starting.terminate();
  }
} else {
  it("a thread that is stopped while it loads native code does not take the process with it", () => {
    execFileSync(process.execPath, [fileURLToPath(self), "stops threads"], { stdio: "pipe" });
  });

  it("a thread that fails to load says why, and can be stopped", async () => {
    const broken = new NativeThread(`throw new Error("no such module")`, { eval: true });
    await assert.rejects(broken.up(), /no such module/);
    await broken.terminate();
  });
}
