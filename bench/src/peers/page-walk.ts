import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { JsonChild } from "@precopy/lab";

const SOURCE = fileURLToPath(new URL("../../peers/page-walk.c", import.meta.url));
const PROGRAM = fileURLToPath(new URL("page-walk", import.meta.url));

/** An image to carry from one process to another. Sizes in bytes, whole pages. */
export interface ImageOrder {
  readonly bytes: number;
  /** From the start of the image on, with data that is not zero. */
  readonly filled: number;
  readonly channels: number;
}

/** What carrying it took, from the first byte to the acknowledgement of the last. */
export interface ImageRun {
  readonly ms: number;
  /** Of the image; what the protocol adds is not counted. */
  readonly bytes: number;
  /** Processor time of each process, all threads, user and kernel, s. */
  readonly cpuSource: number;
  readonly cpuTarget: number;
}

/** Which pages memory of the peer is asked for in: `small` refuses huge pages, `huge` asks for them. */
export type PageSize = "small" | "huge";

/** A process that has memory populated, and reads all of it on one core when asked. */
export class MemoryReader {
  readonly #child: JsonChild;

  constructor(child: JsonChild) {
    this.#child = child;
  }

  async gibPerSecond(): Promise<number> {
    this.#child.write("read");
    return Number((await this.#child.expect("read"))["gibPerSecond"]);
  }

  async end(): Promise<void> {
    await this.#child.end();
  }
}

/** The least that can carry a memory image: bench/peers/page-walk.c. */
export class PageWalk {
  private constructor() {}

  /** Compiles it; the reason if that cannot be done here. */
  static build(): PageWalk | string {
    const { error, status, stderr } = spawnSync("gcc", ["-O2", "-Wall", "-pthread", "-o", PROGRAM, SOURCE], { encoding: "utf8" });
    if (error !== undefined) return `gcc: ${error.message}`;
    return status === 0 ? new PageWalk() : `gcc: exit ${String(status)}: ${stderr.trim()}`;
  }

  #start(mode: "receive" | "send" | "read", ...args: readonly (string | number)[]): JsonChild {
    return new JsonChild(`page-walk ${mode}`, [PROGRAM, mode, ...args.map(String)]);
  }

  /** @param beforeStart called when both ends are connected, before the clock starts. @throws {Error} if an end failed, or bytes are missing */
  async carry({ bytes, filled, channels }: ImageOrder, pages: PageSize, beforeStart: () => void): Promise<ImageRun> {
    const receiver = this.#start("receive", bytes, channels, pages);
    const children = [receiver];
    try {
      const sender = this.#start("send", bytes, channels, pages, Number((await receiver.expect("listening"))["port"]), filled);
      children.push(sender);
      await sender.expect("ready");
      beforeStart();
      sender.write("go");
      const sent = await sender.expect("sent");
      const received = await receiver.expect("received");
      if (received["bytes"] !== filled) throw new Error(`page-walk stored ${String(received["bytes"])} B of ${filled}`);
      return { ms: Number(sent["ms"]), bytes: filled, cpuSource: Number(sent["cpuSeconds"]), cpuTarget: Number(received["cpuSeconds"]) };
    } finally {
      for (const child of children) await child.end();
    }
  }

  /** Resolves when the memory is populated. The caller ends it. */
  async reader(bytes: number, pages: PageSize): Promise<MemoryReader> {
    const child = this.#start("read", bytes, pages);
    await child.expect("ready");
    return new MemoryReader(child);
  }
}
