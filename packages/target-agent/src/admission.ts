import { endianness } from "node:os";
import { hostPageBytes, isLinuxAvailable } from "@precopy/linux";
import { MigrationError, PAGE_BYTES, PROTOCOL_VERSION } from "@precopy/protocol";
import type { Message } from "@precopy/protocol";
import type { WorkloadCatalogue } from "@precopy/guest";

/** What a source may ask for and this release can do. */
export const CAPABILITIES: readonly string[] = ["lz4", "digest"];

/**
 * Everything that can be refused before anything is reserved, cheapest first. Memory, epoch and presence are the registry's.
 * @throws {MigrationError} ERR_PROTOCOL_VERSION, ERR_PAGE_SIZE, ERR_ENDIANNESS, ERR_CAPABILITY, ERR_WORKLOAD_UNKNOWN, ERR_WORKLOAD_DIFFERS,
 * ERR_BAD_MESSAGE for regions outside the guest's memory.
 */
export function checkAdmission(admit: Message<"admit">, workloads: WorkloadCatalogue): void {
  const { manifest } = admit;
  if (admit.protocolVersion !== PROTOCOL_VERSION)
    throw new MigrationError("ERR_PROTOCOL_VERSION", `Source speaks version ${admit.protocolVersion}, we speak ${PROTOCOL_VERSION}`);
  if (admit.pageBytes !== PAGE_BYTES) throw new MigrationError("ERR_PAGE_SIZE", `Source has pages of ${admit.pageBytes} B, we have ${PAGE_BYTES} B`);
  if (isLinuxAvailable && hostPageBytes() !== PAGE_BYTES) throw new MigrationError("ERR_PAGE_SIZE", `This host has pages of ${hostPageBytes()} B`);
  if (admit.endianness !== endianness()) throw new MigrationError("ERR_ENDIANNESS", `Source is ${admit.endianness}, this host is ${endianness()}`);
  const unknown = admit.capabilities.filter((name) => !CAPABILITIES.includes(name));
  if (unknown.length > 0) throw new MigrationError("ERR_CAPABILITY", `Unknown here: ${unknown.join(", ")}`);
  for (const { workload, sha256, region } of manifest.vcpus) {
    workloads.find(workload, sha256);
    if (region.start % PAGE_BYTES !== 0 || region.start + region.bytes > manifest.memoryBytes)
      throw new MigrationError("ERR_BAD_MESSAGE", `Region of ${region.bytes} B at ${region.start} in a guest of ${manifest.memoryBytes} B`);
  }
}
