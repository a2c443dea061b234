import assert from "node:assert/strict";
import { createCipheriv, randomBytes } from "node:crypto";
import { once } from "node:events";
import { createConnection, createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import { after, before, describe, it } from "node:test";
import { connect as connectTls, createServer as createTlsServer } from "node:tls";
import type { TLSSocket } from "node:tls";
import fc from "fast-check";
import { Pieces, addressOf, hasAead, isLinuxAvailable } from "@precopy/linux";
import { MigrationError } from "@precopy/protocol";
import { CIPHER_SUITES, isCipherSuite, recordKeys, secretBytesOf, takeClientSecret } from "@precopy/security";
import type { TrafficSecret } from "@precopy/security";
import { CertificateAuthority } from "@precopy/security/authority";
import { RecordOpener, RecordSealer } from "./tls-records.js";

const skip = isLinuxAvailable && hasAead() ? false : "no OpenSSL can be called here";
const HOUR_MS = 3_600_000;
/** Plain bytes of one record. */
const RECORD_BYTES = 2 ** 14;

/** The pieces that `bytes` is cut into, of these lengths in turn, each in memory of its own. */
function inPieces(bytes: Buffer, lengths: readonly number[]): { readonly pieces: Pieces; readonly count: number; readonly kept: Buffer[] } {
  const kept: Buffer[] = [];
  for (let at = 0; at < bytes.byteLength; ) {
    const piece = Buffer.allocUnsafeSlow(Math.min(lengths[kept.length % lengths.length]!, bytes.byteLength - at));
    bytes.copy(piece, 0, at);
    kept.push(piece);
    at += piece.byteLength;
  }
  const pieces = new Pieces(Math.max(1, kept.length));
  kept.forEach((piece, at) => pieces.set(at, Number(addressOf(piece)), piece.byteLength));
  return { pieces, count: kept.length, kept };
}

function sealed(secret: TrafficSecret, bytes: Buffer, lengths: readonly number[], sequence = 1, recordsPerKey?: number): Buffer {
  const records: Buffer[] = [];
  const sealer = new RecordSealer(
    { suite: secret.suite, secret: Buffer.from(secret.secret) },
    sequence,
    (some) => {
      records.push(Buffer.from(some));
      return true;
    },
    recordsPerKey,
  );
  const { pieces, count, kept } = inPieces(bytes, lengths);
  assert.ok(sealer.writeAll(pieces, count));
  assert.ok(kept.length === count);
  sealer.close();
  return Buffer.concat(records);
}

/** What an opener makes of a stream that comes in parts of these lengths. */
function opened(
  secret: TrafficSecret,
  stream: Buffer,
  lengths: readonly number[],
  sequence = 1,
): { readonly bytes: Buffer; readonly isEnded: boolean } {
  const opener = new RecordOpener({ suite: secret.suite, secret: Buffer.from(secret.secret) }, sequence);
  const parts: Buffer[] = [];
  try {
    for (let at = 0, turn = 0; at < stream.byteLength; turn++) {
      const { room } = opener;
      const part = stream.subarray(at, at + Math.min(lengths[turn % lengths.length]!, room.byteLength));
      room.set(part);
      parts.push(Buffer.from(opener.open(part.byteLength)));
      at += part.byteLength;
    }
    return { bytes: Buffer.concat(parts), isEnded: opener.isEnded };
  } catch (error) {
    if (error instanceof MigrationError) Object.assign(error, { opened: Buffer.concat(parts) });
    throw error;
  } finally {
    opener.close();
  }
}

const lengthsOf = (max: number): fc.Arbitrary<number[]> => fc.array(fc.integer({ min: 1, max }), { minLength: 1, maxLength: 5 });

describe("records of TLS 1.3", { skip }, () => {
  for (const suite of CIPHER_SUITES) {
    it(`say what was sealed, whatever its pieces, the parts it comes in, and the keys it goes through (${suite})`, () => {
      fc.assert(
        fc.property(
          fc.integer({ min: 0, max: 70_000 }),
          lengthsOf(40_000),
          lengthsOf(300_000),
          fc.integer({ min: 0, max: 2 ** 40 }),
          fc.integer({ min: 1, max: 6 }),
          (length, pieces, parts, sequence, recordsPerKey) => {
            const secret = { suite, secret: randomBytes(secretBytesOf(suite)) };
            const bytes = randomBytes(length);
            // A count that stands above the limit changes the key before its first record.
            const stream = sealed(secret, bytes, pieces, sequence, recordsPerKey);
            assert.ok(opened(secret, stream, parts, sequence).bytes.equals(bytes));
          },
        ),
        { numRuns: 60 },
      );
    });

    it(`of which one was changed, dropped, doubled or put elsewhere are refused from there on (${suite})`, () => {
      fc.assert(
        fc.property(
          fc.integer({ min: 0, max: 3 }),
          fc.nat(),
          fc.constantFrom("changed", "dropped", "doubled", "moved"),
          (which, bit, what) => {
            const secret = { suite, secret: randomBytes(secretBytesOf(suite)) };
            const bytes = randomBytes(5 * RECORD_BYTES);
            const stream = sealed(secret, bytes, [bytes.byteLength]);
            const size = stream.byteLength / 5;
            const records = Array.from({ length: 5 }, (_, at) => Buffer.from(stream.subarray(at * size, (at + 1) * size)));
            const one = records[which]!;
            if (what === "changed") one[bit % one.byteLength]! ^= 1 << (bit % 8);
            else if (what === "dropped") records.splice(which, 1);
            else if (what === "doubled") records.splice(which, 0, one);
            else records.push(...records.splice(which, 1));
            assert.throws(
              () => {
                const { bytes: believed } = opened(secret, Buffer.concat(records), [size]);
                // A length that was made longer than the stream: the record never is whole.
                assert.ok(what === "changed" && bit % one.byteLength < 5);
                assert.ok(believed.equals(bytes.subarray(0, which * RECORD_BYTES)));
                throw new MigrationError("ERR_LINK_LOST", "the end of the stream");
              },
              (error: unknown) => {
                assert.ok(error instanceof MigrationError && error.code === "ERR_LINK_LOST", String(error));
                const believed: unknown = Reflect.get(error, "opened");
                // Of a doubled one the first is genuine.
                const good = what === "doubled" ? which + 1 : which;
                return !(believed instanceof Buffer) || believed.equals(bytes.subarray(0, good * RECORD_BYTES));
              },
            );
          },
        ),
        { numRuns: 100 },
      );
    });
  }

  /** Records of whatever content, type and zeros a peer that has the keys may seal. */
  function ofPeer(secret: TrafficSecret, contents: readonly Buffer[]): Buffer {
    const { aead, key, nonce } = recordKeys(secret);
    return Buffer.concat(
      contents.map((content, at) => {
        const header = Buffer.from([23, 3, 3, (content.byteLength + 16) >> 8, (content.byteLength + 16) & 0xff]);
        const number = Buffer.from(nonce);
        number[11]! ^= at + 1;
        const cipher = createCipheriv(aead as "aes-128-gcm", key, number, { authTagLength: 16 }).setAAD(header);
        return Buffer.concat([header, cipher.update(content), cipher.final(), cipher.getAuthTag()]);
      }),
    );
  }

  it("of a peer that has the keys are read with zeros, without content, to the last byte that one may have; all else of it is refused", () => {
    const secret: TrafficSecret = { suite: "TLS_AES_128_GCM_SHA256", secret: randomBytes(32) };
    const inner = (type: number, content: Buffer = Buffer.alloc(0), zeros = 0): Buffer =>
      Buffer.concat([content, Buffer.from([type]), Buffer.alloc(zeros)]);
    const data = (content: Buffer, zeros = 0): Buffer => inner(23, content, zeros);
    const whole = Buffer.alloc(RECORD_BYTES, 5);
    for (const [said, of] of [
      [[data(Buffer.from("a"), 200), data(Buffer.from("b"))], "ab"],
      [[data(Buffer.alloc(0)), data(Buffer.from("b"))], "b"],
      [[data(whole), data(Buffer.alloc(1, 5))], Buffer.alloc(RECORD_BYTES + 1, 5).toString()],
      [[data(Buffer.from("a")), inner(21, Buffer.from([1, 0])), data(Buffer.from("behind the last word"))], "a"],
    ] as const)
      assert.equal(String(opened(secret, ofPeer(secret, said), [10_000]).bytes), of);
    for (const [what, said] of [
      ["more than a record may have", data(Buffer.alloc(RECORD_BYTES + 1))],
      ["zeros only", Buffer.alloc(100)],
      ["a KeyUpdate that requests one", inner(22, Buffer.from([24, 0, 0, 1, 1]))],
      ["two of them in one", inner(22, Buffer.from([24, 0, 0, 1, 0, 24, 0, 0, 1, 0]))],
      ["another message of a handshake", inner(22, Buffer.from([4, 0, 0, 1, 0]))],
      ["a change of ciphers", inner(20, Buffer.from([1]))],
      ["an unknown type", inner(99, Buffer.from("?"))],
    ] as const)
      assert.throws(() => opened(secret, ofPeer(secret, [said]), [10_000]), { code: "ERR_LINK_LOST" }, what);
  });

  it("of somebody else, and what is no record, are refused before anything is opened", () => {
    const [mine, other] = [1, 2].map((seed): TrafficSecret => ({ suite: "TLS_AES_128_GCM_SHA256", secret: Buffer.alloc(32, seed) }));
    assert.ok(mine !== undefined && other !== undefined);
    const stream = sealed(other, Buffer.alloc(100), [100]);
    const refused = (bytes: Buffer): void => assert.throws(() => opened(mine, bytes, [bytes.byteLength]), { code: "ERR_LINK_LOST" });
    refused(stream);
    refused(Buffer.from("GET / HTTP/1.1\r\nHost: target\r\n\r\n"));
    refused(Buffer.from([23, 3, 3, 0xff, 0xff]));
    refused(Buffer.from([23, 3, 3, 0, 16]));
    refused(Buffer.from([21, 3, 3, 0, 2, 1, 0]));
    assert.throws(
      () => opened(mine, sealed(mine, Buffer.alloc(100), [100]), [1], 2),
      { code: "ERR_LINK_LOST" },
      "another place in the stream",
    );
  });

  it("stop when nobody takes them", () => {
    let taken = 0;
    const sealer = new RecordSealer({ suite: "TLS_AES_128_GCM_SHA256", secret: randomBytes(32) }, 1, () => ++taken < 2);
    const { pieces, count, kept } = inPieces(Buffer.alloc(2 ** 20), [2 ** 20]);
    assert.equal(sealer.writeAll(pieces, count), false);
    assert.ok(kept.length === 1 && taken === 2);
    sealer.close();
  });
});

describe("records of TLS 1.3, and OpenSSL at the other end", { skip }, () => {
  let key: string;
  let cert: string;
  before(async () => {
    const validity = { from: new Date(Date.now() - HOUR_MS), to: new Date(Date.now() + HOUR_MS) };
    const authority = await CertificateAuthority.create("lab", validity);
    ({ key, cert } = await authority.issue({ names: ["127.0.0.1"], side: "server", ...validity }));
  });
  const sockets: Socket[] = [];
  after(() => {
    for (const socket of sockets) socket.destroy();
  });

  /** A client of Node's whose handshake is done, what its records are sealed with, and the server's end. */
  async function connected(suite: string, through: (port: number) => Promise<number> = (port) => Promise.resolve(port)) {
    const server = createTlsServer({ key, cert, ciphers: suite, minVersion: "TLSv1.3" });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const port = await through((server.address() as AddressInfo).port);
    const raw = createConnection(port, "127.0.0.1");
    const client = connectTls({ socket: raw, rejectUnauthorized: false });
    let secret: Buffer | undefined;
    client.on("keylog", (line: Buffer) => {
      secret = takeClientSecret(line) ?? secret;
    });
    const [[far]] = (await Promise.all([once(server, "secureConnection"), once(client, "secureConnect")])) as unknown as [[TLSSocket]];
    sockets.push(raw, client, far);
    for (const socket of [raw, client, far]) socket.on("error", () => {});
    server.close();
    const { standardName } = client.getCipher();
    assert.ok(isCipherSuite(standardName) && standardName === suite && secret !== undefined);
    return { raw, client, far, secret: { suite: standardName, secret } };
  }

  for (const suite of CIPHER_SUITES) {
    it(`are read by it, through changes of the key (${suite})`, async () => {
      const { raw, client, far, secret } = await connected(suite);
      client.write("a request");
      assert.equal(String((await once(far, "data"))[0]), "a request");
      const bytes = randomBytes(40 * RECORD_BYTES + 77);
      raw.write(sealed(secret, bytes, [100_000, 1, 4096], 1, 3));
      const got: Buffer[] = [];
      for (let left = bytes.byteLength; left > 0; ) {
        const [part] = (await once(far, "data")) as [Buffer];
        got.push(part);
        left -= part.byteLength;
      }
      assert.ok(Buffer.concat(got).equals(bytes));
    });

    it(`are what it makes, to its last word (${suite})`, async () => {
      // What the client sends passes here. Before its request come the records of its handshake.
      const passed: Buffer[] = [];
      const { client, far, secret } = await connected(suite, async (port) => {
        const proxy = createServer((near) => {
          const onwards = createConnection(port, "127.0.0.1");
          sockets.push(near, onwards);
          near.on("data", (part) => {
            passed.push(part);
            onwards.write(part);
          });
          near.on("end", () => onwards.end()).on("error", () => {});
          onwards.on("error", () => {}).pipe(near);
          proxy.close();
        });
        proxy.listen(0, "127.0.0.1");
        await once(proxy, "listening");
        return (proxy.address() as AddressInfo).port;
      });
      await new Promise((resolve) => setImmediate(resolve));
      const handshake = Buffer.concat(passed).byteLength;
      const bytes = randomBytes(200_000);
      far.resume();
      client.write(bytes);
      client.end();
      await once(far, "close");
      const stream = Buffer.concat(passed).subarray(handshake);
      const { bytes: read, isEnded } = opened(secret, stream, [1000, 50_000], 0);
      assert.ok(read.equals(bytes));
      assert.ok(isEnded);
    });
  }
});
