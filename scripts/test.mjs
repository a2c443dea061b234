// Runs the compiled tests: unit and compliance tests under c8, two files at a time, then the bench's and the end-to-end tests. Those are hundreds of
// processes, which V8's counting would make a third slower while it showed little that is not covered before; and they wait much, so three at a time.
// A file with a failure is run again by itself, and what fails then fails the run: on a host that takes half of two processors for seconds on end a
// test can run out of its time beside others. Both runs are printed.
// `node scripts/test.mjs packages` or `e2e` runs one part only; `unprivileged` what must not need root, for an ordinary user to run.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const only = process.argv[2];

const testFiles = (folder) =>
  readdirSync(`${root}${folder}`, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(".test.js") && !entry.parentPath.includes("node_modules"))
    .map((entry) => `${entry.parentPath}/${entry.name}`)
    .sort();

const COVERAGE = ["--include=packages/*/dist/**", "--exclude=**/*.test.js", "--reporter=text-summary"];
const parts = [
  { name: "packages", files: testFiles("packages"), isCovered: true, atOnce: 2 },
  { name: "e2e", files: [...testFiles("bench/dist"), ...testFiles("test/dist")], isCovered: false, atOnce: 3 },
  {
    name: "unprivileged",
    files: ["packages/compliance/dist/dirty-log-mmu.test.js", "test/dist/e2e/moves.test.js"]
      .map((file) => `${root}${file}`)
      .concat(testFiles("packages/linux/dist")),
    isCovered: false,
    atOnce: 2,
  },
].filter(({ name }) => (only === undefined ? name !== "unprivileged" : only === name));

/** The files among these that had a failure. */
function run(files, atOnce, isCovered) {
  const folder = mkdtempSync(join(tmpdir(), "precopy-test-run-"));
  try {
    const list = join(folder, "failed");
    const reporters = ["--test-reporter=spec", "--test-reporter-destination=stdout"];
    reporters.push(`--test-reporter=${root}scripts/failed-files.mjs`, `--test-reporter-destination=${list}`);
    const test = ["--test", `--test-concurrency=${atOnce}`, ...reporters, "--test-timeout=300000", ...files];
    const options = { cwd: root, stdio: "inherit" };
    const { status } = isCovered
      ? spawnSync("npx", ["c8", ...COVERAGE, process.execPath, ...test], options)
      : spawnSync(process.execPath, test, options);
    if (status === 0) return [];
    const failed = new Set(readFileSync(list, "utf8").split("\n"));
    const found = files.filter((file) => failed.has(file));
    return found.length > 0 ? found : files; // it failed, and nobody says where
  } finally {
    rmSync(folder, { recursive: true });
  }
}

for (const { name, files, isCovered, atOnce } of parts) {
  console.log(`# ${name}: ${files.length} files`);
  const failed = run(files, atOnce, isCovered);
  if (failed.length === 0) continue;
  console.log(`# ${name}, again and one at a time: ${failed.map((file) => file.slice(root.length)).join(" ")}`);
  if (run(failed, 1, false).length > 0) process.exitCode = 1;
}
