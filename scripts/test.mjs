// Runs the compiled tests under c8, two files at a time: unit and compliance tests, then the end-to-end tests, which mostly wait for time-outs
// of real processes. `node scripts/test.mjs packages` or `e2e` runs one part only.
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

const parts = [
  { name: "packages", files: testFiles("packages"), concurrency: 2 },
  { name: "e2e", files: testFiles("test/dist"), concurrency: 2 },
].filter(({ name }) => only === undefined || only === name);

let isFailed = false;
for (const [at, { name, files, concurrency }] of parts.entries()) {
  console.log(`# ${name}: ${files.length} files`);
  const coverage = [
    "--clean=" + (at === 0),
    "--include=packages/*/dist/**",
    "--exclude=**/*.test.js",
    `--reporter=${at === parts.length - 1 ? "text-summary" : "none"}`,
  ];
  const test = [process.execPath, "--test", `--test-concurrency=${concurrency}`, "--test-reporter=spec", "--test-timeout=180000", ...files];
  const { status } = spawnSync("npx", ["c8", ...coverage, ...test], { cwd: root, stdio: "inherit" });
  isFailed ||= status !== 0;
}
process.exitCode = isFailed ? 1 : 0;
