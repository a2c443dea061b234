import { openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { hrtime, pid } from "node:process";
import { pathToFileURL } from "node:url";
import { WorkloadCatalogue } from "@precopy/guest";
import type { Program, Workload } from "@precopy/guest";

/** How often a guest tells how far it is, as every guest ticks. */
const TELL_MS = 1;
/** Two numbers: when, and how many pages it has written. */
const ENTRY_BYTES = 16;

/** By a clock that all processes of a host share. */
const hostMs = (): number => Number(hrtime.bigint()) / 1e6;

/** The file of the guest that runs in process `agent`. */
const toldFile = (folder: string, agent: number): string => join(folder, `told-${agent}`);

/** How far a guest was, and when: ascending, by `performance.now()` of whoever reads. */
export interface Told {
  readonly atMs: readonly number[];
  readonly pages: readonly number[];
}

/** What the guest of a process told while it ran there. @throws {Error} if it never ran there */
export function readTold(folder: string, agent: number): Told {
  const bytes = readFileSync(toldFile(folder, agent));
  const entries = Array.from({ length: Math.floor(bytes.length / ENTRY_BYTES) }, (_, at) => at * ENTRY_BYTES);
  const offset = performance.now() - hostMs();
  return {
    atMs: entries.map((at) => bytes.readDoubleLE(at) + offset),
    pages: entries.map((at) => bytes.readDoubleLE(at + 8)),
  };
}

/** `random-writer`, telling each millisecond how many pages it has written: one small write to a file, in between two steps. */
class ToldWriter implements Program {
  readonly #writer: Program;
  readonly #folder: string;
  readonly #entry = Buffer.alloc(ENTRY_BYTES);
  #file: number | undefined;
  #nextMs = 0;

  constructor(writer: Program, folder: string) {
    this.#writer = writer;
    this.#folder = folder;
  }

  boot(): void {
    this.#writer.boot?.();
  }

  step(): number {
    const restMs = this.#writer.step();
    const now = performance.now();
    if (now >= this.#nextMs) {
      this.#nextMs = now + TELL_MS;
      this.#tell();
    }
    return restMs;
  }

  #tell(): void {
    this.#file ??= openSync(toldFile(this.#folder, pid), "a");
    const { written } = this.#writer.save() as { readonly written: number }; // random-writer's registers
    this.#entry.writeDoubleLE(hostMs(), 0);
    this.#entry.writeDoubleLE(written, 8);
    writeSync(this.#file, this.#entry);
  }

  save(): unknown {
    return this.#writer.save();
  }

  load(registers: unknown): void {
    this.#writer.load(registers);
  }
}

/** @param options random-writer's, besides those it is booted with */
export async function toldWriter(folder: string, options: Readonly<Record<string, number>>): Promise<Workload> {
  const { url } = new WorkloadCatalogue().find("random-writer");
  const { default: writer } = (await import(url)) as { readonly default: Workload }; // what a workload's module has
  return { create: (context) => new ToldWriter(writer.create({ ...context, options: { ...context.options, ...options } }), folder) };
}

/** The source of a workload's module, for a file that both agents get: the command line has no way to give a workload options. */
export const toldWriterModule = (folder: string, options: Readonly<Record<string, number>>): string =>
  [
    `import { toldWriter } from ${JSON.stringify(pathToFileURL(import.meta.filename).href)};`,
    `export default await toldWriter(${JSON.stringify(folder)}, ${JSON.stringify(options)});`,
    "",
  ].join("\n");
