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

  it("a thread that is terminated says once when it is bound to end, and that before it has ended", async () => {
    const control = new Int32Array(new SharedArrayBuffer(4));
    const spinning = new NativeThread(
      `const { parentPort } = require("node:worker_threads");
       parentPort.postMessage("up");
       parentPort.once("message", (control) => { for (;;) Atomics.add(control, 0, 1); });`,
      { eval: true },
    );
    await spinning.up();
    spinning.postMessage(control);
    while (Atomics.load(control, 0) === 0) await new Promise(setImmediate);
    const said: string[] = [];
    spinning.once("exit", () => said.push("exit"));
    await spinning.terminate(() => said.push("told"));
    assert.deepEqual(said, ["told", "exit"]);
    const after = Atomics.load(control, 0);
    await new Promise((resolve) => setTimeout(resolve, 20)); // the time is what is tested
    assert.equal(Atomics.load(control, 0), after);
  });

  it("a thread that failed to load, or ended long ago, is bound to end just the same: who waits for that is told", async () => {
    for (const code of [
      `throw new Error("no such module")`,
      `require("node:worker_threads").parentPort.postMessage("up"); process.exit()`,
    ]) {
      const gone = new NativeThread(code, { eval: true });
      gone.on("error", () => {});
      await new Promise((resolve) => gone.once("exit", resolve));
      for (let time = 0; time < 2; time++) {
        let told = 0;
        await gone.terminate(() => told++);
        assert.equal(told, 1);
      }
    }
  });
}
