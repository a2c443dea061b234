import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { JsonChild } from "@precopy/lab";
import { figuresOf } from "./link-figures.js";
import type { SweepReport } from "./link-figures.js";
import { LabLink, formatLink } from "./links.js";
import type { LinkOptions } from "./links.js";
import { PRECOPY } from "./migrations.js";
import { planOf } from "./over-links-plan.js";
import { environment, keepResult } from "./report.js";

// sudo node bench/dist/over-links.js [--rates 1Gbit,10Gbit,none] [--mtu 1500,9000] [--link-congestion-control none,cubic,bbr] [--quick]
//   [--fill 256MiB] [--plots DIR] and every other option of `precopy bench`, but for --to and --report
// On each link of this host one sweep of `precopy bench`, from one network namespace to a target in another; what it reports is kept in
// bench/results, as far as it came. Exit code 0 only if every migration completed, and was proven by digest and audit.
// --link-congestion-control holds for every connection of a link, whatever its program asks for; `none` leaves it to --congestion-controls.
const plan = planOf(process.argv.slice(2));

/** The guest goes this long after it came; the next one takes longer to boot. */
const DISCARD_AFTER = "500ms";

const folder = mkdtempSync(join(tmpdir(), "precopy-links-"));
const reportFile = (at: number): string => join(folder, `${at}.json`);

function keep(): void {
  const figures = plan.links.flatMap((options, at) =>
    existsSync(reportFile(at)) ? figuresOf(formatLink(options), JSON.parse(readFileSync(reportFile(at), "utf8")) as SweepReport) : [],
  );
  if (plan.isQuick || figures.length === 0) return;
  keepResult("over-links", {
    command: ["node bench/dist/over-links.js", ...process.argv.slice(2)].join(" "),
    name: "over-links",
    figures,
    environment: { ...environment(), link: "veth between two network namespaces, shaped by htb" },
  });
}

process.once("exit", () => {
  keep(); // after Ctrl-C, too: the bench writes its report after each setting
  rmSync(folder, { recursive: true, force: true, maxRetries: 10 }); // what was just killed may still be writing
});

/** The exit code of the bench. Its table goes where ours would. */
async function benchOver(options: LinkOptions, at: number): Promise<number> {
  const link = await LabLink.make(options);
  const agent = ["--listen", `${link.address("b")}:0`, "--insecure", "--name", "b", "--log-level", "warn"];
  const files = ["--socket", join(folder, `${at}.sock`), "--state-dir", join(folder, `${at}-state`)];
  const target = new JsonChild(
    "target",
    link.command("b", [process.execPath, PRECOPY, "target", ...agent, ...files, "--discard-after", DISCARD_AFTER, "--json"]),
  );
  let hasEnded = false;
  void target.exited.then(() => {
    hasEnded = true;
  });
  try {
    const { listen } = await target.expect("listening");
    // Both sides have one memory here.
    const warm = [process.execPath, fileURLToPath(new URL("warm-memory.js", import.meta.url)), String(2 * plan.filledBytes)];
    const [program = "", ...rest] = link.command("a", [
      ...[process.execPath, PRECOPY, "bench", "--prepare", warm.map((word) => `'${word}'`).join(" "), ...plan.benchArguments],
      ...(plan.plots === undefined ? [] : ["--plots", join(plan.plots, formatLink(options).replaceAll(/\W+/g, "-"))]),
      ...["--to", String(listen), "--report", reportFile(at)],
    ]);
    // Its own files lie in our folder: nobody asks it to clean up when the link ends.
    const bench = spawn(program, rest, { stdio: "inherit", env: { ...process.env, TMPDIR: folder } });
    return await new Promise((resolve, reject) => {
      bench.once("error", reject);
      bench.once("exit", (code) => resolve(code ?? 1));
    });
  } finally {
    if (hasEnded) console.error(target.stderr.trim()); // what the bench says is only that nobody answers
    link.end();
    await target.exited;
  }
}

const reason = LabLink.whyNot();
if (reason !== undefined) {
  console.error(`over-links: ${reason}`);
  process.exitCode = 1;
} else
  for (const [at, options] of plan.links.entries()) {
    console.log(`${at === 0 ? "" : "\n"}${formatLink(options)}`);
    const code = await benchOver(options, at);
    if (code !== 0) process.exitCode = code;
    keep();
    if (code !== 0 && !existsSync(reportFile(at))) break; // what it was told is wrong, and would be on every link
  }
