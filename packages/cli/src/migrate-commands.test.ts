import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { afterEach, beforeEach, describe, it } from "node:test";
import { MigrationError } from "@precopy/protocol";
import type { ErrorCode, ProgressEvent } from "@precopy/protocol";
import { CommandSocket } from "./command-socket.js";
import type { Handlers, Resolution, ResolveRequest, WhoOwnsAnswer } from "./command-socket.js";
import { exitCodeOf } from "./exit-code.js";
import { runMigrate, runResolve, runWhoOwns } from "./migrate-commands.js";
import type { RunContext } from "./run-context.js";

let folder: string;
let socket: string;
let agent: CommandSocket | undefined;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "precopy-test-"));
  socket = join(folder, "a.sock");
});
afterEach(async () => {
  await agent?.close();
  agent = undefined;
  rmSync(folder, { recursive: true });
});

async function listen(handlers: Partial<Handlers>): Promise<void> {
  const never = (): never => assert.fail("nobody asked for this");
  agent = await CommandSocket.listen(socket, {
    migrate: never,
    plan: never,
    dirtyRate: never,
    status: never,
    cancel: never,
    startPostcopy: never,
    recoverPostcopy: never,
    set: never,
    resolve: never,
    whoOwns: never,
    ...handlers,
  });
}

/** Runs one command; what it wrote, and the code that it ends with. */
async function outcome(
  command: (run: RunContext) => Promise<void>,
): Promise<{ readonly text: string; readonly code: ErrorCode | undefined }> {
  const output = new PassThrough();
  const stopping = { guard: () => () => {}, stop: () => {} };
  const code = await command({ signal: new AbortController().signal, stopping, output, environment: {}, command: [] }).then(
    () => undefined,
    (error: unknown) => MigrationError.from(error).code,
  );
  return { text: String(output.read() ?? ""), code };
}

describe("precopy migrate", () => {
  const failed: ProgressEvent = { type: "failed", phase: "in-doubt", code: "ERR_IN_DOUBT", message: "COMMIT is out", remedy: "" };
  const phase = (name: "in-doubt" | "completed" | "taken-back"): ProgressEvent => ({ type: "phase", phase: name, atMs: 1 });
  const link: ProgressEvent = { type: "link", what: "control-lost", channel: null, code: "ERR_LINK_LOST", message: "", atMs: 1 };

  async function endingAfter(events: readonly ProgressEvent[], thrown: ErrorCode): Promise<ErrorCode | undefined> {
    await listen({
      migrate: (_request, onEvent) => {
        for (const event of events) onEvent(event);
        return Promise.reject(new MigrationError(thrown, "The agent is ending"));
      },
    });
    const options = { name: "a", socket, to: { host: "b", port: 1 }, guest: undefined, parameters: {}, report: undefined, isJson: true };
    const { code } = await outcome((run) => runMigrate(options, run));
    await agent?.close();
    return code;
  }

  it("ends in doubt, and not with the end of the agent, if that was the last word on the guest", async () => {
    for (const events of [
      [phase("in-doubt"), failed],
      [phase("in-doubt"), failed, failed],
      [phase("in-doubt"), failed, link],
      [phase("in-doubt")],
    ])
      assert.equal(await endingAfter(events, "ERR_SHUTTING_DOWN"), "ERR_IN_DOUBT");
    assert.equal(await endingAfter([phase("in-doubt"), failed], "ERR_NO_AGENT"), "ERR_IN_DOUBT");
    assert.equal(exitCodeOf("ERR_IN_DOUBT"), 9);
  });

  it("ends with what the agent said if the doubt was over, or never was", async () => {
    assert.equal(await endingAfter([], "ERR_SHUTTING_DOWN"), "ERR_SHUTTING_DOWN");
    assert.equal(await endingAfter([phase("in-doubt"), failed, phase("taken-back")], "ERR_SHUTTING_DOWN"), "ERR_SHUTTING_DOWN");
    assert.equal(await endingAfter([phase("in-doubt"), failed], "ERR_TAKEN_BACK"), "ERR_TAKEN_BACK");
    assert.equal(await endingAfter([phase("in-doubt"), failed], "ERR_GIVEN_UP"), "ERR_GIVEN_UP");
  });
});

