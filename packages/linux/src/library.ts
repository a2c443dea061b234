import { createRequire } from "node:module";
import { constants } from "node:os";
import { MigrationError } from "@precopy/protocol";

type Koffi = typeof import("koffi").default;
type Foreign = (...args: unknown[]) => unknown;

/** koffi is optional: where it has no binary, or the system is not Linux, the portable ways are taken. */
function loadKoffi(): Koffi | undefined {
  if (process.platform !== "linux" || (process.arch !== "x64" && process.arch !== "arm64")) return undefined;
  try {
    // A CommonJS package; require() is typed any, and what it exports is what its own declaration says.
    return createRequire(import.meta.url)("koffi") as Koffi;
  } catch {
    return undefined; // not installed here: `isLinuxAvailable` tells, and every caller says what it does instead
  }
}

const koffi = loadKoffi();
const libc = koffi?.load(null);

/** True where this package can make system calls: Linux on x64 or arm64, with koffi present. */
export const isLinuxAvailable = libc !== undefined;

/** Declares one C function; calling it where it cannot be had throws ERR_SYSTEM_CALL. Results of 64 bits come as number or bigint. */
export function declare(prototype: string): (...args: unknown[]) => number {
  const foreign: Foreign | undefined = libc?.func(prototype);
  return (...args) => {
    if (foreign === undefined)
      throw new MigrationError("ERR_SYSTEM_CALL", `No system calls on ${process.platform} ${process.arch}: ${prototype}`);
    return Number(foreign(...args));
  };
}

/** As `declare`, for what only some C libraries have; undefined where it is missing. */
export function declareOptional(prototype: string): ((...args: unknown[]) => number) | undefined {
  try {
    return libc === undefined
      ? undefined
      : (
          (foreign: Foreign) =>
          (...args: unknown[]) =>
            Number(foreign(...args))
        )(libc.func(prototype));
  } catch {
    return undefined; // koffi throws for a symbol that is not there
  }
}

/** Error number of the last call on this thread. */
export const errno = (): number => koffi?.errno() ?? 0;

const NAMES = new Map(Object.entries(constants.errno).map(([name, value]) => [value, name]));

/** @param call name of the system call that just failed. */
export function systemCallError(call: string): MigrationError {
  const number = errno();
  return new MigrationError("ERR_SYSTEM_CALL", `${call}: ${NAMES.get(number) ?? `error ${number}`}`);
}

/** Address of a view's first byte; the same in every thread. The caller keeps the view's buffer alive. */
export function addressOf(view: ArrayBufferView): bigint {
  if (koffi === undefined) throw new MigrationError("ERR_SYSTEM_CALL", "Addresses need koffi");
  return BigInt(koffi.address(view));
}
