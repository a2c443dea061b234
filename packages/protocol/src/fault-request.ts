import { crc32 } from "node:zlib";
import { MigrationError } from "./errors.js";

/**
 * What a target asks for on the fault channel: 16 bytes, little-endian.
 *   0 magic u32 | 4 page u32 | 8 sequence u32, from 0 | 12 CRC-32 u32 (zlib.crc32) of bytes 0 to 11
 * It is answered by a packet of that page alone, with a sequence of its own.
 */
export const FAULT_REQUEST_BYTES = 16;
const MAGIC = 0x54464d56; // reads "VMFT" on the wire

export function encodeFaultRequest(into: Buffer, page: number, sequence: number): void {
  into.writeUInt32LE(MAGIC, 0);
  into.writeUInt32LE(page, 4);
  into.writeUInt32LE(sequence, 8);
  into.writeUInt32LE(crc32(into.subarray(0, 12)), 12);
}

/**
 * @param pages of the guest. @returns the page. @throws {MigrationError} ERR_NOT_A_PACKET, ERR_PACKET_CHECKSUM, ERR_PACKET_SEQUENCE, ERR_RUN_OUT_OF_RANGE
 */
export function decodeFaultRequest(bytes: Buffer, sequence: number, pages: number): number {
  if (bytes.readUInt32LE(0) !== MAGIC) throw new MigrationError("ERR_NOT_A_PACKET", "Peer does not speak the fault protocol");
  if (bytes.readUInt32LE(12) !== crc32(bytes.subarray(0, 12)))
    throw new MigrationError("ERR_PACKET_CHECKSUM", `Request ${sequence} for a page is damaged`);
  if (bytes.readUInt32LE(8) !== sequence)
    throw new MigrationError("ERR_PACKET_SEQUENCE", `Request ${bytes.readUInt32LE(8)} where ${sequence} must come`);
  const page = bytes.readUInt32LE(4);
  if (page >= pages) throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `Request for page ${page}; the guest has ${pages}`);
  return page;
}
