// Runs the compiled tests: unit and compliance tests under c8, two files at a time, then the bench's and the end-to-end tests. Those are hundreds of
// processes, which V8's counting would make a third slower while it showed little that is not covered before; and they wait much, so three at a time.
// `node scripts/test.mjs packages` or `e2e` runs one part only.
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
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
].filter(({ name }) => only === undefined || only === name);

let isFailed = false;
for (const { name, files, isCovered, atOnce } of parts) {
  console.log(`# ${name}: ${files.length} files`);
  const test = ["--test", `--test-concurrency=${atOnce}`, "--test-reporter=spec", "--test-timeout=300000", ...files];
  const options = { cwd: root, stdio: "inherit" };
  const { status } = isCovered
    ? spawnSync("npx", ["c8", ...COVERAGE, process.execPath, ...test], options)
    : spawnSync(process.execPath, test, options);
  isFailed ||= status !== 0;
}
process.exitCode = isFailed ? 1 : 0;
