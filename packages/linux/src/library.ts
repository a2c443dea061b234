import { createRequire } from "node:module";
import { constants } from "node:os";
import { getEnvironmentData, isMainThread, setEnvironmentData } from "node:worker_threads";
import { MigrationError } from "@precopy/protocol";
import { LoadingLock } from "./loading-lock.js";

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

interface Library {
  readonly koffi: Koffi;
  readonly libc: ReturnType<Koffi["load"]>;
}
const loading = LoadingLock.ofThisThread();
/** For what else loads native code in a thread that may be stopped; see LoadingLock. */
export const whileLoading = <T>(load: () => T): T => loading.hold(load);

let loaded: Library | null | undefined; // null: it cannot be had
/** Only when a call needs it: koffi takes 20 ms to load, and of each thread that loaded it keeps 3 MiB of addresses when it ends. */
function library(): Library | null {
  if (loaded === undefined)
    loaded = loading.hold(() => {
      const koffi = loadKoffi();
      return koffi === undefined ? null : { koffi, libc: koffi.load(null) };
    });
  return loaded;
}

/** What the main thread found, for its workers. */
const FOUND = "precopy.isLinuxAvailable";
function isFound(): boolean {
  const found: unknown = isMainThread ? undefined : getEnvironmentData(FOUND);
  if (typeof found === "boolean") return found;
  const isThere = library() !== null;
  setEnvironmentData(FOUND, isThere);
  return isThere;
}
/** True where this package can make system calls: Linux on x64 or arm64, with koffi present. */
export const isLinuxAvailable = isFound();

/** @throws what koffi throws for a symbol that is not there */
const bind = (from: Library["libc"], prototype: string): Foreign => loading.hold(() => from.func(prototype));
function bindLibc(prototype: string): Foreign | undefined {
  const there = library();
  return there === null ? undefined : bind(there.libc, prototype);
}

/** Declares one C function; calling it where it cannot be had throws ERR_SYSTEM_CALL. Results of 64 bits come as number or bigint. */
export function declare(prototype: string): (...args: unknown[]) => number {
  let foreign: Foreign | undefined;
  return (...args) => {
    foreign ??= bindLibc(prototype);
    if (foreign === undefined)
      throw new MigrationError("ERR_SYSTEM_CALL", `No system calls on ${process.platform} ${process.arch}: ${prototype}`);
    return Number(foreign(...args));
  };
}

/**
 * A library by the name that the system's linker knows it by, or null for this program and what it is linked with: gives its functions by their
 * prototypes, and throws for one that is not there. Undefined where it cannot be had. Each thread opens it for itself.
 */
export function openLibrary(name: string | null): ((prototype: string) => (...args: unknown[]) => number) | undefined {
  try {
    const koffi = library()?.koffi;
    const opened = koffi && loading.hold(() => koffi.load(name));
    return (
      opened &&
      ((prototype) => {
        const foreign = bind(opened, prototype);
        return (...args) => Number(foreign(...args));
      })
    );
  } catch {
    return undefined; // koffi throws for a library that is not there
  }
}

/** As `declare`, for what only some C libraries have; undefined where it is missing, and nothing was done. */
export function declareOptional(prototype: string): (...args: unknown[]) => number | undefined {
  let foreign: Foreign | null | undefined;
  return (...args) => {
    try {
      foreign ??= bindLibc(prototype) ?? null;
    } catch {
      foreign = null; // koffi throws for a symbol that is not there
    }
    return foreign === null ? undefined : Number(foreign(...args));
  };
}

/** Error number of the last call on this thread. */
export const errno = (): number => library()?.koffi.errno() ?? 0;

const NAMES = new Map(Object.entries(constants.errno).map(([name, value]) => [value, name]));

/** @param call name of the system call that just failed. */
export function systemCallError(call: string): MigrationError {
  const number = errno();
  return new MigrationError("ERR_SYSTEM_CALL", `${call}: ${NAMES.get(number) ?? `error ${number}`}`);
}

/** Address of a view's first byte; the same in every thread. The caller keeps the view's buffer alive. */
export function addressOf(view: ArrayBufferView): bigint {
  const there = library();
  if (there === null) throw new MigrationError("ERR_SYSTEM_CALL", "Addresses need koffi");
  return BigInt(there.koffi.address(view));
}
