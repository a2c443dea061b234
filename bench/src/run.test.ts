import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { readResults } from "./compare.js";

const RUN = fileURLToPath(new URL("run.js", import.meta.url));
const bench = (...args: string[]) => spawnSync(process.execPath, [RUN, ...args], { encoding: "utf8" });

describe("npm run bench", () => {
  it("measures an entry, prints its figures, keeps them in one file, and compares with that", (context) => {
    const folder = mkdtempSync(join(tmpdir(), "precopy-bench-"));
    context.after(() => rmSync(folder, { recursive: true }));
    const file = join(folder, "run.json");
    const first = bench("--entry", "dirty-log-barrier", "--pairs", "1", "--noisy", "--json", file);
    assert.equal(first.status, 0, first.stderr + first.stdout);
    assert.match(first.stdout, /collect: [\d.]+ ms, 1 value\n/);
    assert.deepEqual(
      readResults(file).map(({ name }) => name),
      ["dirty-log-barrier"],
    );
    const second = bench("--entry", "dirty-log-barrier", "--pairs", "1", "--noisy", "--compare", file);
    assert.match(second.stdout, /; was [\d.]+: no difference shown/);
  });

  it("refuses what it does not know with status 2, and says what there is", () => {
    for (const [args, said] of [
      [["--entry", "nothing"], /no entry begins so; --list names them/],
      [["--suite", "some"], /is neither table nor full/],
      [["--pairs", "many"], /is not a number/],
      [["--compare", "no-such.json"], /no-such\.json/],
      [["--what"], /Unknown option '--what'/],
    ] as const) {
      const { status, stderr } = bench(...args);
      assert.equal(status, 2, stderr);
      assert.match(stderr, said);
    }
    assert.match(bench("--list").stdout, /^table {2}versus-idle-64M$/m);
  });

  it("takes a name for that entry alone, and what is none for all that begin so", () => {
    const named = (entry: string): string[] => bench("--entry", entry, "--list").stdout.match(/\S+$/gm) ?? [];
    assert.deepEqual(named("lz4"), ["lz4"]);
    assert.deepEqual(named("lz"), ["lz4", "lz4-over-1gbit"]);
  });
});
