import assert from "node:assert/strict";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { CommanderError } from "@commander-js/extra-typings";
import { DEFAULT_PARAMETERS, MigrationError } from "@precopy/protocol";
import type { ErrorCode } from "@precopy/protocol";
import type { SourceOptions, TargetOptions } from "./agent-args.js";
import { socketPath, statePath } from "./agent-selection.js";
import { buildProgram } from "./args.js";
import type { Actions } from "./args.js";
import type { BenchOptions } from "./bench-args.js";
import type { CertsInitOptions, CertsIssueOptions } from "./certs-args.js";
import type { ClientOptions, DemoOptions, SwitchOptions } from "./lab-args.js";
import type { MigrateOptions, ResolveOptions, WhoOwnsOptions } from "./migrate-args.js";
import { RELEASE } from "./release.js";
import { NO_SECURITY } from "./security-options.js";

/** Runs one command line against actions that only remember. */
async function run(...words: string[]) {
  const calls: { readonly command: string; readonly options: unknown }[] = [];
  const text = { out: "", err: "" };
  const remember = (command: keyof Actions) => (options: unknown) => {
    calls.push({ command, options });
    return Promise.resolve();
  };
  const actions: Actions = {
    source: remember("source"),
    target: remember("target"),
    migrate: remember("migrate"),
    plan: remember("plan"),
    dirtyRate: remember("dirtyRate"),
    history: remember("history"),
    status: remember("status"),
    cancel: remember("cancel"),
    postcopy: remember("postcopy"),
    set: remember("set"),
    resolve: remember("resolve"),
    whoOwns: remember("whoOwns"),
    switch: remember("switch"),
    client: remember("client"),
    demo: remember("demo"),
    bench: remember("bench"),
    certsInit: remember("certsInit"),
    certsIssue: remember("certsIssue"),
  };
  const output = { writeOut: (more: string) => (text.out += more), writeErr: (more: string) => (text.err += more) };
  let thrown: unknown;
  try {
    await buildProgram(actions, output).parseAsync(words, { from: "user" });
  } catch (error) {
    thrown = error;
  }
  return { calls, thrown, ...text };
}

/** The options of the only action that ran; the test names their type, and its assertions prove it. */
async function options<T>(...words: string[]): Promise<T> {
  const { calls, thrown } = await run(...words);
  assert.equal(thrown, undefined);
  assert.deepEqual(
    calls.map(({ command }) => command),
    [{ "who-owns": "whoOwns", certs: words[1] === "init" ? "certsInit" : "certsIssue" }[words[0] ?? ""] ?? words[0]],
  );
  return calls[0]?.options as T;
}

async function refused(words: string, code: ErrorCode, message: RegExp): Promise<void> {
  const { calls, thrown } = await run(...words.split(" "));
  assert.ok(thrown instanceof MigrationError, `${words}: ${String(thrown)}`);
  assert.equal(thrown.code, code, words);
  assert.match(thrown.message, message, words);
  assert.deepEqual(calls, [], words);
}

