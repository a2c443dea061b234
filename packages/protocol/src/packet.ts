import { crc32 } from "node:zlib";
import { MigrationError } from "./errors.js";
import {
  CHANNELS_MAX,
  PACKET_DATA_RUNS_MAX,
  PACKET_PAGES_MAX,
  PACKET_PAYLOAD_BYTES_MAX,
  PACKET_ZERO_RUNS_MAX,
  PAGE_BYTES,
} from "./limits.js";

/**
 * Packet header: 32 bytes, little-endian; run table and payload follow. Magic and version never move (docs/wire-format.md).
 *   0 magic u32 | 4 version u8 | 5 kind u8 | 6 encoding u8 | 7 flags u8, zero
 *   8 round u32 | 12 sequence u32, per channel, from 0 | 16 dataRuns u16 | 18 zeroRuns u16 | 20 payloadBytes u32 | 24 lanes u32, one bit a lane, zero but in FLUSH
 *   28 CRC-32 u32 (zlib.crc32) of bytes 0 to 27 and the run table
 * Run table: dataRuns, then zeroRuns, entries of (first page u32, pages u32). Payload: the data runs' pages end to end (raw), or blocks (lz4), or deltas (xbzrle).
 */
export const HEADER_BYTES = 32;
export const RUN_BYTES = 8;
export const PACKET_MAGIC = 0x474d564c; // reads "LVMG" on the wire
export const PROTOCOL_VERSION = 4;
export const TABLE_BYTES_MAX = (PACKET_DATA_RUNS_MAX + PACKET_ZERO_RUNS_MAX) * RUN_BYTES;

/** Numbers are never reused. Flush ends a round of the lanes it names and carries no runs. */
export const PacketKind = { Pages: 1, Flush: 2 } as const;
export type PacketKind = (typeof PacketKind)[keyof typeof PacketKind];
export const PageEncoding = { Raw: 0, Lz4: 1, Xbzrle: 2, Zstd: 3 } as const;
export type PageEncoding = (typeof PageEncoding)[keyof typeof PageEncoding];

const isPacketKind = (value: number): value is PacketKind => value === PacketKind.Pages || value === PacketKind.Flush;
const ENCODINGS: readonly number[] = Object.values(PageEncoding);
const isEncoding = (value: number): value is PageEncoding => ENCODINGS.includes(value);

export interface PacketHeader {
  readonly kind: PacketKind;
  readonly encoding: PageEncoding;
  readonly round: number;
  readonly sequence: number;
  readonly dataRuns: number;
  readonly zeroRuns: number;
  readonly payloadBytes: number;
  /** FLUSH: bit `l` is set if the round ends for lane `l` here. Pages: 0. */
  readonly lanes: number;
}

/** Writes header and checksum in front of a run table that already stands at `bytes[HEADER_BYTES]`; returns the bytes of both. */
export function encodeHeader(bytes: Buffer, header: PacketHeader): number {
  const end = HEADER_BYTES + (header.dataRuns + header.zeroRuns) * RUN_BYTES;
  bytes.writeUInt32LE(PACKET_MAGIC, 0);
  bytes[4] = PROTOCOL_VERSION;
  bytes[5] = header.kind;
  bytes[6] = header.encoding;
  bytes[7] = 0;
  bytes.writeUInt32LE(header.round, 8);
  bytes.writeUInt32LE(header.sequence, 12);
  bytes.writeUInt16LE(header.dataRuns, 16);
  bytes.writeUInt16LE(header.zeroRuns, 18);
  bytes.writeUInt32LE(header.payloadBytes, 20);
  bytes.writeUInt32LE(header.lanes, 24);
  bytes.writeUInt32LE(crc32(bytes.subarray(HEADER_BYTES, end), crc32(bytes.subarray(0, 28))), 28);
  return end;
}

/**
 * Reads a header; every bound is checked here, before anything is allocated.
 * @param bytes at least HEADER_BYTES. @throws {MigrationError} ERR_NOT_A_PACKET, ERR_PROTOCOL_VERSION, ERR_PAYLOAD_TOO_LARGE
 */
