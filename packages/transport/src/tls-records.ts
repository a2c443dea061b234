import { AEAD_TAG_BYTES, Aead, addressOf } from "@precopy/linux";
import type { Pieces } from "@precopy/linux";
import { MigrationError } from "@precopy/protocol";
import { nextSecret, recordKeys } from "@precopy/security";
import type { TrafficSecret } from "@precopy/security";

// Records of TLS 1.3 (RFC 8446, 5): a header, which is vouched for; sealed, the content, its type and any zeros; the tag.
//   0 outer type u8, always application_data | 1 version u16, 0x0303 | 3 length u16 of all that follows
const HEADER_BYTES = 5;
const CONTENT_BYTES_MAX = 2 ** 14;
/** Behind the header: content and type, or less of it and zeros that hide how much; and the tag. */
const SEALED_BYTES_MAX = CONTENT_BYTES_MAX + 1 + AEAD_TAG_BYTES;
/** Of a record, what is not its content, if it has no such zeros. */
export const RECORD_OVERHEAD_BYTES = HEADER_BYTES + 1 + AEAD_TAG_BYTES;
const ContentType = { Alert: 21, Handshake: 22, ApplicationData: 23 } as const;
/** "My next record has the next keys", and no wish that the peer does so, too. */
const KEY_UPDATE = Buffer.from([24, 0, 0, 1, 0]);
/** Long before the 2^24.5 records for which AES-GCM is good under one key (RFC 8446, 5.5): 64 GiB. */
const RECORDS_PER_KEY = 2 ** 22;
/** Records in one system call; they and what they say stay in a processor's cache. */
const RECORDS_AT_ONCE = 16;

/** Keys and count of one direction. */
class RecordKey {
  readonly #isSealing: boolean;
  #secret: TrafficSecret;
  #aead: Aead;
  #mask: Buffer;
  #sequence: number;