describe("source", () => {
  it("has the documented defaults", async () => {
    const { guest, socket, stateDir, ...rest } = await options<SourceOptions>("source");
    assert.match(guest, /^guest-[0-9a-f]{6}$/);
    assert.equal(socket, socketPath("default"));
    assert.equal(stateDir, statePath("default"));
    assert.deepEqual(rest, {
      name: "default",
      listen: { host: "127.0.0.1", port: 4646 },
      isInsecure: false,
      security: NO_SECURITY,
      memoryLimitBytes: undefined,
      dirtyLog: "auto",
      pump: "auto",
      switchAddress: undefined,
      logLevel: "warn",
      workloads: { files: [], directory: undefined },
      evacuateTo: undefined,
      arbiter: undefined,
      discardAfterMs: undefined,
      isJson: false,
      hasFaultPoints: false,
      vcpus: ["random-writer"],
      memoryBytes: 2 ** 31,
      fill: { bytes: 0, kind: "random" },
      dirtyPagesPerSecond: 25_000,
      workingSetBytes: 2 ** 26,
      hotFraction: 0,
      writePattern: "steady",
      migrateTo: undefined,
      afterMs: 0,
      parameters: DEFAULT_PARAMETERS,
      report: undefined,
    });
  });

  it("reads every option in its unit", async () => {
    const line =
      "--listen 0.0.0.0:5000 --insecure --name a --socket /run/x.sock --state-dir /var/x --memory-limit 4GiB --dirty-log barrier " +
      "--pump portable --switch sw --log-level debug --workload-dir ./w --evacuate-to [::1] --arbiter ./a --fault-points --json " +
      "--memory 8GiB --dirty-rate 1.5M --working-set 1M " +
      "--hot-fraction .9 --write-pattern bursty --downtime-limit 2s --max-bandwidth 10Gbit --multifd-channels 16 --multifd-compression lz4 --congestion-control bbr --digest on " +
      "--hold-back on --xbzrle on --xbzrle-cache-size 128M --throttle dirty-limit --throttle-trigger-threshold 60 --cpu-throttle-initial 30 --cpu-throttle-increment 5 --max-cpu-throttle 90 " +
      "--vcpu-dirty-limit 10MB/s --timeout 90s --timeout-action force " +
      "--tls-creds c --tls-hostname h --tls-authz a,b --tls-authz 10.0.0.1 --token-file /t " +
      "--audit off --max-postcopy-bandwidth 40Mbit --mode stop-and-copy --fill 1GiB:text --guest g.1 --migrate-to [fe80::1%eth0]:5001 --after 1s --report r.json";
    const given = await options<SourceOptions>("source", ...line.split(" "));
    assert.deepEqual(given, {
      name: "a",
      socket: "/run/x.sock",
      listen: { host: "0.0.0.0", port: 5000 },
      isInsecure: true,
      security: { tlsCreds: join(process.cwd(), "c"), tlsHostname: "h", tlsAuthz: ["a", "b", "10.0.0.1"], tokenFile: "/t" },
      stateDir: "/var/x",
      memoryLimitBytes: 2 ** 32,
      dirtyLog: "barrier",
      pump: "portable",
      switchAddress: { host: "sw", port: 4747 },
      logLevel: "debug",
      workloads: { files: [], directory: "./w" },
      evacuateTo: { host: "::1", port: 4646 },
      arbiter: join(process.cwd(), "a"),
      discardAfterMs: undefined,
      isJson: true,
      hasFaultPoints: true,
      vcpus: ["random-writer"],
      memoryBytes: 2 ** 33,
      fill: { bytes: 2 ** 30, kind: "text" },
      dirtyPagesPerSecond: 1_500_000,
      workingSetBytes: 2 ** 20,
      hotFraction: 0.9,
      writePattern: "bursty",
      guest: "g.1",
      migrateTo: { host: "fe80::1%eth0", port: 5001 },
      afterMs: 1000,
      parameters: {
        mode: "stop-and-copy",
        downtimeLimitMs: 2000,
        maxBandwidthBytesPerSecond: 1.25e9,
        maxPostcopyBandwidthBytesPerSecond: 5_000_000,
        multifdChannels: 16,
        multifdCompression: "lz4",
        isXbzrleOn: true,
        xbzrleCacheBytes: 2 ** 27,
        isHoldBackOn: true,
        isPauseBeforeSwitchoverOn: false,
        isDigestOn: true,
        isAuditOn: false,
        pump: "portable",
        congestionControl: "bbr",
        throttle: "dirty-limit",
        throttleTriggerThresholdPercent: 60,
        cpuThrottleInitialPercent: 30,
        cpuThrottleIncrementPercent: 5,
        maxCpuThrottlePercent: 90,
        vcpuDirtyLimitBytesPerSecond: 10_000_000,
        timeoutMs: 90_000,
        timeoutAction: "force",
      },
      report: "r.json",
    });
  });

  it("gives each selected workload a vCPU in order, and the last one those left over", async () => {
    const line = ["--workload", "ledger,idle", "--workload", "mine=./a,b=c.mjs", "--workload", "ledger"];
    const given = await options<SourceOptions>("source", ...line, "--vcpus", "6");
    assert.deepEqual(given.vcpus, ["ledger", "idle", "mine", "ledger", "ledger", "ledger"]);
    assert.deepEqual(given.workloads.files, [{ name: "mine", file: "./a,b=c.mjs" }]);
    assert.deepEqual((await options<SourceOptions>("source", ...line)).vcpus, ["ledger", "idle", "mine", "ledger"]);
  });

  it("registers a file once that two vCPUs run", async () => {
    const given = await options<SourceOptions>("source", "--workload", "a=x.js", "--workload", "a=x.js");
    assert.deepEqual([given.vcpus, given.workloads.files], [["a", "a"], [{ name: "a", file: "x.js" }]]);
  });

  it("starts from nothing each time it is parsed", async () => {
    const first = await options<SourceOptions>("source", "--workload", "ledger");
    assert.deepEqual([first.vcpus, (await options<SourceOptions>("source")).vcpus], [["ledger"], ["random-writer"]]);
  });

  it("takes an IPv6 loopback, in brackets or bare, without --insecure", async () => {
    for (const listen of ["[::1]:4000", "[::1]", "::1"])
      assert.equal((await options<SourceOptions>("source", "--listen", listen)).listen.host, "::1");
    assert.deepEqual((await options<SourceOptions>("source", "--listen", "[::1]:0")).listen, { host: "::1", port: 0 });
  });

  it("takes the audit away with the digest unless it was asked for", async () => {
    const { parameters } = await options<SourceOptions>("source", "--digest", "off");
    assert.deepEqual([parameters.isDigestOn, parameters.isAuditOn], [false, false]);
    await refused("source --digest off --audit on", "ERR_PARAMETER", /--audit "on" needs --digest on/);
  });
});

