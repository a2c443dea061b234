import { GuestMemory, PageHashes, SegmentPool, allocateHashTable, pageKernels } from "@precopy/guest";
import type { Bitmap, VisitPages } from "@precopy/guest";
import { HEADER_BYTES, PAGE_BYTES, RUN_BYTES } from "@precopy/protocol";
import { PagePacker } from "./page-packer.js";
import type { LaneStart, PackerSource, RoundSent } from "./page-packer.js";
import type { SendPump } from "./pump.js";

/** A pump that keeps what it is given, for tests: one buffer a packet, as it would stand on the wire. */
export class RecordingPump implements SendPump {
  readonly packets: Buffer[] = [];
  readonly #memory: GuestMemory;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  sendPages(head: Buffer, dataRuns: number, after?: VisitPages): undefined {
    const pieces: Uint8Array[] = [head];
    for (let run = 0, at = HEADER_BYTES; run < dataRuns; run++, at += RUN_BYTES) {
      const [first, pages] = [head.readUInt32LE(at), head.readUInt32LE(at + 4)];
      pieces.push(this.#memory.view(first, pages));
      after?.(first, pages);
    }
    this.packets.push(Buffer.concat(pieces)); // a copy: the head is used again
  }

  sendBytes(head: Buffer, payload: Buffer | undefined): undefined {
    this.packets.push(Buffer.concat(payload === undefined ? [head] : [head, payload]));
  }

  setPacing(): void {}
  backlogBytes(): undefined {
    return undefined;
  }

  linkState(): undefined {
    return undefined;
  }
  close(): void {}
}

export const allocate = (pages: number): GuestMemory => GuestMemory.allocate(pages * PAGE_BYTES, new SegmentPool());

/** Pages [first, first + pages) get contents that do not compress. */
export function fillRandom(memory: GuestMemory, first: number, pages: number, seed: number): void {
  pageKernels(memory)[0]?.fillRandom(memory.offsetOf(first), pages * PAGE_BYTES, BigInt(seed + 1) * 0x9e3779b97f4a7c15n);
}

/** All of the only lane. */
export const WHOLE: readonly LaneStart[] = [{ lane: 0, page: 0 }];

/** The sending end of one channel, over a recording pump. */
export function recorder(
  memory: GuestMemory,
  given: Partial<PackerSource> = {},
): { packer: PagePacker; pump: RecordingPump; hashes: PageHashes } {
  const hashes = new PageHashes(memory, allocateHashTable(memory.pages));
  const pump = new RecordingPump(memory);
  return { packer: new PagePacker({ memory, hashes, lanes: 1, compression: "none", ...given }, pump), pump, hashes };
}

/** One round of a fresh channel; of lane 0 alone unless told otherwise. */
export async function packRound(
  memory: GuestMemory,
  pages: Bitmap,
  given: Partial<PackerSource> = {},
  from: readonly LaneStart[] = WHOLE,
): Promise<{ packets: Buffer[]; sent: RoundSent }> {
  const { packer, pump } = recorder(memory, given);
  const sent = await packer.sendRound(1, pages, from);
  return { packets: pump.packets, sent };
}
