import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

/**
 * Touches `bytes` in a process that ends at once. On a virtual machine free memory goes back to the host within seconds, and the next
 * first touch of a page then costs ten times more: what a bench would measure is the hypervisor.
 */
export function warmMemory(bytes: number): void {
  if (bytes > 0) spawnSync(process.execPath, [fileURLToPath(import.meta.url), String(bytes)], { stdio: "ignore" });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const kept: Buffer[] = [];
  for (let left = Number(process.argv[2]); left > 0; left -= 2 ** 28) kept.push(Buffer.alloc(2 ** 28, 1));
}
