import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { JsonChild } from "@precopy/lab";
import type { MigrationReport } from "@precopy/protocol";
import { spreadOf } from "./spread.js";
import { PRECOPY } from "./migrations.js";
import { environment, keepResult } from "./report.js";

// `node bench/dist/back-and-forth.js [COUNT]`: one guest, two agents, COUNT migrations (default 200) under load, with client, digest and
// audit; what the agents hold afterwards. An agent is looked at while it has no guest: after even counts b, after odd counts a.
const count = Number(process.argv[2] ?? 200);
const GUEST = [
  "--workload",
  "ledger,random-writer",
  "--memory",
  "256MiB",
  "--fill",
  "64MiB",
  "--working-set",
  "16MiB",
  "--dirty-rate",
  "10k",
];
const folder = mkdtempSync(join(tmpdir(), "precopy-back-and-forth-"));
const children: JsonChild[] = [];
const start = (name: string, ...args: string[]): JsonChild => {
  const child = new JsonChild(name, [process.execPath, PRECOPY, ...args, "--json"]);
  children.push(child);
  return child;
};

interface Footprint {
  readonly residentMiB: number;
  readonly descriptors: number;
  readonly threads: number;
}
function footprint(child: JsonChild): Footprint {
  const status = readFileSync(`/proc/${child.pid}/status`, "utf8");
  const field = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1]);
  return {
    residentMiB: Math.round(field("VmRSS") / 1024),
    threads: field("Threads"),
    descriptors: readdirSync(`/proc/${child.pid}/fd`).length,
  };
}

try {
  const network = start("switch", "switch", "--listen", "127.0.0.1:0");
  const { listen } = await network.expect("listening");
  const agent = (role: string, name: string, ...rest: string[]): JsonChild =>
    start(
      name,
      role,
      "--listen",
      "127.0.0.1:0",
      "--name",
      name,
      "--socket",
      join(folder, `${name}.sock`),
      "--state-dir",
      join(folder, name),
      "--switch",
      String(listen),
      ...rest,
    );
  const b = agent("target", "b");
  const listenB = String((await b.expect("listening"))["listen"]);
  const startB = footprint(b);
  const a = agent("source", "a", "--guest", "g", ...GUEST);
  const listenA = String((await a.expect("listening"))["listen"]);
  await a.expect("running");
  const client = start("client", "client", "--switch", String(listen), "--guest", "g");
  await client.expect("connected");

  const footprints: Record<string, Footprint> = { "b at the start": startB };
  const downtimes: number[] = [];
  // Resident memory swings with the collector by some 30 MiB, so two moments cannot be compared; two stretches of nine counts can.
  const residentOfB: number[] = [];
  let unproven = 0;
  for (let done = 1; done <= count; done++) {
    const isFromA = done % 2 === 1;
    const migration = start("migrate", "migrate", isFromA ? listenB : listenA, "--socket", join(folder, `${isFromA ? "a" : "b"}.sock`));
    const report = (await migration.expect("done"))["report"] as MigrationReport; // what `migrate --json` prints last
    await migration.exited;
    children.splice(children.indexOf(migration), 1);
    if (report["digest-equal"] !== true) unproven++;
    downtimes.push(report.clocks["source-ms"] ?? Number.NaN);
    // `migrate` ends before its connections have: the closing handshakes of the last ones need a moment.
    if ([20, 21, count - 1, count].includes(done)) await new Promise((resolve) => setTimeout(resolve, 1500));
    if (done === 20 || done === count) footprints[`b after ${done}`] = footprint(b);
    if (done === 21 || done === count - 1) footprints[`a after ${done}`] = footprint(a);
    if (!isFromA) residentOfB.push(footprint(b).residentMiB);
    if (done % 20 === 0) console.log(`${done} migrations, last downtime ${downtimes.at(-1)} ms; b: ${JSON.stringify(footprint(b))}`);
  }
  client.write("finish");
  const report = await client.expect("report");
  const { issued, acknowledged, lost, doubled, staleEpochAnswers, isVerified } = report;
  const result = {
    command: `node bench/dist/back-and-forth.js ${count}`,
    migrations: count,
    unproven,
    client: { issued, acknowledged, lost, doubled, staleEpochAnswers, isVerified },
    downtimeMs: spreadOf(downtimes),
    footprints,
    residentOfBMiB: { around20: spreadOf(residentOfB.slice(5, 14)), last9: spreadOf(residentOfB.slice(-9)) },
    environment: environment(),
  };
  console.log(JSON.stringify(result, null, 2));
  keepResult("back-and-forth", result);
  process.exitCode = unproven === 0 && isVerified === true ? 0 : 1;
} finally {
  for (const child of children.toReversed()) await child.end();
  rmSync(folder, { recursive: true, force: true });
}
