import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { describe, it } from "node:test";
import { bootId } from "./boot-id.js";

const hasName = existsSync("/proc/sys/kernel/random/boot_id");
const LOOK = `import(${JSON.stringify(new URL("./boot-id.js", import.meta.url))}).then(({ bootId }) => console.log(bootId()))`;

describe("bootId", () => {
  it("is one and the same UUID in every process of this host", { skip: hasName ? false : "this system does not name its starts" }, () => {
    assert.match(bootId() ?? "", /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    assert.equal(execFileSync(process.execPath, ["--eval", LOOK], { encoding: "utf8" }).trim(), bootId());
  });

  it("is undefined where the system has no name for it", { skip: hasName ? "this one has" : false }, () =>
    assert.equal(bootId(), undefined),
  );
});
