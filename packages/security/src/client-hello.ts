import { CLIENT_HELLO_BYTES_MAX } from "@precopy/protocol";

/**
 * What the first bytes of a connection are: a TLS ClientHello (RFC 8446, 4.1.2) and the protocols that it offers (RFC 7301), as far as they can be
 * read; something else; or too little to tell. The bytes are anybody's: nothing is believed but that they came.
 */
export type FirstBytes =
  | { readonly kind: "tls"; readonly protocols: readonly string[] }
  | { readonly kind: "other" }
  | { readonly kind: "more" };

const RECORD_HEADER_BYTES = 5;
const HANDSHAKE_RECORD = 22;
const HANDSHAKE_HEADER_BYTES = 4;
const CLIENT_HELLO = 1;
const VERSION_AND_RANDOM_BYTES = 34;
const ALPN = 16;

const UNREADABLE: FirstBytes = { kind: "tls", protocols: [] };

/** @param bytes all that has come so far */
export function readFirstBytes(bytes: Buffer): FirstBytes {
  if (bytes.byteLength === 0) return { kind: "more" };
  if (bytes[0] !== HANDSHAKE_RECORD) return { kind: "other" };
  const hello: Buffer[] = [];
  let have = 0;
  let need = HANDSHAKE_HEADER_BYTES;
  // A hello may be spread over several records.
  for (let at = 0; have < need; ) {
    if (bytes.byteLength < at + RECORD_HEADER_BYTES) return tooLittle(bytes);
    if (bytes[at] !== HANDSHAKE_RECORD) return UNREADABLE;
    const length = bytes.readUInt16BE(at + 3);
    if (length === 0) return UNREADABLE;
    const end = at + RECORD_HEADER_BYTES + length;
    if (bytes.byteLength < end) return tooLittle(bytes);
    hello.push(bytes.subarray(at + RECORD_HEADER_BYTES, end));
    have += length;
    at = end;
    if (need === HANDSHAKE_HEADER_BYTES && have >= need) {
      const head = Buffer.concat(hello);
      if (head[0] !== CLIENT_HELLO) return UNREADABLE;
      need += head.readUIntBE(1, 3);
      if (need > CLIENT_HELLO_BYTES_MAX) return UNREADABLE;
    }
  }
  return { kind: "tls", protocols: protocolsOf(Buffer.concat(hello).subarray(HANDSHAKE_HEADER_BYTES, need)) };
}

const tooLittle = (bytes: Buffer): FirstBytes => (bytes.byteLength > CLIENT_HELLO_BYTES_MAX ? UNREADABLE : { kind: "more" });

/** Reads vectors after their lengths; undefined once one would end beyond the bytes. */
class Cursor {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get left(): number {
    return this.#bytes.byteLength - this.#at;
  }

  take(bytes: number): Buffer | undefined {
    if (bytes > this.left) return undefined;
    this.#at += bytes;
    return this.#bytes.subarray(this.#at - bytes, this.#at);
  }

  /** @param lengthBytes of the length in front of it */
  vector(lengthBytes: 1 | 2): Buffer | undefined {
    const length = this.take(lengthBytes);
    return length === undefined ? undefined : this.take(length.readUIntBE(0, lengthBytes));
  }
}

function protocolsOf(hello: Buffer): string[] {
  const body = new Cursor(hello);
  body.take(VERSION_AND_RANDOM_BYTES);
  body.vector(1); // session id
  body.vector(2); // cipher suites
  body.vector(1); // compression methods
  const extensions = new Cursor(body.vector(2) ?? Buffer.alloc(0));
  while (extensions.left > 0) {
    const type = extensions.take(2)?.readUInt16BE();
    const data = extensions.vector(2);
    if (type === undefined || data === undefined) return [];
    if (type !== ALPN) continue;
    const names = new Cursor(new Cursor(data).vector(2) ?? Buffer.alloc(0));
    const protocols: string[] = [];
    while (names.left > 0) {
      const name = names.vector(1);
      if (name === undefined) return [];
      protocols.push(name.toString("latin1"));
    }
    return protocols;
  }
  return [];
}
