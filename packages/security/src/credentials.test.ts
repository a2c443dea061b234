import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { CertificateAuthority } from "./authority.js";
import { loadTlsCredentials, whyOutOfTime } from "./credentials.js";

const DAY_MS = 86_400_000;
const validity = { from: new Date(Date.now() - DAY_MS), to: new Date(Date.now() + DAY_MS) };
const authority = await CertificateAuthority.create("lab", validity);
const server = await authority.issue({ names: ["host-a", "192.0.2.1"], side: "server", ...validity });
const client = await authority.issue({ names: ["host-a"], side: "client", ...validity });

const ALL: Readonly<Record<string, string>> = {
  "ca-cert.pem": authority.pair.cert,
  "server-cert.pem": server.cert,
  "server-key.pem": server.key,
  "client-cert.pem": client.cert,
  "client-key.pem": client.key,
};

function folderOf(context: TestContext, files: Readonly<Record<string, string | undefined>>): string {
  const folder = mkdtempSync(join(tmpdir(), "precopy-credentials-"));
  context.after(() => rmSync(folder, { recursive: true }));
  for (const [name, text] of Object.entries(files)) if (text !== undefined) writeFileSync(join(folder, name), text, { mode: 0o600 });
  return folder;
}

describe("loadTlsCredentials", () => {
  it("reads the files by the names that QEMU and libvirt give them", (context) => {
    assert.deepEqual(loadTlsCredentials(folderOf(context, ALL)), { ca: authority.pair.cert, crl: undefined, server, client });
    const listening = loadTlsCredentials(folderOf(context, { ...ALL, "client-cert.pem": undefined }));
    assert.deepEqual([listening.server, listening.client], [server, undefined]);
    const connecting = loadTlsCredentials(folderOf(context, { ...ALL, "server-cert.pem": undefined, "ca-crl.pem": "a list" }));
    assert.deepEqual([connecting.server, connecting.client, connecting.crl], [undefined, client, "a list"]);
  });

  const cases: readonly (readonly [string, Readonly<Record<string, string | undefined>>, RegExp])[] = [
    ["no authority", { ...ALL, "ca-cert.pem": undefined }, /There is no .*ca-cert\.pem/],
    ["an authority that is no certificate", { ...ALL, "ca-cert.pem": "x" }, /ca-cert\.pem holds no certificate/],
    ["neither side's certificate", { "ca-cert.pem": authority.pair.cert }, /neither server-cert\.pem nor client-cert\.pem/],
    ["a certificate without its key", { ...ALL, "server-key.pem": undefined }, /Cannot read .*server-key\.pem/],
    ["a key of another certificate", { ...ALL, "server-key.pem": client.key }, /server-key\.pem is not the key of .*server-cert\.pem/],
    ["a key that is none", { ...ALL, "client-key.pem": "x" }, /client-key\.pem holds no private key/],
  ];
  for (const [title, files, message] of cases)
    it(`refuses ${title}`, (context) => {
      assert.throws(() => loadTlsCredentials(folderOf(context, files)), { code: "ERR_TLS_CREDENTIALS", message });
    });

  it("refuses a key that every user can read", { skip: process.platform === "win32" && "no modes here" }, (context) => {
    const folder = folderOf(context, ALL);
    chmodSync(join(folder, "server-key.pem"), 0o644);
    assert.throws(() => loadTlsCredentials(folder), {
      code: "ERR_TLS_CREDENTIALS",
      message: /server-key\.pem can be read by every user.*chmod/,
    });
    chmodSync(join(folder, "server-key.pem"), 0o640);
    loadTlsCredentials(folder);
  });
});

describe("CertificateAuthority", () => {
  it("is the same when it is loaded again, and says when a certificate is out of its time", async () => {
    const again = await CertificateAuthority.load(authority.pair);
    assert.equal(again.pair.cert, authority.pair.cert);
    const { cert } = await again.issue({ names: ["host-c"], side: "server", from: new Date(0), to: new Date(DAY_MS) });
    assert.match(whyOutOfTime(cert) ?? "", /expired on Jan  2 .*1970/);
    assert.match(whyOutOfTime(server.cert, new Date(0)) ?? "", /not valid before/);
    assert.equal(whyOutOfTime(server.cert), undefined);
  });

  it("refuses names that are none, and an authority that it has not made", async () => {
    for (const name of ["", "a b", "CN=x", "x,y", "-x", "ü.example"])
      await assert.rejects(authority.issue({ names: [name], side: "server", ...validity }), { code: "ERR_PARAMETER" }, name);
    await assert.rejects(CertificateAuthority.load({ cert: "x", key: "y" }), { code: "ERR_PARAMETER", message: /certs init/ });
  });
});
