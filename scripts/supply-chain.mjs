// What `precopy` is made of besides this repository: lists it (CycloneDX, docs/sbom.cdx.json), and refuses what has a known hole, a licence that asks for more
// than to be named, or a version that is not pinned. `--write` brings the list up to date; without it a list that is not ends with 1.
import { spawnSync } from "node:child_process";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const LIST = `${root}docs/sbom.cdx.json`;
const LICENCES = new Set(["0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "Unlicense"]);

const npm = (...args) => {
  const { status, stdout, stderr } = spawnSync("npm", args, { cwd: root, encoding: "utf8", maxBuffer: 2 ** 26 });
  return { status, text: stdout, said: stderr };
};
const complaints = [];

// 1. Pinned: an exact version each, and all of them in the lock file.
const manifests = [
  "package.json",
  ...["packages", ""]
    .flatMap((folder) => (folder === "" ? ["test", "bench"] : readdirSync(`${root}${folder}`).map((name) => `${folder}/${name}`)))
    .map((folder) => `${folder}/package.json`),
];
for (const file of manifests) {
  const { dependencies = {}, devDependencies = {}, optionalDependencies = {} } = JSON.parse(readFileSync(`${root}${file}`, "utf8"));
  for (const [name, version] of Object.entries({ ...dependencies, ...devDependencies, ...optionalDependencies }))
    if (!/^\d+\.\d+\.\d+$/.test(version)) complaints.push(`${file}: ${name} ${version} is not one version`);
}

// 2. What goes to users, with its licences.
const { text } = npm("sbom", "--sbom-format", "cyclonedx", "--omit", "dev", "--package-lock-only");
const sbom = JSON.parse(text);
const components = sbom.components
  .filter(({ purl }) => !purl.startsWith("pkg:npm/%40precopy/") && !purl.startsWith("pkg:npm/precopy-monorepo"))
  .map(({ name, version, purl, hashes = [], licenses = [] }) => ({
    type: "library",
    name,
    version,
    purl,
    licenses,
    hashes,
  }))
  .toSorted((one, other) => (one.purl < other.purl ? -1 : 1));
for (const { name, version, licenses } of components) {
  const names = licenses.map(({ license, expression }) => expression ?? license?.id ?? license?.name);
  if (names.length === 0 || names.some((licence) => !LICENCES.has(licence)))
    complaints.push(`${name} ${version} has the licence ${names.join(", ") || "unknown"}`);
}
const list = `${JSON.stringify({ bomFormat: "CycloneDX", specVersion: sbom.specVersion, components }, null, 2)}\n`;
if (process.argv.includes("--write")) writeFileSync(LIST, list);
else if (readFileSync(LIST, "utf8") !== list)
  complaints.push("docs/sbom.cdx.json is not what package-lock.json says: node scripts/supply-chain.mjs --write");

// 3. Known holes.
const audit = npm("audit", "--omit", "dev", "--json");
let report;
try {
  report = JSON.parse(audit.text);
} catch {
  report = {};
}
if (report.metadata === undefined)
  console.log(`npm audit: not asked, the registry here does not answer (${(report.message ?? audit.said).trim().split("\n").at(-1)})`);
else
  for (const [name, { severity, via }] of Object.entries(report.vulnerabilities))
    complaints.push(`${name}: ${severity}, ${via.map((one) => (typeof one === "string" ? one : `${one.title} ${one.url}`)).join("; ")}`);

console.log(
  `${components.length} packages of others in what users get, ${new Set(components.flatMap(({ licenses }) => licenses.map(({ license, expression }) => expression ?? license?.id))).size} licences`,
);
for (const complaint of complaints) console.error(complaint);
process.exitCode = complaints.length > 0 ? 1 : 0;
