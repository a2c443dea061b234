import { declareOptional } from "./library.js";

const getrlimit = declareOptional("int getrlimit(int resource, void *limit)");
const setrlimit = declareOptional("int setrlimit(int resource, void *limit)");
const RLIMIT_CORE = 4;
/** To the kernel a word to dump neither into a file, for which it is too little, nor into a program (core_pattern(5)), which 0 would not stop. */
const NONE = 1n;

/** Keeps this process, and those that it starts, from leaving core dumps; false where the system cannot be told. */
export function forbidCoreDumps(): boolean {
  const limit = new BigUint64Array(2); // soft and hard
  if (getrlimit(RLIMIT_CORE, limit) !== 0) return false;
  limit[0] = limit[1]! < NONE ? limit[1]! : NONE;
  return setrlimit(RLIMIT_CORE, limit) === 0;
}
