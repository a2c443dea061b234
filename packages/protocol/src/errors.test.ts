import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MigrationError, assertNever, errorCodes, isErrorCode } from "./errors.js";

describe("MigrationError", () => {
  it("has a remedy for every code: a sentence, ended, that does not repeat the code", () => {
    assert.ok(errorCodes().length > 30);
    for (const code of errorCodes()) {
      const { remedy } = new MigrationError(code, "");
      assert.match(remedy, /^[A-Z].{10,}[.]$/, code);
      assert.doesNotMatch(remedy, /ERR_/, code);
    }
  });
  it("has codes in capitals, and isErrorCode knows them and no name that objects inherit", () => {
    for (const code of errorCodes()) {
      assert.match(code, /^ERR_[A-Z_]+$/);
      assert.equal(isErrorCode(code), true);
    }
    for (const other of ["", "ERR_", "toString", "__proto__", "constructor"]) assert.equal(isErrorCode(other), false, other);
  });
  it("keeps message and cause as given", () => {
    const cause = new Error("below");
    const error = new MigrationError("ERR_LINK_LOST", "above", { cause });
    assert.ok(error instanceof Error);
    assert.deepEqual([error.name, error.code, error.message], ["MigrationError", "ERR_LINK_LOST", "above"]);
    assert.equal(error.cause, cause);
  });
});

describe("MigrationError.from", () => {
  it("gives one of ours back as it is", () => {
    const ours = new MigrationError("ERR_BUSY", "busy");
    assert.equal(MigrationError.from(ours), ours);
  });
  it("wraps anything else as ERR_INTERNAL with the original as cause", () => {
    const cause = new TypeError("x is not a function");
    for (const thrown of [cause, "a string", 7, null, undefined, { code: "ERR_BUSY" }]) {
      const error = MigrationError.from(thrown);
      assert.equal(error.code, "ERR_INTERNAL");
      assert.equal(error.cause, thrown);
    }
    assert.equal(MigrationError.from(cause).message, "x is not a function");
  });
});

it("assertNever throws ERR_INTERNAL if a value gets past the compiler", () =>
  // The cast stands for what no compiler sees: a value from another release.
  assert.throws(() => assertNever("surprise" as never), { code: "ERR_INTERNAL", message: /surprise/ }));
