import { ETHERNET_HEADER_BYTES, PAGE_BYTES, formatMac, macBytes } from "@precopy/protocol";

/**
 * A request to the ledger workload, or its reply: one Ethernet frame of 60 bytes, the shortest there is. Payload little-endian.
 *   0 target MAC | 6 source MAC | 12 ethertype u16, big-endian, 0x88b5 (IEEE 802: local experiments)
 *   14 magic u32 "PCLG" | 18 kind u8 | 19 reserved, 3 bytes, zero | 22 client u32 | 26 id u32, from 1 | 30 value u32 | 34 padding, zero
 */
export const LEDGER_FRAME_BYTES = 60;
const LEDGER_ETHERTYPE = 0x88b5;
const LEDGER_MAGIC = 0x474c4350; // reads "PCLG" on the wire
const PADDING_AT = ETHERNET_HEADER_BYTES + 20;

/** Apply and Read are asked; Applied, Value and Refused answer them. */
export const LedgerKind = { Apply: 1, Read: 2, Applied: 3, Value: 4, Refused: 5 } as const;
export type LedgerKind = (typeof LedgerKind)[keyof typeof LedgerKind];
const isLedgerKind = (value: number | undefined): value is LedgerKind => Object.values<number | undefined>(LedgerKind).includes(value);

export interface LedgerFrame {
  readonly targetMac: string;
  readonly sourceMac: string;
  readonly kind: LedgerKind;
  /** Whose ids these are; u32. */
  readonly client: number;
  /** Request id, u32 from 1; a reply has its request's. Applications and reads count apart. */
  readonly id: number;
  /** u32: the amount of an Apply, the counter after it in its Applied, the counter in a Value; else zero. */
  readonly value: number;
}

/** Applications the ledger remembers a client; an id this much older than the newest may be forgotten, and is then refused. */
export const LEDGER_WINDOW_IDS = 65_536;
export const LEDGER_CLIENTS_MAX = 8;
/** id and result, both u32. */
export const LEDGER_SLOT_BYTES = 8;
/** Guest memory that the ledger takes: a page of its own, then a window a client. */
export const LEDGER_REGION_BYTES = PAGE_BYTES + LEDGER_CLIENTS_MAX * LEDGER_WINDOW_IDS * LEDGER_SLOT_BYTES;

export function encodeLedgerFrame({ targetMac, sourceMac, kind, client, id, value }: LedgerFrame): Buffer {
  const bytes = Buffer.alloc(LEDGER_FRAME_BYTES);
  bytes.set(macBytes(targetMac), 0);
  bytes.set(macBytes(sourceMac), 6);
  bytes.writeUInt16BE(LEDGER_ETHERTYPE, 12);
  bytes.writeUInt32LE(LEDGER_MAGIC, 14);
  bytes[18] = kind;
  bytes.writeUInt32LE(client, 22);
  bytes.writeUInt32LE(id, 26);
  bytes.writeUInt32LE(value, 30);
  return bytes;
}

/** Undefined for anything that is not such a frame. */
export function decodeLedgerFrame(frame: Uint8Array): LedgerFrame | undefined {
  if (frame.byteLength !== LEDGER_FRAME_BYTES) return undefined;
  const bytes = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength);
  const kind = bytes[18];
  const id = bytes.readUInt32LE(26);
  if (bytes.readUInt16BE(12) !== LEDGER_ETHERTYPE || bytes.readUInt32LE(14) !== LEDGER_MAGIC || !isLedgerKind(kind) || id === 0)
    return undefined;
  if (bytes.readUIntLE(19, 3) !== 0 || bytes.subarray(PADDING_AT).some((byte) => byte !== 0)) return undefined;
  const addresses = { targetMac: formatMac(bytes), sourceMac: formatMac(bytes.subarray(6)) };
  return { ...addresses, kind, client: bytes.readUInt32LE(22), id, value: bytes.readUInt32LE(30) };
}
