import { setFlagsFromString } from "node:v8";

const HOLD_MS = 100;

/** Built in and on by default from Node 24 on; before that, a flag that nobody may set for the user. */
const hasMaglev = Reflect.get(process.config.variables, "v8_enable_maglev") === 1;
const options = [...process.execArgv, process.env["NODE_OPTIONS"] ?? ""];
/** V8's optimizing compilers. Whoever started Node without one of them gets none. */
const COMPILERS = ["turbofan", ...(hasMaglev ? ["maglev"] : [])].filter(
  (compiler) => !options.some((one) => new RegExp(`--(jitless|no[-_]opt|no[-_]${compiler})`).test(one)),
);
let release: NodeJS.Timeout | undefined;
let isHoldable = true;

/** While `body` runs `holdCompiler` does nothing: what a rehearsal makes hot is to be optimized. */
export async function withoutHolds(body: () => Promise<void>): Promise<void> {
  isHoldable = false;
  try {
    await body();
  } finally {
    isHoldable = true;
  }
}

/**
 * For the next 100 ms V8's optimizing compilers take on nothing new, in no thread of this process; what is compiled already stays. Call it
 * whenever the guest may be about to stand still: a round makes functions hot, and compiling them takes both processors of a small host for
 * 10 ms, behind which the threads that hand the guest over would wait. The flags are the whole process's, and V8 looks at them each time.
 */
export function holdCompiler(): void {
  if (!isHoldable) return;
  if (release === undefined) for (const compiler of COMPILERS) setFlagsFromString(`--no-${compiler}`);
  clearTimeout(release);
  release = setTimeout(() => {
    release = undefined;
    for (const compiler of COMPILERS) setFlagsFromString(`--${compiler}`);
  }, HOLD_MS).unref();
}
