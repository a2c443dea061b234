import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { basename, extname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { MigrationError } from "@precopy/protocol";
import type { VcpuManifest } from "@precopy/protocol";
import type { MemoryAccess } from "./memory-access.js";
import type { NicDriver } from "./nic-ring.js";
import type { WasmMemory } from "./webassembly.js";

/** What a program gets. Everything it wants to find again after a migration lies in guest memory or in what `save` returns. */
export interface WorkloadContext {
  /** 0 for the first. */
  readonly vcpu: number;
  readonly options: VcpuManifest["options"];
  /** The part of guest memory that is this vCPU's alone, in bytes; other vCPUs and devices have their own. */
  readonly region: { readonly start: number; readonly bytes: number };
  /** Logged access by guest address. */
  readonly memory: MemoryAccess;
  /** The WebAssembly memories themselves; writing to them directly needs `isDirectWriter`. Segment `i` starts at `i` * 4 GiB. */
  readonly segments: readonly WasmMemory[];
  /** The first vCPU's network card, if the guest has one. */
  readonly nic: NicDriver | undefined;
  /** The guest's clock in ms since boot: never jumps back, runs on across a migration. */
  now(): number;
}

/** One vCPU's program: a step, again and again. */
export interface Program {
  /** Once, on first boot, before the first step. May take long. */
  boot?(): void;
  /**
   * A short piece of work: the guest can only be paused between two steps, so stay well under 0.1 ms.
   * @returns ms until there is something to do again, 0 to go on at once; an arriving frame ends the wait.
   */
  step(): number;
  /** Registers: what is not in guest memory, as plain data (numbers, strings, arrays, objects, Uint8Array), well under 1 MiB. */
  save(): unknown;
  /** The counterpart at the target, before the first step there. */
  load(registers: unknown): void;
}

/** The default export of a workload module. */
export interface Workload {
  /** True if its programs write to `segments` without the accessor: only the mmu dirty log can see that. */
  readonly isDirectWriter?: boolean;
  create(context: WorkloadContext): Program;
}

/** A workload this agent can run: the file it was started with, and what that file held. */
export interface WorkloadFile {
  readonly url: string;
  readonly sha256: string;
}

const BUILT_IN = ["idle", "random-writer", "sequential-writer", "ledger"] as const;

/** Workloads by name. A peer names one and says what its file must hash to; it never sends a path. */
export class WorkloadCatalogue {
  readonly #files = new Map<string, WorkloadFile>();

  constructor() {
    for (const name of BUILT_IN) this.add(name, fileURLToPath(new URL(`./workloads/${name}.js`, import.meta.url)));
  }

  /** @throws {MigrationError} ERR_PARAMETER if the file cannot be read or the name is not one. */
  add(name: string, file: string): void {
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) throw new MigrationError("ERR_PARAMETER", `"${name}" is not a workload name`);
    try {
      this.#files.set(name, { url: pathToFileURL(file).href, sha256: createHash("sha256").update(readFileSync(file)).digest("hex") });
    } catch (cause) {
      throw new MigrationError("ERR_PARAMETER", `Workload ${name}: cannot read ${file}`, { cause });
    }
  }

  /** Every .js and .mjs file of a folder, named by its file name without the extension. @throws {MigrationError} ERR_PARAMETER */
  addDirectory(folder: string): void {
    let entries: string[];
    try {
      entries = readdirSync(folder);
    } catch (cause) {
      throw new MigrationError("ERR_PARAMETER", `Cannot read the workload folder ${folder}`, { cause });
    }
    for (const entry of entries) if (/\.m?js$/.test(entry)) this.add(basename(entry, extname(entry)), join(folder, entry));
  }

  /** @throws {MigrationError} ERR_WORKLOAD_UNKNOWN, ERR_WORKLOAD_DIFFERS if `sha256` is given and not this file's. */
  find(name: string, sha256?: string): WorkloadFile {
    const found = this.#files.get(name);
    if (found === undefined)
      throw new MigrationError("ERR_WORKLOAD_UNKNOWN", `No workload named "${name}" here; known: ${[...this.#files.keys()].join(", ")}`);
    if (sha256 !== undefined && sha256 !== found.sha256)
      throw new MigrationError(
        "ERR_WORKLOAD_DIFFERS",
        `Workload "${name}" is ${found.sha256.slice(0, 12)}… here and ${sha256.slice(0, 12)}… at the source`,
      );
    return found;
  }
}
