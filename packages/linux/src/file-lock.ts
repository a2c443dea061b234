import { closeSync, openSync } from "node:fs";
import { constants } from "node:os";
import { declare, errno, isLinuxAvailable, systemCallError } from "./library.js";

const flock = declare("int flock(int fd, int operation)");
const LOCK_EX = 2;
const LOCK_NB = 4;
const { EAGAIN, ENOLCK, ENOSYS, EOPNOTSUPP } = constants.errno;

/** Held until `release`, or until the process ends, however it ends: the kernel drops it. */
export interface FileLock {
  release(): void;
}

/**
 * Locks a file for this caller alone (flock(2)), and makes it if need be; the file stays. A second call is told "held" in this process too.
 * Undefined: no locks here (not Linux, no koffi, or a file system without them), so nobody can say who else is there.
 * @throws what opening the file throws; {MigrationError} ERR_SYSTEM_CALL
 */
export function tryLockFile(path: string): FileLock | "held" | undefined {
  if (!isLinuxAvailable) return undefined;
  const fd = openSync(path, "a+", 0o600); // Node opens with O_CLOEXEC: no child process keeps the lock alive
  if (flock(fd, LOCK_EX | LOCK_NB) === 0) {
    let isHeld = true;
    return {
      release() {
        if (isHeld) closeSync(fd);
        isHeld = false;
      },
    };
  }
  const [number, failure] = [errno(), systemCallError("flock")];
  closeSync(fd);
  if (number === EAGAIN) return "held";
  if (number === ENOLCK || number === ENOSYS || number === EOPNOTSUPP) return undefined;
  throw failure;
}
