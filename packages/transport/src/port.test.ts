import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer as createHttpServer, get } from "node:http";
import { Socket, createConnection, createServer } from "node:net";
import type { Server } from "node:net";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { MigrationError, OBSERVERS_MAX, PROTOCOL_VERSION } from "@precopy/protocol";
import type { Address, ErrorCode, ProgressEvent } from "@precopy/protocol";
import WebSocket from "ws";
import {
  FAULTS_PATH,
  FAULTS_PROTOCOL,
  PAGES_PATH,
  PAGES_PROTOCOL,
  connectFaultChannel,
  connectPageChannel,
  switching,
  switchingToFaults,
} from "./page-channel.js";
import type { ChannelName, FaultChannelName } from "./page-channel.js";
import { AgentPort, greetAgent } from "./port.js";
import type { PortHandlers } from "./port.js";

const LOOPBACK: Address = { host: "127.0.0.1", port: 0 };

async function listen(context: TestContext, handlers: Partial<PortHandlers> = {}): Promise<AgentPort> {
  const port = await AgentPort.listen(
    LOOPBACK,
    { onControl: () => {}, onPageChannel: () => false, onFaultChannel: () => false, ...handlers },
    "1.2.3",
  );
  context.after(() => port.close());
  return port;
}

async function serve(context: TestContext, server: Server): Promise<Address> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  context.after(() => server.close());
  const at = server.address();
  assert.ok(at !== null && typeof at === "object");
  return { host: "127.0.0.1", port: at.port };
}

function dial(context: TestContext, { host, port }: Address, allowHalfOpen = false): Socket {
  const socket = createConnection({ host, port, allowHalfOpen });
  socket.on("error", () => {}); // being cut off is the port's right; each test looks at what arrived
  context.after(() => socket.destroy());
  return socket;
}

/** Everything the peer says until it has finished. */
async function readAll(socket: Socket): Promise<string> {
  let text = "";
  for await (const chunk of socket) text += String(chunk);
  return text;
}

async function fetchText({ host, port }: Address, path: string, method = "GET"): Promise<{ status: number | undefined; text: string }> {
  return new Promise((resolve, reject) => {
    get({ host, port, path, method, agent: false }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("end", () => resolve({ status: response.statusCode, text }));
    }).on("error", reject);
  });
}

const session = randomUUID();
const upgrade = (query: string, protocol = PAGES_PROTOCOL, path = PAGES_PATH): string =>
  `GET ${path}${query} HTTP/1.1\r\nHost: target\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n\r\n`;
const GOOD = `?session=${session}&channel=1&generation=1`;

