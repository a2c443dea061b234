import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { chownSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterEach, beforeEach, describe, it, mock } from "node:test";
import { DEFAULT_PARAMETERS, MigrationError, fillParameters } from "@precopy/protocol";
import type { ErrorCode, MigrationReport, ProgressEvent } from "@precopy/protocol";
import { CommandSocket, callAgent } from "./command-socket.js";
import type { AgentRequest, Handlers, MigrateRequest, Resolution, ResolveRequest, WhoOwnsAnswer } from "./command-socket.js";
import type { AgentStatus } from "./render.js";

const STATUS: AgentStatus = {
  agent: { name: "a", listen: "127.0.0.1:1", pid: 1, release: "0" },
  guest: null,
  unresolved: [],
  "query-migrate": { status: "none" },
  verdict: null,
};
const REPORT: MigrationReport = {
  guest: "g",
  from: "a:1",
  to: "b:1",
  "owner-epoch": 2,
  "query-migrate": { status: "completed" },
  iterations: [],
  "downtime-breakdown": null,
  forecasts: [],
  outcome: null,
  clocks: { "source-ms": 1, "host-ms": null, "guest-ms": null, "client-ms": null },
  "digest-equal": true,
  audit: null,
  postcopy: null,
  "channel-losses": 0,
  "control-rejoins": 0,
  "resent-pages": 0,
  "resent-bytes": 0,
  verdict: "fine",
  parameters: {},
  error: null,
};
const phase = (atMs: number): ProgressEvent => ({ type: "phase", phase: "active", atMs });
const MIGRATE: MigrateRequest = { command: "migrate", to: "b:1", parameters: {} };

let folder: string;
let path: string;
let open: CommandSocket[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "precopy-test-"));
  path = join(folder, "run", "a.sock");
  open = [];
});
afterEach(async () => {
  await Promise.all(open.map((socket) => socket.close()));
  rmSync(folder, { recursive: true });
});

async function listen(handlers: Partial<Handlers> = {}, at = path): Promise<CommandSocket> {
  const socket = await CommandSocket.listen(at, {
    migrate: () => Promise.resolve(REPORT),
    plan: () => assert.fail("nobody asked for this"),
    dirtyRate: () => assert.fail("nobody asked for this"),
    status: () => STATUS,
    cancel: () => Promise.resolve(),
    startPostcopy: () => assert.fail("postcopy ran"),
    recoverPostcopy: () => assert.fail("postcopy-recover ran"),
    set: () => DEFAULT_PARAMETERS,
    resolve: () => assert.fail("resolve ran"),
    whoOwns: () => assert.fail("whoOwns ran"),
    ...handlers,
  });
  open.push(socket);
  return socket;
}

/** A promise that the test settles. */
function later<T>() {
  let resolve: (value: T) => void = () => {};
  let reject: (error: unknown) => void = () => {};
  const promise = new Promise<T>((...settle) => ([resolve, reject] = settle));
  return { promise, resolve, reject };
}

const refusal = (code: ErrorCode, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof MigrationError, String(error));
  assert.equal(error.code, code);
  assert.match(error.message, message);
  return true;
};

async function dial(): Promise<Socket> {
  const socket = connect({ path, allowHalfOpen: true });
  await once(socket, "connect");
  return socket;
}

/** Everything the agent says to raw bytes. */
async function say(bytes: string | Buffer, isEnded = false): Promise<unknown[]> {
  const socket = await dial();
  socket.on("error", () => {}); // an agent that refuses while we still send resets the connection
  if (isEnded) socket.end(bytes);
  else socket.write(bytes);
  const said = await text(socket);
  socket.destroy();
  return said
    .split("\n")
    .filter((line) => line !== "")
    .map((line): unknown => JSON.parse(line));
}

