import { readFileSync } from "node:fs";

/** Names this start of the host's kernel, the same for all its processes and containers; undefined where the system has no such name. */
export function bootId(): string | undefined {
  try {
    return /^[0-9a-f-]{36}$/.exec(readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim())?.[0];
  } catch {
    return undefined; // not Linux, or a /proc that does not show it
  }
}
