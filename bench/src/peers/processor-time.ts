import { readFileSync } from "node:fs";

/** Of /proc/PID/stat on every Linux that Node runs on (USER_HZ). */
const TICKS_PER_SECOND = 100;

/** Processor time in user and system mode, in s, out of the text of /proc/PID/stat. */
export function parseProcessorSeconds(stat: string): number {
  // The second field is the program's name in brackets, which may itself hold blanks and brackets.
  const [, , , , , , , , , , , user, system] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(user) + Number(system)) / TICKS_PER_SECOND;
}

/** Of a process with all its threads, those that have ended included. @throws {Error} if it is gone */
export const processorSeconds = (pid: number): number => parseProcessorSeconds(readFileSync(`/proc/${pid}/stat`, "utf8"));
