/** How the bytes of a connection fall into messages behind the HTTP head with which each connection begins. */
export type Framing = "websocket" | "packets" | "opaque";

const HEAD_END = Buffer.from("\r\n\r\n");
const PACKET_HEADER_BYTES = 32;
const PACKET_MAGIC = 0x474d564c;
const RUN_BYTES = 8;

/** How long the WebSocket frame is that begins here (RFC 6455, 5.2), and whether it ends a message; undefined: more bytes are needed to tell. */
function frameAt(bytes: Buffer): { readonly length: number; readonly isLast: boolean } | undefined {
  if (bytes.byteLength < 2) return undefined;
  const short = bytes[1]! & 0x7f;
  const header = 2 + (short === 126 ? 2 : short === 127 ? 8 : 0) + ((bytes[1]! & 0x80) === 0 ? 0 : 4);
  if (bytes.byteLength < header) return undefined;
  const payload = short === 126 ? bytes.readUInt16BE(2) : short === 127 ? Number(bytes.readBigUInt64BE(2)) : short;
  return { length: header + payload, isLast: (bytes[0]! & 0x80) !== 0 };
}

/** Length of the page packet that begins here (docs/wire-format.md, 4); infinite if it is none: what follows cannot be told apart. */
function packetAt(bytes: Buffer): { readonly length: number; readonly isLast: boolean } | undefined {
  if (bytes.byteLength < PACKET_HEADER_BYTES) return undefined;
  if (bytes.readUInt32LE(0) !== PACKET_MAGIC) return { length: Number.POSITIVE_INFINITY, isLast: false };
  const runs = bytes.readUInt16LE(16) + bytes.readUInt16LE(18);
  return { length: PACKET_HEADER_BYTES + runs * RUN_BYTES + bytes.readUInt32LE(20), isLast: true };
}

/** Where messages end in one direction of one connection: the HTTP head is the first of them. Chunks may be cut anywhere. */
export class Boundaries {
  readonly #framing: Framing;
  /** Bytes of a head or header that is not complete yet. */
  #begun: Buffer = Buffer.alloc(0);
  #isHead = true;
  /** Of the message under way, behind its header. */
  #left = 0;
  #isLast = false;

  constructor(framing: Framing) {
    this.#framing = framing;
  }

  /** Offsets in `chunk` at which a message ends, ascending, from 1 to its length. */
  feed(chunk: Buffer): number[] {
    const ends: number[] = [];
    for (let at = 0; at < chunk.byteLength; ) {
      if (this.#left === 0) {
        const known = this.#begun.byteLength;
        const bytes = known === 0 ? chunk.subarray(at) : Buffer.concat([this.#begun, chunk.subarray(at, at + 2 ** 13)]);
        const next = this.#next(bytes);
        if (next === undefined) {
          this.#begun = Buffer.from(bytes);
          return ends;
        }
        this.#begun = Buffer.alloc(0);
        this.#left = next.length - known;
        this.#isLast = next.isLast;
      }
      const taken = Math.min(this.#left, chunk.byteLength - at);
      at += taken;
      this.#left -= taken;
      if (this.#left === 0 && this.#isLast) ends.push(at);
    }
    return ends;
  }

  #next(bytes: Buffer): { readonly length: number; readonly isLast: boolean } | undefined {
    if (this.#isHead) {
      const end = bytes.indexOf(HEAD_END);
      if (end < 0) return undefined;
      this.#isHead = false;
      return { length: end + HEAD_END.byteLength, isLast: true };
    }
    if (this.#framing === "websocket") return frameAt(bytes);
    if (this.#framing === "packets") return packetAt(bytes);
    return { length: Number.POSITIVE_INFINITY, isLast: false };
  }
}
