import { Session } from "node:inspector";

/** Which characters of the files that it watches have been run, by the engine's own block coverage. Of one thread. */
export class SourceCoverage {
  readonly #session = new Session();
  readonly #covers: readonly string[];
  /** By file: 1 for a character that has been run. */
  readonly #run = new Map<string, Uint8Array>();

  /** @param covers parts of the paths of the files */
  constructor(covers: readonly string[]) {
    this.#covers = covers;
    this.#session.connect();
    this.#session.post("Profiler.enable");
    this.#session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
  }

  /** What ran since it was asked last. @returns whether something of it had not before; it counts as run from now on only if `isKept` */
  look(isKept: boolean): boolean {
    let isNew = false;
    this.#session.post("Profiler.takePreciseCoverage", (error, { result }) => {
      if (error !== null) throw new Error(error.message);
      for (const { url, functions } of result) {
        if (!this.#covers.some((part) => url.includes(part))) continue;
        const end = Math.max(0, ...functions.flatMap(({ ranges }) => ranges.map(({ endOffset }) => endOffset)));
        const now = new Uint8Array(end);
        // An inner range says more than the one around it, and comes after it.
        for (const { ranges } of functions)
          for (const { startOffset, endOffset, count } of ranges) now.fill(count > 0 ? 1 : 0, startOffset, endOffset);
        isNew = this.#join(url, now, isKept) || isNew;
      }
    });
    return isNew;
  }

  #join(url: string, now: Uint8Array, isKept: boolean): boolean {
    let run = this.#run.get(url);
    if (run === undefined || run.length < now.length) {
      const longer = new Uint8Array(now.length);
      longer.set(run ?? []);
      run = longer;
      if (isKept) this.#run.set(url, run);
    }
    let isNew = false;
    for (let at = 0; at < now.length; at++)
      if (now[at] === 1 && run[at] !== 1) {
        isNew = true;
        if (!isKept) return true;
        run[at] = 1;
      }
    return isNew;
  }

  /** Characters that have been run. */
  get characters(): number {
    let sum = 0;
    for (const run of this.#run.values()) for (const one of run) sum += one;
    return sum;
  }

  /** Characters that there are in the files of which something has been run. */
  get ofCharacters(): number {
    let sum = 0;
    for (const run of this.#run.values()) sum += run.length;
    return sum;
  }

  end(): void {
    this.#session.disconnect();
  }
}
