import assert from "node:assert/strict";
import { it, mock } from "node:test";
import { MigrationError } from "@precopy/protocol";
import { RefusalLog } from "./refusal-log.js";

it("a flood of strangers is ten lines a second, and how many more there were", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const lines: unknown[][] = [];
    const log = new RefusalLog({ warn: (...line: unknown[]) => void lines.push(line) });
    const error = new MigrationError("ERR_TLS_REQUIRED", "1.2.3.4:5 came without TLS");
    for (let left = 25; left > 0; left--) log.refused("1.2.3.4:5", error);
    assert.equal(lines.length, 10);
    assert.deepEqual(lines[0], [{ peer: "1.2.3.4:5", code: "ERR_TLS_REQUIRED", remedy: error.remedy }, "1.2.3.4:5 came without TLS"]);
    mock.timers.tick(1000);
    assert.deepEqual(lines[10], [{ untold: 15 }, "and more were not let in"]);
    log.refused("1.2.3.4:5", error);
    mock.timers.tick(1000);
    assert.equal(lines.length, 12);
  } finally {
    mock.timers.reset();
  }
});
