import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MigrationError, errorCodes } from "@precopy/protocol";
import { exitCodeOf, formatError } from "./exit-code.js";

describe("exit code", () => {
  it("is 1 to 12 for every error code, so that none looks like success", () => {
    for (const code of errorCodes()) assert.ok(exitCodeOf(code) >= 1 && exitCodeOf(code) <= 12, code);
  });

  it("uses each of its twelve groups", () => {
    assert.equal(new Set(errorCodes().map(exitCodeOf)).size, 12);
  });

  it("keeps the numbers that scripts rely on", () => {
    const codes = [
      "ERR_INTERNAL",
      "ERR_PARAMETER",
      "ERR_NO_AGENT",
      "ERR_NOT_AN_AGENT",
      "ERR_AGENT_FULL",
      "ERR_LINK_LOST",
      "ERR_NOT_CONVERGING",
    ] as const;
    assert.deepEqual(codes.map(exitCodeOf), [1, 2, 3, 4, 5, 6, 7]);
    assert.deepEqual((["ERR_CANCELLED", "ERR_IN_DOUBT", "ERR_NAME_IN_USE", "ERR_VERIFICATION"] as const).map(exitCodeOf), [8, 9, 10, 11]);
  });

  it("tells a refused word on a guest from one that still has to be given", () => {
    const refused = ["ERR_OWNED_ELSEWHERE", "ERR_NOT_FENCED", "ERR_ROLLBACK", "ERR_NOTHING_TO_RESOLVE", "ERR_GUEST_HELD"] as const;
    assert.deepEqual(new Set(refused.map(exitCodeOf)), new Set([5]));
    assert.deepEqual((["ERR_UNRESOLVED", "ERR_GIVEN_UP", "ERR_STATE_DIR_IN_USE", "ERR_ARBITER"] as const).map(exitCodeOf), [9, 8, 10, 10]);
  });
});

describe("formatError", () => {
  it("writes code, message and remedy in one line", () => {
    const error = new MigrationError("ERR_CANCELLED", "Cancelled in round 3");
    assert.equal(formatError(error), "precopy: ERR_CANCELLED: Cancelled in round 3. Nothing to do: the guest runs on at the source.");
  });

  it("appends the cause in parentheses", () => {
    const error = new MigrationError("ERR_UNREACHABLE", "Cannot reach 127.0.0.1:1", {
      cause: new Error("connect ECONNREFUSED 127.0.0.1:1"),
    });
    assert.match(
      formatError(error),
      /^precopy: ERR_UNREACHABLE: Cannot reach 127\.0\.0\.1:1\. .*\. \(connect ECONNREFUSED 127\.0\.0\.1:1\)$/,
    );
  });

  it("names every address of a host that could not be reached at any", () => {
    const cause = new AggregateError([new Error("connect ECONNREFUSED ::1:1"), new Error("connect ECONNREFUSED 127.0.0.1:1")]);
    assert.match(
      formatError(new MigrationError("ERR_UNREACHABLE", "No", { cause })),
      /\(connect ECONNREFUSED ::1:1; connect ECONNREFUSED 127\.0\.0\.1:1\)$/,
    );
  });

  it("stays one line without control characters whatever a peer says", () => {
    const error = new MigrationError("ERR_AGENT_FULL", "first\nsecond\u001b[2J\r\n", { cause: new Error("a\n\tb\u0007") });
    const line = formatError(error);
    assert.doesNotMatch(line, /\p{Cc}/u);
    assert.match(line, /first second/);
    assert.match(line, /\(a b\)$/);
  });

  it("neither doubles a full stop nor prints a cause that is no Error or says the same", () => {
    assert.match(formatError(new MigrationError("ERR_INTERNAL", "Broken.", { cause: "text" })), /: Broken\. Report/);
    assert.doesNotMatch(formatError(MigrationError.from(new Error("same"))), /\(same\)/);
  });
});
