import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/**
 * A call that collects what this thread allocated and dropped lately. V8 counts memory outside its heap as cheap until there are 32 MiB of it,
 * so a thread that makes buffers one after another keeps that much, and its next buffer is never in a processor's cache.
 */
export function youngGarbageCollector(): () => void {
  setFlagsFromString("--expose-gc"); // for contexts made from here on: ours alone
  const collect: unknown = runInNewContext("gc");
  setFlagsFromString("--no-expose-gc");
  return typeof collect === "function" ? () => void collect({ type: "minor" }) : () => {};
}
