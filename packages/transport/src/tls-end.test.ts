import assert from "node:assert/strict";
import { once } from "node:events";
import { createConnection, createServer } from "node:net";
import type { AddressInfo, Server, Socket } from "node:net";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createServer as createTlsServer } from "node:tls";
import { SocketHandle, isLinuxAvailable } from "@precopy/linux";
import { ALPN_CHANNEL, TlsIdentity, tlsSettings } from "@precopy/security";
import { CertificateAuthority } from "@precopy/security/authority";
import { takeDescriptor } from "./take-descriptor.js";
import { TlsEnd } from "./tls-end.js";
import type { FromTlsEnd, SecuredConnection } from "./tls-end.js";

const skip = isLinuxAvailable ? false : "no descriptors can be taken over here";
const HOUR_MS = 3_600_000;

async function listening(server: Server): Promise<number> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
}

describe("TlsEnd", { skip }, () => {
  let identity: TlsIdentity;
  before(async () => {
    const validity = { from: new Date(Date.now() - HOUR_MS), to: new Date(Date.now() + HOUR_MS) };
    const authority = await CertificateAuthority.create("lab", validity);
    const issue = (side: "server" | "client") => authority.issue({ names: ["127.0.0.1"], side, ...validity });
    const [server, client] = [await issue("server"), await issue("client")];
    identity = new TlsIdentity(tlsSettings({ ca: authority.pair.cert, crl: undefined, server, client }, undefined, undefined));
  });

  const toEnd: (() => void)[] = [];
  after(() => {
    for (const end of toEnd) end();
  });

  /** A client's connection at the answer to its request; what it has said since; and the way to it, for whoever stands in between. */
  async function connected(): Promise<{ connection: SecuredConnection; handle: SocketHandle; said: () => number; near: Socket }> {
    const server = createTlsServer(identity.serverOptions(ALPN_CHANNEL), (socket) => {
      socket.on("error", () => {}).once("data", () => socket.write("HTTP/1.1 101 Switching Protocols\r\n\r\n"));
    });
    const port = await listening(server);
    let heard = 0;
    const proxy = createServer({ allowHalfOpen: true }, (near) => {
      const far = createConnection(port, "127.0.0.1");
      near
        .on("error", () => {})
        .on("data", (bytes) => {
          heard += bytes.byteLength;
          far.write(bytes);
        });
      far.on("error", () => {}).on("data", (bytes) => near.write(bytes));
      toEnd.push(
        () => near.destroy(),
        () => far.destroy(),
      );
    });
    toEnd.push(
      () => server.close(),
      () => proxy.close(),
    );
    const raw = createConnection(await listening(proxy), "127.0.0.1");
    const [[near]] = (await Promise.all([once(proxy, "connection"), once(raw, "connect")])) as [[Socket], unknown];
    const handle = await takeDescriptor(raw);
    toEnd.push(() => handle.close());
    const replies: FromTlsEnd[] = [];
    const end = new TlsEnd((message) => replies.push(message));
    const { settings } = identity;
    const request = "GET /v1/pages HTTP/1.1\r\n\r\n";
    end.handle({
      type: "tls-connect",
      fd: handle.duplicate(),
      host: "127.0.0.1",
      peer: "the target",
      request,
      settings,
      session: undefined,
    });
    while (replies.length === 0) await sleep(1);
    assert.equal(replies[0]?.type, "tls-head");
    const connection = end.take();
    assert.ok(connection !== undefined);
    const before = heard;
    return { connection, handle, said: () => heard - before, near };
  }

  it("lets a connection go without a word, and it goes on", async () => {
    const { connection, said, near, handle } = await connected();
    const { suite, secret } = await connection.letGo();
    assert.equal(suite, "TLS_AES_128_GCM_SHA256");
    assert.equal(secret.byteLength, 32);
    await sleep(50);
    assert.equal(said(), 0, "Node said nothing when it went");
    assert.ok(!near.readableEnded, "nor was the connection ended");
    handle.shutdown();
    await once(near, "end");
  });

  // Whoever is on the way can have Node say something. One of our records with the number of that one would be sealed with the same nonce.
  for (const [how, provoke] of [
    ["the end of a stream", (near: Socket) => near.end()],
    ["noise", (near: Socket) => near.write(Buffer.concat([Buffer.from([23, 3, 3, 0, 32]), Buffer.alloc(32)]))],
  ] as const)
    for (const when of ["is answering", "has answered and closed"])
      it(`gives nobody a secret whose next record Node has used up: it ${when} ${how} that the peer did not send`, async () => {
        const { connection, said, near } = await connected();
        provoke(near);
        while (said() === 0 || (when !== "is answering" && !connection.socket.closed)) await sleep(1);
        await assert.rejects(connection.letGo(), { code: "ERR_LINK_LOST" });
      });

  it("gives nobody one in the turn in which Node sees that end, either", async () => {
    for (let tries = 0; tries < 20; tries++) {
      const { connection, said, near } = await connected();
      const ended = once(connection.socket, "end");
      near.end();
      await ended;
      const outcome = await connection.letGo().then(
        () => "given",
        () => "refused",
      );
      await sleep(10);
      assert.ok(outcome === "refused" || said() === 0, `${outcome}, and ${said()} B were said`);
    }
  });
});
