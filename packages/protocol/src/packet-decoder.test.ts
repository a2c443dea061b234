import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { PACKET_PAYLOAD_BYTES_MAX, PAGE_BYTES } from "./limits.js";
import { PacketDecoder, checkSequence } from "./packet-decoder.js";
import { HEADER_BYTES, PacketKind, PageEncoding, RUN_BYTES, decodeHeader, encodeHeader } from "./packet.js";
import type { PacketHeader, RunBounds } from "./packet.js";

const GUEST: RunBounds = { pages: 4096, mayCarry: () => true };

interface Packet {
  readonly encoding: PageEncoding;
  readonly data: readonly (readonly [number, number])[];
  readonly zero: readonly (readonly [number, number])[];
  /** Undefined: a FLUSH. */
  readonly payload: Buffer | undefined;
}
const bytesOf = ({ encoding, data, zero, payload }: Packet, sequence: number, fields: Partial<PacketHeader> = {}): Buffer => {
  const head = Buffer.alloc(HEADER_BYTES + (data.length + zero.length) * RUN_BYTES);
  [...data, ...zero].forEach(([first, pages], at) => {
    head.writeUInt32LE(first, HEADER_BYTES + at * RUN_BYTES);
    head.writeUInt32LE(pages, HEADER_BYTES + at * RUN_BYTES + 4);
  });
  const kind = payload === undefined ? PacketKind.Flush : PacketKind.Pages;
  const header = {
    kind,
    encoding,
    round: 1,
    sequence,
    dataRuns: data.length,
    zeroRuns: zero.length,
    payloadBytes: payload?.byteLength ?? 0,
    lanes: 0,
  };
  encodeHeader(head, { ...header, ...fields });
  return Buffer.concat([head, payload ?? Buffer.alloc(0)]);
};
const stream = (packets: readonly Packet[]): Buffer => Buffer.concat(packets.map((packet, sequence) => bytesOf(packet, sequence)));

/** What a sink was told, with the raw bytes of one packet joined: their pieces depend on the chunks, and may. */
interface Told {
  readonly header: PacketHeader;
  readonly head: string;
  readonly dataPages: number;
  payload: Buffer;
  pieces: number;
  isEnded: boolean;
}
function decode(chunks: readonly Buffer[], bounds = GUEST): Told[] {
  const told: Told[] = [];
  const decoder = new PacketDecoder(bounds, {
    begin: (header, head, dataPages) => {
      assert.ok(told.at(-1)?.isEnded ?? true, "a packet began inside another");
      const end = HEADER_BYTES + (header.dataRuns + header.zeroRuns) * RUN_BYTES;
      told.push({ header, head: head.toString("hex", 0, end), dataPages, payload: Buffer.alloc(0), pieces: 0, isEnded: false });
    },
    payload: (bytes) => {
      const last = told.at(-1);
      assert.ok(last !== undefined && !last.isEnded, "payload outside a packet");
      last.payload = Buffer.concat([last.payload, bytes]);
      last.pieces++;
    },
    end: () => {
      const last = told.at(-1);
      assert.ok(last !== undefined && !last.isEnded, "end without a begin");
      last.isEnded = true;
    },
  });
  for (const chunk of chunks) decoder.push(chunk);
  return told;
}
const cut = (bytes: Buffer, every: number): Buffer[] =>
  Array.from({ length: Math.ceil(bytes.byteLength / every) }, (_, at) => bytes.subarray(at * every, (at + 1) * every));
/** Bits of the bytes [from, to). */
const bitsOf = (from: number, to: number): number[] => Array.from({ length: 8 * (to - from) }, (_, at) => 8 * from + at);
const content = (told: readonly Told[]): unknown =>
  told.map((one) => ({ ...one, payload: one.payload.toString("hex"), pieces: undefined }));

const RAW: Packet = {
  encoding: PageEncoding.Raw,
  data: [
    [1, 1],
    [9, 1],
  ],
  zero: [[100, 50]],
  payload: Buffer.alloc(2 * PAGE_BYTES, "guest"),
};
const LZ4: Packet = { encoding: PageEncoding.Lz4, data: [[1, 16]], zero: [], payload: Buffer.alloc(777, "blocks") };
const ZEROS: Packet = { encoding: PageEncoding.Raw, data: [], zero: [[0, 9]], payload: Buffer.alloc(0) };
const EMPTY: Packet = { encoding: PageEncoding.Raw, data: [], zero: [], payload: Buffer.alloc(0) };
const FLUSH: Packet = { encoding: PageEncoding.Raw, data: [], zero: [], payload: undefined };
const EACH = { RAW, LZ4, ZEROS, EMPTY, FLUSH };

