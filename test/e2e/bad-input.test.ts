import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { describe, it } from "node:test";
import { Lab, precopy } from "./lab.js";

/** One clear line, and nothing else, on standard error. */
const oneLine = (stderr: string): void => assert.match(stderr, /^precopy: [^\n]+\n$/);

describe("bad input gets one clear line, a remedy and an exit code of its own", () => {
  const cases = [
    { title: "an unknown flag", args: ["target", "--lisen", "127.0.0.1:0"], code: 2, says: /--lisen/ },
    { title: "an unknown command", args: ["migrat", "localhost:1"], code: 2, says: /migrat/ },
    { title: "a size of 8GBB", args: ["source", "--workload", "idle", "--memory", "8GBB"], code: 2, says: /--memory.*8GBB.*8GiB/ },
    { title: "a port above 65535", args: ["migrate", "localhost:70000"], code: 2, says: /70000/ },
    {
      title: "a target beyond loopback without --insecure",
      args: ["target", "--listen", "0.0.0.0:0"],
      code: 2,
      says: /ERR_INSECURE_LISTEN.*--insecure/,
    },
    {
      title: "an unreachable target",
      args: ["source", "--workload", "idle", "--listen", "127.0.0.1:0", "--migrate-to", "127.0.0.1:1"],
      code: 3,
      says: /ERR_UNREACHABLE.*127\.0\.0\.1:1/,
    },
    {
      title: "an unknown workload",
      args: ["source", "--workload", "nope", "--listen", "127.0.0.1:0", "--memory", "16MiB"],
      code: 5,
      says: /ERR_WORKLOAD_UNKNOWN.*nope.*ledger/,
    },
    {
      title: "an agent that is not there",
      args: ["status", "--socket", "/nowhere/x.sock"],
      code: 3,
      says: /ERR_NO_AGENT.*\/nowhere\/x\.sock/,
    },
  ] as const;
  for (const { title, args, code, says } of cases)
    it(title, async () => {
      const outcome = await precopy([
        ...args,
        ...(args[0] === "source" || args[0] === "target" ? ["--socket", `/tmp/precopy-bad-${process.pid}.sock`] : []),
      ]);
      assert.equal(outcome.code, code, outcome.stderr);
      oneLine(outcome.stderr);
      assert.match(outcome.stderr, says);
    });

  for (const [name, value] of [
    ["PRECOPY_FAULT", "target.owner=kill"],
    ["PRECOPY_FORGET_DIRTY", "10000"],
    ["PRECOPY_WITHOUT", "populated-map"],
  ] as const)
    for (const role of ["source", "target"])
      it(`a ${role} in production with a test's ${name} left in its environment`, async () => {
        const args = [role, "--listen", "127.0.0.1:0", "--socket", `/tmp/precopy-bad-${process.pid}.sock`];
        const outcome = await precopy(args, { env: { [name]: value } });
        assert.equal(outcome.code, 2, outcome.stderr);
        oneLine(outcome.stderr);
        assert.match(outcome.stderr, new RegExp(`ERR_PARAMETER: ${name} is set.*--fault-points`));
      });

  it("a fault point that is not there", async () => {
    const args = ["target", "--listen", "127.0.0.1:0", "--socket", `/tmp/precopy-bad-${process.pid}.sock`, "--fault-points"];
    const outcome = await precopy(args, { env: { PRECOPY_FAULT: "target.nowhere=kill" } });
    assert.equal(outcome.code, 2, outcome.stderr);
    oneLine(outcome.stderr);
    assert.match(outcome.stderr, /"target\.nowhere" is no fault point; known: source\.setup/);
  });

  it("an optimisation that is not there", async () => {
    const args = ["target", "--listen", "127.0.0.1:0", "--socket", `/tmp/precopy-bad-${process.pid}.sock`, "--fault-points"];
    const outcome = await precopy(args, { env: { PRECOPY_WITHOUT: "zero-check" } });
    assert.equal(outcome.code, 2, outcome.stderr);
    oneLine(outcome.stderr);
    assert.match(outcome.stderr, /"zero-check" is no optimisation; known: deferred-cleanup, vector-zero-check, populated-map, rehearsal/);
  });

  it("a peer that is no agent", async () => {
    const other = createServer((socket) => socket.end("220 mail.example ESMTP\r\n"));
    other.listen(0, "127.0.0.1");
    await once(other, "listening");
    const outcome = await precopy([
      ...[
        "source",
        "--workload",
        "idle",
        "--memory",
        "16MiB",
        "--listen",
        "127.0.0.1:0",
        "--socket",
        `/tmp/precopy-bad-${process.pid}.sock`,
      ],
      ...["--migrate-to", `127.0.0.1:${(other.address() as AddressInfo).port}`],
    ]);
    other.close();
    assert.equal(outcome.code, 4, outcome.stderr);
    oneLine(outcome.stderr);
    assert.match(outcome.stderr, /ERR_NOT_AN_AGENT/);
  });

  it("a port in use", async () => {
    const lab = new Lab();
    try {
      const { listen } = await lab.agent("target", "b");
      const outcome = await precopy(["target", "--listen", listen, "--socket", `/tmp/precopy-bad-${process.pid}.sock`]);
      assert.equal(outcome.code, 10, outcome.stderr);
      oneLine(outcome.stderr);
      assert.match(outcome.stderr, /ERR_PORT_IN_USE/);
    } finally {
      await lab.end();
    }
  });

  it("--help and --version end with 0", async () => {
    for (const flag of ["--help", "--version"]) assert.equal((await precopy([flag])).code, 0);
  });
});

describe("admission refuses with a reason that reaches the person at the source, and the guest runs on there", () => {
  const cases = [
    { title: "too little memory allowed", target: ["--memory-limit", "8MiB"], code: "ERR_MEMORY_LIMIT" },
    { title: "a card without a back end", target: [], code: "ERR_DEVICE_UNAVAILABLE" },
  ] as const;
  for (const { title, target, code } of cases)
    it(title, async () => {
      const lab = new Lab();
      try {
        const other = await lab.agent("target", "b", target); // before there is a switch
        await lab.startSwitch();
        const source = await lab.source("a");
        const migration = lab.migrate(source, other.listen);
        assert.equal((await migration.expect("failed"))["code"], code);
        assert.equal(await migration.exited, 5);
        assert.match(migration.stderr, new RegExp(`^precopy: ${code}: [^\n]+\n$`));
        assert.equal((await lab.guestAt(source))?.phase, "running");
      } finally {
        await lab.end();
      }
    });
});

describe("Ctrl-C and SIGTERM end every process cleanly and promptly", () => {
  it("an agent that receives, with its channel threads in system calls", async () => {
    const lab = new Lab();
    try {
      await lab.startSwitch();
      const source = await lab.source("a");
      const target = await lab.agent("target", "b");
      const migration = lab.migrate(source, target.listen, ["--max-bandwidth", "30Mbit"]);
      await migration.expect("phase");
      await migration.expect("phase");
      const started = performance.now();
      target.child.kill("SIGTERM");
      assert.equal(await target.child.exited, 0);
      assert.equal(await migration.exited, 6);
      source.child.kill("SIGINT");
      await source.child.expect("held");
      source.child.kill("SIGINT");
      assert.equal(await source.child.exited, 0);
      assert.ok(performance.now() - started < 4000, "within 4 s, without the watchdog");
    } finally {
      await lab.end();
    }
  });
});
