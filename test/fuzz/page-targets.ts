import { createCipheriv } from "node:crypto";
import { crc32 } from "node:zlib";
import { Bitmap, GuestMemory, PageHashes, SegmentPool, allocateHashTable } from "@precopy/guest";
import { hasAead } from "@precopy/linux";
import {
  BLOCK_PAGES,
  DeltaReader,
  HEADER_BYTES,
  PACKET_MAGIC,
  PAGE_BYTES,
  PROTOCOL_VERSION,
  PacketDecoder,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
  STRIPE_PAGES,
  encodeHeader,
} from "@precopy/protocol";
import { BlockReader, LENGTH_BYTES, encodeBlock, lz4Napi } from "@precopy/protocol/page-codec";
import type { BlockCodec } from "@precopy/protocol/page-codec";
import { nextSecret, recordKeys } from "@precopy/security";
import type { TrafficSecret } from "@precopy/security";
import { LaneTable, PageStore, RecordOpener } from "@precopy/transport";
import { Finding, number, refusing } from "./fuzz-target.js";
import type { FuzzTarget } from "./fuzz-target.js";

/** Lane 0 of two: the channel may write every other stripe. */
const GUEST_BYTES = 4 * STRIPE_PAGES * PAGE_BYTES;
const LANES = 2;
/** Between two looks at the whole of the guest's other lane. */
const LOOK_EVERY = 256;

type Runs = readonly (readonly [first: number, pages: number])[];
function packetOf(data: Runs, zero: Runs, payload: Buffer, encoding: PageEncoding, kind: PacketKind = PacketKind.Pages, lanes = 0): Buffer {
  const head = Buffer.alloc(HEADER_BYTES + (data.length + zero.length) * RUN_BYTES);
  [...data, ...zero].forEach(([first, pages], at) => {
    head.writeUInt32LE(first, HEADER_BYTES + at * RUN_BYTES);
    head.writeUInt32LE(pages, HEADER_BYTES + at * RUN_BYTES + 4);
  });
  encodeHeader(head, {
    kind,
    encoding,
    round: 1,
    sequence: 0,
    dataRuns: data.length,
    zeroRuns: zero.length,
    payloadBytes: payload.byteLength,
    lanes,
  });
  return Buffer.concat([head, payload]);
}

/** Puts magic, version, sequence and checksum of each packet right, so that what lies behind those checks is reached. */
function repairPackets(stream: Buffer): Buffer {
  const bytes = Buffer.from(stream);
  for (let at = 0, sequence = 0; at + HEADER_BYTES <= bytes.byteLength; sequence++) {
    bytes.writeUInt32LE(PACKET_MAGIC, at);
    bytes[at + 4] = PROTOCOL_VERSION;
    bytes.writeUInt32LE(sequence, at + 12);
    const end = at + HEADER_BYTES + (bytes.readUInt16LE(at + 16) + bytes.readUInt16LE(at + 18)) * RUN_BYTES;
    const table = bytes.subarray(at + HEADER_BYTES, Math.min(end, bytes.byteLength));
    bytes.writeUInt32LE(crc32(table, crc32(bytes.subarray(at, at + 28))), at + 28);
    at = end + bytes.readUInt32LE(at + 20);
  }
  return bytes;
}