export function decodeHeader(bytes: Uint8Array): PacketHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
  const version = view.getUint8(4);
  const kind = view.getUint8(5);
  const encoding = view.getUint8(6);
  const dataRuns = view.getUint16(16, true);
  const zeroRuns = view.getUint16(18, true);
  const payloadBytes = view.getUint32(20, true);
  const lanes = view.getUint32(24, true);
  if (view.getUint32(0, true) !== PACKET_MAGIC) throw new MigrationError("ERR_NOT_A_PACKET", "Peer does not speak the page protocol");
  if (version !== PROTOCOL_VERSION)
    throw new MigrationError("ERR_PROTOCOL_VERSION", `Peer speaks version ${version}, we speak ${PROTOCOL_VERSION}`);
  if (
    !isPacketKind(kind) ||
    !isEncoding(encoding) ||
    view.getUint8(7) !== 0 ||
    lanes >= (kind === PacketKind.Flush ? 2 ** CHANNELS_MAX : 1)
  )
    throw new MigrationError("ERR_NOT_A_PACKET", `Kind ${kind}, encoding ${encoding}, lanes or reserved bits unknown`);
  if (payloadBytes > PACKET_PAYLOAD_BYTES_MAX || dataRuns > PACKET_DATA_RUNS_MAX || zeroRuns > PACKET_ZERO_RUNS_MAX)
    throw new MigrationError("ERR_PAYLOAD_TOO_LARGE", `Peer announces ${dataRuns} + ${zeroRuns} runs and ${payloadBytes} B`);
  if (kind === PacketKind.Flush && (dataRuns | zeroRuns | payloadBytes) !== 0)
    throw new MigrationError("ERR_NOT_A_PACKET", "A FLUSH packet carries no pages");
  return { kind, encoding, round: view.getUint32(8, true), sequence: view.getUint32(12, true), dataRuns, zeroRuns, payloadBytes, lanes };
}

/** What a run table must fit into: the guest's pages, and the lanes that its channel carries. */
export interface RunBounds {
  readonly pages: number;
  mayCarry(firstPage: number, pages: number): boolean;
}

/**
 * Checks the checksum and every run of a table, and returns the pages in its data runs.
 * @param head header and run table, end to end.
 * @throws {MigrationError} ERR_PACKET_CHECKSUM, ERR_RUN_OUT_OF_RANGE, ERR_PAYLOAD_TOO_LARGE, ERR_NOT_A_PACKET
 */
export function checkRunTable(head: Buffer, header: PacketHeader, bounds: RunBounds): number {
  const end = HEADER_BYTES + (header.dataRuns + header.zeroRuns) * RUN_BYTES;
  const checksum = crc32(head.subarray(HEADER_BYTES, end), crc32(head.subarray(0, 28)));
  if (checksum !== head.readUInt32LE(28))
    throw new MigrationError("ERR_PACKET_CHECKSUM", `Header and run table of packet ${header.sequence} are damaged`);
  let dataPages = 0;
  for (let run = 0, at = HEADER_BYTES; at < end; run++, at += RUN_BYTES) {
    const first = head.readUInt32LE(at);
    const count = head.readUInt32LE(at + 4);
    if (count === 0 || first + count > bounds.pages || !bounds.mayCarry(first, count))
      throw new MigrationError("ERR_RUN_OUT_OF_RANGE", `Run of ${count} pages at page ${first}; the guest has ${bounds.pages}`);
    if (run < header.dataRuns) dataPages += count;
  }
  if (dataPages > PACKET_PAGES_MAX)
    throw new MigrationError("ERR_PAYLOAD_TOO_LARGE", `Packet of ${dataPages} pages, at most ${PACKET_PAGES_MAX}`);
  if (header.encoding === PageEncoding.Raw && header.payloadBytes !== dataPages * PAGE_BYTES)
    throw new MigrationError("ERR_NOT_A_PACKET", `${header.payloadBytes} B of payload for ${dataPages} pages`);
  if ((header.payloadBytes === 0) !== (dataPages === 0))
    throw new MigrationError("ERR_NOT_A_PACKET", `${header.payloadBytes} B of payload for ${dataPages} pages`);
  return dataPages;
}
