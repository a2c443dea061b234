import { closeSync, fsync, fsyncSync, ftruncateSync, mkdirSync, openSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bootId, tryLockFile } from "@precopy/linux";
import type { FileLock } from "@precopy/linux";
import { MigrationError, standingOf } from "@precopy/protocol";
import type { Decision, JournalEntry } from "@precopy/protocol";

const DECISIONS: Readonly<Record<Decision, true>> = {
  booted: true,
  offered: true,
  committed: true,
  completed: true,
  aborted: true,
  "taken-back": true,
  "given-up": true,
  lost: true,
  prepared: true,
  owner: true,
  refused: true,
  claimed: true,
};
const EPOCH_MAX = 2 ** 32 - 1;
const NEWLINE = 10;
const FILE_NAME = /^([A-Za-z0-9][A-Za-z0-9._-]{0,63})\.journal$/;

const isText = (value: unknown, charsMax: number): value is string => typeof value === "string" && value.length <= charsMax;
const isTextOrAbsent = (value: unknown, charsMax: number): value is string | undefined => value === undefined || isText(value, charsMax);

/** Undefined for a line that is no decision, whatever else it may be. */
function parseEntry(line: string): JournalEntry | undefined {
  let parsed: unknown;
  try {
    parsed = JSON.parse(line);
  } catch {
    return undefined; // damaged
  }
  const { at, epoch, decision, peer, session, boot } = Object(parsed) as Readonly<Record<string, unknown>>; // each is checked before it is used
  if (!isText(at, 64) || Number.isNaN(Date.parse(at))) return undefined;
  if (typeof epoch !== "number" || !Number.isInteger(epoch) || epoch < 1 || epoch > EPOCH_MAX) return undefined;
  if (typeof decision !== "string" || !Object.hasOwn(DECISIONS, decision)) return undefined;
  if (!isTextOrAbsent(peer, 300) || !isTextOrAbsent(session, 64) || !isTextOrAbsent(boot, 64)) return undefined;
  return {
    at,
    epoch,
    decision: decision as Decision, // a key of DECISIONS
    ...(peer === undefined ? {} : { peer }),
    ...(session === undefined ? {} : { session }),
    ...(boot === undefined ? {} : { boot }),
  };
}

/** What the host can say; tests say it in its place. */
export interface JournalHost {
  readonly tryLockFile: typeof tryLockFile;
  readonly bootId: typeof bootId;
}

/**
 * One small file a guest, a JSON line a decision. Written without waiting for the disk inside the pause (a host crash ends that host's
 * guest anyway), synced after. Where the system has locks the folder is this journal's alone until `close`, or the end of the process.
 */
export class Journal {
  readonly #folder: string;
  readonly #boot: string | undefined;
  readonly #open = new Map<string, number>();
  #lock: FileLock | undefined;
  #isClosed = false;

  /** Makes the folder if need be. @throws {MigrationError} ERR_STATE_DIR_IN_USE while another journal, of this process or another, has it. */
  constructor(folder: string, host: JournalHost = { tryLockFile, bootId }) {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const lock = host.tryLockFile(join(folder, "agent.lock"));
    if (lock === "held") throw new MigrationError("ERR_STATE_DIR_IN_USE", `Another agent keeps its journal in ${folder}`);
    this.#folder = folder;
    this.#lock = lock;
    this.#boot = host.bootId();
  }

  /**
   * Has the decision in the file when it returns, and none of it counts if it throws.
   * @param guest an id that admission has checked: it names the file. @param attempt of a hand-over only; peer as HOST:PORT.
   * @throws what the file system throws; {MigrationError} ERR_SHUTTING_DOWN after `close`.
   */
  record(guest: string, epoch: number, decision: Decision, attempt?: { readonly peer: string; readonly session: string }): void {
    const entry: JournalEntry = {
      at: new Date().toISOString(),
      epoch,
      decision,
      ...(attempt === undefined ? {} : { peer: attempt.peer, session: attempt.session }),
      ...(this.#boot === undefined ? {} : { boot: this.#boot }),
    };
    const fd = this.#descriptor(guest);
    try {
      writeFileSync(fd, `${JSON.stringify(entry)}\n`); // appends: the file is open for that
    } catch (error) {
      this.#open.delete(guest); // what is there of the line goes when the file is opened again
      closeSync(fd);
      throw error;
    }
  }

  /** Has the guest's file ready, empty if it is new: the next `record` only writes. @throws as `record` */
  open(guest: string): void {
    this.#descriptor(guest);
  }

