import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { QMP_LINE_MAX, QmpClient, QmpDecoder, parseQmpLine } from "./qmp.js";
import type { QmpMessage } from "./qmp.js";

const MESSAGES: readonly (readonly [string, QmpMessage])[] = [
  ['{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}', { type: "greeting" }],
  ['{"return": {}, "id": 1}', { type: "return", id: 1, value: {} }],
  ['{"return": [{"name": "ü"}], "id": 2}', { type: "return", id: 2, value: [{ name: "ü" }] }],
  ['{"id": 3, "error": {"class": "GenericError", "desc": "No channels"}}', { type: "error", id: 3, description: "No channels" }],
  ['{"error": {"class": "GenericError", "desc": "Invalid JSON"}}', { type: "error", id: undefined, description: "Invalid JSON" }],
  [
    '{"timestamp": {"seconds": 1700000000, "microseconds": 250500}, "event": "STOP"}',
    { type: "event", name: "STOP", atMs: 1_700_000_000_250.5, data: {} },
  ],
  [
    '{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "MIGRATION", "data": {"status": "active"}}',
    { type: "event", name: "MIGRATION", atMs: 1000, data: { status: "active" } },
  ],
];
const ALL = MESSAGES.map(([line]) => `${line}\r\n`).join("");
const PARSED = MESSAGES.map(([, message]) => message);

describe("decoder", () => {
  it("all messages come out whole, glued together and one character at a time", () => {
    const decoder = new QmpDecoder();
    assert.deepEqual(
      MESSAGES.flatMap(([line]) => decoder.push(`${line}\r\n`)),
      PARSED,
    );
    assert.deepEqual(decoder.push(ALL), PARSED);
    assert.deepEqual(
      ALL.split("").flatMap((character) => decoder.push(character)),
      PARSED,
    );
  });

  it("a truncated line is no message, whatever is missing", () => {
    for (const [line] of MESSAGES)
      for (let length = 0; length < line.length; length++) {
        assert.deepEqual(new QmpDecoder().push(line.slice(0, length)), []);
        if (length > 0) assert.throws(() => parseQmpLine(line.slice(0, length)), /not QMP/);
      }
  });

  it("what is JSON but no message is refused", () => {
    const event = '"timestamp": {"seconds": 1, "microseconds": 0}';
    for (const line of [
      "1",
      "null",
      "[]",
      "{}",
      '{"return": {}}',
      '{"return": {}, "id": "1"}',
      '{"error": "no", "id": 1}',
      '{"error": {"desc": 1}, "id": 1}',
      '{"event": "STOP"}',
      `{${event}, "event": 1}`,
      `{${event}, "event": "STOP", "data": []}`,
      '{"timestamp": {"seconds": "1", "microseconds": 0}, "event": "STOP"}',
    ])
      assert.throws(() => parseQmpLine(line), /not QMP/, line);
  });

  it("a line that does not end is refused before it fills the memory", () => {
    const decoder = new QmpDecoder();
    assert.deepEqual(decoder.push(" ".repeat(QMP_LINE_MAX)), []);
    assert.throws(() => decoder.push(" "), /more than/);
  });
});

describe("client", () => {
  const folder = mkdtempSync(join(tmpdir(), "precopy-qmp-"));
  after(() => rmSync(folder, { recursive: true, force: true }));
  let servers = 0;

  /** A client, and a QEMU of which the test says what it says. */
  async function pair(): Promise<{ client: QmpClient; qemu: Socket; commands: Record<string, unknown>[] }> {
    const path = join(folder, String(servers++));
    const server = createServer();
    const accepted = new Promise<Socket>((resolve) => server.once("connection", resolve));
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const client = new QmpClient(createConnection(path));
    const qemu = await accepted;
    server.close();
    const commands: Record<string, unknown>[] = [];
    qemu.setEncoding("utf8").on("data", (text: string) => {
      for (const line of text.trim().split("\n")) commands.push(JSON.parse(line) as Record<string, unknown>); // what the client wrote
    });
    return { client, qemu, commands };
  }
  const event = (name: string, data: object): string =>
    `${JSON.stringify({ timestamp: { seconds: 1, microseconds: 0 }, event: name, data })}\n`;

  it("an answer goes to the command that has its id, in any order, and a refusal names the command", async () => {
    const { client, qemu, commands } = await pair();
    const answers = Promise.allSettled([client.execute("a"), client.execute("b", { x: 1 }), client.execute("c")]);
    while (commands.length < 3) await new Promise((resolve) => qemu.once("data", resolve));
    assert.deepEqual(commands, [
      { execute: "a", arguments: {}, id: 1 },
      { execute: "b", arguments: { x: 1 }, id: 2 },
      { execute: "c", arguments: {}, id: 3 },
    ]);
    qemu.write('{"return": "of c", "id": 3}\n{"error": {"desc": "b is wrong"}, "id": 2}\n{"return": "of a", "id": 1}\n');
    const [a, b, c] = await answers;
    assert.deepEqual(
      [a, c],
      [
        { status: "fulfilled", value: "of a" },
        { status: "fulfilled", value: "of c" },
      ],
    );
    assert.ok(b.status === "rejected" && b.reason instanceof Error && b.reason.cause instanceof Error);
    assert.deepEqual([b.reason.message, b.reason.cause.message], ["b failed", "b is wrong"]);
    qemu.destroy();
  });

  it("an event is found whether it came before or comes later, and only with the data wanted", async () => {
    const { client, qemu } = await pair();
    const completed = client.event("MIGRATION", ({ status }) => status === "completed");
    qemu.write(event("STOP", {}) + event("MIGRATION", { status: "device" }) + event("MIGRATION", { status: "completed" }));
    assert.deepEqual((await completed).data, { status: "completed" });
    assert.equal((await client.event("STOP")).atMs, 1000);
    assert.deepEqual((await client.event("MIGRATION")).data, { status: "device" });
    qemu.destroy();
  });

  it("when the connection ends, whoever waits is told, and so is whoever comes later", async () => {
    const { client, qemu } = await pair();
    const waiting = Promise.allSettled([client.execute("a"), client.event("STOP")]);
    qemu.destroy();
    for (const { status } of await waiting) assert.equal(status, "rejected");
    await assert.rejects(client.event("STOP"), /closed/);
    await assert.rejects(client.execute("b"));
  });

  it("a QEMU that says anything else than QMP is as good as gone", async () => {
    const { client, qemu } = await pair();
    const waiting = client.event("STOP");
    qemu.write("Segmentation fault\n");
    await assert.rejects(waiting, /not QMP/);
  });
});
