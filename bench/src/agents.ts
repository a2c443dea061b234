import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { JsonChild } from "@precopy/lab";
import { PRECOPY } from "./migrations.js";

/** `precopy` as processes of their own, with a folder for what they keep. */
export class Agents {
  readonly folder: string;
  readonly #variables: readonly string[];
  readonly #children: JsonChild[] = [];

  private constructor(folder: string, variables: readonly string[]) {
    this.folder = folder;
    this.#variables = variables;
  }

  /**
   * Ends every process and removes the folder, whatever comes of `body`.
   * @param environment of all of them, beside this process's own.
   */
  static async during<T>(body: (agents: Agents) => Promise<T>, environment: Readonly<Record<string, string>> = {}): Promise<T> {
    const variables = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
    const agents = new Agents(mkdtempSync(join(tmpdir(), "precopy-bench-")), variables);
    try {
      return await body(agents);
    } finally {
      for (const child of agents.#children.toReversed()) await child.end();
      rmSync(agents.folder, { recursive: true, force: true });
    }
  }

  #start(name: string, ...args: readonly string[]): JsonChild {
    const child = new JsonChild(name, ["env", ...this.#variables, process.execPath, PRECOPY, ...args, "--json"]);
    this.#children.push(child);
    return child;
  }

  #socketOf(name: string): string {
    return join(this.folder, `${name}.sock`);
  }

  /** On loopback, its port chosen by the system. */
  agent(role: "source" | "target", ...args: readonly string[]): JsonChild {
    const state = ["--socket", this.#socketOf(role), "--state-dir", join(this.folder, role)];
    return this.#start(role, role, "--listen", "127.0.0.1:0", "--name", role, ...state, ...args);
  }

  /** Asks the source to migrate its guest. @param to as the target said it listens */
  migrate(to: unknown, ...args: readonly string[]): JsonChild {
    return this.#start("migrate", "migrate", String(to), "--socket", this.#socketOf("source"), ...args);
  }
}
