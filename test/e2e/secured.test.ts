import assert from "node:assert/strict";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { whyNoMissingPages } from "@precopy/guest";
import { CREDENTIAL_FILES } from "@precopy/security";
import { CertificateAuthority } from "@precopy/security/authority";
import { Lab, SLOW, isRight, postcopyOf, precopy, reportOf, untilPhase, untilSaid } from "./lab.js";
import { Pair } from "./pair.js";

const DAY_MS = 86_400_000;
const folder = mkdtempSync(join(tmpdir(), "precopy-secured-"));
after(() => rmSync(folder, { recursive: true }));

/** What an operator of a lab does once: two authorities, certificates for this host, and for another one. */
const authority = join(folder, "ca");
const elsewhere = join(folder, "other-ca");
const here = join(folder, "here");
const otherHost = join(folder, "other-host");
const stranger = join(folder, "stranger");
const lastYear = join(folder, "last-year");
const serverOnly = join(folder, "server-only");
const token = join(folder, "token");
const otherToken = join(folder, "other-token");
before(async () => {
  for (const [dir, out, ...names] of [
    [authority, here, "host-a", "127.0.0.1"],
    [authority, otherHost, "host-b", "192.0.2.2"],
    [elsewhere, stranger, "host-a", "127.0.0.1"],
  ] as const) {
    if (!existsSync(dir)) assert.equal((await precopy(["certs", "init", "--dir", dir])).code, 0);
    const issued = await precopy(["certs", "issue", ...names, "--dir", dir, "--out", out]);
    assert.equal(issued.code, 0, issued.stderr);
    assert.match(issued.stdout, /ca-cert\.pem server-cert\.pem server-key\.pem client-cert\.pem client-key\.pem, for host-/);
  }
  for (const [out, left] of [
    [lastYear, Object.values(CREDENTIAL_FILES)],
    [serverOnly, [CREDENTIAL_FILES.ca, CREDENTIAL_FILES.serverCert, CREDENTIAL_FILES.serverKey]],
  ] as const) {
    mkdirSync(out);
    for (const file of left) if (existsSync(join(here, file))) copyFileSync(join(here, file), join(out, file));
  }
  const [cert, key] = ["ca-cert.pem", "ca-key.pem"].map((file) => readFileSync(join(authority, file), "utf8"));
  const past = { from: new Date(Date.now() - 400 * DAY_MS), to: new Date(Date.now() - 35 * DAY_MS) };
  const expired = await (await CertificateAuthority.load({ cert: cert ?? "", key: key ?? "" })).issue({
    names: ["127.0.0.1"],
    side: "client",
    ...past,
  });
  writeFileSync(join(lastYear, CREDENTIAL_FILES.clientCert), expired.cert);
  writeFileSync(join(lastYear, CREDENTIAL_FILES.clientKey), expired.key, { mode: 0o600 });
  writeFileSync(token, "a secret of both agents\n", { mode: 0o600 });
  writeFileSync(otherToken, "a secret of one agent\n", { mode: 0o600 });
});

for (const [title, args] of [
  ["TLS", () => ["--tls-creds", here]],
  ["a token", () => ["--token-file", token]],
  [
    "TLS by the portable pump, and a token",
    () => ["--tls-creds", here, "--tls-authz", "host-z,host-a", "--token-file", token, "--pump", "portable"],
  ],
] as const)
  describe(`agents with ${title}`, () => {
    let pair: Pair;
    before(async () => {
      pair = new Pair(args());
      await pair.start();
    });
    afterEach(() => pair.settle());
    after(() => pair.end());

    it("move a guest, both images equal, nothing acknowledged lost", async () => {
      const report = await reportOf(pair.migrate());
      assert.equal(report["digest-equal"], true);
      await isRight(pair.client);
    });

    for (const channel of ["pages", "control", "any"] as const)
      it(`go on after a link that was cut (${channel})`, async () => {
        const { link, migration } = await pair.migrateOverLink(SLOW);
        await untilPhase(migration, "active");
        await sleep(400);
        link.cut("rst", channel);
        const report = await reportOf(migration);
        assert.equal(report["digest-equal"], true);
        assert.ok(Number(report["channel-losses"]) + Number(report["control-rejoins"]) > 0);
        await isRight(pair.client);
      });

    it("move it in post-copy, and go on after a link that was cut", { skip: whyNoMissingPages() ?? false }, async () => {
      const { link, migration } = await pair.fetching();
      link.cut("rst");
      const report = await reportOf(migration);
      assert.equal(report["digest-equal"], true);
      assert.ok(postcopyOf(report).pauses > 0);
      await isRight(pair.client);
    });
  });