describe("a bad value is refused with its option and text", () => {
  const bad: readonly (readonly [line: string, message: RegExp, code?: ErrorCode])[] = [
    ["source --memory 8GBB", /^--memory: "8GBB" is not a size: try 8GiB, 512M or 1048576$/],
    ["source --memory -5", /^--memory: "-5" is not a size/],
    ["source --memory 1GB", /^--memory: "1GB" is no multiple of 4096 B, the page size: the next one is 1000001536$/],
    ["source --memory 4KiB", /^--memory: "4KiB" is out of range, must be 1.00 MiB to 16.0 TiB$/],
    ["source --memory 17TiB", /^--memory: "17TiB" is out of range/],
    ["source --memory 99999999999T", /^--memory: "99999999999T" is too large$/],
    ["source --memory-limit 1", /^--memory-limit: "1" is out of range/],
    ["source --fill 1GiB:noise", /^--fill 1GiB:noise: "noise" is not one of random, text, sparse, zeros$/],
    ["source --fill 1GiB:", /^--fill 1GiB:: "" is not one of/],
    ["source --fill 5k", /^--fill: "5k" is no multiple of 4096 B/],
    ["source --memory 1GiB --fill 2GiB", /^--fill of 2.00 GiB does not fit into --memory of 1.00 GiB$/],
    ["source --dirty-rate fast", /^--dirty-rate: "fast" is not a number/],
    ["source --dirty-rate 0.4", /^--dirty-rate: "0.4" is too small$/],
    ["source --working-set 0", /^--working-set: "0" is out of range, must be 4.00 KiB to/],
    ["source --hot-fraction 1.1", /^--hot-fraction: "1.1" is not a fraction, must be 0 to 1$/],
    ["source --hot-fraction half", /^--hot-fraction: "half" is not a fraction/],
    ["source --vcpus 0", /^--vcpus: "0" is out of range, must be 1 to 64$/],
    ["source --vcpus 1.5", /^--vcpus: "1.5" is not a whole number, must be 1 to 64$/],
    ["source --vcpus 1 --workload idle,ledger", /^--vcpus 1 is less than the 2 workloads: idle, ledger$/],
    [`source --workload ${Array.from({ length: 65 }, () => "idle").join(",")}`, /^--workload: 65 vCPUs, must be 1 to 64$/],
    ["source --workload a,,b", /^--workload a,,b: "" is not a name/],
    ["source --workload ../x", /^--workload: "..\/x" is not a name/],
    ["source --workload a=", /^--workload: "a=" names no file$/],
    ["source --workload a=x.js --workload a=y.js", /^--workload: "a=y.js": a is x.js already$/],
    ["source --guest a/b", /^--guest: "a\/b" is not a name/],
    ["source --name ..", /^--name: ".." is not a name/],
    [`source --socket /${"x".repeat(120)}`, /^--socket "\/x+" has 121 bytes, at most 95/],
    ["source --dirty-log magic", /^--dirty-log: "magic" is not one of auto, mmu, barrier$/],
    ["source --pump foot", /^--pump: "foot" is not one of auto, direct, portable$/],
    ["source --log-level loud", /^--log-level: "loud" is not one of trace, /],
    ["source --after soon", /^--after: "soon" is not a time/],
    ["source --after 9999999999 --migrate-to x", /^--after: "9999999999" is out of range, must be 0 ms to 2147483647 ms$/],
    ["source --after 5", /^--after "5" needs --migrate-to$/],
    ["source --downtime-limit 3000s", /^--downtime-limit 3000s: downtime-limit is 3000000, must be 0 to 2000000 ms$/],
    ["source --downtime-limit 0.2", /^--downtime-limit: "0.2" is too small$/],
    ["source --max-bandwidth 10Gbyte", /^--max-bandwidth: "10Gbyte" is not a size/],
    ["source --max-bandwidth 10Xbit", /^--max-bandwidth: "10Xbit" is not a bandwidth/],
    ["source --multifd-channels 17", /^--multifd-channels: "17" is out of range, must be 1 to 16$/],
    ["source --multifd-compression brotli", /^--multifd-compression: "brotli" is not one of none, lz4, zstd, auto$/],
    ["source --throttle slow", /^--throttle: "slow" is not one of none, auto-converge, sdps, dirty-limit$/],
    ["source --max-cpu-throttle 100", /^--max-cpu-throttle: "100" is out of range, must be 1 to 99$/],
    ["source --vcpu-dirty-limit 1", /^--vcpu-dirty-limit 1: vcpu-dirty-limit is 1, must be 4096 or more B\/s$/],
    ["source --timeout soon", /^--timeout: "soon" is not a time/],
    ["source --timeout-action suspend", /^--timeout-action: "suspend" is not one of cancel, force, postcopy$/],
    [
      "migrate x --mode stop-and-copy --pause-before-switchover on",
      /^mode is stop-and-copy, must be precopy or hybrid with pause-before-switchover$/,
    ],
    ["history --last 0", /^--last: /],
    ["set", /^nothing to set: give at least one of the options$/],
    ["source --digest yes", /^--digest: "yes" is not one of on, off$/],
    ["source --mode live", /^--mode: "live" is not one of precopy, hybrid, postcopy, stop-and-copy$/],
    ["migrate x --timeout 5s --timeout-action postcopy", /^mode is precopy, must be hybrid with timeout-action postcopy$/],
    ["migrate x --mode postcopy --xbzrle on", /^mode is postcopy, must be precopy with xbzrle/],
    ["source --listen 127.0.0.1:70000", /^--listen 127.0.0.1:70000: Port 70000 is above 65535$/, "ERR_ADDRESS"],
    ["source --listen host:port", /^--listen: "host:port" is not an address$/, "ERR_ADDRESS"],
    ["source --listen [::1", /^--listen: "\[::1" is not an address$/, "ERR_ADDRESS"],
    ["source --listen 0.0.0.0:4646", /^--listen 0.0.0.0:4646 is open to the network/, "ERR_INSECURE_LISTEN"],
    ["target --listen :4646", /^--listen 0.0.0.0:4646 is open to the network/, "ERR_INSECURE_LISTEN"],
    ["target --listen [::]:4646", /^--listen \[::\]:4646 is open/, "ERR_INSECURE_LISTEN"],
    ["target --tls-hostname h", /^--tls-hostname h needs --tls-creds$/],
    ["target --tls-authz a", /^--tls-authz a needs --tls-creds$/],
    ["target --tls-creds c --tls-authz a,,b", /^--tls-authz: "a,,b" has an empty name$/],
    ["certs issue --days 0 x", /^--days: "0" is out of range, must be 1 to 36500$/],
    ["switch --listen 10.0.0.1", /^--listen 10.0.0.1:4747 is open/, "ERR_INSECURE_LISTEN"],
    ["source --migrate-to host:0", /^--migrate-to: "host:0": nobody can be reached at port 0$/, "ERR_ADDRESS"],
    ["target --evacuate-to host:0", /^--evacuate-to: "host:0": nobody can be reached at port 0$/, "ERR_ADDRESS"],
    ["target --workload idle", /^--workload: "idle" names no file, and a target only registers: give idle=FILE$/],
    ["migrate host:99999", /^HOST:PORT host:99999: Port 99999 is above 65535$/, "ERR_ADDRESS"],
    ["migrate host --max-bandwidth 0.1", /^--max-bandwidth: "0.1" is too small$/],
    ["resolve --guest g", /^one is needed: --take-back or --give-up$/],
    ["resolve --guest g --take-back --give-up", /^not both: --take-back or --give-up$/],
    ["resolve --guest g --give-up --accept-rollback", /^--accept-rollback goes with --take-back/],
    ["resolve --guest ../g --give-up", /^--guest: "..\/g" is not a name/],
    ["who-owns --peer host:0", /^--peer: "host:0": nobody can be reached at port 0$/, "ERR_ADDRESS"],
    ["client --guest g --rate 0", /^--rate: "0" is out of range, must be 1 to 1000000$/],
    ["client --guest g --duration 1h", /^--duration: "1h" is not a time/],
    ["client --guest g --switch x:0", /^--switch: "x:0"/, "ERR_ADDRESS"],
    ["demo --modes precopy,live", /^--modes precopy,live: "live" is not one of/],
    ["demo --modes precopy,precopy", /^--modes: "precopy,precopy" names one twice$/],
    ["demo --repeats 0", /^--repeats: "0" is out of range, must be 1 to 1000$/],
    ["demo --workload idle --vcpus 1", /^--vcpus 1 is less than the 2 workloads: ledger, idle$/],
    ["source --congestion-control Cubic", /^--congestion-control: congestion-control is "Cubic", must be auto or a name of at most 15/],
    ["target --discard-after 0", /^--discard-after: "0" is out of range, must be 1 ms to 2147483647 ms$/],
    ["bench --to x:0", /^--to: "x:0": nobody can be reached at port 0$/, "ERR_ADDRESS"],
    ["bench --to x --dirty-rates 10k,10000", /^--dirty-rates: "10k,10000" names one twice$/],
    ["bench --to x --channels 1,17", /^--channels 1,17: "17" is out of range, must be 1 to 16$/],
    ["bench --to x --compressions none,", /^--compressions none,: "" is not one of none, lz4, zstd, auto$/],
    ["bench --to x --congestion-controls cubic,", /^--congestion-controls cubic,: congestion-control is ""/],
    ["bench --to x --memory 1MiB --fill 2MiB", /^--fill of 2.00 MiB does not fit into --memory of 1.00 MiB$/],
    ["demo --workload idle=x.js", /^--workload: "idle=x.js" is not a name/],
  ];
  for (const [line, message, code = "ERR_PARAMETER"] of bad) it(line.slice(0, 100), () => refused(line, code, message));
});

