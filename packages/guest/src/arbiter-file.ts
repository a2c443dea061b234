import { randomBytes } from "node:crypto";
import { mkdir, readdir, readlink, rename, rm, stat, symlink, unlink } from "node:fs/promises";
import { join } from "node:path";
import { MigrationError } from "@precopy/protocol";
import { VersionedArbiter, isOwnerRecord } from "./arbiter.js";
import type { OwnerRecord } from "./arbiter.js";

/** Versions that stay, the latest included: bounds a folder, and how far a process may fall behind and still be told what became of its change. */
const VERSIONS_KEPT = 64;
/** Old versions that one change removes: one, or more where they could not be removed for a while. */
const REMOVED_AT_ONCE = 8;
/** A look that finds no sound version was outrun by VERSIONS_KEPT changes, or the folder is damaged. */
const LOOKS_MAX = 100;
/** Names have at most 15 digits; at a change a millisecond they last for 30,000 years. */
const VERSION_MAX = 10 ** 15 - 1;

const isCode = (error: unknown, ...codes: readonly string[]): boolean =>
  error instanceof Error && "code" in error && codes.some((code) => code === error.code);

interface FileVersion {
  /** Undefined in version 0, which is made with the guest's folder, and before there is one. */
  readonly record: OwnerRecord | undefined;
  /** -1: the guest has no folder yet. */
  readonly number: number;
  readonly text: string;
  /** Numbers of what else is there, ascending. */
  readonly older: readonly number[];
}
const NOTHING: FileVersion = { record: undefined, number: -1, text: "", older: [] };

/**
 * An arbiter for agents that share a folder. Each version of a guest's record is a symbolic link that leads nowhere, named by its number;
 * the greatest one stands:
 *
 *   FOLDER/GUEST/41 -> "7 1795176015000 5d41402abc4b 2a76b9719d91 host-a"     epoch, end of the lease, nonce, nonce of version 40, owner
 *
 * Making a link is one step, fails if the name is taken, and no link is ever there without its content. So a version has one successor,
 * and a process that ends anywhere leaves nothing that others would have to wait for or to repair.
 *
 * Versions far below the greatest are removed, always from the bottom, so that one is gone before its successor is. A process that stood
 * still until the name it wants was used and removed can make that link after all. It never counts: what it follows is gone by then, and a
 * version counts only with the one that it follows below it. Whoever reads looks at a version first and below it after, and whoever makes
 * one looks below it then; the other order could take such a link for good.
 *
 * Nothing is synced to the disk. What a crash takes back of a folder on one host, it takes back with all agents and guests that used it; a
 * file server answers when it has the change on stable storage. Cost of a change on a local disk: 0.3 ms (6 file system calls).
 */
export class FileArbiter extends VersionedArbiter<FileVersion> {
  readonly #folder: string;

  /** @param folder must be there, for all agents to read and write. @param now wall clock, ms since 1970. */
  constructor(folder: string, { now = Date.now }: { readonly now?: () => number } = {}) {
    super(now);
    this.#folder = folder;
  }

  protected async latest(guest: string): Promise<FileVersion> {
    for (let looks = 0; looks < LOOKS_MAX; looks++) {
      const older = await this.#numbers(guest);
      if (older === undefined) return NOTHING;
      const number = older.pop();
      const text = number === undefined ? undefined : await this.#text(guest, number);
      if (number === undefined || text === undefined) continue;
      const { record, follows } = this.#parse(guest, number, text);
      const below = number === 0 ? undefined : await this.#text(guest, number - 1);
      if (number === 0 || (below !== undefined && nonceOf(below) === follows)) return { record, number, text, older };
    }
    throw this.#damaged(guest, "no version that follows another");
  }

