import { readFileSync, readlinkSync } from "node:fs";

/** The calling thread's number for the system; undefined where there is no /proc. */
export function threadId(): number | undefined {
  try {
    const id = Number(readlinkSync("/proc/thread-self").split("/").at(-1));
    return Number.isSafeInteger(id) && id > 0 ? id : undefined;
  } catch {
    return undefined; // not Linux, or /proc is not mounted
  }
}

/**
 * Page faults of a thread of this process that needed no input, since it began; undefined if it has ended. With write protection by
 * userfaultfd the first write to each protected page is one.
 * @see proc_pid_stat(5), field 10, minflt.
 */
export function minorFaults(thread: number): number | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/self/task/${thread}/stat`, "latin1");
  } catch {
    return undefined;
  }
  // The name, field 2, stands in parentheses and may hold anything, parentheses too.
  const faults = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[7]);
  return Number.isSafeInteger(faults) ? faults : undefined;
}