describe("AgentPort", () => {
  it("says at GET /v1/agent what it is, its release and its protocol version", async (context) => {
    const { address } = await listen(context);
    const { status, text } = await fetchText(address, "/v1/agent");
    assert.equal(status, 200);
    assert.deepEqual(JSON.parse(text), { product: "precopy", release: "1.2.3", protocol: PROTOCOL_VERSION });
  });

  it("answers 404 to every other path and method, and serves no second request on that connection", async (context) => {
    const { address } = await listen(context);
    for (const path of ["/", "/v1", "/v1/agent/", "/v1/control", "/v1/pages?session=x", "/../etc/passwd", "/v1/agent%00"])
      assert.equal((await fetchText(address, path)).status, 404, path);
    assert.equal((await fetchText(address, "/v1/agent", "DELETE")).status, 404);
    const socket = dial(context, address);
    socket.write("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/agent HTTP/1.1\r\nHost: a\r\n\r\n");
    assert.equal((await readAll(socket)).match(/HTTP\/1\.1/g)?.length, 1);
  });

  it("hands a page channel over with its session, channel and generation, and nothing written on it yet", async (context) => {
    const names: ChannelName[] = [];
    const { address } = await listen(context, {
      onPageChannel: (name, socket) => {
        names.push(name);
        assert.ok(socket instanceof Socket);
        socket.end(switching([]));
        return true;
      },
    });
    const socket = dial(context, address);
    socket.write(upgrade(`?session=${session}&channel=15&generation=2147483648`));
    assert.equal(await readAll(socket), switching([]).toString());
    assert.deepEqual(names, [{ session, channel: 15, generation: 2 ** 31, key: "" }]);
  });

  it("refuses with 400 an Upgrade with bytes behind it: they would lie in Node's buffer, lost to the thread that reads", async (context) => {
    const { address } = await listen(context, { onPageChannel: () => assert.fail("it was handed over") });
    const socket = dial(context, address);
    socket.write(`${upgrade(GOOD)}LVMG`);
    assert.match(await readAll(socket), /^HTTP\/1\.1 400 /);
  });

  const bad = [
    "",
    `?session=${session}`,
    `?channel=1&generation=1`,
    `?session=not-a-uuid&channel=1&generation=1`,
    `?session=${session}&channel=16&generation=1`,
    `?session=${session}&channel=-1&generation=1`,
    `?session=${session}&channel=1.5&generation=1`,
    `?session=${session}&channel=one&generation=1`,
    `?session=${session}&channel=1&generation=0`,
    `?session=${session}&channel=1&generation=2147483649`,
  ];
  it("refuses with 400 a query that lacks a part or names what cannot be", async (context) => {
    const { address } = await listen(context, { onPageChannel: () => assert.fail("it was handed over") });
    for (const query of bad) {
      const socket = dial(context, address);
      socket.write(upgrade(query));
      assert.match(await readAll(socket), /^HTTP\/1\.1 400 /, query);
    }
  });

  it("refuses with 409 a channel that nobody here waits for, which the source sees as ERR_STALE_GENERATION", async (context) => {
    const { address } = await listen(context);
    const socket = dial(context, address);
    socket.write(upgrade(GOOD));
    assert.match(await readAll(socket), /^HTTP\/1\.1 409 /);
    await assert.rejects(connectPageChannel(address, { session, channel: 1, generation: 1 }, new AbortController().signal), {
      code: "ERR_STALE_GENERATION",
    });
  });

  const upgradeToFaults = (query: string): string => upgrade(query, FAULTS_PROTOCOL, FAULTS_PATH);

  it("hands a fault channel over with its session and generation, and nothing written on it yet", async (context) => {
    const names: FaultChannelName[] = [];
    const { address } = await listen(context, {
      onPageChannel: () => assert.fail("a page channel"),
      onFaultChannel: (name, socket) => {
        names.push(name);
        assert.ok(socket instanceof Socket);
        socket.end(switchingToFaults());
        return true;
      },
    });
    const socket = dial(context, address);
    socket.write(upgradeToFaults(`?session=${session}&generation=2147483648`));
    assert.equal(await readAll(socket), "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: precopy-faults/1\r\n\r\n");
    (await connectFaultChannel(address, { session, generation: 1 }, new AbortController().signal)).destroy();
    assert.deepEqual(names, [
      { session, generation: 2 ** 31, key: "" },
      { session, generation: 1, key: "" },
    ]);
  });

  it("refuses with 400 a fault channel whose query lacks a part or names what cannot be, or with bytes behind it", async (context) => {
    const { address } = await listen(context, { onFaultChannel: () => assert.fail("it was handed over") });
    for (const query of [
      "",
      `?session=${session}`,
      "?generation=1",
      "?session=not-a-uuid&generation=1",
      `?session=${session}&generation=0`,
      `?session=${session}&generation=-1`,
      `?session=${session}&generation=1.5`,
      `?session=${session}&generation=one`,
      `?session=${session}&generation=2147483649`,
    ]) {
      const socket = dial(context, address);
      socket.write(upgradeToFaults(query));
      assert.match(await readAll(socket), /^HTTP\/1\.1 400 /, query);
    }
    const socket = dial(context, address);
    socket.write(`${upgradeToFaults(`?session=${session}&generation=1`)}LVMG`);
    assert.match(await readAll(socket), /^HTTP\/1\.1 400 /);
  });

  it("refuses with 409 a fault channel that nobody here waits for, which the source sees as ERR_STALE_GENERATION", async (context) => {
    const asked: FaultChannelName[] = [];
    const { address } = await listen(context, {
      onPageChannel: () => true,
      onFaultChannel: (name) => {
        asked.push(name);
        return false;
      },
    });
    const socket = dial(context, address);
    socket.write(upgradeToFaults(`?session=${session}&generation=7`));
    assert.match(await readAll(socket), /^HTTP\/1\.1 409 /);
    await assert.rejects(connectFaultChannel(address, { session, generation: 8 }, new AbortController().signal), {
      code: "ERR_STALE_GENERATION",
    });
    assert.deepEqual(asked, [
      { session, generation: 7, key: "" },
      { session, generation: 8, key: "" },
    ]);
  });

  it("keeps pages and faults apart: the path of one with the protocol of the other is refused with 404, and with an Origin with 403", async (context) => {
    const { address } = await listen(context, {
      onPageChannel: () => assert.fail("pages"),
      onFaultChannel: () => assert.fail("faults"),
    });
    for (const [request, status] of [
      [upgrade(GOOD, FAULTS_PROTOCOL, PAGES_PATH), 404],
      [upgrade(GOOD, PAGES_PROTOCOL, FAULTS_PATH), 404],
      [upgrade(GOOD, "precopy-faults/2", FAULTS_PATH), 404],
      [upgradeToFaults(GOOD).replace("\r\n\r\n", "\r\nOrigin: http://evil.example\r\n\r\n"), 403],
    ] as const) {
      const socket = dial(context, address);
      socket.write(request);
      assert.match(await readAll(socket), new RegExp(`^HTTP/1\\.1 ${status} `), request);
    }
  });

  it("refuses with 404 an Upgrade to an unknown path or protocol", async (context) => {
    const { address } = await listen(context, { onPageChannel: () => assert.fail("it was handed over") });
    for (const request of [
      upgrade(GOOD, "precopy-pages/2"),
      upgrade(GOOD, PAGES_PROTOCOL, "/v1/page"),
      upgrade("", "websocket", "//"),
      upgrade("", "h2c", "*"),
    ]) {
      const socket = dial(context, address);
      socket.write(request);
      assert.match(await readAll(socket), /^HTTP\/1\.1 40[04] /, request);
    }
  });

  it("refuses with 403 whatever a browser sends, on every path: a web page has no business with an agent", async (context) => {
    const { address } = await listen(context, { onControl: () => assert.fail("control"), onPageChannel: () => assert.fail("pages") });
    for (const request of [upgrade(GOOD), upgrade("", "websocket", "/v1/control"), upgrade("", "websocket", "/v1/events")]) {
      const socket = dial(context, address);
      socket.write(request.replace("\r\n\r\n", "\r\nOrigin: http://evil.example\r\n\r\n"));
      assert.match(await readAll(socket), /^HTTP\/1\.1 403 /, request);
    }
  });

  it("fails with ERR_PORT_IN_USE where somebody listens, and with ERR_ADDRESS where it cannot", async (context) => {
    const { address } = await listen(context);
    const handlers = { onControl: () => {}, onPageChannel: () => false, onFaultChannel: () => false };
    await assert.rejects(AgentPort.listen(address, handlers, "x"), { code: "ERR_PORT_IN_USE" });
    await assert.rejects(AgentPort.listen({ host: "192.0.2.1", port: 0 }, handlers, "x"), { code: "ERR_ADDRESS" });
  });

  it("closes although a peer that was refused, one that never spoke and one in the middle of a request hold on to their connections", async (context) => {
    const port = await AgentPort.listen(LOOPBACK, { onControl: () => {}, onPageChannel: () => false, onFaultChannel: () => false }, "x");
    const [refused, silent, half] = [1, 2, 3].map(() => dial(context, port.address, true)); // they answer no FIN
    assert.ok(refused !== undefined && silent !== undefined && half !== undefined);
    refused.write(upgrade(GOOD));
    half.write("GET /v1/agent HT");
    await once(refused.resume(), "end");
    const isClosed = port.close().then(() => true);
    assert.ok(await Promise.race([isClosed, new Promise((resolve) => setTimeout(resolve, 4000, false).unref())]), "still open after 4 s");
  });

  it("forgets a peer that was refused and has left: nothing of it keeps the port from closing", async (context) => {
    const port = await AgentPort.listen(LOOPBACK, { onControl: () => {}, onPageChannel: () => false, onFaultChannel: () => false }, "x");
    const refused = dial(context, port.address);
    refused.write(upgrade(GOOD));
    await readAll(refused);
    const isClosed = port.close().then(() => true);
    assert.ok(await Promise.race([isClosed, new Promise((resolve) => setTimeout(resolve, 4000, false).unref())]), "still open after 4 s");
  });
});