export function packets(): FuzzTarget {
  const memory = GuestMemory.allocate(GUEST_BYTES, new SegmentPool());
  const hashes = allocateHashTable(memory.pages);
  let reads = 0;
  const page = Buffer.alloc(PAGE_BYTES, "text ");
  const payload = Buffer.alloc(2 * PAGE_BYTES + 2 * LENGTH_BYTES);
  const lz4 = payload.subarray(0, encodeBlock(Buffer.concat([page, page]), payload, 0, lz4Napi()));
  return {
    name: "packets",
    covers: [
      "protocol/dist/packet",
      "protocol/dist/page-codec",
      "protocol/dist/xbzrle",
      "transport/dist/page-store",
      "transport/dist/lane-",
    ],
    words: [number(PACKET_MAGIC), ...[0, 1, 2, 511, 512, 1023, 1024, 2047, 2048].map(number)],
    // The first byte says whether the packets are repaired, and how they are cut.
    seeds: () =>
      [
        packetOf([[0, 1]], [], page, PageEncoding.Raw),
        packetOf(
          [[3, 1]],
          [
            [10, 4],
            [1024, 2],
          ],
          page,
          PageEncoding.Raw,
        ),
        packetOf([[5, 2]], [], Buffer.from(lz4), PageEncoding.Lz4),
        packetOf([[0, 2]], [], Buffer.from([0, 0, 6, 0, 10, 2, 1, 2, 5, 1]), PageEncoding.Xbzrle),
        packetOf([], [], Buffer.alloc(0), PageEncoding.Raw, PacketKind.Flush, 1),
      ].map((packet) => Buffer.concat([Buffer.from([1]), packet])),
    read: (input) => {
      const [how = 0] = input;
      const stream = (how & 1) === 1 ? repairPackets(input.subarray(1)) : input.subarray(1);
      const lanes = LaneTable.allocate(LANES);
      const store = new PageStore({
        memory,
        hashes: new PageHashes(memory, hashes),
        channel: 0,
        lanes,
        populated: new Bitmap(memory.pages),
        isDenseAllowed: false,
      });
      const decoder = new PacketDecoder(store.bounds, store);
      const step = how < 2 ? stream.byteLength : how;
      refusing(() => {
        for (let at = 0; at < stream.byteLength; at += step) decoder.push(Buffer.from(stream.subarray(at, at + step)));
      });
      if (reads++ % LOOK_EVERY !== 0) return;
      for (let first = STRIPE_PAGES; first < memory.pages; first += LANES * STRIPE_PAGES)
        if (memory.view(first, STRIPE_PAGES).some((byte) => byte !== 0)) throw new Finding("A page of another lane was written");
    },
  };
}

/** Blocks of one codec. The first byte is how many pages they are said to hold. */
export function blocks(name: string, codec: BlockCodec): FuzzTarget {
  const raw = Buffer.alloc(BLOCK_PAGES * PAGE_BYTES, "The quick brown fox jumps. ");
  const room = Buffer.alloc(4 * BLOCK_PAGES * PAGE_BYTES);
  const encoded = (pages: number): Buffer => {
    let at = 0;
    for (let left = pages; left > 0; left -= BLOCK_PAGES)
      at += encodeBlock(raw.subarray(0, Math.min(left, BLOCK_PAGES) * PAGE_BYTES), room, at, codec);
    return Buffer.concat([Buffer.from([pages]), room.subarray(0, at)]);
  };
  return {
    name,
    covers: ["protocol/dist/page-codec", "linux/dist/lz4"],
    words: [number(PAGE_BYTES), number(BLOCK_PAGES * PAGE_BYTES), Buffer.from([0xff, 0xff, 0xff, 0xff])],
    seeds: () => [encoded(1), encoded(3), encoded(BLOCK_PAGES), encoded(BLOCK_PAGES + 5)],
    read: (input) => {
      const [pages = 0] = input;
      const reader = new BlockReader(Buffer.from(input.subarray(1)), pages, codec);
      let bytes = 0;
      refusing(() => {
        for (let block = reader.next(); block !== undefined; block = reader.next()) bytes += block.byteLength;
      });
      if (bytes > pages * PAGE_BYTES) throw new Finding(`${bytes} B out of ${pages} pages`);
    },
  };
}