  protected async replace(guest: string, before: FileVersion, { owner, epoch, leaseUntilMs }: OwnerRecord): Promise<boolean> {
    if (before.number < 0) {
      await this.#found(guest);
      return false; // now there is something to follow
    }
    const number = before.number + 1;
    const text = `${epoch} ${leaseUntilMs} ${newNonce()} ${nonceOf(before.text)} ${owner}`;
    const isMade = await this.#make(guest, number, text);
    if (!isMade || (await this.#text(guest, before.number)) !== before.text) return false;
    await this.#removeOld(guest, before.older.filter((old) => old <= number - VERSIONS_KEPT).slice(0, REMOVED_AT_ONCE));
    return true;
  }

  /** Makes the guest's folder with version 0 in it, in one step; does nothing where there is one. */
  async #found(guest: string): Promise<void> {
    const nonce = newNonce();
    const made = join(this.#folder, `.${guest}.${nonce}`);
    try {
      await mkdir(made);
      await symlink(`0 0 ${nonce} ${nonce} nobody`, join(made, "0"));
      await rename(made, join(this.#folder, guest)).catch(async (error: unknown) => {
        await rm(made, { recursive: true, force: true });
        if (!isCode(error, "ENOTEMPTY", "EEXIST", "ENOENT")) throw error; // ENOENT: a file server carried out the first of two requests
      });
    } catch (error) {
      throw this.#broken("written", error);
    }
  }

  /** False if the number is taken. */
  async #make(guest: string, number: number, text: string): Promise<boolean> {
    try {
      await symlink(text, this.#path(guest, number));
      return true;
    } catch (error) {
      // By ourselves, if a file server carried out the first of two requests and answered the second.
      if (isCode(error, "EEXIST")) return (await this.#text(guest, number)) === text;
      throw this.#broken("written", error);
    }
  }

  /** No further once one stays: above it none may be missing. */
  async #removeOld(guest: string, numbers: readonly number[]): Promise<void> {
    for (const number of numbers) {
      try {
        await unlink(this.#path(guest, number));
      } catch (error) {
        if (!isCode(error, "ENOENT")) return; // this is no part of the change: a later one, or an agent that may, removes it
      }
    }
  }

  /** Of all versions that are there, ascending; undefined without a folder of the guest. */
  async #numbers(guest: string): Promise<number[] | undefined> {
    try {
      const names = await readdir(join(this.#folder, guest));
      return names
        .filter((name) => /^(0|[1-9]\d{0,14})$/.test(name))
        .map(Number)
        .sort((a, b) => a - b);
    } catch (error) {
      if (!isCode(error, "ENOENT")) throw this.#broken("read", error);
    }
    await stat(this.#folder).catch((error: unknown) => {
      throw this.#broken("read", error);
    });
    return undefined;
  }

  async #text(guest: string, number: number): Promise<string | undefined> {
    try {
      return await readlink(this.#path(guest, number));
    } catch (error) {
      if (isCode(error, "ENOENT")) return undefined;
      throw this.#broken("read", error);
    }
  }

  #parse(guest: string, number: number, text: string): { readonly record: OwnerRecord | undefined; readonly follows: string } {
    const [, epoch, leaseUntilMs, follows = "", owner = ""] = /^(\d{1,10}) (\d{1,16}) [0-9a-f]{12} ([0-9a-f]{12}) (\S+)$/.exec(text) ?? [];
    if (number === 0 && follows !== "") return { record: undefined, follows };
    const record = { guest, owner, epoch: Number(epoch), leaseUntilMs: Number(leaseUntilMs) };
    if (number === VERSION_MAX || !isOwnerRecord(record)) throw this.#damaged(guest, `a version ${number} that is no record of an owner`);
    return { record, follows };
  }

  #damaged(guest: string, what: string): MigrationError {
    return new MigrationError("ERR_ARBITER", `The arbiter's folder ${this.#folder} has ${what} for guest ${guest}`);
  }

  #broken(what: "read" | "written", cause: unknown): MigrationError {
    return new MigrationError("ERR_ARBITER", `The arbiter's folder ${this.#folder} cannot be ${what}`, { cause });
  }

  #path(guest: string, number: number): string {
    return join(this.#folder, guest, String(number));
  }
}

const newNonce = (): string => randomBytes(6).toString("hex");
const nonceOf = (text: string): string => text.split(" ")[2] ?? "";
