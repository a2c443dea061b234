import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { connect } from "node:tls";
import fc from "fast-check";
import { CLIENT_HELLO_BYTES_MAX } from "@precopy/protocol";
import { readFirstBytes } from "./client-hello.js";

/** The first bytes that OpenSSL sends. */
async function realHello(context: TestContext, protocols: readonly string[] | undefined): Promise<Buffer> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const at = server.address();
  assert.ok(at !== null && typeof at === "object");
  const client = connect({ host: "127.0.0.1", port: at.port, ...(protocols !== undefined && { ALPNProtocols: [...protocols] }) });
  client.on("error", () => {});
  const [socket] = await once(server, "connection");
  const [bytes] = await once(socket, "data");
  context.after(() => {
    client.destroy();
    socket.destroy();
    server.close();
  });
  return bytes;
}

/** The same hello in records of `size` bytes. */
function inRecords(hello: Buffer, size: number): Buffer {
  const message = hello.subarray(5);
  const records: Buffer[] = [];
  for (let at = 0; at < message.byteLength; at += size) {
    const part = message.subarray(at, at + size);
    const head = Buffer.from(hello.subarray(0, 5));
    head.writeUInt16BE(part.byteLength, 3);
    records.push(head, part);
  }
  return Buffer.concat(records);
}

describe("readFirstBytes", () => {
  it("reads the protocols of a real ClientHello, in one record or in many", async (context) => {
    const hello = await realHello(context, ["precopy-channel/1", "h2"]);
    assert.deepEqual(readFirstBytes(hello), { kind: "tls", protocols: ["precopy-channel/1", "h2"] });
    for (const size of [1, 7, 100])
      assert.deepEqual(readFirstBytes(inRecords(hello, size)), { kind: "tls", protocols: ["precopy-channel/1", "h2"] });
    assert.deepEqual(readFirstBytes(await realHello(context, undefined)), { kind: "tls", protocols: [] });
  });

  it("waits for the rest of one that has not come whole", async (context) => {
    const hello = await realHello(context, ["precopy-channel/1"]);
    for (let bytes = 0; bytes < hello.byteLength; bytes++) assert.deepEqual(readFirstBytes(hello.subarray(0, bytes)), { kind: "more" });
  });

  it("tells what is no TLS by its first byte", () => {
    for (const text of ["GET / HTTP/1.1\r\n", "SSH-2.0-x", "\0"]) assert.deepEqual(readFirstBytes(Buffer.from(text)), { kind: "other" });
  });

  it("waits for no more than CLIENT_HELLO_BYTES_MAX", () => {
    const endless = Buffer.concat([Buffer.from([22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]), Buffer.alloc(16_380)]);
    assert.deepEqual(readFirstBytes(endless), { kind: "tls", protocols: [] });
    const header = Buffer.from([22, 3, 1, 0xff, 0xff]);
    assert.deepEqual(readFirstBytes(Buffer.concat([header, Buffer.alloc(CLIENT_HELLO_BYTES_MAX)])), { kind: "tls", protocols: [] });
  });

  it("takes any bytes, and any damage to a real hello, without throwing", async (context) => {
    const hello = await realHello(context, ["precopy-channel/1", "http/1.1"]);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        readFirstBytes(Buffer.concat([Buffer.from([22]), bytes]));
      }),
    );
    fc.assert(
      fc.property(fc.nat(hello.byteLength - 1), fc.nat(255), (at, value) => {
        const damaged = Buffer.from(hello);
        damaged[at] = value;
        readFirstBytes(damaged);
      }),
    );
  });
});
