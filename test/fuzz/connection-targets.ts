import { randomUUID } from "node:crypto";
import { createConnection, createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { MigrationError } from "@precopy/protocol";
import { encodeControl } from "@precopy/protocol/control";
import { Token, readFirstBytes } from "@precopy/security";
import { AgentPort, connectPageChannel, greetAgent } from "@precopy/transport";
import { Finding, text } from "./fuzz-target.js";
import type { FuzzTarget } from "./fuzz-target.js";

const SESSION = randomUUID();

export function hello(): FuzzTarget {
  // Records of a ClientHello with ALPN, as far as it is read.
  const extensions = Buffer.concat([Buffer.from([0, 0, 0, 2, 1, 1, 0, 16, 0, 11, 0, 9, 8]), text("http/1.1")]);
  const body = Buffer.concat([Buffer.alloc(34, 3), Buffer.from([0, 0, 2, 0x13, 1, 1, 0, 0, extensions.byteLength]), extensions]);
  const message = Buffer.concat([Buffer.from([1, 0, 0, body.byteLength]), body]);
  return {
    name: "client-hello",
    covers: ["security/dist/client-hello"],
    words: [Buffer.from([0, 16]), Buffer.from([22, 3, 1]), Buffer.from([0xff, 0xff])],
    seeds: () => [Buffer.concat([Buffer.from([22, 3, 1, 0, message.byteLength]), message])],
    read: (input) => {
      const { kind } = readFirstBytes(input);
      for (let cut = 0; cut < Math.min(input.byteLength, 64); cut++) readFirstBytes(input.subarray(0, cut));
      if (kind === "other" && input[0] === 22) throw new Finding("It begins as TLS does");
    },
  };
}

const IDLE_MS = 200;
const ZEROS = "0".repeat(32);

/** A whole port behind a socket: each input on a connection of its own, cut where its first byte says. */
export function port(name: string, token?: Token): FuzzTarget {
  let listening: Promise<AgentPort> | undefined;
  const query = `?session=${SESSION}&channel=0&generation=1`;
  const upgrade = (path: string, protocol: string, more = ""): string =>
    `GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n${more}\r\n`;
  const websocket = `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${Buffer.alloc(16).toString("base64")}\r\n`;
  /** A masked binary frame with a ping message in it. */
  const ping = encodeControl({ type: "ping", id: 1 });
  const frame = Buffer.concat([Buffer.from([0x82, 0x80 | ping.byteLength, 0, 0, 0, 0]), ping]);
  return {
    name,
    covers: [
      "transport/dist/port",
      "transport/dist/control-channel",
      "transport/dist/http-head",
      "transport/dist/refusal",
      "transport/dist/pending",
      "transport/dist/token-exchange",
    ],
    words: [
      "GET ",
      " HTTP/1.1\r\n",
      "\r\n\r\n",
      "Upgrade: ",
      "precopy-pages/1",
      "precopy-faults/1",
      "/v1/pages",
      "/v1/control",
      "/v1/events",
      "Precopy-Code: ERR_TLS_EXPIRED",
      "Origin: x",
      "%00",
      "&generation=",
      "Transfer-Encoding: chunked",
      "Content-Length: 9",
    ].map(text),
    seeds: () =>
      [
        text("GET /v1/agent HTTP/1.1\r\nHost: a\r\n\r\n"),
        text(upgrade(`/v1/pages${query}`, "precopy-pages/1", "Precopy-Key: 00\r\n")),
        text(upgrade(`/v1/faults${query}`, "precopy-faults/1")),
        Buffer.concat([text(upgrade("/v1/control", "websocket", websocket)), frame]),
        text(upgrade("/v1/events", "websocket", websocket)),
        Buffer.from([22, 3, 1, 0, 4, 1, 0, 0, 0]),
        text(`GET /v1/agent HTTP/1.1\r\nHost: a\r\nAuthorization: Precopy nonce=${ZEROS}, client=${ZEROS}, proof=${ZEROS}${ZEROS}\r\n\r\n`),
      ].map((bytes) => Buffer.concat([Buffer.from([0]), bytes])),
    async read(input) {
      listening ??= AgentPort.listen(
        { host: "127.0.0.1", port: 0 },
        {
          onControl: (control) => {
            control.onMessage = () => {};
          },
          onPageChannel: (name, socket) => {
            if (name.session !== SESSION) return false;
            socket.destroy();
            return true;
          },
          onFaultChannel: () => false,
          onRefused: () => {},
        },
        "fuzz",
        { security: { token } },
      );
      const { port: number } = (await listening).address;
      const [how = 0] = input;
      const stream = input.subarray(1);
      await new Promise<void>((resolve) => {
        const socket = createConnection({ host: "127.0.0.1", port: number, noDelay: true });
        const timer = setTimeout(() => socket.destroy(), IDLE_MS);
        socket.on("error", () => {}).resume();
        socket.on("end", () => socket.destroy());
        socket.once("close", () => {
          clearTimeout(timer);
          resolve();
        });
        const at = how % (stream.byteLength + 1);
        socket.write(stream.subarray(0, at));
        socket.end(stream.subarray(at));
      });
    },
    async end() {
      await (await listening)?.close();
    },
  };
}

/** What whoever sits where an agent should be answers: to a greeting, one with a token, or the Upgrade of a channel, as the first byte says. */
export function answers(): FuzzTarget {
  let answer: Buffer = Buffer.alloc(0);
  const server = createServer((socket) => {
    socket.on("error", () => {}).resume();
    socket.end(answer);
  });
  const token = new Token("a token that is fuzzed");
  return {
    name: "answers",
    covers: [
      "transport/dist/http-head",
      "transport/dist/page-channel",
      "transport/dist/dial",
      "transport/dist/refusal",
      "transport/dist/port",
    ],
    words: [
      "HTTP/1.1 101 ",
      "HTTP/1.1 200 OK",
      "HTTP/1.1 401 ",
      "HTTP/1.1 409 ",
      "\r\n\r\n",
      "Precopy-Stored: ",
      "0:1:512,1:2:3",
      "Precopy-Code: ERR_TLS_EXPIRED",
      "Precopy-Reason: ",
      "Precopy-Proof: ",
      "WWW-Authenticate: Precopy nonce=",
      ZEROS,
      "Content-Length: 9",
      "Transfer-Encoding: chunked",
    ].map(text),
    seeds: () => [
      text("\0HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
      text(`\u0001HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Precopy nonce=${ZEROS}\r\nContent-Length: 0\r\n\r\n`),
      text("\u0002HTTP/1.1 101 Switching Protocols\r\nUpgrade: precopy-pages/1\r\nPrecopy-Stored: 0:1:512,1:2:3\r\n\r\n"),
      text("\u0002HTTP/1.1 403 Forbidden\r\nPrecopy-Code: ERR_CHANNEL_KEY\r\nPrecopy-Reason: no\r\n\r\n"),
    ],
    async read(input) {
      if (!server.listening) await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      const at = { host: "127.0.0.1", port: (server.address() as AddressInfo).port };
      const [how = 0] = input;
      answer = input.subarray(1);
      try {
        if (how % 3 < 2) await greetAgent(at, how % 3 === 1 ? { token } : {});
        else {
          const { socket, stored } = await connectPageChannel(
            at,
            { session: SESSION, channel: 0, generation: 1 },
            new AbortController().signal,
          );
          socket.destroy();
          if (stored.some(({ lane }) => lane > 15)) throw new Finding("A lane that there is not");
        }
      } catch (thrown) {
        if (!(thrown instanceof MigrationError) || thrown.code === "ERR_INTERNAL") throw thrown;
      }
    },
    async end() {
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