describe("at agents that do not fit each other the migration ends, and both operators read why", () => {
  const lab = new Lab();
  after(() => lab.end());
  for (const { title, source, target, code, there = code } of [
    { title: "another name", source: ["--tls-creds", here], target: ["--tls-creds", otherHost], code: "ERR_TLS_HOSTNAME" },
    { title: "another authority", source: ["--tls-creds", here], target: ["--tls-creds", stranger], code: "ERR_TLS_UNTRUSTED" },
    {
      title: "a name that is not on the list",
      source: ["--tls-creds", here],
      target: ["--tls-creds", here, "--tls-authz", "host-b"],
      code: "ERR_TLS_AUTHZ",
    },
    {
      title: "a source's certificate that has expired",
      source: ["--tls-creds", lastYear],
      target: ["--tls-creds", here],
      code: "ERR_TLS_EXPIRED",
    },
    {
      title: "no certificate at the source",
      source: ["--tls-creds", serverOnly],
      target: ["--tls-creds", here],
      code: "ERR_TLS_NO_CERTIFICATE",
    },
    { title: "no TLS at the source", source: [], target: ["--tls-creds", here], code: "ERR_TLS_REQUIRED" },
    { title: "no TLS at the target", source: ["--tls-creds", here], target: [], code: "ERR_TLS_NOT_OFFERED" },
    { title: "another token", source: ["--token-file", token], target: ["--token-file", otherToken], code: "ERR_TOKEN_WRONG" },
    { title: "no token at the source", source: [], target: ["--token-file", token], code: "ERR_TOKEN_REQUIRED" },
  ] as { title: string; source: string[]; target: string[]; code: string; there?: string }[])
    it(title, async (context) => {
      const [from, to] = await Promise.all([
        lab.agent("source", `a-${code}`, ["--workload", "idle", "--memory", "16MiB", ...source]),
        lab.agent("target", `b-${code}`, target),
      ]);
      const outcome = await precopy(["migrate", to.listen, "--socket", from.socket]);
      assert.equal(outcome.code, 12, outcome.stderr);
      assert.match(outcome.stderr, new RegExp(`^precopy: ${code}: .+`));
      const [said = ""] = await untilSaid(to, new RegExp(`.*"code":"${there}".*`));
      context.diagnostic(`at the source: ${outcome.stderr.trim()}`);
      context.diagnostic(`at the target: ${said}`);
      assert.match(said, /"remedy":"/);
      assert.match(said, /"peer":"127\.0\.0\.1:\d+"/);
      assert.equal((await lab.guestAt(from))?.phase, "running");
      const [outside] = [from.child.stderr + to.child.stderr + outcome.stderr];
      assert.doesNotMatch(outside, /a secret of|PRIVATE KEY/);
    });
});

describe("what an agent needs beyond loopback", () => {
  const socket = `/tmp/precopy-secured-${process.pid}.sock`;
  const target = (...args: string[]) =>
    precopy(["target", "--listen", "0.0.0.0:0", "--socket", socket, "--state-dir", join(folder, "state"), ...args], {
      signalAt: "precopy listens",
    });
  it("is TLS, a token, or --insecure", async () => {
    const refused = await target();
    assert.equal(refused.code, 2);
    assert.match(refused.stderr, /ERR_INSECURE_LISTEN.*--tls-creds or --token-file.*--insecure/);
    for (const args of [["--tls-creds", here], ["--token-file", token], ["--insecure"]]) assert.equal((await target(...args)).code, 0);
  });
  it("is found out before anything is started", async () => {
    const none = await target("--tls-creds", join(folder, "nowhere"));
    assert.equal(none.code, 2);
    assert.match(none.stderr, /^precopy: ERR_TLS_CREDENTIALS: There is no .*ca-cert\.pem/);
    const open = join(folder, "open-token");
    writeFileSync(open, "a secret that is none", { mode: 0o644 });
    const readable = await target("--token-file", open);
    assert.equal(readable.code, 2);
    assert.match(readable.stderr, /^precopy: ERR_TOKEN_FILE: .*can be read by every user/);
    const alone = await target("--tls-authz", "x");
    assert.match(alone.stderr, /ERR_PARAMETER: --tls-authz x needs --tls-creds/);
  });
  it("precopy certs writes nothing over, keeps keys to their owner, and says what is missing", async () => {
    const again = await precopy(["certs", "init", "--dir", authority]);
    assert.equal(again.code, 2);
    assert.match(again.stderr, /is there already: it is not written over/);
    const nowhere = await precopy(["certs", "issue", "x", "--dir", join(folder, "nowhere")]);
    assert.match(nowhere.stderr, /precopy certs init --dir/);
    for (const file of [join(authority, "ca-key.pem"), join(here, "server-key.pem"), join(here, "client-key.pem")])
      assert.equal(statSync(file).mode & 0o777, 0o600);
    assert.match(readFileSync(join(here, "ca-cert.pem"), "utf8"), /BEGIN CERTIFICATE/);
  });
});

describe("an agent with secrets", { skip: process.platform === "linux" ? false : "no /proc here" }, () => {
  it("leaves no core dump, and its guest's memory would not be in one", async () => {
    const lab = new Lab();
    try {
      const { child } = await lab.agent("source", "core", ["--workload", "idle", "--memory", "512MiB", "--token-file", token]);
      const pid = child.pid;
      assert.match(readFileSync(`/proc/${pid}/limits`, "utf8"), /^Max core file size +[01] /m);
      const maps = readFileSync(`/proc/${pid}/smaps`, "utf8").split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m);
      const image = maps.filter((map) => Number(/^Size: +(\d+) kB$/m.exec(map)?.[1]) >= 512 * 1024 && /^\S+ rw/.test(map));
      assert.ok(image.length > 0, "the guest's memory is there");
      for (const map of image) assert.match(map, /^VmFlags:.* dd\b/m);
    } finally {
      await lab.end();
    }
  });
});
