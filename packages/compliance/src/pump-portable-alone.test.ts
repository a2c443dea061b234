import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";

/** Run before everything else: koffi is not installed here. */
const WITHOUT_KOFFI = `
import Module from "node:module";
const load = Module._load;
Module._load = (name, ...rest) => {
  if (name === "koffi") throw new Error("Cannot find module 'koffi'");
  return load(name, ...rest);
};`;
/** Of the suite, what differs when a channel stays on the main thread: data, waiting, and every way to end. */
const TITLES = "over 2 channels|rewritten pages|ends within|ends a receiving|paces|half a page|leaks no|lets another";

describe("portable pump where system calls are absent", () => {
  it("passes the suite on the main thread, and ends channels that nobody can shut down", async () => {
    const preload = `data:text/javascript,${encodeURIComponent(WITHOUT_KOFFI)}`;
    const suite = fileURLToPath(new URL("./pump-portable.test.js", import.meta.url));
    // The test runner's own variable would make the child speak the runner's protocol instead of TAP.
    const { NODE_TEST_CONTEXT: _, ...env } = process.env;
    const child = spawn(process.execPath, ["--import", preload, "--test-reporter=tap", `--test-name-pattern=${TITLES}`, suite], {
      env,
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 60_000,
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => {
        output += text;
      });
    const [code] = await once(child, "close");
    assert.equal(code, 0, output);
    assert.ok(Number(/^# pass (\d+)/m.exec(output)?.[1]) >= 8, output);
  });
});
