import { MigrationError } from "./errors.js";
import { HEADER_BYTES, PageEncoding, RUN_BYTES, TABLE_BYTES_MAX, checkRunTable, decodeHeader } from "./packet.js";
import type { PacketHeader, RunBounds } from "./packet.js";

/** Where decoded packets go. Calls come in this order for each packet: begin, payload (zero or more), end. */
export interface PacketSink {
  /** @param head header and run table, checked; valid until `end`. */
  begin(header: PacketHeader, head: Buffer, dataPages: number): void;
  /** Raw: the next bytes of the pages, any length. Encoded: the whole payload, once; it is the sink's to change. Never kept after the call. */
  payload(bytes: Buffer): void;
  end(): void;
}

/**
 * Chunks in, packets out. Buffers header, run table and encoded payloads, up to their limits; raw page bytes pass through.
 * @throws {MigrationError} from `push`: whatever packet.ts refuses, and ERR_PACKET_SEQUENCE.
 */
export class PacketDecoder {
  readonly #bounds: RunBounds;
  readonly #sink: PacketSink;
  readonly #head = Buffer.alloc(HEADER_BYTES + TABLE_BYTES_MAX);
  #headBytes = 0;
  #header: PacketHeader | undefined;
  #payloadLeft = 0;
  #blocks: Buffer | undefined;
  #inPayload = false;
  #sequence = 0;

  constructor(bounds: RunBounds, sink: PacketSink) {
    this.#bounds = bounds;
    this.#sink = sink;
  }

  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.byteLength) at += this.#inPayload ? this.#takePayload(chunk.subarray(at)) : this.#takeHead(chunk.subarray(at));
  }

  #takeHead(chunk: Buffer): number {
    const want = this.#header === undefined ? HEADER_BYTES : HEADER_BYTES + (this.#header.dataRuns + this.#header.zeroRuns) * RUN_BYTES;
    const taken = Math.min(chunk.byteLength, want - this.#headBytes);
    this.#head.set(chunk.subarray(0, taken), this.#headBytes);
    this.#headBytes += taken;
    if (this.#headBytes < want) return taken;
    if (this.#header === undefined) {
      const header = decodeHeader(this.#head);
      checkSequence(header, this.#sequence);
      this.#sequence++;
      this.#header = header;
      if (this.#header.dataRuns + this.#header.zeroRuns > 0) return taken; // the table comes next
    }
    this.#begin(this.#header);
    return taken;
  }

  #begin(header: PacketHeader): void {
    const dataPages = checkRunTable(this.#head, header, this.#bounds);
    this.#sink.begin(header, this.#head, dataPages);
    this.#payloadLeft = header.payloadBytes;
    this.#inPayload = header.payloadBytes > 0;
    if (header.encoding !== PageEncoding.Raw) this.#blocks = Buffer.allocUnsafe(header.payloadBytes);
    if (!this.#inPayload) this.#end();
  }

  #takePayload(chunk: Buffer): number {
    const taken = Math.min(chunk.byteLength, this.#payloadLeft);
    const bytes = chunk.subarray(0, taken);
    if (this.#blocks === undefined) this.#sink.payload(bytes);
    else this.#blocks.set(bytes, this.#blocks.byteLength - this.#payloadLeft);
    this.#payloadLeft -= taken;
    if (this.#payloadLeft === 0) {
      if (this.#blocks !== undefined) this.#sink.payload(this.#blocks);
      this.#end();
    }
    return taken;
  }

  #end(): void {
    this.#blocks = undefined;
    this.#header = undefined;
    this.#headBytes = 0;
    this.#inPayload = false;
    this.#sink.end();
  }
}

/** A gap would mean a page version lost without a trace. @throws {MigrationError} ERR_PACKET_SEQUENCE */
export function checkSequence(header: PacketHeader, expected: number): void {
  if (header.sequence !== expected)
    throw new MigrationError("ERR_PACKET_SEQUENCE", `Packet ${header.sequence} where ${expected} must come`);
}
