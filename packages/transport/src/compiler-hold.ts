import { setFlagsFromString } from "node:v8";

const HOLD_MS = 100;

/** Whoever started Node without that compiler gets none. */
const isThere = ![...process.execArgv, process.env["NODE_OPTIONS"] ?? ""].some((options) =>
  /--(jitless|no[-_]opt|no[-_]turbofan)/.test(options),
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
 * For the next 100 ms V8's optimizing compiler takes on nothing new, in no thread of this process; what is compiled already stays. Call it
 * whenever the guest may be about to stand still: a round makes functions hot, and compiling them takes both processors of a small host for
 * 10 ms, behind which the threads that hand the guest over would wait. The flag is the whole process's, and V8 looks at it each time.
 */
export function holdCompiler(): void {
  if (!isThere || !isHoldable) return;
  if (release === undefined) setFlagsFromString("--no-turbofan");
  clearTimeout(release);
  release = setTimeout(() => {
    release = undefined;
    setFlagsFromString("--turbofan");
  }, HOLD_MS).unref();
}
