import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { chownSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterEach, beforeEach, describe, it, mock } from "node:test";
import { MigrationError } from "@precopy/protocol";
import type { ErrorCode, MigrationReport, ProgressEvent } from "@precopy/protocol";
import { CommandSocket, callAgent } from "./command-socket.js";
import type { Handlers, MigrateRequest } from "./command-socket.js";
import type { AgentStatus } from "./render.js";

const STATUS: AgentStatus = { agent: { name: "a", listen: "127.0.0.1:1", pid: 1, release: "0" }, guest: null, "query-migrate": { status: "none" }, verdict: null };
const REPORT: MigrationReport = {
  guest: "g",
  from: "a:1",
  to: "b:1",
  "owner-epoch": 2,
  "query-migrate": { status: "completed" },
  iterations: [],
  "downtime-breakdown": null,
  clocks: { "source-ms": 1, "guest-ms": null, "client-ms": null },
  "digest-equal": true,
  audit: null,
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
  const socket = await CommandSocket.listen(at, { migrate: () => Promise.resolve(REPORT), status: () => STATUS, cancel: () => Promise.resolve(), ...handlers });
  open.push(socket);
  return socket;
}

/** A migration that the test ends. */
function migration() {
  const started = Promise.withResolvers();
  const { promise: result, resolve: end, reject: fail } = Promise.withResolvers();
  return { started, result, end, fail };
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