  constructor(secret: TrafficSecret, sequence: number, isSealing: boolean) {
    this.#isSealing = isSealing;
    this.#secret = secret;
    [this.#aead, this.#mask] = this.#derive();
    this.#sequence = sequence;
  }

  #derive(): [Aead, Buffer] {
    const { aead, key, nonce } = recordKeys(this.#secret);
    try {
      return [new Aead(aead, key, this.#isSealing), nonce];
    } finally {
      key.fill(0);
    }
  }

  /** Of records under this key. */
  get sequence(): number {
    return this.#sequence;
  }

  /** The next record. @param header its address */
  begin(header: number): Aead {
    const { nonce } = this.#aead;
    this.#mask.copy(nonce, 0, 0, 4);
    nonce.writeUInt32BE((this.#mask.readUInt32BE(4) ^ Math.floor(this.#sequence / 2 ** 32)) >>> 0, 4);
    nonce.writeUInt32BE((this.#mask.readUInt32BE(8) ^ (this.#sequence % 2 ** 32)) >>> 0, 8);
    this.#sequence++;
    this.#aead.begin(header, HEADER_BYTES);
    return this.#aead;
  }

  renew(): void {
    const old = this.#secret;
    this.#secret = nextSecret(old);
    old.secret.fill(0);
    this.#aead.close();
    this.#mask.fill(0);
    [this.#aead, this.#mask] = this.#derive();
    this.#sequence = 0;
  }

  close(): void {
    this.#aead.close();
    this.#mask.fill(0);
    this.#secret.secret.fill(0);
  }
}

/** Seals what lies anywhere in memory, a guest that writes there included: what is vouched for is what was sealed. */
export class RecordSealer {
  readonly #key: RecordKey;
  readonly #write: (records: Buffer) => boolean;
  readonly #recordsPerKey: number;
  readonly #records = Buffer.allocUnsafeSlow(RECORDS_AT_ONCE * (CONTENT_BYTES_MAX + RECORD_OVERHEAD_BYTES));
  readonly #recordsAt = Number(addressOf(this.#records));
  #used = 0;

  /**
   * @param secret this object's from now on. @param sequence of the first record: how many the connection has sent under it.
   * @param write takes whole records, which are written over when it returns; false ends it. @param recordsPerKey for tests
   */
  constructor(secret: TrafficSecret, sequence: number, write: (records: Buffer) => boolean, recordsPerKey = RECORDS_PER_KEY) {
    this.#key = new RecordKey(secret, sequence, true);
    this.#write = write;
    this.#recordsPerKey = recordsPerKey;
  }

  /** Seals and writes the first `count` pieces, all of them. Returns false as soon as `write` does. */
  writeAll({ words }: Pieces, count: number): boolean {
    let left = 0;
    for (let piece = 0; piece < count; piece++) left += Number(words[2 * piece + 1]);
    let piece = 0;
    let taken = 0; // of that piece
    while (left > 0) {
      if (this.#key.sequence >= this.#recordsPerKey && !this.#updateKey()) return false;
      const bytes = Math.min(left, CONTENT_BYTES_MAX);
      if (!this.#hasRoom(bytes)) return false;
      const aead = this.#begin(bytes);
      for (let at = 0; at < bytes; ) {
        const length = Number(words[2 * piece + 1]);
        const part = Math.min(length - taken, bytes - at);
        aead.update(this.#recordsAt + this.#used + at, Number(words[2 * piece]) + taken, part);
        at += part;
        taken = taken + part === length ? 0 : taken + part;
        if (taken === 0) piece++;
      }
      this.#end(aead, bytes, ContentType.ApplicationData);
      left -= bytes;
    }
    return this.#flush();
  }

  #updateKey(): boolean {
    if (!this.#hasRoom(KEY_UPDATE.byteLength)) return false;
    const aead = this.#begin(KEY_UPDATE.byteLength);
    this.#records.set(KEY_UPDATE, this.#used);
    aead.update(this.#recordsAt + this.#used, this.#recordsAt + this.#used, KEY_UPDATE.byteLength);
    this.#end(aead, KEY_UPDATE.byteLength, ContentType.Handshake);
    this.#key.renew();
    return true;
  }

  #hasRoom(bytes: number): boolean {
    return this.#used + bytes + RECORD_OVERHEAD_BYTES <= this.#records.byteLength || this.#flush();
  }

  #begin(bytes: number): Aead {
    const at = this.#used;
    this.#records[at] = ContentType.ApplicationData;
    this.#records.writeUInt16BE(0x0303, at + 1);
    this.#records.writeUInt16BE(bytes + 1 + AEAD_TAG_BYTES, at + 3);
    this.#used += HEADER_BYTES;
    return this.#key.begin(this.#recordsAt + at);
  }

  #end(aead: Aead, bytes: number, type: number): void {
    const typeAt = this.#used + bytes;
    this.#records[typeAt] = type;
    aead.update(this.#recordsAt + typeAt, this.#recordsAt + typeAt, 1);
    aead.seal(this.#recordsAt + typeAt + 1);
    this.#used = typeAt + 1 + AEAD_TAG_BYTES;
  }

  #flush(): boolean {
    const records = this.#records.subarray(0, this.#used);
    this.#used = 0;
    return records.byteLength === 0 || this.#write(records);
  }

  close(): void {
    this.#key.close();
  }
}

const notGenuine = (what: string): MigrationError => new MigrationError("ERR_LINK_LOST", `A page channel broke: ${what}`);

/** Opens records into memory of its own: what is not vouched for goes no further. */
export class RecordOpener {
  readonly #key: RecordKey;
  readonly #records = Buffer.allocUnsafeSlow(RECORDS_AT_ONCE * (HEADER_BYTES + SEALED_BYTES_MAX));
  readonly #recordsAt = Number(addressOf(this.#records));
  readonly #opened = Buffer.allocUnsafeSlow(this.#records.byteLength);
  readonly #openedAt = Number(addressOf(this.#opened));
  #used = 0; // bytes of records that are not whole yet
  #isEnded = false;

  /** @param secret this object's from now on. @param sequence of the first record */
  constructor(secret: TrafficSecret, sequence: number) {
    this.#key = new RecordKey(secret, sequence, false);
  }

  /** Where the next bytes of the connection go; at least one. */
  get room(): Buffer {
    return this.#records.subarray(this.#used);
  }

  /** The peer said that this was all. */
  get isEnded(): boolean {
    return this.#isEnded;
  }

  /**
   * @param bytes how many have come into `room`. @returns what the records that are whole now say, end to end; good until the next call
   * @throws {MigrationError} ERR_LINK_LOST for what is no record of this peer's
   */
  open(bytes: number): Buffer {
    this.#used += bytes;
    let at = 0;
    let to = 0;
    while (!this.#isEnded && this.#used - at >= HEADER_BYTES) {
      const sealed = this.#records.readUInt16BE(at + 3);
      if (this.#records[at] !== ContentType.ApplicationData || sealed > SEALED_BYTES_MAX || sealed <= AEAD_TAG_BYTES)
        throw notGenuine("what came is no record of TLS");
      const next = at + HEADER_BYTES + sealed;
      if (next > this.#used) break;
      to += this.#openOne(at, sealed - AEAD_TAG_BYTES, to);
      at = next;
    }
    this.#records.copyWithin(0, at, this.#used);
    this.#used -= at;
    return this.#opened.subarray(0, to);
  }

  /** @returns how many bytes of data it has */
  #openOne(at: number, bytes: number, to: number): number {
    const from = this.#recordsAt + at;
    const aead = this.#key.begin(from);
    aead.update(this.#openedAt + to, from + HEADER_BYTES, bytes);
    if (!aead.isGenuine(from + HEADER_BYTES + bytes)) throw notGenuine("a record was changed on its way");
    let end = to + bytes; // zeros behind the type hide how long the content is
    while (end > to && this.#opened[end - 1] === 0) end--;
    const content = this.#opened.subarray(to, end - 1);
    switch (end > to ? this.#opened[end - 1] : undefined) {
      case ContentType.ApplicationData:
        return content.byteLength;
      case ContentType.Alert:
        this.#isEnded = true;
        return 0;
      case ContentType.Handshake:
        if (!content.equals(KEY_UPDATE)) throw notGenuine("a handshake message that pages do not come with");
        this.#key.renew();
        return 0;
      default:
        throw notGenuine("a record of no known type");
    }
  }

  close(): void {
    this.#key.close();
    this.#opened.fill(0);
  }
}
