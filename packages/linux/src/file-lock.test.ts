import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { tryLockFile } from "./file-lock.js";
import type { FileLock } from "./file-lock.js";
import { isLinuxAvailable } from "./library.js";

const withFile = async (use: (file: string) => void | Promise<void>): Promise<void> => {
  const folder = mkdtempSync(join(tmpdir(), "precopy-lock-"));
  try {
    await use(join(folder, "lock"));
  } finally {
    rmSync(folder, { recursive: true });
  }
};
function lock(file: string): FileLock {
  const taken = tryLockFile(file);
  if (typeof taken !== "object") return assert.fail(taken ?? "no locks here");
  return taken;
}

/** Another process that says what it was given, and stays. */
async function lockElsewhere(file: string): Promise<{ readonly child: ChildProcess; readonly given: string }> {
  const code = `
    const { tryLockFile } = await import(${JSON.stringify(new URL("./file-lock.js", import.meta.url))});
    const given = tryLockFile(${JSON.stringify(file)});
    process.stdout.write(typeof given === "object" ? "locked" : String(given));
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", code], { stdio: ["ignore", "pipe", "inherit"] });
  const [given] = await once(child.stdout, "data");
  return { child, given: String(given) };
}
async function kill(child: ChildProcess): Promise<void> {
  const exited = once(child, "exit");
  child.kill("SIGKILL");
  await exited;
}

describe("tryLockFile", { skip: isLinuxAvailable ? false : `no system calls on ${process.platform} ${process.arch}` }, () => {
  it("says held while another process has it, and gives it once that process was killed", () =>
    withFile(async (file) => {
      const { child, given } = await lockElsewhere(file);
      assert.equal(given, "locked");
      assert.equal(tryLockFile(file), "held");
      await kill(child);
      lock(file).release();
    }));

  it("tells another process that it is held", () =>
    withFile(async (file) => {
      const held = lock(file);
      const { child, given } = await lockElsewhere(file);
      assert.equal(given, "held");
      await kill(child);
      held.release();
    }));

  it("is not kept alive by a child process that outlives the release", () =>
    withFile(async (file) => {
      const held = lock(file);
      const child = spawn(process.execPath, ["--eval", "console.log(); setInterval(() => {}, 1000)"], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      await once(child.stdout, "data");
      held.release();
      lock(file).release();
      await kill(child);
    }));

  it("says held in the same process too, and gives it again after release, which may come twice", () =>
    withFile((file) => {
      const first = lock(file);
      assert.equal(tryLockFile(file), "held");
      first.release();
      const second = lock(file);
      first.release();
      assert.equal(tryLockFile(file), "held");
      second.release();
    }));

  it("locks two files independently", () =>
    withFile((file) => {
      const held = [lock(file), lock(`${file}-2`)];
      for (const one of held) one.release();
    }));

  it("throws what opening the file throws, and does not take that for a lock that is held", () =>
    withFile((file) => {
      writeFileSync(file, "");
      assert.throws(() => tryLockFile(join(file, "inside")), { code: "ENOTDIR" });
    }));
});

it("tryLockFile is undefined where there are no locks", { skip: isLinuxAvailable ? "here there are" : false }, () =>
  assert.equal(tryLockFile("no/such/folder/lock"), undefined),
);
