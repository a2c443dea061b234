import { createHash } from "node:crypto";

/**
 * A guest's Ethernet frame in a UDP datagram: 24 bytes of header, then the frame without checksum (docs/wire-format.md).
 *   0 magic u32 "PCFR" | 4 version u8 | 5 kind u8 | 6 reserved u16, zero | 8 guest tag, 8 bytes | 16 epoch u32 | 20 reserved u32, zero
 * The guest tag is the start of the SHA-256 of the guest's id; a port that is no guest has tag and epoch zero.
 */
export const FRAME_HEADER_BYTES = 24;
export const FRAME_MAGIC = 0x52464350; // reads "PCFR" on the wire
/** Ethernet header and 1,500 bytes of payload. */
export const FRAME_BYTES_MAX = 1514;
export const ETHERNET_HEADER_BYTES = 14;
const FRAME_VERSION = 1;

/** Frame: carries one. Hello: a port says that it is there, so that the switch floods to it. */
export const DatagramKind = { Frame: 1, Hello: 2 } as const;
export type DatagramKind = (typeof DatagramKind)[keyof typeof DatagramKind];

export interface Datagram {
  readonly kind: DatagramKind;
  /** 16 hexadecimal digits; all zero for a port that is no guest. */
  readonly guestTag: string;
  readonly epoch: number;
  /** Aliases the datagram it came from; empty for Hello. */
  readonly frame: Buffer;
}

export const NO_GUEST_TAG = "0000000000000000";
export const guestTag = (guestId: string): string => createHash("sha256").update(guestId).digest("hex").slice(0, 16);

/** Locally administered address derived from an id, with QEMU's prefix. */
export const macOf = (id: string): string =>
  ["52", "54", "00", ...(createHash("sha256").update(`mac ${id}`).digest("hex").slice(0, 6).match(/../g) ?? [])].join(":");

export const BROADCAST_MAC = "ff:ff:ff:ff:ff:ff";
export const macBytes = (mac: string): Buffer => Buffer.from(mac.replaceAll(":", ""), "hex");
export const formatMac = (bytes: Uint8Array): string =>
  Buffer.from(bytes.subarray(0, 6))
    .toString("hex")
    .replace(/..(?=.)/g, "$&:");

/** @param frame at most FRAME_BYTES_MAX bytes, empty for Hello. */
export function encodeDatagram(kind: DatagramKind, tag: string, epoch: number, frame: Uint8Array): Buffer {
  const bytes = Buffer.alloc(FRAME_HEADER_BYTES + frame.byteLength);
  bytes.writeUInt32LE(FRAME_MAGIC, 0);
  bytes[4] = FRAME_VERSION;
  bytes[5] = kind;
  bytes.write(tag, 8, 8, "hex");
  bytes.writeUInt32LE(epoch, 16);
  bytes.set(frame, FRAME_HEADER_BYTES);
  return bytes;
}

/** Undefined for anything that is not a datagram of ours: a network drops what it does not understand. */
export function decodeDatagram(bytes: Buffer): Datagram | undefined {
  if (bytes.byteLength < FRAME_HEADER_BYTES || bytes.byteLength > FRAME_HEADER_BYTES + FRAME_BYTES_MAX) return undefined;
  if (bytes.readUInt32LE(0) !== FRAME_MAGIC || bytes[4] !== FRAME_VERSION || bytes.readUInt16LE(6) !== 0 || bytes.readUInt32LE(20) !== 0)
    return undefined;
  const kind = bytes[5];
  const frame = bytes.subarray(FRAME_HEADER_BYTES);
  if (kind !== DatagramKind.Frame && kind !== DatagramKind.Hello) return undefined;
  if (kind === DatagramKind.Frame ? frame.byteLength < ETHERNET_HEADER_BYTES : frame.byteLength !== 0) return undefined;
  return { kind, guestTag: bytes.toString("hex", 8, 16), epoch: bytes.readUInt32LE(16), frame };
}

/** Reverse ARP, broadcast: tells every switch on the way where this address is now, as QEMU's announce does. */
export function announceFrame(mac: string): Buffer {
  const own = macBytes(mac);
  const frame = Buffer.alloc(60);
  frame.set(macBytes(BROADCAST_MAC), 0);
  frame.set(own, 6);
  frame.writeUInt16BE(0x8035, 12);
  frame.writeUInt16BE(1, 14); // Ethernet
  frame.writeUInt16BE(0x0800, 16); // IPv4
  frame.writeUInt8(6, 18);
  frame.writeUInt8(4, 19);
  frame.writeUInt16BE(3, 20); // request reverse
  frame.set(own, 22);
  frame.set(own, 32);
  return frame;
}