describe("what is no command or flag", () => {
  const usage: readonly (readonly [line: string, message: RegExp])[] = [
    ["sorce", /^precopy: unknown command 'sorce' \(Did you mean source\?\)\n$/],
    ["source --memry 1G", /^precopy: unknown option '--memry' \(Did you mean --memory\?\)\n$/],
    ["migrate", /^precopy: missing required argument 'HOST:PORT'\n$/],
    ["status now", /^precopy: too many arguments for 'status'\. Expected 0 arguments but got 1\.\n$/],
    ["client", /^precopy: required option '--guest <ID>' not specified\n$/],
    ["resolve --take-back", /^precopy: required option '--guest <ID>' not specified\n$/],
    ["who-owns g", /^precopy: too many arguments for 'who-owns'\. Expected 0 arguments but got 1\.\n$/],
    ["source --memory", /^precopy: option '--memory <SIZE>' argument missing\n$/],
    ["source --fill", /^precopy: option '--fill <SIZE:KIND>' argument missing\n$/],
    ["demo --mode precopy", /^precopy: unknown option '--mode' \(Did you mean --modes\?\)\n$/],
  ];
  for (const [line, message] of usage)
    it(`\`${line}\` ends with 2 after one line`, async () => {
      const { thrown, err, out, calls } = await run(...line.split(" "));
      assert.ok(thrown instanceof CommanderError);
      assert.equal(thrown.exitCode, 2);
      assert.match(err, message);
      assert.deepEqual([out, calls], ["", []]);
    });

  it("nothing at all ends with 2 after the help", async () => {
    const { thrown, err } = await run();
    assert.ok(thrown instanceof CommanderError && thrown.exitCode === 2);
    assert.match(err, /^Usage: precopy/);
  });
});