/** The first byte is the number of pages. */
export function deltas(): FuzzTarget {
  const around = Buffer.alloc(3 * PAGE_BYTES);
  return {
    name: "xbzrle",
    covers: ["protocol/dist/xbzrle"],
    words: [Buffer.from([0x80, 0x20]), Buffer.from([0xff, 0x1f]), Buffer.from([0, 16])],
    seeds: () => [
      Buffer.from([1, 0, 0]),
      Buffer.from([1, 6, 0, 10, 2, 1, 2, 5, 1]),
      Buffer.concat([Buffer.from([1, 0, 16]), Buffer.alloc(PAGE_BYTES, 1)]),
    ],
    read: (input) => {
      around.fill(0xaa);
      const reader = new DeltaReader(Buffer.from(input.subarray(1)));
      refusing(() => {
        for (let left = input[0] ?? 0; left > 0; left--) reader.apply(around.subarray(PAGE_BYTES, 2 * PAGE_BYTES));
        reader.end();
      });
      const isTouched = (from: number): boolean => around.subarray(from, from + PAGE_BYTES).some((byte) => byte !== 0xaa);
      if (isTouched(0) || isTouched(2 * PAGE_BYTES)) throw new Finding("A byte beside the page was written");
    },
  };
}

/** What two ends of a connection have of its handshake. */
const SECRET = { suite: "TLS_AES_128_GCM_SHA256", secret: Buffer.alloc(32, 9) } as const;
const RECORD_ROOM = 2 ** 16;
/** As a whole content, its type behind it. */
const KEY_UPDATE = Buffer.from([24, 0, 0, 1, 0, 22]);

/** Records of TLS: as they come, or, after an odd first byte, what a peer that has the keys seals, cut as the second byte says; the type comes last in each. */
export function records(): FuzzTarget | undefined {
  if (!hasAead()) return undefined;
  const secret = (): TrafficSecret => ({ ...SECRET, secret: Buffer.from(SECRET.secret) });
  const sealed = (contents: readonly Buffer[]): Buffer => {
    let traffic = secret();
    let sequence = 1;
    return Buffer.concat(
      contents.map((content) => {
        const { key, nonce } = recordKeys(traffic);
        const header = Buffer.from([23, 3, 3, (content.byteLength + 16) >> 8, (content.byteLength + 16) & 0xff]);
        nonce[11]! ^= sequence++;
        const cipher = createCipheriv("aes-128-gcm", key, nonce, { authTagLength: 16 }).setAAD(header);
        if (content.equals(KEY_UPDATE)) [traffic, sequence] = [nextSecret(traffic), 0];
        return Buffer.concat([header, cipher.update(content), cipher.final(), cipher.getAuthTag()]);
      }),
    );
  };
  return {
    name: "records",
    covers: ["transport/dist/tls-records", "security/dist/record-keys"],
    words: [Buffer.from([23, 3, 3]), Buffer.from([0x40, 0x11]), KEY_UPDATE, Buffer.from([1, 0, 21]), Buffer.alloc(8)],
    seeds: () => [
      Buffer.concat([Buffer.from([0]), sealed([Buffer.from("some pages\x17"), Buffer.from("and some more\x17")])]),
      Buffer.from([1, 3, 97, 98, 23, 99, 100, 23]),
      Buffer.concat([Buffer.from([1, 6]), KEY_UPDATE, Buffer.from([1, 2, 3, 4, 5, 23])]),
    ],
    read: (input) => {
      const [how = 0, cut = 1] = input;
      const size = Math.max(1, cut);
      const body = input.subarray(2);
      const parts = Array.from({ length: Math.min(64, Math.ceil(body.byteLength / size)) }, (_, at) =>
        body.subarray(at * size, (at + 1) * size),
      );
      const stream = (how & 1) === 1 ? sealed(parts) : input.subarray(1);
      const opener = new RecordOpener(secret(), 1);
      let bytes = 0;
      refusing(() => {
        for (let at = 0; at < stream.byteLength && !opener.isEnded; ) {
          const part = stream.subarray(at, at + Math.min(opener.room.byteLength, how < 2 ? RECORD_ROOM : how));
          opener.room.set(part);
          bytes += opener.open(part.byteLength).byteLength;
          at += part.byteLength;
        }
      });
      opener.close();
      if (bytes > stream.byteLength) throw new Finding(`${bytes} B out of ${stream.byteLength}`);
    },
  };
}