describe("precopy resolve", () => {
  const asking = { name: "a", socket, guest: "g", isOtherSideFenced: false, isRollbackAccepted: false } as const;
  async function resolved(
    way: ResolveRequest["way"],
    became: Resolution["outcome"],
    isJson = false,
  ): Promise<{ readonly text: string; readonly code: ErrorCode | undefined }> {
    const resolution: Resolution = { guest: "g", epoch: 5, outcome: became, isRolledBack: false, copyAt: null };
    await listen({ resolve: () => Promise.resolve(resolution) });
    const result = await outcome((run) => runResolve({ ...asking, socket, way, isJson }, run));
    await agent?.close();
    return result;
  }

  it("ends well with what was asked, in words", async () => {
    for (const [way, became] of [
      ["take-back", "taken-back"],
      ["take-back", "claimed"],
      ["give-up", "given-up"],
      ["give-up", "discarded"],
      ["give-up", "completed"],
    ] as const) {
      const { text, code } = await resolved(way, became);
      assert.match(text, /^guest g\b.*\n$/, `${way}: ${became}`);
      assert.equal(code, undefined, `${way}: ${became}`);
    }
  });

  it("ends as refused, with no word of success, if the other side's answer decided otherwise", async () => {
    for (const [way, became, expected] of [
      ["take-back", "completed", "ERR_OWNED_ELSEWHERE"],
      ["take-back", "given-up", "ERR_NO_GUEST"],
      ["take-back", "discarded", "ERR_NO_GUEST"],
      ["give-up", "taken-back", "ERR_NOTHING_TO_RESOLVE"],
      ["give-up", "claimed", "ERR_NOTHING_TO_RESOLVE"],
    ] as const) {
      assert.deepEqual(await resolved(way, became), { text: "", code: expected });
      assert.equal(exitCodeOf(expected), 5);
    }
  });

  it("with --json is the resolution, whole, whichever way it ends", async () => {
    for (const became of ["taken-back", "completed"] as const) {
      const { text } = await resolved("take-back", became, true);
      assert.deepEqual(JSON.parse(text), { guest: "g", epoch: 5, outcome: became, isRolledBack: false, copyAt: null });
    }
  });

  it("passes the agent's refusal on", async () => {
    await listen({ resolve: () => Promise.reject(new MigrationError("ERR_NOT_FENCED", "The target does not answer")) });
    assert.deepEqual(await outcome((run) => runResolve({ ...asking, socket, way: "take-back", isJson: false }, run)), {
      text: "",
      code: "ERR_NOT_FENCED",
    });
  });
});

describe("precopy who-owns", () => {
  const here = { guest: "g", standing: "in-doubt", epoch: 5, at: null, peer: "b:1" } as const;
  const answer: WhoOwnsAnswer = { here, there: null, thereError: { code: "ERR_UNREACHABLE", message: "Cannot reach b:1" } };
  const asking = { name: "a", guest: undefined, peer: undefined } as const;

  it("shows commands that find the same agent", async () => {
    await listen({ whoOwns: () => Promise.resolve(answer) });
    const { text } = await outcome((run) => runWhoOwns({ ...asking, socket, isJson: false }, run));
    assert.ok(text.replaceAll(/ \\\n +/g, " ").endsWith(`--take-back --other-side-is-fenced --socket ${socket}\n`), text);
  });

  it("with --json is the answer and the verdict", async () => {
    const asked: unknown[] = [];
    await listen({ whoOwns: (...given) => Promise.resolve((asked.push(given), answer)) });
    const peer = { host: "::1", port: 4646 };
    const { text, code } = await outcome((run) => runWhoOwns({ ...asking, guest: "g", peer, socket, isJson: true }, run));
    const { verdict, ...rest } = JSON.parse(text) as WhoOwnsAnswer & { readonly verdict: { readonly owner: string } };
    assert.deepEqual([rest, verdict.owner, code, asked], [answer, "unknown", undefined, [["g", "[::1]:4646"]]]);
  });
});