describe("PacketDecoder", () => {
  for (const [name, packet] of Object.entries(EACH)) {
    const whole = stream([packet]);
    it(`tells ${name} the same whole, one byte at a time, and in halves`, () => {
      const told = decode([whole]);
      assert.equal(told.length, 1);
      assert.equal(told[0]?.isEnded, true);
      assert.deepEqual(told[0].payload, packet.payload ?? Buffer.alloc(0));
      assert.equal(
        told[0].dataPages,
        packet.data.reduce((sum, [, pages]) => sum + pages, 0),
      );
      assert.equal(told[0].head, whole.toString("hex", 0, HEADER_BYTES + (packet.data.length + packet.zero.length) * RUN_BYTES));
      assert.deepEqual(content(decode(cut(whole, 1))), content(told));
      assert.deepEqual(content(decode(cut(whole, Math.ceil(whole.byteLength / 2)))), content(told));
    });
    it(`tells two of ${name} glued together as two`, () => {
      const told = decode([stream([packet, packet])]);
      assert.deepEqual(
        told.map(({ header }) => header.sequence),
        [0, 1],
      );
      for (const one of told) assert.deepEqual([one.isEnded, one.payload], [true, packet.payload ?? Buffer.alloc(0)]);
    });
    it(`waits for the rest of a truncated ${name}, without an end and without an error`, () => {
      for (const length of [1, HEADER_BYTES - 1, HEADER_BYTES, whole.byteLength - 1])
        if (length < whole.byteLength)
          assert.ok(!decode([whole.subarray(0, length)]).some(({ isEnded }) => isEnded), `after ${length} bytes`);
    });
  }

  it("makes the same calls for every chunking of every stream", () =>
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom(RAW, LZ4, ZEROS, EMPTY, FLUSH), { minLength: 1, maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 50 }),
        (packets, sizes) => {
          const whole = stream(packets);
          const chunks: Buffer[] = [];
          for (let at = 0, turn = 0; at < whole.byteLength; at += sizes[turn++ % sizes.length]!)
            chunks.push(whole.subarray(at, at + sizes[turn % sizes.length]!));
          const told = decode(chunks);
          assert.deepEqual(content(told), content(decode([whole])));
          assert.equal(told.length, packets.length);
          for (const { header, pieces } of told)
            if (header.encoding === PageEncoding.Lz4 && header.payloadBytes > 0) assert.equal(pieces, 1);
        },
      ),
    ));

  it("passes raw bytes on as they come: the very memory of the chunk, before the packet is complete", () => {
    const whole = stream([RAW]);
    const payloadAt = HEADER_BYTES + 3 * RUN_BYTES;
    const seen: Buffer[] = [];
    const decoder = new PacketDecoder(GUEST, {
      begin: () => {},
      payload: (bytes) => void seen.push(bytes),
      end: () => assert.fail("too early"),
    });
    decoder.push(whole.subarray(0, payloadAt));
    const chunk = whole.subarray(payloadAt, payloadAt + 10);
    decoder.push(chunk);
    assert.equal(seen.length, 1);
    assert.equal(seen[0]?.buffer, chunk.buffer);
    assert.deepEqual([seen[0].byteOffset, seen[0].byteLength], [chunk.byteOffset, chunk.byteLength]);
  });

  it("gives an LZ4 payload once and whole, in memory that is not the chunk's", () => {
    const whole = stream([LZ4]);
    const seen: Buffer[] = [];
    const decoder = new PacketDecoder(GUEST, { begin: () => {}, payload: (bytes) => void seen.push(bytes), end: () => {} });
    for (const chunk of cut(whole, 100)) decoder.push(chunk);
    assert.deepEqual(seen, [LZ4.payload]);
    seen[0]?.fill(0);
    assert.deepEqual(whole, stream([LZ4]), "the chunk was written to");
  });
});

