import assert from "node:assert/strict";
import { once } from "node:events";
import { createConnection, createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import { after, before, describe, it } from "node:test";
import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import { HTTP_HEADER_BYTES_MAX, MigrationError } from "@precopy/protocol";
import { formatHead, parseHead, readHead } from "./http-head.js";
import { refusalAnswer, refusalIn } from "./refusal.js";

const word = fc.stringMatching(/^[A-Za-z0-9-]{1,20}$/);
const value = fc.stringMatching(/^([!-~]([ -~]{0,30}[!-~])?)?$/);

describe("the head of HTTP", () => {
  it("is read as it was written", () => {
    fc.assert(
      fc.property(
        value,
        fc.uniqueArray(fc.tuple(word, value), { selector: ([name]) => name.toLowerCase() }),
        fc.string(),
        (start, fields, behind) => {
          const text = formatHead(
            start,
            fields.map(([name, text]) => `${name}: ${text}`),
          );
          const head = parseHead(text + behind);
          assert.equal(head.start, start);
          assert.deepEqual(
            [...head.headers],
            fields.map(([name, text]) => [name.toLowerCase(), text]),
          );
          assert.equal(head.isFollowed, behind.length > 0);
        },
      ),
    );
  });

  it("of anybody's making is read as something", () => {
    const piece = fc.oneof(fc.string(), fc.constantFrom(":", "\r\n", "\r", "\n", "a:b", "A:c", " ", "__proto__: x", "\0"));
    fc.assert(
      fc.property(fc.array(piece), (pieces) => {
        const { start, headers } = parseHead(`${pieces.join("")}\r\n\r\n`);
        assert.ok(!start.includes("\r\n"));
        for (const [name, text] of headers) assert.ok(!name.includes("\r\n") && !text.includes("\r\n"));
      }),
    );
  });

  it("says why somebody was refused, in one line, whatever the reason is made of", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 2000 }), (reason) => {
        const answer = refusalAnswer(new MigrationError("ERR_TLS_AUTHZ", reason));
        assert.match(answer, /^HTTP\/1\.1 403 Forbidden\r\n([\x20-\x7e]+\r\n)+\r\n$/);
        const { headers } = parseHead(answer);
        assert.equal(headers.size, 4);
        assert.equal(refusalIn((name) => headers.get(name), "the peer")?.code, "ERR_TLS_AUTHZ");
      }),
    );
  });

  describe("over a connection", () => {
    const server = createServer();
    before(async () => {
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
    });
    after(() => server.close());

    /** Both ends. */
    async function connected(): Promise<[near: Socket, far: Socket]> {
      const near = createConnection((server.address() as AddressInfo).port, "127.0.0.1").setNoDelay(true);
      const [far] = (await once(server, "connection")) as [Socket];
      for (const socket of [near, far]) socket.on("error", () => {});
      return [near, far];
    }

    it("is read however it is cut, and nothing behind what came with it is taken", async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(fc.nat(60), { maxLength: 4 }), async (cuts) => {
          const [near, far] = await connected();
          const text = formatHead("GET /v1/pages HTTP/1.1", ["Host: a", "Upgrade: precopy-pages/1"]);
          const read = readHead(far);
          let at = 0;
          for (const cut of [...cuts.sort((a, b) => a - b), text.length]) {
            if (cut > at) near.write(text.slice(at, cut));
            at = Math.max(at, cut);
            await setImmediate();
          }
          const head = await read;
          assert.equal(head.headers.get("upgrade"), "precopy-pages/1");
          assert.equal(head.isFollowed, false);
          near.write("pages");
          await once(far, "readable");
          assert.equal(String(far.read()), "pages");
          near.destroy();
          far.destroy();
        }),
        { numRuns: 30 },
      );
    });

    it("without an end is not waited for beyond its bound, and one that breaks off is an error", async () => {
      const [near, far] = await connected();
      const read = assert.rejects(readHead(far), { code: "ERR_NOT_AN_AGENT" });
      near.write(Buffer.alloc(HTTP_HEADER_BYTES_MAX + 1, "a"));
      await read;
      near.destroy();
      far.destroy();
      const [leaving, left] = await connected();
      const broken = assert.rejects(readHead(left), /closed before it answered/);
      leaving.end("GET / HTTP/1.1\r\n");
      left.once("end", () => left.destroy());
      await broken;
    });
  });
});