describe("command socket", () => {
  it("hands on what is to be changed in flight, and answers with what holds then; what cannot be changed is no such request", async () => {
    await listen({ set: (changes) => fillParameters(changes) });
    const changed = await callAgent(path, { command: "set", parameters: { downtimeLimitMs: 20, throttle: "sdps" } });
    assert.deepEqual(changed, fillParameters({ downtimeLimitMs: 20, throttle: "sdps" }));
    for (const parameters of [{ multifdChannels: 4 }, { mode: "stop-and-copy" }, { throttle: "slow" }])
      await assert.rejects(callAgent(path, { command: "set", parameters } as unknown as AgentRequest), { code: "ERR_BAD_MESSAGE" });
    await assert.rejects(callAgent(path, { command: "set", parameters: { downtimeLimitMs: -1 } }), { code: "ERR_PARAMETER" });
  });

  it("answers status and cancel with one line each", async () => {
    let cancelled = 0;
    await listen({ cancel: () => Promise.resolve(void cancelled++) });
    assert.deepEqual(await callAgent(path, { command: "status" }), STATUS);
    assert.equal(await callAgent(path, { command: "cancel" }), null);
    assert.equal(cancelled, 1);
    assert.deepEqual(await say('{"command":"status"}\n'), [{ ok: STATUS }]);
  });

  it("passes an operator's decision on, and nothing else of the request", async () => {
    const requests: ResolveRequest[] = [];
    const resolution: Resolution = { guest: "g", epoch: 5, outcome: "claimed", isRolledBack: true, copyAt: "2026-11-20T12:00:01.123Z" };
    await listen({ resolve: (request) => Promise.resolve((requests.push(request), resolution)) });
    const decision: ResolveRequest = { guest: "g", way: "take-back", isOtherSideFenced: true, isRollbackAccepted: false };
    assert.deepEqual(await callAgent(path, { command: "resolve", ...decision }), resolution);
    assert.deepEqual(requests, [decision]);
  });

  it("asks who owns a guest, with or without its name and a peer", async () => {
    const asked: (readonly (string | undefined)[])[] = [];
    const here = { guest: "g", standing: "in-doubt", epoch: 2, at: null, peer: "b:1" } as const;
    const answer: WhoOwnsAnswer = { here, there: null, thereError: { code: "ERR_UNREACHABLE", message: "Cannot reach b:1" } };
    await listen({ whoOwns: (...given) => Promise.resolve((asked.push(given), answer)) });
    assert.deepEqual(await callAgent(path, { command: "who-owns" }), answer);
    assert.deepEqual(await callAgent(path, { command: "who-owns", guest: "g", peer: "[::1]:4646" }), answer);
    assert.deepEqual(asked, [
      [undefined, undefined],
      ["g", "[::1]:4646"],
    ]);
  });

  it("passes a migration's request on, then its events in order, then its report", async () => {
    const requests: MigrateRequest[] = [];
    await listen({
      migrate: async (request, onEvent) => {
        requests.push(request);
        for (let at = 0; at < 100; at++) onEvent(phase(at));
        return Promise.resolve(REPORT);
      },
    });
    const events: ProgressEvent[] = [];
    const asked: MigrateRequest = {
      command: "migrate",
      to: "[::1]:4646",
      guest: "g",
      parameters: { mode: "stop-and-copy", downtimeLimitMs: 5 },
    };
    assert.deepEqual(await callAgent(path, asked, (event) => events.push(event)), REPORT);
    assert.deepEqual(requests, [asked]);
    assert.deepEqual(
      events,
      Array.from({ length: 100 }, (_, at) => phase(at)),
    );
  });

  it("gives an error back with code, message and cause", async () => {
    const cause = new Error("connect ECONNREFUSED 127.0.0.1:1");
    await listen({ migrate: () => Promise.reject(new MigrationError("ERR_UNREACHABLE", "Cannot reach it", { cause })) });
    await assert.rejects(callAgent(path, MIGRATE), (error) => {
      assert.ok(refusal("ERR_UNREACHABLE", /^Cannot reach it$/)(error) && error instanceof Error && error.cause instanceof Error);
      return error.cause.message === cause.message;
    });
  });

  it("names a bug in a handler ERR_INTERNAL instead of falling silent", async () => {
    await listen({
      status: () => {
        throw new TypeError("no such thing");
      },
    });
    await assert.rejects(callAgent(path, { command: "status" }), refusal("ERR_INTERNAL", /no such thing/));
  });

  it("serves others while a migration runs", async () => {
    const result = later<MigrationReport>();
    await listen({ migrate: () => result.promise });
    const migrating = callAgent(path, MIGRATE);
    assert.deepEqual(await callAgent(path, { command: "status" }), STATUS);
    result.resolve(REPORT);
    assert.deepEqual(await migrating, REPORT);
  });
});