describe("help", () => {
  it("and --version end with 0 on stdout", async () => {
    const help = await run("--help");
    assert.ok(help.thrown instanceof CommanderError && help.thrown.exitCode === 0);
    assert.equal(help.out.match(/^ {2}precopy /gm)?.length, 3, "three examples");
    const version = await run("--version");
    assert.ok(version.thrown instanceof CommanderError && version.thrown.exitCode === 0);
    assert.equal(version.out, `${RELEASE}\n`);
  });

  it("states the default of every option of every command that takes a value", async () => {
    for (const command of [
      "source",
      "target",
      "migrate",
      "plan",
      "dirty-rate",
      "history",
      "set",
      "status",
      "cancel",
      "postcopy",
      "postcopy-recover",
      "who-owns",
      "resolve",
      "switch",
      "client",
      "demo",
      "bench",
    ]) {
      const { out, thrown } = await run(command, "--help");
      assert.ok(thrown instanceof CommanderError && thrown.exitCode === 0);
      const [, list = ""] = out.split("Options:\n");
      for (const entry of list.split(/\n(?= {2}--)/)) {
        const text = entry.replace(/\s+/g, " ");
        if (text.includes(" <")) assert.match(text, /\(default: .+\)|\(required\)/, `${command}: ${text}`);
        assert.doesNotMatch(text, /default: (\[|\{|undefined|auto\b[^:])/, `${command}: ${text}`);
      }
    }
  });

  it("does not show --fault-points, which is for tests", async () => {
    for (const command of ["source", "target", "demo"]) assert.doesNotMatch((await run(command, "--help")).out, /fault-points/);
    assert.equal((await options<TargetOptions>("target", "--fault-points")).hasFaultPoints, true);
  });
});

describe("the other commands", () => {
  it("target logs at info and only registers workloads", async () => {
    const given = await options<TargetOptions>("target", "--workload", "a=x.js", "--workload-dir", "w");
    assert.deepEqual([given.logLevel, given.workloads], ["info", { files: [{ name: "a", file: "x.js" }], directory: "w" }]);
  });

  it("migrate passes on only what was given", async () => {
    const bare = await options<MigrateOptions>("migrate", "other");
    assert.deepEqual(bare, {
      name: "default",
      socket: socketPath("default"),
      to: { host: "other", port: 4646 },
      guest: undefined,
      parameters: {},
      report: undefined,
      isJson: false,
    });
    const given = await options<MigrateOptions>(
      "migrate",
      "[2001:db8::2]:1",
      "--guest",
      "g",
      "--downtime-limit",
      "0",
      "--digest",
      "off",
      "--name",
      "b",
    );
    assert.deepEqual(given.to, { host: "2001:db8::2", port: 1 });
    assert.deepEqual(given.parameters, { downtimeLimitMs: 0, isDigestOn: false, isAuditOn: false });
    assert.equal(given.socket, socketPath("b"));
  });

  it("postcopy and postcopy-recover find the agent as cancel does", async () => {
    for (const [command, isRecovery] of [
      ["postcopy", false],
      ["postcopy-recover", true],
    ] as const) {
      const { calls, thrown } = await run(command, "--socket", "s");
      assert.equal(thrown, undefined);
      assert.deepEqual(calls, [{ command: "postcopy", options: { name: "default", socket: join(process.cwd(), "s"), isRecovery } }]);
    }
  });

  it("continue switches off what --pause-before-switchover switched on", async () => {
    const { calls } = await run("continue", "--name", "b");
    const asked = { name: "b", socket: socketPath("b"), parameters: { isPauseBeforeSwitchoverOn: false } };
    assert.deepEqual(calls, [{ command: "set", options: asked }]);
    assert.deepEqual((await options<{ parameters: object }>("set", "--pause-before-switchover", "on")).parameters, {
      isPauseBeforeSwitchoverOn: true,
    });
  });

  it("plan takes what migrate takes, dirty-rate and history what they need", async () => {
    assert.deepEqual(await options("plan", "[::1]", "--throttle", "sdps", "--guest", "g", "--json"), {
      ...{ name: "default", socket: socketPath("default"), to: { host: "::1", port: 4646 }, guest: "g" },
      ...{ parameters: { throttle: "sdps" }, isJson: true },
    });
    const { calls } = await run("dirty-rate", "--guest", "g");
    const asked = { name: "default", socket: socketPath("default"), guest: "g", isJson: false };
    assert.deepEqual(calls, [{ command: "dirtyRate", options: asked }]);
    assert.deepEqual(await options("history", "--name", "b", "--last", "3"), { stateDir: statePath("b"), last: 3, isJson: false });
  });

  it("set passes on only what was given, and takes what may be changed in flight", async () => {
    const given = await options("set", "--downtime-limit", "0", "--throttle", "none", "--name", "b");
    assert.deepEqual(given, { name: "b", socket: socketPath("b"), parameters: { downtimeLimitMs: 0, throttle: "none" } });
    const { thrown } = await run("set", "--multifd-channels", "4");
    assert.ok(thrown !== undefined);
  });

  it("status and cancel find the agent by name or socket", async () => {
    assert.deepEqual(await options("status", "--name", "b", "--json"), { name: "b", socket: socketPath("b"), isJson: true });
    assert.deepEqual(await options("cancel", "--socket", "s"), { name: "default", socket: join(process.cwd(), "s") });
  });

  it("who-owns asks about whichever guest is here, and whoever it was handed over with, unless both are named", async () => {
    assert.deepEqual(await options<WhoOwnsOptions>("who-owns"), {
      name: "default",
      socket: socketPath("default"),
      guest: undefined,
      peer: undefined,
      isJson: false,
    });
    const { guest, peer, isJson } = await options<WhoOwnsOptions>("who-owns", "--guest", "g", "--peer", "other", "--json");
    assert.deepEqual({ guest, peer, isJson }, { guest: "g", peer: { host: "other", port: 4646 }, isJson: true });
  });

  it("resolve takes nothing for granted: the fence and the rollback have to be said", async () => {
    const given = await options<ResolveOptions>("resolve", "--guest", "g", "--take-back");
    assert.deepEqual(given, {
      name: "default",
      socket: socketPath("default"),
      guest: "g",
      way: "take-back",
      isOtherSideFenced: false,
      isRollbackAccepted: false,
      isJson: false,
    });
    const all = await options<ResolveOptions>(
      ...["resolve", "--guest", "g", "--take-back", "--other-side-is-fenced", "--accept-rollback", "--name", "b", "--json"],
    );
    assert.deepEqual(all, {
      ...given,
      name: "b",
      socket: socketPath("b"),
      isOtherSideFenced: true,
      isRollbackAccepted: true,
      isJson: true,
    });
    const { way, isOtherSideFenced } = await options<ResolveOptions>("resolve", "--guest", "g", "--give-up", "--other-side-is-fenced");
    assert.deepEqual([way, isOtherSideFenced], ["give-up", true]);
  });

  it("switch and client have port 4747", async () => {
    assert.deepEqual(await options<SwitchOptions>("switch"), {
      listen: { host: "127.0.0.1", port: 4747 },
      isInsecure: false,
      isJson: false,
    });
    assert.deepEqual(await options<SwitchOptions>("switch", "--listen", "::", "--insecure"), {
      listen: { host: "::", port: 4747 },
      isInsecure: true,
      isJson: false,
    });
    const client: ClientOptions = {
      switchAddress: { host: "127.0.0.1", port: 4747 },
      guest: "g",
      requestsPerSecond: 1000,
      durationMs: 0,
      isJson: false,
    };
    assert.deepEqual(await options<ClientOptions>("client", "--guest", "g"), client);
  });

  it("demo has the documented defaults, and the ledger always comes first", async () => {
    const given = await options<DemoOptions>("demo");
    assert.deepEqual(given, {
      vcpus: ["ledger", "random-writer"],
      memoryBytes: 2 ** 31,
      fill: { bytes: 2 ** 28, kind: "random" },
      dirtyPagesPerSecond: 25_000,
      workingSetBytes: 2 ** 26,
      hotFraction: 0,
      writePattern: "steady",
      modes: ["precopy", "stop-and-copy"],
      repeats: 1,
      dirtyLog: "auto",
      parameters: DEFAULT_PARAMETERS,
      report: undefined,
      isJson: false,
      hasFaultPoints: false,
    });
    assert.deepEqual((await options<DemoOptions>("demo", "--vcpus", "1")).vcpus, ["ledger"]);
    assert.deepEqual((await options<DemoOptions>("demo", "--workload", "idle,random-writer", "--vcpus", "4")).vcpus, [
      "ledger",
      "idle",
      "random-writer",
      "random-writer",
    ]);
    assert.equal((await options<DemoOptions>("demo", "--modes", "stop-and-copy")).parameters.mode, "stop-and-copy");
  });

  it("target discards guests only if it is told to", async () => {
    assert.equal((await options<TargetOptions>("target")).discardAfterMs, undefined);
    assert.equal((await options<TargetOptions>("target", "--discard-after", "2s")).discardAfterMs, 2000);
  });

  it("beyond loopback an agent listens with certificates or a token, and without --insecure", async () => {
    for (const secret of ["--tls-creds c", "--token-file t"])
      assert.equal((await options<TargetOptions>("target", "--listen", "0.0.0.0:4646", ...secret.split(" "))).isInsecure, false);
  });

  it("certs make an authority, and certificates for a host by all its names", async () => {
    assert.deepEqual(await options<CertsInitOptions>("certs", "init"), { dir: "precopy-ca", days: 3650, isJson: false });
    assert.deepEqual(
      await options<CertsIssueOptions>("certs", "issue", "host-a", "10.0.0.1", "--dir", "ca", "--out", "o", "--days", "30", "--json"),
      {
        dir: "ca",
        out: "o",
        names: ["host-a", "10.0.0.1"],
        days: 30,
        isJson: true,
      },
    );
  });

  it("bench has the documented defaults", async () => {
    assert.deepEqual(await options<BenchOptions>("bench", "--to", "far"), {
      to: { host: "far", port: 4646 },
      security: NO_SECURITY,
      dirtyPagesPerSecond: [0, 10_000, 25_000],
      channels: [1, 2, 4],
      compressions: ["none", "lz4"],
      congestionControls: ["auto"],
      repeats: 3,
      memoryBytes: 2 ** 31,
      fill: { bytes: 2 ** 28, kind: "random" },
      workingSetBytes: 2 ** 26,
      downtimeLimitMs: 300,
      targetWaitMs: 15_000,
      prepare: undefined,
      report: undefined,
      plots: undefined,
      isJson: false,
    });
  });

  it("bench --quick is one small combination, and what else is given still holds", async () => {
    const line =
      "--to far --token-file /t --quick --channels 4,1 --congestion-controls bbr,auto --fill 8MiB:text --target-wait 1s --prepare warm --plots p --report r --json";
    const given = await options<BenchOptions>("bench", ...line.split(" "));
    assert.deepEqual(given, {
      to: { host: "far", port: 4646 },
      security: { ...NO_SECURITY, tokenFile: "/t" },
      dirtyPagesPerSecond: [2000],
      channels: [4, 1],
      compressions: ["none"],
      congestionControls: ["bbr", "auto"],
      repeats: 1,
      memoryBytes: 2 ** 27,
      fill: { bytes: 2 ** 23, kind: "text" },
      workingSetBytes: 2 ** 22,
      downtimeLimitMs: 300,
      targetWaitMs: 1000,
      prepare: "warm",
      report: "r",
      plots: "p",
      isJson: true,
    });
  });

  it("demo fills at most half of a small memory unless told otherwise", async () => {
    assert.equal((await options<DemoOptions>("demo", "--memory", "64MiB")).fill.bytes, 2 ** 25);
    assert.deepEqual((await options<DemoOptions>("demo", "--memory", "64MiB", "--fill", "64MiB:zeros")).fill, {
      bytes: 2 ** 26,
      kind: "zeros",
    });
  });
});

describe("paths of an agent", () => {
  it("lie in the user's runtime and state folders", () => {
    assert.equal(socketPath("a", "/run/user/7"), "/run/user/7/precopy/a.sock");
    assert.equal(statePath("a", "/s"), "/s/precopy/a");
  });

  it("never depend on the working directory: a relative or missing folder counts as none", () => {
    for (const folder of ["", "relative", undefined])
      assert.equal(socketPath("a", folder ?? ""), join(tmpdir(), `precopy-${process.getuid?.() ?? 0}`, "a.sock"));
  });
});
