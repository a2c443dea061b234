import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { createInterface } from "node:readline";
import { PRECOPY } from "../e2e/lab.js";
import { leaveNoOrphan } from "../orphans.js";

/** How an agent ended. */
export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

type Line = { readonly type?: string } & Record<string, unknown>;

/** An agent as a process of its own: JSON lines from its standard output, its log in a file. */
export class AgentProcess {
  readonly pid: number;
  readonly exited: Promise<Exit>;
  readonly #child: ChildProcess;
  readonly #waiting = new Map<string, () => void>();
  exit: Exit | undefined;
  onLine: (line: Line) => void = () => {};

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.pid = child.pid ?? 0;
    const isOver = leaveNoOrphan(child);
    this.exited = new Promise((resolve) =>
      child.once("exit", (code, signal) => {
        isOver();
        this.exit = { code, signal };
        resolve(this.exit);
      }),
    );
    if (child.stdout !== null)
      createInterface({ input: child.stdout }).on("line", (text) => {
        const line = JSON.parse(text) as Line; // `--json` prints nothing else
        this.#waiting.get(line.type ?? "")?.();
        this.onLine(line);
      });
  }

  /** Resolves when the agent has printed a line of type `until`. @throws {Error} if it ends before that */
  static async start(args: readonly string[], environment: Record<string, string>, logFile: string, until: string): Promise<AgentProcess> {
    const log = openSync(logFile, "a");
    const child = spawn(process.execPath, [PRECOPY, ...args], {
      stdio: ["ignore", "pipe", log],
      env: { ...process.env, ...environment },
    });
    closeSync(log);
    const agent = new AgentProcess(child);
    const said = new Promise<void>((resolve) => agent.#waiting.set(until, resolve));
    const ended = agent.exited.then(({ code, signal }) => {
      throw new Error(`An agent ended (${String(code ?? signal)}) before it said ${until}: ${args.join(" ")}; see ${logFile}`);
    });
    await Promise.race([said, ended]);
    return agent;
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Asks it to end, insists after `ms`, and resolves when it is gone. */
  async end(ms: number): Promise<void> {
    if (this.exit !== undefined) return;
    this.kill("SIGTERM");
    const insist = setTimeout(() => this.kill("SIGKILL"), ms);
    await this.exited;
    clearTimeout(insist);
  }
}