describe("a request", () => {
  it("may come a byte at a time, and from a client that says no more after it", async () => {
    await listen();
    const socket = await dial();
    for (const byte of '{"command":"status"}\n') {
      socket.write(byte);
      await new Promise(setImmediate);
    }
    assert.deepEqual(JSON.parse(await text(socket)), { ok: STATUS });
    assert.deepEqual(await say('{"command":"status"}\n', true), [{ ok: STATUS }]);
  });

  it("is one a connection: a second one glued to it is not answered", async () => {
    await listen();
    assert.deepEqual(await say('{"command":"status"}\n{"command":"status"}\n'), [{ ok: STATUS }]);
  });

  for (const [what, line, message] of [
    ["is no JSON", "status", /not JSON/],
    ["is JSON of another kind", "[]", /expected object/],
    ["has an unknown command", '{"command":"shutdown"}', /command/],
    ["has an unknown field", '{"command":"status","force":true}', /force/],
    ["has no parameters", '{"command":"migrate","to":"b:1"}', /parameters/],
    ["has an unknown parameter", '{"command":"migrate","to":"b:1","parameters":{"turbo":1}}', /turbo/],
    ["has a guest that is no name", '{"command":"migrate","to":"b:1","guest":"../x","parameters":{}}', /guest/],
    ["resolves no guest", '{"command":"resolve","way":"give-up","isOtherSideFenced":true,"isRollbackAccepted":false}', /guest/],
    ["leaves open what the other side may do", '{"command":"resolve","guest":"g","way":"give-up"}', /isOtherSideFenced/],
    [
      "resolves in a way that is none",
      '{"command":"resolve","guest":"g","way":"both","isOtherSideFenced":true,"isRollbackAccepted":false}',
      /way/,
    ],
    ["asks a peer without an address", '{"command":"who-owns","peer":""}', /peer/],
  ] as const)
    it(`that ${what} is refused and reaches no handler`, async () => {
      await listen({ status: () => assert.fail("status ran"), migrate: () => assert.fail("migrate ran") });
      const [answer, ...more] = await say(`${line}\n`);
      assert.deepEqual(more, []);
      assert.match(JSON.stringify(answer), /^{"error":{"code":"ERR_BAD_MESSAGE","message":"/);
      assert.match(JSON.stringify(answer), message);
    });

  it("with a parameter out of range is refused and reaches no handler", async () => {
    await listen({ migrate: () => assert.fail("migrate ran") });
    await assert.rejects(
      callAgent(path, { ...MIGRATE, parameters: { multifdChannels: 17 } }),
      refusal("ERR_PARAMETER", /multifd-channels is 17/),
    );
  });

  it("of 64 KiB is read, and one byte more is refused before the line has ended", async () => {
    await listen();
    const padded = `{"command":"status"${" ".repeat(2 ** 16 - 20)}}`;
    assert.equal(padded.length, 2 ** 16);
    assert.deepEqual(await say(`${padded}\n`), [{ ok: STATUS }]);
    const [answer] = await say(Buffer.alloc(2 ** 16 + 1, " "));
    assert.match(JSON.stringify(answer), /ERR_BAD_MESSAGE.*65536 B/);
  });

  it("of a client that never stops sending ends the connection", async () => {
    await listen();
    await say(Buffer.alloc(2 ** 24, "x"));
    assert.deepEqual(await callAgent(path, { command: "status" }), STATUS);
  });

  it("must come within 5 s; trickling bytes do not prolong that", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    try {
      await listen();
      const socket = await dial();
      const said = text(socket);
      await callAgent(path, { command: "status" }); // the first connection was accepted before this one
      socket.write("{");
      mock.timers.tick(4999);
      await callAgent(path, { command: "status" });
      assert.equal(socket.readableEnded, false);
      mock.timers.tick(1);
      assert.match(await said, /^{"error":{"code":"ERR_BAD_MESSAGE","message":"No request within 5000 ms"/);
      socket.destroy();
    } finally {
      mock.timers.reset();
    }
  });
});

describe("connections", () => {
  it("are 32 at most: the next is refused with ERR_BUSY, and served once one has left", async () => {
    await listen();
    const sockets = await Promise.all(Array.from({ length: 32 }, dial));
    await assert.rejects(callAgent(path, { command: "status" }), refusal("ERR_BUSY", /32/));
    const [first] = sockets;
    assert.ok(first);
    first.end();
    await once(first.resume(), "close");
    assert.deepEqual(await callAgent(path, { command: "status" }), STATUS);
    for (const socket of sockets) socket.destroy();
  });

  it("may break in the middle of a migration, which runs to its end", async () => {
    const [begun, goOn, ended] = [later<void>(), later<void>(), later<void>()];
    await listen({
      migrate: async (_request, onEvent) => {
        onEvent(phase(1));
        begun.resolve();
        await goOn.promise;
        for (let at = 0; at < 1000; at++) {
          onEvent(phase(at));
          await new Promise(setImmediate);
        }
        ended.resolve();
        return REPORT;
      },
    });
    const socket = await dial();
    socket.write(`${JSON.stringify(MIGRATE)}\n`);
    await begun.promise;
    socket.destroy();
    goOn.resolve();
    await ended.promise;
    assert.deepEqual(await callAgent(path, { command: "status" }), STATUS);
  });

  it("that do not read their events are dropped at a backlog of 1 MiB, and the migration runs on", async () => {
    const [lost, goOn] = [later<void>(), later<void>()];
    await listen({
      migrate: async (_request, onEvent) => {
        for (let at = 0; at < 50_000; at++) onEvent(phase(at));
        lost.resolve();
        await goOn.promise;
        return REPORT;
      },
    });
    const socket = await dial();
    socket.on("error", () => {}); // dropped
    socket.write(`${JSON.stringify(MIGRATE)}\n`);
    await lost.promise;
    const said = await text(socket);
    assert.ok(said.length < 50_000 * 40, `${said.length} B`);
    assert.doesNotMatch(said, /"ok"/);
    goOn.resolve();
    assert.deepEqual(await callAgent(path, { command: "status" }), STATUS);
  });
});

describe("the socket file", () => {
  it("is 0600 in a folder of 0700, whatever the file mode mask", async () => {
    const before = process.umask(0);
    try {
      await listen();
      assert.equal(process.umask(), 0, "the mask is as it was");
    } finally {
      process.umask(before);
    }
    assert.equal(statSync(path).mode & 0o777, 0o600);
    assert.equal(statSync(join(folder, "run")).mode & 0o777, 0o700);
  });

  const leaveStale = (): void => {
    const child = `require("node:net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))`;
    rmSync(path, { force: true });
    assert.equal(spawnSync(process.execPath, ["-e", child]).signal, "SIGKILL");
    assert.ok(existsSync(path));
  };

  it("of an agent that was killed is replaced", async () => {
    await (await listen()).close();
    leaveStale();
    await assert.rejects(callAgent(path, { command: "status" }), refusal("ERR_NO_AGENT", new RegExp(path)));
    await listen();
    assert.deepEqual(await callAgent(path, { command: "status" }), STATUS);
  });

  it("of an agent that was killed goes to exactly one of two that start at once", async () => {
    await (await listen()).close();
    leaveStale();
    const starts = await Promise.allSettled([listen(), listen()]);
    assert.deepEqual(starts.map(({ status }) => status).sort(), ["fulfilled", "rejected"]);
    for (const start of starts) if (start.status === "rejected") refusal("ERR_NAME_IN_USE", /listens at/)(start.reason);
    assert.deepEqual(await callAgent(path, { command: "status" }), STATUS);
  });

  it("of a running agent is left alone: a second agent of that name is refused, and the first still answers", async () => {
    await listen();
    await assert.rejects(listen(), refusal("ERR_NAME_IN_USE", new RegExp(`listens at ${path}`)));
    assert.deepEqual(await callAgent(path, { command: "status" }), STATUS);
  });

  it("is never made in place of something that is no socket", async () => {
    const file = join(folder, "notes.txt");
    writeFileSync(file, "precious");
    await assert.rejects(listen({}, file), refusal("ERR_PARAMETER", /no socket/));
    assert.equal(readFileSync(file, "utf8"), "precious");
  });

  it("is not made in another user's folder", { skip: process.getuid?.() !== 0 && "only root can give a folder away" }, async () => {
    await (await listen()).close();
    chownSync(join(folder, "run"), 65534, 65534);
    await assert.rejects(listen(), refusal("ERR_PARAMETER", /belongs to user 65534/));
  });

  it("that cannot be made is a named failure of the system", async () => {
    writeFileSync(join(folder, "file"), "");
    await assert.rejects(listen({}, join(folder, "file", "a.sock")), refusal("ERR_SYSTEM_CALL", /Cannot listen at/));
  });
});

describe("close", () => {
  it("unlinks the socket, answers what still runs with ERR_SHUTTING_DOWN, and ends idle connections", async () => {
    const begun = later<void>();
    const server = await listen({
      migrate: () => {
        begun.resolve();
        return later<MigrationReport>().promise;
      },
    });
    const idle = await dial();
    const migrating = assert.rejects(callAgent(path, MIGRATE), refusal("ERR_SHUTTING_DOWN", /ending/));
    await begun.promise;
    await Promise.all([server.close(), migrating, text(idle)]);
    idle.destroy();
    assert.equal(existsSync(path), false);
    await assert.rejects(callAgent(path, { command: "status" }), refusal("ERR_NO_AGENT", new RegExp(`No agent answers at ${path}`)));
  });

  it("lets an answer out that was decided just before", async () => {
    const [begun, result] = [later<void>(), later<MigrationReport>()];
    const server = await listen({
      migrate: () => {
        begun.resolve();
        return result.promise;
      },
    });
    const migrating = callAgent(path, MIGRATE);
    await begun.promise;
    result.resolve(REPORT);
    await server.close();
    assert.deepEqual(await migrating, REPORT);
  });

  it("ends though a client reads nothing", async () => {
    const begun = later<void>();
    const server = await listen({
      migrate: (_request, onEvent) => {
        for (let at = 0; at < 15_000; at++) onEvent(phase(at));
        begun.resolve();
        return later<MigrationReport>().promise;
      },
    });
    const socket = await dial();
    socket.on("error", () => {}); // cut off
    socket.write(`${JSON.stringify(MIGRATE)}\n`);
    await begun.promise;
    await server.close();
    socket.destroy();
  });
});

describe("callAgent", () => {
  /** An agent of another release. */
  async function answering(line: string): Promise<() => void> {
    const server = createServer((socket) => socket.once("data", () => socket.end(line)));
    path = join(folder, "other.sock");
    await once(server.listen(path), "listening");
    return () => server.close();
  }

  for (const [what, line, code, message] of [
    [
      "an unknown code is ERR_INTERNAL and still named",
      '{"error":{"code":"ERR_NEW","message":"new","remedy":""}}\n',
      "ERR_INTERNAL",
      /^ERR_NEW: new$/,
    ],
    ["an answer that is no JSON is ERR_BAD_MESSAGE", "hello\n", "ERR_BAD_MESSAGE", /not JSON/],
    ["an answer of another shape is ERR_BAD_MESSAGE", '{"result":1}\n', "ERR_BAD_MESSAGE", /./],
    ["an agent that dies without an answer is ERR_NO_AGENT", '{"event":{"type":"phase"}}\n', "ERR_NO_AGENT", /ended without an answer/],
  ] as const)
    it(what, async () => {
      const close = await answering(line);
      await assert.rejects(callAgent(path, { command: "status" }), refusal(code, message));
      close();
    });

  it("rejects with what its listener threw, instead of waiting for ever", async () => {
    await listen({
      migrate: (_request, onEvent) => {
        onEvent(phase(1));
        return later<MigrationReport>().promise;
      },
    });
    const broken = new Error("screen broke");
    await assert.rejects(
      callAgent(path, MIGRATE, () => {
        throw broken;
      }),
      broken,
    );
  });
});