const event = (round: number, filler = ""): ProgressEvent => ({
  type: "failed",
  phase: "failed",
  code: "ERR_INTERNAL",
  message: `${round}`,
  remedy: filler,
});

async function observe(context: TestContext, { host, port }: Address): Promise<WebSocket> {
  const observer = new WebSocket(`ws://${host}:${port}/v1/events`);
  context.after(() => observer.terminate());
  await once(observer, "open");
  return observer;
}

describe("observers", () => {
  it("get every event as JSON, in order, all of them the same", async (context) => {
    const port = await listen(context);
    const observers = await Promise.all([1, 2].map(() => observe(context, port.address)));
    const heard = observers.map(async (observer) => {
      const events: unknown[] = [];
      for await (const [data] of on(observer)) if (events.push(JSON.parse(String(data))) === 50) return events;
      return events;
    });
    await settle(port, observers.length);
    for (let round = 0; round < 50; round++) port.publish(event(round));
    for (const events of await Promise.all(heard))
      assert.deepEqual(
        events,
        Array.from({ length: 50 }, (_, round) => event(round)),
      );
  });

  it("are dropped when they do not keep up, while those who do miss nothing", async (context) => {
    const port = await listen(context);
    const { host, port: number } = port.address;
    const slow = dial(context, port.address);
    slow.write(
      `GET /v1/events HTTP/1.1\r\nHost: ${host}:${number}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${Buffer.alloc(16).toString("base64")}\r\n\r\n`,
    );
    await once(slow, "readable");
    slow.pause(); // and never reads again
    const fast = await observe(context, port.address);
    let heard = 0;
    fast.on("message", () => heard++);
    await settle(port, 2);
    const before = heard;
    const filler = "x".repeat(2 ** 16);
    // Some megabytes lie in the kernel's buffers before any count here.
    const rounds = 512;
    for (let round = 0; round < rounds; round++) {
      port.publish(event(round, filler));
      while (heard - before <= round) await new Promise((resolve) => setImmediate(resolve));
    }
    assert.equal(heard - before, rounds);
    let bytes = 0;
    slow.on("data", (chunk: Buffer) => {
      bytes += chunk.byteLength;
    });
    slow.on("error", () => {}); // cut off in the middle
    slow.resume();
    await once(slow, "close");
    assert.ok(bytes < rounds * filler.length, `${bytes} B reached the slow one`);
    assert.equal(fast.readyState, WebSocket.OPEN);
  });

  it(`are refused with 503 from the ${OBSERVERS_MAX + 1}th on, and taken again when one has left`, async (context) => {
    const port = await listen(context);
    const observers = await Promise.all(Array.from({ length: OBSERVERS_MAX }, () => observe(context, port.address)));
    const { host, port: number } = port.address;
    const surplus = new WebSocket(`ws://${host}:${number}/v1/events`);
    const [error] = await once(surplus, "error");
    assert.match(String(error), /503/);
    observers[0]?.close();
    for (;;) {
      const again = new WebSocket(`ws://${host}:${number}/v1/events`);
      context.after(() => again.terminate());
      const isOpen = await once(again, "open").then(
        () => true,
        () => false,
      );
      if (isOpen) break; // the one that left may still be counted for a moment
    }
  });
});

