import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { WorkloadCatalogue } from "./workload.js";

const CODE = "export default { create: () => ({ step: () => 1, save: () => null, load() {} }) };\n";
function withFolder(files: Readonly<Record<string, string>>, use: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "precopy-workload-"));
  try {
    for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
    use(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe("WorkloadCatalogue", () => {
  it("has the built-in workloads, each with the hash of its file", () => {
    const catalogue = new WorkloadCatalogue();
    const hashes = ["idle", "random-writer", "sequential-writer", "ledger"].map((name) => catalogue.find(name).sha256);
    assert.equal(new Set(hashes).size, 4);
    for (const hash of hashes) assert.match(hash, /^[0-9a-f]{64}$/);
  });

  it("finds a workload by name and hash, and says ERR_WORKLOAD_DIFFERS for another hash", () =>
    withFolder({ "one.js": CODE }, (folder) => {
      const catalogue = new WorkloadCatalogue();
      catalogue.add("counter", join(folder, "one.js"));
      const sha256 = createHash("sha256").update(CODE).digest("hex");
      assert.equal(catalogue.find("counter").sha256, sha256);
      assert.equal(catalogue.find("counter", sha256).url, `file://${join(folder, "one.js")}`);
      assert.throws(() => catalogue.find("counter", "0".repeat(64)), { code: "ERR_WORKLOAD_DIFFERS" });
    }));

  it("says ERR_WORKLOAD_UNKNOWN and which there are for any other name, paths and inherited names included", () => {
    const catalogue = new WorkloadCatalogue();
    for (const name of ["", "nothing", "idle.js", "./workloads/idle", "/etc/passwd", "toString", "__proto__"])
      assert.throws(
        () => catalogue.find(name),
        { code: "ERR_WORKLOAD_UNKNOWN", message: /known: idle, random-writer, sequential-writer, ledger/ },
        name,
      );
  });

  it("takes every .js and .mjs file of a folder by its name and nothing else there", () =>
    withFolder({ "one.js": CODE, "two.mjs": CODE, "three.cjs": CODE, "four.ts": CODE, "README.md": "" }, (folder) => {
      const catalogue = new WorkloadCatalogue();
      catalogue.addDirectory(folder);
      assert.equal(catalogue.find("one").sha256, catalogue.find("two").sha256);
      for (const name of ["three", "four", "README", "one.js"])
        assert.throws(() => catalogue.find(name), { code: "ERR_WORKLOAD_UNKNOWN" }, name);
    }));

  it("lets a later file take an earlier name", () =>
    withFolder({ "idle.js": CODE }, (folder) => {
      const catalogue = new WorkloadCatalogue();
      const builtIn = catalogue.find("idle").sha256;
      catalogue.addDirectory(folder);
      assert.notEqual(catalogue.find("idle").sha256, builtIn);
    }));

  it("refuses a name that is none, a file and a folder that are not there, with ERR_PARAMETER", () =>
    withFolder({ "one.js": CODE }, (folder) => {
      const catalogue = new WorkloadCatalogue();
      for (const name of ["", "a b", "../one", "-x", "x".repeat(65), "a/b"])
        assert.throws(() => catalogue.add(name, join(folder, "one.js")), { code: "ERR_PARAMETER" }, name);
      assert.throws(() => catalogue.add("two", join(folder, "two.js")), { code: "ERR_PARAMETER" });
      assert.throws(() => catalogue.add("folder", folder), { code: "ERR_PARAMETER" });
      assert.throws(() => catalogue.addDirectory(join(folder, "nowhere")), { code: "ERR_PARAMETER" });
      assert.throws(() => catalogue.addDirectory(join(folder, "one.js")), { code: "ERR_PARAMETER" });
    }));
});
