import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { it } from "node:test";
import { fileURLToPath } from "node:url";
import { isLinuxAvailable } from "./library.js";

const CHILD = `
import { readFileSync } from "node:fs";
const { forbidCoreDumps } = await import(process.argv[1]);
console.log(forbidCoreDumps(), /^Max core file size +(\\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1]);`;

it("a process that forbids core dumps may write none, to a file or to a program", {
  skip: !isLinuxAvailable && "no system calls here",
}, () => {
  const module = new URL("./core-dumps.js", import.meta.url).href;
  for (const limit of ["unlimited", "0"]) {
    const command = `ulimit -c ${limit}; exec "$0" --input-type=module -e "$1" "$2"`;
    const { stdout, stderr } = spawnSync("sh", ["-c", command, process.execPath, CHILD, module], {
      encoding: "utf8",
      cwd: fileURLToPath(new URL(".", import.meta.url)),
    });
    assert.equal(stdout.trim(), `true ${limit === "0" ? 0 : 1}`, stderr);
  }
});
