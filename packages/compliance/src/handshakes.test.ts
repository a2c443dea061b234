import assert from "node:assert/strict";
import { createHmac, randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { createConnection } from "node:net";
import type { Socket } from "node:net";
import { after, describe, it } from "node:test";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import type { TLSSocket } from "node:tls";
import { HANDSHAKE_TIMEOUT_MS, MigrationError, PENDING_CONNECTIONS_MAX } from "@precopy/protocol";
import type { Address, ErrorCode } from "@precopy/protocol";
import { ALPN_HTTP, ChannelKey, KeyRing, Token } from "@precopy/security";
import { AgentPort, ChannelThreads, ControlChannel, connectPageChannel, greetAgent } from "@precopy/transport";
import type { PortHandlers, Security } from "@precopy/transport";
import WebSocket from "ws";
import { LAST_YEAR, labIdentity, newAuthority } from "./lab-identity.js";

const threads = new ChannelThreads();
after(() => threads.end());

interface Listening {
  readonly address: Address;
  /** What its operator sees. */
  readonly refused: { readonly peer: string; readonly code: ErrorCode; readonly message: string }[];
}

async function listen(context: TestContext, security: Security, handlers: Partial<PortHandlers> = {}): Promise<Listening> {
  const refused: Listening["refused"] = [];
  const port = await AgentPort.listen(
    { host: "127.0.0.1", port: 0 },
    {
      onControl: (control) => context.after(() => control.close(new MigrationError("ERR_LINK_LOST", "the test is over"))),
      onPageChannel: () => false,
      onFaultChannel: () => false,
      onRefused: (peer, { code, message }) => refused.push({ peer, code, message }),
      ...handlers,
    },
    "test",
    { security, threads },
  );
  context.after(() => port.close());
  return { address: port.address, refused };
}

/** What the operator of the listening side has been told, once it has. */
async function codesAt({ refused }: Listening): Promise<ErrorCode[]> {
  for (let left = 200; left > 0 && refused.length === 0; left--) await sleep(10);
  return refused.map(({ code }) => code);
}

const authority = await newAuthority();
const other = await newAuthority();
const good = await labIdentity({ authority });
const nobody = await labIdentity({ authority, hasClient: false });
const stranger = await labIdentity({ authority: other, trusted: authority });
const token = new Token("a token that both sides have");
const otherToken = new Token("a token that one side has");

interface Case {
  readonly title: string;
  readonly server: Security;
  readonly client: Security;
  /** Of the side that connects. */
  readonly code: ErrorCode;
  /** Of the side that listens; default the same. Undefined: nothing comes of it there. */
  readonly there?: ErrorCode | undefined;
  readonly says: RegExp;
}

const CASES: readonly Case[] = [
  {
    title: "a certificate for another name",
    server: { tls: await labIdentity({ authority, names: ["elsewhere.example", "192.0.2.7"] }) },
    client: { tls: good },
    code: "ERR_TLS_HOSTNAME",
    says: /for elsewhere\.example, 192\.0\.2\.7, not for 127\.0\.0\.1/,
  },
  {
    title: "a certificate that lacks the --tls-hostname",
    server: { tls: good },
    client: { tls: await labIdentity({ authority, hostname: "db.example" }) },
    code: "ERR_TLS_HOSTNAME",
    says: /for 127\.0\.0\.1, not for db\.example/,
  },
  {
    title: "a server's certificate of another authority",
    server: { tls: await labIdentity({ authority: other, trusted: authority }) },
    client: { tls: good },
    code: "ERR_TLS_UNTRUSTED",
    says: /not trusted here/,
  },
  {
    title: "a client's certificate of another authority",
    server: { tls: good },
    client: { tls: stranger },
    code: "ERR_TLS_UNTRUSTED",
    says: /refused us: The certificate of 127\.0\.0\.1:\d+ was issued by lab, which is not trusted here/,
  },
  {
    title: "a server's certificate that has expired",
    server: { tls: await labIdentity({ authority, validity: LAST_YEAR }) },
    client: { tls: good },
    code: "ERR_TLS_EXPIRED",
    says: /valid from .* to .*, and here it is/,
  },
  {
    title: "a client's certificate that has expired",
    server: { tls: good },
    client: { tls: await labIdentity({ authority, validity: LAST_YEAR }) },
    code: "ERR_TLS_EXPIRED",
    says: /refused us: .*valid from .* to /,
  },
  {
    title: "a client without a certificate",
    server: { tls: good },
    client: { tls: nobody },
    code: "ERR_TLS_NO_CERTIFICATE",
    says: /refused us: 127\.0\.0\.1:\d+ showed no certificate/,
  },
  {
    title: "a client whose name is not on the list",
    server: { tls: await labIdentity({ authority, authz: ["host-a"] }) },
    client: { tls: await labIdentity({ authority, names: ["host-b"] }) },
    code: "ERR_TLS_AUTHZ",
    says: /is host-b, none of which is allowed here/,
  },
  { title: "a client without TLS at a port with it", server: { tls: good }, client: {}, code: "ERR_TLS_REQUIRED", says: /TLS only/ },
  {
    title: "a client with TLS at a port without",
    server: {},
    client: { tls: good },
    code: "ERR_TLS_NOT_OFFERED",
    says: /does not speak TLS/,
  },
  { title: "a client without the token", server: { token }, client: {}, code: "ERR_TOKEN_REQUIRED", says: /asks for a token/ },
  {
    title: "a client with a token at a port without",
    server: {},
    client: { token },
    code: "ERR_TOKEN_REQUIRED",
    there: undefined,
    says: /asks for no token/,
  },
  {
    title: "a client with another token",
    server: { token },
    client: { token: otherToken },
    code: "ERR_TOKEN_WRONG",
    says: /not of this agent's token/,
  },
  {
    title: "a client with another token, over TLS",
    server: { tls: good, token },
    client: { tls: good, token: otherToken },
    code: "ERR_TOKEN_WRONG",
    says: /not of this agent's token/,
  },
];

describe("whoever is not let in, or does not trust whom it reached, has a code of its own at both ends", () => {
  for (const one of CASES) {
    const { title, server, client, code, says } = one;
    const there = "there" in one ? one.there : code;
    it(title, async (context) => {
      const target = await listen(context, server, { onControl: () => assert.fail("a control channel came about") });
      for (const attempt of [() => ControlChannel.connect(target.address, undefined, client), () => greetAgent(target.address, client)]) {
        target.refused.length = 0;
        await assert.rejects(attempt(), (error: MigrationError) => {
          assert.equal(error.code, code, error.message);
          assert.match(error.message, says);
          return true;
        });
        if (there === undefined) assert.deepEqual(target.refused, []);
        else assert.deepEqual(await codesAt(target), [there]);
      }
    });
    if (server.tls !== undefined && client.token === undefined && server.token === undefined)
      it(`${title}, asking for a page channel`, async (context) => {
        const target = await listen(context, server, { onPageChannel: () => assert.fail("a page channel came about") });
        const name = { session: randomUUID(), channel: 0, generation: 1 };
        const access = { security: client, threads };
        await assert.rejects(connectPageChannel(target.address, name, new AbortController().signal, access), (error: MigrationError) => {
          assert.equal(error.code, code, error.message);
          assert.match(error.message, says);
          return true;
        });
        assert.deepEqual(await codesAt(target), [there]);
      });
  }
});

describe("who is let in", () => {
  for (const [title, security] of [
    ["nothing at all", {}],
    ["TLS", { tls: good }],
    ["a token", { token }],
    ["TLS and a token", { tls: good, token }],
  ] as const)
    it(`with ${title} on both sides: greets, and speaks`, async (context) => {
      const came: ControlChannel[] = [];
      const target = await listen(context, security, { onControl: (control) => came.push(control) });
      await greetAgent(target.address, security);
      const control = await ControlChannel.connect(target.address, undefined, security);
      context.after(() => control.close(new MigrationError("ERR_LINK_LOST", "the test is over")));
      const heard = new Promise((resolve) => {
        control.onMessage = resolve;
      });
      came[0]?.send({ type: "active", epoch: 1, resumeMs: 2 });
      assert.deepEqual(await heard, { type: "active", epoch: 1, resumeMs: 2 });
      assert.deepEqual(target.refused, []);
    });

  it("a name of the list, by common name or alternative", async (context) => {
    const client = { tls: await labIdentity({ authority, names: ["host-b", "10.0.0.9"] }) };
    for (const name of ["host-b", "10.0.0.9"]) {
      const target = await listen(context, { tls: await labIdentity({ authority, authz: ["host-a", name] }) });
      await greetAgent(target.address, client);
    }
  });

  it("a session is resumed, and whoever resumes one is looked at as before", async (context) => {
    const target = await listen(context, { tls: good });
    const isReused = async (): Promise<boolean> => {
      const peer = `127.0.0.1:${target.address.port}`;
      const socket = connectTls({
        host: "127.0.0.1",
        port: target.address.port,
        ...good.connectOptions("127.0.0.1", ALPN_HTTP, good.sessionWith(peer)),
      });
      await once(socket, "secureConnect");
      const reused = socket.isSessionReused();
      assert.equal(good.whyNotServer(socket, "127.0.0.1"), undefined);
      socket.end().resume();
      await once(socket, "close");
      return reused;
    };
    assert.equal(await isReused(), false);
    await greetAgent(target.address, { tls: good });
    for (let left = 100; left > 0 && good.sessionWith(`127.0.0.1:${target.address.port}`) === undefined; left--) await sleep(10);
    assert.equal(await isReused(), true);
    await greetAgent(target.address, { tls: good });
    assert.deepEqual(target.refused, []);
  });

  for (const [title, identity, code] of [
    ["without a certificate", nobody, "ERR_TLS_NO_CERTIFICATE"],
    ["with another authority's", stranger, "ERR_TLS_UNTRUSTED"],
  ] as const)
    it(`nobody ${title} who resumes the session that refusing them began`, async (context) => {
      const target = await listen(context, { tls: good });
      const dial = async (session: Buffer | undefined): Promise<{ socket: TLSSocket; session: Buffer | undefined }> => {
        const socket = connectTls({
          host: "127.0.0.1",
          port: target.address.port,
          ...identity.connectOptions("127.0.0.1", ALPN_HTTP, session),
        });
        let got: Buffer | undefined;
        socket.on("session", (one: Buffer) => (got = one)).on("error", () => {});
        socket.resume();
        await once(socket, "close");
        return { socket, session: got };
      };
      const first = await dial(undefined);
      assert.ok(first.session !== undefined, "it was given a session");
      await dial(first.session);
      assert.deepEqual(
        target.refused.map((one) => one.code),
        [code, code],
      );
    });
});

describe("a token", () => {
  /** Sends lines on a connection of its own, and reads the answer's head. */
  async function say(address: Address, socket: Socket, ...lines: string[]): Promise<string> {
    socket.write(`${[...lines, `Host: ${address.host}`].join("\r\n")}\r\n\r\n`);
    let text = "";
    while (!text.includes("\r\n\r\n")) text += String((await once(socket, "data"))[0]);
    return text;
  }
  const dial = (context: TestContext, { port }: Address): Socket => {
    const socket = createConnection({ host: "127.0.0.1", port });
    socket.on("error", () => {});
    context.after(() => socket.destroy());
    return socket;
  };
  const nonceOf = (answer: string): string => /nonce=([0-9a-f]{32})/.exec(answer)?.[1] ?? assert.fail(answer);
  const headerOf = (nonce: string, path: string): string => {
    const use = { nonce, clientNonce: Token.nonce(), path, binding: Buffer.alloc(0) };
    return `Authorization: Precopy nonce=${nonce}, client=${use.clientNonce}, proof=${token.proofOf("client", use)}`;
  };

  it("does not cross the wire, and neither does anything that it could be looked up by", async (context) => {
    const target = await listen(context, { token });
    const socket = dial(context, target.address);
    const text = await say(target.address, socket, "GET /v1/agent HTTP/1.1");
    assert.doesNotMatch(text, /token that both/);
    assert.match(text, /^HTTP\/1\.1 401 /);
  });

  it("proved once is refused a second time: on the same connection, and on another one with ERR_TOKEN_REPLAYED", async (context) => {
    const target = await listen(context, { token });
    const socket = dial(context, target.address);
    const proof = headerOf(nonceOf(await say(target.address, socket, "GET /v1/agent HTTP/1.1")), "/v1/agent");
    assert.match(await say(target.address, socket, "GET /v1/agent HTTP/1.1", proof), /^HTTP\/1\.1 200 /);
    const thief = dial(context, target.address);
    await say(target.address, thief, "GET /v1/agent HTTP/1.1");
    assert.match(await say(target.address, thief, "GET /v1/agent HTTP/1.1", proof), /Precopy-Code: ERR_TOKEN_REPLAYED/);
    const blind = dial(context, target.address);
    assert.match(await say(target.address, blind, "GET /v1/agent HTTP/1.1", proof), /Precopy-Code: ERR_TOKEN_REPLAYED/);
    assert.deepEqual(await codesAt(target), ["ERR_TOKEN_REPLAYED", "ERR_TOKEN_REPLAYED"]);
  });

  it("proved for one thing is no proof for another", async (context) => {
    const target = await listen(context, { token }, { onControl: () => assert.fail("a control channel came about") });
    const socket = dial(context, target.address);
    const proof = headerOf(nonceOf(await say(target.address, socket, "GET /v1/agent HTTP/1.1")), "/v1/agent");
    const upgrade = [
      "Connection: Upgrade",
      "Upgrade: websocket",
      "Sec-WebSocket-Version: 13",
      `Sec-WebSocket-Key: ${randomBytes(16).toString("base64")}`,
    ];
    assert.match(await say(target.address, socket, "GET /v1/control HTTP/1.1", ...upgrade, proof), /Precopy-Code: ERR_TOKEN_WRONG/);
  });

  it("is asked for by the event stream, too", async (context) => {
    const target = await listen(context, { token });
    const socket = new WebSocket(`ws://127.0.0.1:${target.address.port}/v1/events`);
    const [, response] = (await once(socket, "unexpected-response")) as [unknown, { statusCode: number; headers: Record<string, string> }];
    assert.equal(response.statusCode, 401);
    assert.equal(response.headers["precopy-code"], "ERR_TOKEN_REQUIRED");
    socket.on("error", () => {}).terminate();
  });

  it("has to be proved by the agent as well: one that takes any proof is found out", async (context) => {
    const impostor = await listenImpostor(context);
    await assert.rejects(greetAgent(impostor, { token }), { code: "ERR_TOKEN_WRONG" });
  });
});

/** Asks for a proof, and takes whatever comes. */
async function listenImpostor(context: TestContext): Promise<Address> {
  const server = createServer((incoming, response) => {
    if (incoming.headers.authorization === undefined) {
      response.writeHead(401, { "WWW-Authenticate": `Precopy nonce=${Token.nonce()}`, "Content-Length": 0 }).end();
      return;
    }
    response.writeHead(200, { "Precopy-Proof": createHmac("sha256", "a guess").digest("hex") }).end("{}");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  context.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const at = server.address();
  assert.ok(at !== null && typeof at === "object");
  return { host: "127.0.0.1", port: at.port };
}

describe("the key of a channel", () => {
  const secret = ChannelKey.fresh();
  const session = randomUUID();
  const listenFor = (context: TestContext, security: Security): Promise<Listening> => {
    const ring = new KeyRing(secret);
    return listen(context, security, {
      onPageChannel: (name, socket) => {
        ring.use({ kind: "pages", ...name }, name.key);
        socket.destroy();
        return true;
      },
    });
  };
  for (const [title, security] of [
    ["in clear", {}],
    ["with TLS", { tls: good }],
  ] as const) {
    const ask = (address: Address, generation: number, key: ChannelKey | undefined, named = generation) =>
      connectPageChannel(address, { session, channel: 0, generation: named }, AbortSignal.timeout(5000), {
        security,
        threads,
        key: key && ({ keyFor: () => key.keyFor({ kind: "pages", session, channel: 0, generation }) } as unknown as ChannelKey),
      });
    it(`${title}: lets in whoever was told the secret, once for each generation`, async (context) => {
      const target = await listenFor(context, security);
      const key = new ChannelKey(secret);
      await assert.rejects(ask(target.address, 1, key), { code: "ERR_UNREACHABLE" }); // taken, and closed by this test's target
      await assert.rejects(ask(target.address, 1, key), { code: "ERR_KEY_REPLAYED" });
      await assert.rejects(ask(target.address, 1, key, 2), { code: "ERR_CHANNEL_KEY" });
      await assert.rejects(ask(target.address, 2, new ChannelKey(ChannelKey.fresh())), { code: "ERR_CHANNEL_KEY" });
      await assert.rejects(ask(target.address, 2, undefined), { code: "ERR_CHANNEL_KEY" });
      await assert.rejects(ask(target.address, 2, key), { code: "ERR_UNREACHABLE" });
      assert.deepEqual(
        target.refused.map(({ code }) => code),
        ["ERR_KEY_REPLAYED", "ERR_CHANNEL_KEY", "ERR_CHANNEL_KEY", "ERR_CHANNEL_KEY"],
      );
    });
  }
});

describe("a port with TLS", () => {
  for (const [title, said] of [
    ["a client of TLS 1.2", undefined],
    ["noise that begins as TLS does", Buffer.concat([Buffer.from([22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]), randomBytes(194)])],
  ] as const)
    it(`says of ${title} that there was no handshake`, async (context) => {
      const target = await listen(context, { tls: good });
      const at = { host: "127.0.0.1", port: target.address.port };
      const socket = said === undefined ? connectTls({ ...at, maxVersion: "TLSv1.2", rejectUnauthorized: false }) : createConnection(at);
      socket.on("error", () => {}).resume();
      if (said !== undefined) socket.write(said);
      assert.deepEqual(await codesAt(target), ["ERR_TLS_HANDSHAKE"]);
      socket.destroy();
    });
});

describe("a port that strangers hold open", () => {
  for (const [title, security] of [
    ["without TLS", {}],
    ["with TLS", { tls: good }],
  ] as const) {
    it(`${title}: lets agents in all the while`, async (context) => {
      const target = await listen(context, security);
      const strangers = Array.from({ length: 2 * PENDING_CONNECTIONS_MAX }, () =>
        createConnection({ host: "127.0.0.1", port: target.address.port }),
      );
      context.after(() => strangers.forEach((socket) => socket.destroy()));
      for (const socket of strangers) socket.on("error", () => {});
      await sleep(200);
      await greetAgent(target.address, security);
      (await ControlChannel.connect(target.address, undefined, security)).close(new MigrationError("ERR_LINK_LOST", "the test is over"));
    });

    it(`${title}: hangs up on one that says a little at a time`, async (context) => {
      const target = await listen(context, security);
      const socket = createConnection({ host: "127.0.0.1", port: target.address.port });
      socket.on("error", () => {}).resume();
      const started = performance.now();
      const drip = setInterval(() => socket.write("tls" in security ? Buffer.from([22]) : "G"), 100);
      await once(socket, "close");
      clearInterval(drip);
      assert.ok(performance.now() - started < HANDSHAKE_TIMEOUT_MS + 2000);
    });
  }

  it("keeps no thread busy with channels that nobody expects", async (context) => {
    let taken = 0;
    class CountedThreads extends ChannelThreads {
      override take(): ReturnType<ChannelThreads["take"]> {
        taken++;
        return super.take();
      }
    }
    const counted = new CountedThreads();
    context.after(() => counted.end());
    const port = await AgentPort.listen(
      { host: "127.0.0.1", port: 0 },
      { onControl: () => {}, onPageChannel: () => false, onFaultChannel: () => false, isExpectingChannels: () => false },
      "test",
      { security: { tls: good }, threads: counted },
    );
    context.after(() => port.close());
    const name = { session: randomUUID(), channel: 0, generation: 1 };
    await assert.rejects(connectPageChannel(port.address, name, AbortSignal.timeout(5000), { security: { tls: good } }), {
      code: "ERR_STALE_GENERATION",
    });
    assert.equal(taken, 0);
  });
});
