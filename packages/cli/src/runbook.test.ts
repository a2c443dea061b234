import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { it } from "node:test";
import { errorCodes, isErrorCode } from "@precopy/protocol";
import { exitCodeOf } from "./exit-code.js";

const runbook = readFileSync(new URL("../../../docs/runbook.md", import.meta.url), "utf8");

/** Rows that begin with a code: code, exit code, and what a person reads. */
const rows = [...runbook.matchAll(/^\| `(ERR_\w+)` \| (\d+) \| (.*?) \| (.*?) \|$/gm)].map(
  ([, code = "", exit = "", meaning = "", remedy = ""]) => ({
    code,
    exit: Number(exit),
    meaning,
    remedy,
  }),
);

it("the runbook has exactly one row for every error code, and none for a code that is not there", () => {
  assert.deepEqual(rows.map(({ code }) => code).toSorted(), [...errorCodes()].toSorted());
});

it("each row has the exit code that the command line ends with", () => {
  for (const { code, exit } of rows) assert.equal(isErrorCode(code) && exitCodeOf(code), exit, code);
});

it("each row says what it means and what to do, in sentences", () => {
  for (const { code, meaning, remedy } of rows) for (const text of [meaning, remedy]) assert.match(text, /^\S.{10,}[.]$/, code);
});

it("no row is missed by the pattern: every line that begins with a code is one of them", () => {
  assert.equal(runbook.match(/^\|\s*`?ERR_/gm)?.length, rows.length);
});
