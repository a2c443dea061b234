import assert from "node:assert/strict";
import { createDecipheriv } from "node:crypto";
import { describe, it } from "node:test";
import { nextSecret, recordKeys, takeClientSecret } from "./record-keys.js";
import type { TrafficSecret } from "./record-keys.js";

const hex = (text: string): Buffer => Buffer.from(text.replace(/\s/g, ""), "hex");

describe("keys of TLS 1.3 records", () => {
  // RFC 8448, 3: the client's first record of application data.
  const secret = hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");

  it("come out of a traffic secret as RFC 8448 has them, and open the record there", () => {
    const { aead, key, nonce } = recordKeys({ suite: "TLS_AES_128_GCM_SHA256", secret });
    assert.equal(aead, "aes-128-gcm");
    assert.equal(key.toString("hex"), "17422dda596ed5d9acd890e3c63f5051");
    assert.equal(nonce.toString("hex"), "5b78923dee08579033e523d9");
    const record = hex(`17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19 a8
      a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4`);
    const decipher = createDecipheriv("aes-128-gcm", key, nonce).setAAD(record.subarray(0, 5)).setAuthTag(record.subarray(-16));
    const opened = Buffer.concat([decipher.update(record.subarray(5, -16)), decipher.final()]);
    assert.deepEqual([...opened], [...Array.from({ length: 50 }, (_, at) => at), 23]);
  });

  it("are other ones behind each update, of the suite's length", () => {
    const seen = new Set<string>();
    for (const [suite, secretBytes, keyBytes] of [
      ["TLS_AES_128_GCM_SHA256", 32, 16],
      ["TLS_AES_256_GCM_SHA384", 48, 32],
      ["TLS_CHACHA20_POLY1305_SHA256", 32, 32],
    ] as const) {
      let traffic: TrafficSecret = { suite, secret: Buffer.alloc(secretBytes, suite) };
      for (let update = 0; update < 3; update++) {
        const { key, nonce } = recordKeys(traffic);
        assert.equal(key.byteLength, keyBytes);
        assert.equal(nonce.byteLength, 12);
        seen.add(key.toString("hex")).add(nonce.toString("hex"));
        traffic = nextSecret(traffic);
        assert.equal(traffic.secret.byteLength, secretBytes);
      }
    }
    assert.equal(seen.size, 18);
  });

  it("are taken from the one line of a key log that has the client's, and the line is wiped", () => {
    const line = (label: string, end = ""): Buffer => Buffer.from(`${label} ${"ab".repeat(32)} ${secret.toString("hex")}${end}`);
    for (const one of [line("CLIENT_TRAFFIC_SECRET_0"), line("CLIENT_TRAFFIC_SECRET_0", "\n")]) {
      assert.deepEqual(takeClientSecret(one), secret);
      assert.ok(one.every((byte) => byte === 0));
    }
    for (const label of ["SERVER_TRAFFIC_SECRET_0", "CLIENT_HANDSHAKE_TRAFFIC_SECRET", "EXPORTER_SECRET", "CLIENT_TRAFFIC_SECRET_01", ""]) {
      const other = line(label, "\n");
      assert.equal(takeClientSecret(other), undefined, label);
      assert.ok(other.every((byte) => byte === 0));
    }
  });
});
