import { spawn, spawnSync } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";

const SECONDS = 1;
const LOOPBACK = "127.0.0.1";

async function freePort(): Promise<number> {
  const server = createServer().listen(0, LOOPBACK);
  await once(server, "listening");
  const at = server.address();
  server.close();
  await once(server, "close");
  return typeof at === "object" && at !== null ? at.port : Number.NaN;
}

/** Runs it to its end, and resolves with what it printed. @throws {Error} if it cannot be started, or was told to end */
async function run(child: ChildProcess): Promise<string> {
  let text = "";
  child.stdout?.setEncoding("utf8").on("data", (piece: string) => {
    text += piece;
  });
  await once(child, "close");
  return text;
}

/** What `iperf3 -C cubic` carries over loopback with so many streams, Gbit/s; the reason if it cannot be asked here. */
export async function iperf3(streams: number): Promise<number | string> {
  const { error } = spawnSync("iperf3", ["--version"], { stdio: "ignore" });
  if (error !== undefined) return `iperf3: ${error.message}`;
  const port = String(await freePort());
  const ending = new AbortController();
  const signal = AbortSignal.any([ending.signal, AbortSignal.timeout((SECONDS + 10) * 1000)]);
  const start = (...args: string[]): ChildProcess =>
    spawn("iperf3", ["-p", port, ...args], { stdio: ["ignore", "pipe", "inherit"], signal });
  const server = start("-s", "-1", "-B", LOOPBACK, "--forceflush");
  const served = run(server);
  try {
    await Promise.race([server.stdout === null ? served : once(server.stdout, "data"), served]); // its first words: it listens
    const client = start("-c", LOOPBACK, "-t", String(SECONDS), "-P", String(streams), "-C", "cubic", "-J");
    // What iperf3 -J prints; one that failed says why in `error`.
    const report = JSON.parse(await run(client)) as { error?: string; end?: { sum_received?: { bits_per_second?: number } } };
    const bits = report.end?.sum_received?.bits_per_second;
    return bits === undefined ? `iperf3: ${report.error ?? "no figure"}` : Math.round(bits / 1e7) / 100;
  } catch (error) {
    return `iperf3: ${error instanceof Error ? error.message : String(error)}`;
  } finally {
    ending.abort();
    await served.catch(() => {}); // it was told to end
  }
}
