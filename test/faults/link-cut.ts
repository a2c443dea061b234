import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { JsonChild } from "@precopy/lab";
import type { MigrationReport } from "@precopy/protocol";
import { PRECOPY } from "../e2e/lab.js";
import { FaultProxy } from "./proxy.js";

// node test/dist/faults/link-cut.js [--memory 8GiB] [--fill 6GiB] [--cut-ms 3000] [--after-ms 1500] [--channels 2]
// One migration of a guest that is being written to. In the middle of it the link drops every connection, refuses new ones for a while, and comes
// back. Prints what the report says of it as one line of JSON; exit code 1 unless it completed, and both images were equal.
const { values } = parseArgs({
  options: {
    memory: { type: "string", default: "8GiB" },
    fill: { type: "string", default: "6GiB" },
    "cut-ms": { type: "string", default: "3000" },
    "after-ms": { type: "string", default: "1500" },
    channels: { type: "string", default: "2" },
  },
});
const folder = mkdtempSync(join(tmpdir(), "precopy-link-cut-"));
const children: JsonChild[] = [];
const start = (name: string, ...args: string[]): JsonChild => {
  const child = new JsonChild(name, [process.execPath, PRECOPY, ...args, "--json"]);
  children.push(child);
  return child;
};
const agent = (role: string, name: string, ...args: string[]): JsonChild => {
  const at = ["--listen", "127.0.0.1:0", "--name", name, "--socket", join(folder, `${name}.sock`), "--state-dir", join(folder, name)];
  return start(name, role, ...at, ...args);
};
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

let link: FaultProxy | undefined;
try {
  const target = agent("target", "b");
  const guest = [
    "--guest",
    "g",
    "--memory",
    values.memory,
    "--fill",
    `${values.fill}:random`,
    "--working-set",
    "64MiB",
    "--dirty-rate",
    "25k",
  ];
  const source = agent("source", "a", ...guest);
  await source.expect("running");
  link = await FaultProxy.to(String((await target.expect("listening"))["listen"]));
  const migration = start("migrate", "migrate", link.address, "--socket", join(folder, "a.sock"), "--multifd-channels", values.channels);
  migration.onLine = (line) => {
    if (line.type === "link" || line.type === "phase") console.error(JSON.stringify(line));
  };
  await sleep(Number(values["after-ms"]));
  link.refuse();
  link.cut("rst");
  await sleep(Number(values["cut-ms"]));
  await link.comeBack();
  const { report } = (await migration.expect("done")) as unknown as { readonly report: MigrationReport }; // what `migrate --json` prints last
  const query = report["query-migrate"];
  const shown = {
    memory: values.memory,
    fill: values.fill,
    linkDownMs: Number(values["cut-ms"]),
    totalMs: query["total-time"],
    downtimeMs: query.downtime,
    sentBytes: query.ram?.transferred,
    resentBytes: report["resent-bytes"],
    channelLosses: report["channel-losses"],
    controlRejoins: report["control-rejoins"],
    rounds: report.iterations.length,
    digestEqual: report["digest-equal"],
  };
  console.log(JSON.stringify(shown));
  process.exitCode = shown.digestEqual === true && shown.controlRejoins > 0 ? 0 : 1;
} finally {
  link?.close();
  for (const child of children.toReversed()) await child.end();
  rmSync(folder, { recursive: true, force: true });
}
