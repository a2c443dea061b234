import { FILL_KINDS, MemoryAccess, fillRegion } from "@precopy/guest";
import type { GuestMemory } from "@precopy/guest";

/** Fills the start of an image as a guest's own program does at boot. @param filled bytes, whole pages. */
export function fillImage(memory: GuestMemory, filled: number, fillKind: (typeof FILL_KINDS)[number]): void {
  fillRegion({
    vcpu: 0,
    options: { fill: filled, fillKind },
    region: { start: 0, bytes: memory.bytes },
    memory: new MemoryAccess(memory, undefined),
    segments: memory.segments,
    nic: undefined,
    now: () => 0,
  });
}