  /** Brings what was recorded to the disk; call it after the pause. */
  async sync(guest: string): Promise<void> {
    const fd = this.#open.get(guest);
    if (fd !== undefined) await new Promise<void>((resolve) => fsync(fd, () => resolve()));
  }

  /**
   * What was recorded, oldest first. Left out is what is no entry, and a last line without its end: record() never returned from it.
   * @throws what reading throws: to take such a file for none would forget its epochs.
   */
  read(guest: string): JournalEntry[] {
    let text: string;
    try {
      text = readFileSync(this.#file(guest), "utf8");
    } catch (error) {
      if (error instanceof Error && "code" in error && error.code === "ENOENT") return []; // never heard of this guest
      throw error;
    }
    const lines = text.split("\n").slice(0, -1);
    return lines.map(parseEntry).filter((entry) => entry !== undefined);
  }

  /** What was recorded of one attempt, oldest first. */
  entriesAt(guest: string, epoch: number): JournalEntry[] {
    return this.read(guest).filter((entry) => entry.epoch === epoch);
  }

  /** The highest epoch this agent has taken part in; 0 if it never met the guest. */
  latestEpoch(guest: string): number {
    return this.read(guest).reduce((latest, { epoch }) => Math.max(latest, epoch), 0);
  }

  /**
   * An epoch that nobody can have taken: above all that this agent met, and above the one after an attempt that ended without a word here, which
   * the other side takes when it takes the guest back, or claims a copy.
   */
  nextEpoch(guest: string): number {
    const last = this.read(guest).at(-1);
    const isOpen = last?.decision === "offered" || last?.decision === "committed" || last?.decision === "prepared";
    return this.latestEpoch(guest) + (isOpen ? 2 : 1);
  }

  /** Ids of all guests with a journal here, in order. */
  guests(): string[] {
    return readdirSync(this.#folder, { withFileTypes: true })
      .flatMap((entry) => (entry.isFile() ? (FILE_NAME.exec(entry.name)?.[1] ?? []) : []))
      .sort();
  }

  /**
   * What the lines say of a guest that is not in this agent's memory. Without the folder's lock a prepared guest may be in another
   * process's: then it is `unknown`, not `refused`.
   */
  standing(guest: string): ReturnType<typeof standingOf> {
    return standingOf(this.read(guest), this.#lock === undefined ? undefined : this.#boot);
  }

  /**
   * The line by which the guest left this host, if nothing since then brought it back or ended the matter: `committed`, still in doubt, or
   * `completed`. An offer that came to nothing here since then changes nothing about it, though `standing` tells that offer's end.
   */
  departure(guest: string): JournalEntry | undefined {
    const last = this.read(guest).findLast(({ decision }) => decision !== "prepared" && decision !== "refused");
    return last?.decision === "committed" || last?.decision === "completed" ? last : undefined;
  }

  /**
   * Once, when an agent starts: writes `refused` after every `prepared` that an earlier process of this start of the host left behind, so
   * that the answer outlives the host too; returns them. Does nothing without the folder's lock. Waits for the disk.
   */
  settle(): { readonly guest: string; readonly epoch: number }[] {
    return this.guests().flatMap((guest) => {
      const { standing, last } = this.standing(guest);
      const isOurs = this.#open.has(guest); // this process prepared it, and may hold it
      if (isOurs || standing !== "refused" || last?.decision !== "prepared") return [];
      const { epoch, peer, session } = last;
      this.record(guest, epoch, "refused", peer === undefined || session === undefined ? undefined : { peer, session });
      fsyncSync(this.#descriptor(guest));
      return [{ guest, epoch }];
    });
  }

  /** Lets go of the folder: nothing can be recorded any more. */
  close(): void {
    this.#isClosed = true;
    for (const fd of this.#open.values()) closeSync(fd);
    this.#open.clear();
    this.#lock?.release();
    this.#lock = undefined;
  }

  #descriptor(guest: string): number {
    if (this.#isClosed) throw new MigrationError("ERR_SHUTTING_DOWN", `The journal in ${this.#folder} is closed`);
    const open = this.#open.get(guest);
    if (open !== undefined) return open;
    const fd = openSync(this.#file(guest), "a+", 0o600);
    this.#open.set(guest, fd);
    // A crash may have cut the last line short: what comes now must neither be glued to it nor end it.
    ftruncateSync(fd, readFileSync(fd).lastIndexOf(NEWLINE) + 1);
    return fd;
  }

  #file(guest: string): string {
    return join(this.#folder, `${guest}.journal`);
  }
}
