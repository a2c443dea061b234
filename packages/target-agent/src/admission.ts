import { endianness } from "node:os";
import { NIC_BYTES, whyNoMissingPages } from "@precopy/guest";
import type { WorkloadCatalogue } from "@precopy/guest";
import { hostPageBytes, isLinuxAvailable } from "@precopy/linux";
import { BLOCK_COMPRESSIONS, MigrationError, PAGE_BYTES, PROTOCOL_VERSION } from "@precopy/protocol";
import { hasCodec } from "@precopy/protocol/page-codec";
import type { GuestManifest, Message } from "@precopy/protocol";

/** Card and regions are whole pages, inside the guest's memory, and share no byte. @throws {MigrationError} ERR_BAD_MESSAGE */
function checkRegions({ memoryBytes, devices, vcpus }: GuestManifest): void {
  const regions = vcpus.map(({ region }) => region).toSorted((one, other) => one.start - other.start);
  let free = devices.length > 0 ? NIC_BYTES : 0;
  for (const { start, bytes } of regions) {
    if (start % PAGE_BYTES !== 0 || bytes % PAGE_BYTES !== 0 || start < free || start + bytes > memoryBytes)
      throw new MigrationError("ERR_BAD_MESSAGE", `Region of ${bytes} B at ${start} in a guest of ${memoryBytes} B`);
    free = start + bytes;
  }
}

/** What a source may ask for and this release can do. */
export const CAPABILITIES: readonly string[] = [...BLOCK_COMPRESSIONS.filter(hasCodec), "xbzrle", "digest"];

/**
 * Everything that can be refused before anything is reserved, cheapest first. Memory, epoch and presence are the registry's.
 * @throws {MigrationError} ERR_PROTOCOL_VERSION, ERR_PAGE_SIZE, ERR_ENDIANNESS, ERR_CAPABILITY, ERR_WORKLOAD_UNKNOWN, ERR_WORKLOAD_DIFFERS,
 * ERR_BAD_MESSAGE for regions outside the guest's memory.
 */
export function checkAdmission(admit: Message<"admit">, workloads: WorkloadCatalogue, hasArbiter: boolean): void {
  const { manifest } = admit;
  if (admit.protocolVersion !== PROTOCOL_VERSION)
    throw new MigrationError("ERR_PROTOCOL_VERSION", `Source speaks version ${admit.protocolVersion}, we speak ${PROTOCOL_VERSION}`);
  if (admit.pageBytes !== PAGE_BYTES)
    throw new MigrationError("ERR_PAGE_SIZE", `Source has pages of ${admit.pageBytes} B, we have ${PAGE_BYTES} B`);
  if (isLinuxAvailable && hostPageBytes() !== PAGE_BYTES)
    throw new MigrationError("ERR_PAGE_SIZE", `This host has pages of ${hostPageBytes()} B`);
  if (admit.endianness !== endianness())
    throw new MigrationError("ERR_ENDIANNESS", `Source is ${admit.endianness}, this host is ${endianness()}`);
  const unknown = admit.capabilities.filter((name) => !CAPABILITIES.includes(name));
  if (unknown.length > 0) throw new MigrationError("ERR_CAPABILITY", `Unknown here: ${unknown.join(", ")}`);
  const why = admit.postcopy ? whyNoMissingPages() : undefined;
  if (why !== undefined) throw new MigrationError("ERR_CAPABILITY", `No post-copy on this host: ${why}`);
  if ((admit.arbiterEpoch !== null) !== hasArbiter)
    throw new MigrationError(
      "ERR_CAPABILITY",
      `The source has ${hasArbiter ? "no" : "an"} arbiter, and this agent ${hasArbiter ? "one" : "none"}: give both --arbiter, or neither`,
    );
  for (const { workload, sha256 } of manifest.vcpus) workloads.find(workload, sha256);
  checkRegions(manifest);
}
