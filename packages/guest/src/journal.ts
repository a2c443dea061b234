import { closeSync, fstatSync, fsync, mkdirSync, openSync, readFileSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";

/** Decisions that outlive the process. offered, committed, completed, aborted, taken-back: as source; prepared, owner, refused: as target; booted: here. */
export type Decision = "booted" | "offered" | "committed" | "completed" | "aborted" | "taken-back" | "prepared" | "owner" | "refused";

export interface JournalEntry {
  readonly at: string;
  readonly epoch: number;
  readonly decision: Decision;
}

/**
 * One small file a guest, a JSON line a decision. Written without waiting for the disk inside the pause (a host crash ends that host's
 * guest anyway), synced after.
 */
export class Journal {
  readonly #folder: string;
  readonly #open = new Map<string, number>();

  constructor(folder: string) {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    this.#folder = folder;
  }

  /** @param guest an id that admission has checked: it names the file. */
  record(guest: string, epoch: number, decision: Decision): void {
    let fd = this.#open.get(guest);
    if (fd === undefined) {
      fd = openSync(this.#file(guest), "a+", 0o600);
      this.#open.set(guest, fd);
      // A crash may have cut the last line short: what comes now must not be glued to it.
      const { size } = fstatSync(fd);
      const last = Buffer.alloc(1);
      if (size > 0 && readSync(fd, last, 0, 1, size - 1) === 1 && last.toString() !== "\n") writeSync(fd, "\n");
    }
    const entry: JournalEntry = { at: new Date().toISOString(), epoch, decision };
    writeSync(fd, `${JSON.stringify(entry)}\n`);
  }

  /** Brings what was recorded to the disk; call it after the pause. */
  async sync(guest: string): Promise<void> {
    const fd = this.#open.get(guest);
    if (fd !== undefined) await new Promise<void>((resolve) => fsync(fd, () => resolve()));
  }

  /** What was recorded, oldest first. A last line cut short by a crash is left out. */
  read(guest: string): JournalEntry[] {
    let text: string;
    try {
      text = readFileSync(this.#file(guest), "utf8");
    } catch (error) {
      if (error instanceof Error && "code" in error && error.code === "ENOENT") return []; // never heard of this guest
      throw error; // to take it for none would forget its epoch
    }
    return text.split("\n").flatMap((line) => {
      try {
        return line === "" ? [] : [JSON.parse(line)];
      } catch {
        return [];
      }
    });
  }

  /** The highest epoch this agent has taken part in; 0 if it never met the guest. */
  latestEpoch(guest: string): number {
    return this.read(guest).reduce((latest, { epoch }) => Math.max(latest, epoch), 0);
  }

  close(): void {
    for (const fd of this.#open.values()) closeSync(fd);
    this.#open.clear();
  }

  #file(guest: string): string {
    return join(this.#folder, `${guest}.journal`);
  }
}