/** Every message of a WebSocket. */
async function* on(socket: WebSocket): AsyncGenerator<[unknown]> {
  const queue: unknown[] = [];
  let wake = (): void => {};
  socket.on("message", (data: unknown) => {
    queue.push(data);
    wake();
  });
  for (;;) {
    while (queue.length > 0) yield [queue.shift()];
    await new Promise<void>((resolve) => {
      wake = resolve;
    });
  }
}

/** The server knows an observer a moment after the observer knows: a handshake later all of them are known. */
async function settle(port: AgentPort, observers: number): Promise<void> {
  assert.ok(observers > 0);
  await fetchText(port.address, "/v1/agent");
}

describe("greetAgent", { concurrency: true }, () => {
  const refuses = (address: Address, code: ErrorCode): Promise<void> =>
    assert.rejects(greetAgent(address), { code, name: "MigrationError" });

  it("is content with an agent of this protocol version", async (context) => greetAgent((await listen(context)).address));

  it("fails with ERR_UNREACHABLE at a port where nobody listens", async (context) => {
    const server = createServer();
    const address = await serve(context, server);
    server.close();
    await once(server, "close");
    await refuses(address, "ERR_UNREACHABLE");
  });

  it("fails with ERR_NOT_AN_AGENT at a server that does not speak HTTP", async (context) => {
    await refuses(
      await serve(
        context,
        createServer((socket) => socket.on("error", () => {}).end("SSH-2.0-OpenSSH_9.6\r\n")),
      ),
      "ERR_NOT_AN_AGENT",
    );
  });

  it("fails with ERR_UNREACHABLE at a server that hangs up", async (context) => {
    await refuses(
      await serve(
        context,
        createServer((socket) => socket.on("error", () => {}).destroy()),
      ),
      "ERR_UNREACHABLE",
    );
  });

  it("fails with ERR_NOT_AN_AGENT at an HTTP server that is something else, whatever it answers", async (context) => {
    for (const body of ["", "<html></html>", "{}", '{"product":"other"}', '{"product":"precopy"}', "null", "x".repeat(100_000)])
      await refuses(
        await serve(
          context,
          createHttpServer((_, response) => response.end(body)),
        ),
        "ERR_NOT_AN_AGENT",
      );
  });

  it("does not read an endless answer to its end", async (context) => {
    let written = 0;
    const endless = createHttpServer((_, response) => {
      const more = (): void => {
        written += 65536;
        if (response.destroyed || written > 64 * 2 ** 20) return;
        if (response.write("x".repeat(65536))) setImmediate(more);
        else response.once("drain", more);
      };
      more();
    });
    await refuses(await serve(context, endless), "ERR_NOT_AN_AGENT");
    assert.ok(written < 64 * 2 ** 20, `${written} B`);
  });

  it("fails with ERR_PROTOCOL_VERSION at an agent of another version, which it names", async (context) => {
    const answer = JSON.stringify({ product: "precopy", release: "9.0.0", protocol: PROTOCOL_VERSION + 1 });
    const address = await serve(
      context,
      createHttpServer((_, response) => response.end(answer)),
    );
    const error = await greetAgent(address).then(() => assert.fail("content"), MigrationError.from);
    assert.equal(error.code, "ERR_PROTOCOL_VERSION");
    assert.match(error.message, new RegExp(`speaks version ${PROTOCOL_VERSION + 1}`));
  });

  it("fails with ERR_UNREACHABLE at a server that takes the connection and says nothing, after 5 s", async (context) => {
    await refuses(
      await serve(
        context,
        createServer((socket) => context.after(() => socket.destroy())),
      ),
      "ERR_UNREACHABLE",
    );
  });
});
