import { MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { WorkloadContext } from "./workload.js";

/**
 * Pages that a writer writes to, from the start of its region, by the option `workingSet` (bytes, default all of it).
 * @throws {MigrationError} ERR_PARAMETER if the region is smaller, or it is less than a page.
 */
export function workingSetPages({ options, region }: Pick<WorkloadContext, "options" | "region">): number {
  const bytes = Number(options["workingSet"] ?? 0) || region.bytes;
  if (bytes > region.bytes || bytes < PAGE_BYTES)
    throw new MigrationError("ERR_PARAMETER", `Working set of ${bytes} B in a region of ${region.bytes} B`);
  return Math.floor(bytes / PAGE_BYTES);
}