describe("PacketDecoder refuses", () => {
  const after = (packets: readonly Packet[], last: Buffer): Buffer => Buffer.concat([stream(packets), last]);

  it("a sequence number that was left out, that repeats, or that does not start at 0, with ERR_PACKET_SEQUENCE", () => {
    for (const [before, sequence] of [
      [0, 1],
      [1, 0],
      [1, 2],
      [2, 2 ** 32 - 1],
    ] as const) {
      const bytes = after(new Array<Packet>(before).fill(RAW), bytesOf(FLUSH, sequence));
      if (sequence !== before) assert.throws(() => decode([bytes]), { code: "ERR_PACKET_SEQUENCE" }, `${sequence} after ${before}`);
    }
    const header = decodeHeader(bytesOf(RAW, 5));
    assert.doesNotThrow(() => checkSequence(header, 5));
    assert.throws(() => checkSequence(header, 4), { code: "ERR_PACKET_SEQUENCE" });
  });

  it("a length that lies, before it takes a byte of payload", () => {
    const told: string[] = [];
    const sink = { begin: () => void told.push("begin"), payload: () => void told.push("payload"), end: () => void told.push("end") };
    const lies = [
      [bytesOf(RAW, 0, { payloadBytes: PAGE_BYTES }), "ERR_NOT_A_PACKET"],
      [bytesOf(RAW, 0, { payloadBytes: 3 * PAGE_BYTES }), "ERR_NOT_A_PACKET"],
      [bytesOf(RAW, 0, { payloadBytes: PACKET_PAYLOAD_BYTES_MAX + 1 }), "ERR_PAYLOAD_TOO_LARGE"],
      [bytesOf(LZ4, 0, { payloadBytes: 0xffffffff }), "ERR_PAYLOAD_TOO_LARGE"],
      [bytesOf(LZ4, 0, { payloadBytes: 0 }), "ERR_NOT_A_PACKET"],
      [bytesOf(FLUSH, 0, { payloadBytes: 1 }), "ERR_NOT_A_PACKET"],
    ] as const;
    for (const [bytes, code] of lies) assert.throws(() => new PacketDecoder(GUEST, sink).push(bytes), { code });
    assert.deepEqual(told, []);
  });

  it("too few or too many runs in the header, which make the checksum wrong", () => {
    const bytes = stream([RAW, RAW]);
    for (const runs of [1, 3]) {
      const lying = Buffer.from(bytes);
      lying.writeUInt16LE(runs, 16);
      assert.throws(() => decode([lying]), { code: "ERR_PACKET_CHECKSUM" });
    }
  });

  it("a run outside the guest", () =>
    assert.throws(() => decode([stream([RAW])], { pages: 149, mayCarry: () => true }), { code: "ERR_RUN_OUT_OF_RANGE" }));

  it("a damaged FLUSH: a wrong round, or wrong lanes, would be acknowledged", () => {
    for (const bit of [...bitsOf(8, 12), ...bitsOf(24, 26)]) {
      const bytes = stream([FLUSH]);
      bytes[bit >>> 3]! ^= 1 << (bit & 7);
      assert.throws(() => decode([bytes]), { code: "ERR_PACKET_CHECKSUM" }, `bit ${bit}`);
    }
  });

  it("and stays refused: bytes after the error never become a packet", () => {
    const broken = [
      [bytesOf(FLUSH, 3), "ERR_PACKET_SEQUENCE"],
      [Buffer.alloc(HEADER_BYTES), "ERR_NOT_A_PACKET"],
      [bytesOf(RAW, 0, { payloadBytes: 0 }), "ERR_NOT_A_PACKET"],
    ] as const;
    for (const [bytes, code] of broken) {
      const decoder = new PacketDecoder(GUEST, { begin: () => assert.fail("began"), payload: () => {}, end: () => {} });
      assert.throws(() => decoder.push(bytes), { code });
      assert.throws(() => decoder.push(stream([RAW])), { code });
    }
  });

  it("garbage with a code, whatever it is and however it is cut", () =>
    fc.assert(
      fc.property(fc.uint8Array({ minLength: HEADER_BYTES, maxLength: 200 }), fc.integer({ min: 1, max: 64 }), (bytes, every) => {
        assert.throws(() => decode(cut(Buffer.from(bytes), every)), { name: "MigrationError" });
      }),
    ));

  it("a good stream with any byte changed in its heads: with a code, or by waiting, but never by another page", () =>
    fc.assert(
      fc.property(fc.integer({ min: 0, max: HEADER_BYTES + 3 * RUN_BYTES - 1 }), fc.integer({ min: 1, max: 255 }), (at, change) => {
        const bytes = stream([RAW, LZ4]);
        bytes[at]! ^= change;
        let told: Told[] = [];
        try {
          told = decode([bytes]);
        } catch (error) {
          assert.equal(error instanceof Error && error.name, "MigrationError");
        }
        assert.deepEqual(told, []);
      }),
    ));
});
