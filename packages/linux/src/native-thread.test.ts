import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { it } from "node:test";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort } from "node:worker_threads";
import { NativeThread } from "./native-thread.js";

// Three in one: the test, a process that stops threads at every moment of their loading, and such a thread.
const THREADS = 60;
const self = new URL(import.meta.url);

if (!isMainThread) {
  await import("./library.js");
  parentPort?.postMessage("up");
} else if (process.argv[2] === "stops threads") {
  for (let thread = 0; thread < THREADS; thread++) {
    const starting = new NativeThread(self);
    await sleep(15 + thread);
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
