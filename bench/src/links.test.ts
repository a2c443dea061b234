import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { describe, it } from "node:test";
import { LabLink, htbCommands, leftovers } from "./links.js";
import type { LinkOptions } from "./links.js";

describe("arguments of htb", () => {
  it("hold one class, which is the default, to the rate and no more", () => {
    const [qdisc = [], shape = []] = htbCommands(1e9).map((command) => command.join(" "));
    assert.equal(qdisc, "qdisc add dev lab0 root handle 1: htb default 1");
    assert.equal(
      shape,
      "class add dev lab0 parent 1: classid 1:1 htb rate 1000000000bit ceil 1000000000bit burst 131072b cburst 131072b quantum 200000",
    );
  });

  it("let a millisecond of the rate leave at once, and never less than two whole segments of an offloading card", () => {
    const burstOf = (bitsPerSecond: number): string => {
      const [, shape = []] = htbCommands(bitsPerSecond);
      return shape[shape.indexOf("burst") + 1] ?? "";
    };
    assert.equal(burstOf(1e10), "1250000b");
    assert.equal(burstOf(1e7), "131072b");
  });
});

it("leftovers are the namespaces of ours whose process is gone, and no others", () => {
  const names = ["precopy-11-0-a", "precopy-11-0-b", "precopy-12-3-a", "precopy-11", "precopy-11-0-c", "my-precopy-11-0-a", "lab"];
  assert.deepEqual(
    leftovers(names, (pid) => pid === 12),
    ["precopy-11-0-a", "precopy-11-0-b"],
  );
});

const namespaces = (): string[] => execFileSync("ip", ["netns", "list"], { encoding: "utf8" }).split("\n").filter(Boolean).sort();
/** Those of this process: others may make links at the same time. */
const ours = (pid = process.pid): string[] => namespaces().filter((line) => line.startsWith(`precopy-${pid}-`));

/** In a process of its own: `code` has LabLink, and shows that it has begun by what it prints. */
function child(code: string): ChildProcess {
  const script = `import { LabLink } from ${JSON.stringify(new URL("./links.js", import.meta.url).href)};\n${code}`;
  return spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "ignore"] });
}
const UNSHAPED: LinkOptions = { rate: undefined, mtu: 1500, congestionControl: undefined };
const MAKE = `await LabLink.make(${JSON.stringify(UNSHAPED)});`; // JSON leaves out what is undefined, and make reads that alike

const LISTEN = `
  const server = require("node:net").createServer((socket) => socket.end(socket.remoteAddress));
  server.listen(7000, process.argv[1], () => console.log("listening"));`;
const CONNECT = `require("node:net").connect(7000, process.argv[1]).pipe(process.stdout);`;

const whyNot = LabLink.whyNot();
describe("a link between two namespaces", { skip: whyNot ?? false }, () => {
  it("carries a connection from a to b, shaped, with its MTU and its congestion control; nothing is left after end()", async () => {
    const before = ours();
    const link = await LabLink.make({ rate: 1e9, mtu: 9000, congestionControl: "cubic" });
    const at = (side: "a" | "b", ...argv: string[]): string => {
      const [program = "", ...rest] = link.command(side, argv);
      return execFileSync(program, rest, { encoding: "utf8" });
    };
    try {
      assert.equal(ours().length, before.length + 2);
      for (const side of ["a", "b"] as const) {
        assert.match(at(side, "ip", "-o", "link", "show", "dev", "lab0"), / mtu 9000 .* state UP /);
        assert.match(at(side, "tc", "class", "show", "dev", "lab0"), /htb 1:1 root.* rate 1Gbit ceil 1Gbit/);
        assert.match(at(side, "ip", "route", "get", link.address(side === "a" ? "b" : "a")), /congctl lock cubic/);
      }
      const [program = "", ...rest] = link.command("b", [process.execPath, "-e", LISTEN, link.address("b")]);
      const server = spawn(program, rest, { stdio: ["ignore", "pipe", "inherit"] });
      await once(server.stdout, "data");
      assert.equal(at("a", process.execPath, "-e", CONNECT, link.address("b")), link.address("a"));
      link.end(); // with the server in it
      assert.deepEqual(await once(server, "exit"), [null, "SIGKILL"]);
    } finally {
      link.end();
    }
    assert.deepEqual(ours(), before);
  });

  it("leaves nothing when a command fails half-way", async () => {
    const before = ours();
    await assert.rejects(LabLink.make({ ...UNSHAPED, mtu: 10 ** 9 }), /mtu/);
    assert.deepEqual(ours(), before);
  });

  for (const signal of ["SIGINT", "SIGTERM"] as const)
    it(`goes with its process on ${signal}`, async () => {
      const process = child(`${MAKE} console.log("made"); setInterval(() => {}, 1000);`);
      await once(process.stdout!, "data");
      assert.equal(ours(process.pid).length, 2);
      process.kill(signal);
      assert.deepEqual(await once(process, "exit"), [signal === "SIGINT" ? 130 : 143, null]);
      assert.deepEqual(ours(process.pid), []);
    });

  it("goes with its process on an uncaught error", async () => {
    const process = child(`${MAKE} console.log("made"); throw new Error("on purpose");`);
    assert.deepEqual(await once(process, "exit"), [1, null]);
    assert.deepEqual(ours(process.pid), []);
  });

  it("is removed by the next one if its process was killed, and one whose process lives is not", async () => {
    const killed = child(`${MAKE} console.log("made"); setInterval(() => {}, 1000);`);
    const living = child(`${MAKE} console.log("made"); setInterval(() => {}, 1000);`);
    await Promise.all([killed, living].map(({ stdout }) => once(stdout!, "data")));
    killed.kill("SIGKILL");
    await once(killed, "exit");
    assert.equal(ours(killed.pid).length, 2);
    const link = await LabLink.make(UNSHAPED);
    link.end();
    assert.deepEqual([ours(killed.pid).length, ours(living.pid).length], [0, 2]);
    living.kill("SIGTERM");
    await once(living, "exit");
    assert.deepEqual(ours(living.pid), []);
  });
});
