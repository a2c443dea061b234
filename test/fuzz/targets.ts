import { randomUUID } from "node:crypto";
import { createConnection } from "node:net";
import { crc32, deflateRawSync } from "node:zlib";
import { Bitmap, GuestMemory, PageHashes, SegmentPool, allocateHashTable } from "@precopy/guest";
import { systemLz4 } from "@precopy/linux";
import {
  BLOCK_PAGES,
  DeltaReader,
  FAULT_REQUEST_BYTES,
  HEADER_BYTES,
  MigrationError,
  PACKET_MAGIC,
  PAGE_BYTES,
  PROTOCOL_VERSION,
  PacketDecoder,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
  STRIPE_PAGES,
  decodeFaultRequest,
  encodeFaultRequest,
  encodeHeader,
  joinPiece,
} from "@precopy/protocol";
import { decodeControl, encodeControl } from "@precopy/protocol/control";
import { BlockReader, LENGTH_BYTES, encodeBlock, lz4Napi, zstdOfNode } from "@precopy/protocol/page-codec";
import type { BlockCodec } from "@precopy/protocol/page-codec";
import { readFirstBytes } from "@precopy/security";
import { AgentPort, LaneTable, PageStore } from "@precopy/transport";
import { Finding } from "./fuzz-target.js";
import type { FuzzTarget } from "./fuzz-target.js";

/** Runs what may refuse its input, by a code of ours and no other way. */
function refusing(read: () => void): void {
  try {
    read();
  } catch (thrown) {
    if (thrown instanceof MigrationError && thrown.code !== "ERR_INTERNAL") return;
    throw thrown;
  }
}

const number = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};
const text = (value: string): Buffer => Buffer.from(value, "latin1");

// Packets, from the wire into guest memory.

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

function packets(): FuzzTarget {
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
function blocks(name: string, codec: BlockCodec): FuzzTarget {
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
function deltas(): FuzzTarget {
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

// Messages.

const SESSION = randomUUID();
/** Map and list headers, and the names that maps of ours have. */
const MESSAGE_WORDS = [
  ...[
    "type",
    "admit",
    "state",
    "epoch",
    "registers",
    "manifest",
    "vcpus",
    "options",
    "words",
    "channelSecret",
    "__proto__",
    "constructor",
  ].map((name) => Buffer.concat([Buffer.from([0xa0 | name.length]), text(name)])),
  ...[
    "80",
    "81",
    "df7fffffff",
    "dd7fffffff",
    "dc0001",
    "c0",
    "c1",
    "c4ff",
    "c6ffffffff",
    "d4ff",
    "c7ff72",
    "cb7ff0000000000000",
    "cf8000000000000000",
  ].map((hex) => Buffer.from(hex, "hex")),
];

function messages(): FuzzTarget {
  const vcpu = { workload: "idle", sha256: "0".repeat(64), options: { a: 1 }, region: { start: 0, bytes: 4096 } };
  return {
    name: "messages",
    covers: ["protocol/dist/control", "protocol/dist/plain-data", "msgpackr/unpack"],
    words: MESSAGE_WORDS,
    seeds: () =>
      [
        encodeControl({ type: "ping", id: 7 }),
        encodeControl({ type: "commit", epoch: 3, elapsedMs: 4.5 }),
        encodeControl({
          type: "state",
          epoch: 3,
          round: 2,
          registers: [{ program: [1, "x", null, Buffer.alloc(3)] }],
          devices: [],
          clockMs: 1,
        }),
        encodeControl({ type: "discard", epoch: 1, first: 0, words: deflateRawSync(Buffer.alloc(64, 1)) }),
        encodeControl({
          type: "admit",
          protocolVersion: PROTOCOL_VERSION,
          release: "1",
          session: SESSION,
          epoch: 1,
          pageBytes: PAGE_BYTES,
          endianness: "LE",
          channels: 2,
          capabilities: ["lz4"],
          digest: true,
          manifest: { id: "g", memoryBytes: 2 ** 20, vcpus: [vcpu], devices: [{ kind: "nic", mac: "52:54:00:00:00:01" }] },
          from: null,
          arbiterEpoch: null,
          postcopy: false,
        }),
      ].map((message) => message.subarray(4)),
    read: (input) => {
      const whole = Buffer.concat([number(crc32(input)), input]);
      refusing(() => {
        const message = decodeControl(whole);
        if (message.type === "discard" || message.type === "missing") joinPiece(new Uint32Array(64), 2000, message);
        // What was read can be said again, and is the same then.
        if (JSON.stringify(decodeControl(encodeControl(message))) !== JSON.stringify(message))
          throw new Finding("It reads as something else the second time");
      });
    },
  };
}

function bitmapPieces(): FuzzTarget {
  return {
    name: "bitmap-pieces",
    covers: ["protocol/dist/bitmap-pieces"],
    words: [0, 1, 31, 32, 62, 63, 64].map(number),
    seeds: () => [Buffer.concat([number(0), Buffer.alloc(64, 1)]), Buffer.concat([number(60), Buffer.alloc(16, 255)])],
    // Deflated here, so that what stands behind the inflating is reached.
    read: (input) => {
      if (input.byteLength < 4) return;
      const piece = { first: input.readUInt32LE(0), words: deflateRawSync(input.subarray(4)) };
      refusing(() => joinPiece(new Uint32Array(64), 2000, piece));
      refusing(() => joinPiece(new Uint32Array(64), 2000, { first: piece.first, words: input.subarray(4) }));
    },
  };
}

function faultRequests(): FuzzTarget {
  return {
    name: "fault-requests",
    covers: ["protocol/dist/fault-request"],
    words: [number(0), number(1023), number(1024)],
    seeds: () => {
      const request = Buffer.alloc(FAULT_REQUEST_BYTES);
      encodeFaultRequest(request, 5, 0);
      return [request];
    },
    read: (input) => {
      const request = Buffer.alloc(FAULT_REQUEST_BYTES);
      request.set(input.subarray(0, FAULT_REQUEST_BYTES));
      const repaired = Buffer.from(request);
      repaired.writeUInt32LE(crc32(repaired.subarray(0, 12)), 12);
      for (const one of [request, repaired])
        refusing(() => {
          if (decodeFaultRequest(one, 0, 1024) >= 1024) throw new Finding("A page behind the last");
        });
    },
  };
}

// The port.

function hello(): FuzzTarget {
  // Records of a ClientHello with ALPN, as far as it is read.
  const extensions = Buffer.concat([Buffer.from([0, 0, 0, 2, 1, 1, 0, 16, 0, 11, 0, 9, 8]), text("http/1.1")]);
  const body = Buffer.concat([Buffer.alloc(34, 3), Buffer.from([0, 0, 2, 0x13, 1, 1, 0, 0, extensions.byteLength]), extensions]);
  const message = Buffer.concat([Buffer.from([1, 0, 0, body.byteLength]), body]);
  return {
    name: "client-hello",
    covers: ["security/dist/client-hello"],
    words: [Buffer.from([0, 16]), Buffer.from([22, 3, 1]), Buffer.from([0xff, 0xff])],
    seeds: () => [Buffer.concat([Buffer.from([22, 3, 1, 0, message.byteLength]), message])],
    read: (input) => {
      const { kind } = readFirstBytes(input);
      for (let cut = 0; cut < Math.min(input.byteLength, 64); cut++) readFirstBytes(input.subarray(0, cut));
      if (kind === "other" && input[0] === 22) throw new Finding("It begins as TLS does");
    },
  };
}

const IDLE_MS = 200;

/** A whole port behind a socket: each input on a connection of its own, cut where its first byte says. */
function port(): FuzzTarget {
  let listening: Promise<AgentPort> | undefined;
  const query = `?session=${SESSION}&channel=0&generation=1`;
  const upgrade = (path: string, protocol: string, more = ""): string =>
    `GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n${more}\r\n`;
  const websocket = `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${Buffer.alloc(16).toString("base64")}\r\n`;
  /** A masked binary frame with a ping message in it. */
  const ping = encodeControl({ type: "ping", id: 1 });
  const frame = Buffer.concat([Buffer.from([0x82, 0x80 | ping.byteLength, 0, 0, 0, 0]), ping]);
  return {
    name: "port",
    covers: [
      "transport/dist/port",
      "transport/dist/control-channel",
      "transport/dist/http-head",
      "transport/dist/refusal",
      "transport/dist/pending",
    ],
    words: [
      "GET ",
      " HTTP/1.1\r\n",
      "\r\n\r\n",
      "Upgrade: ",
      "precopy-pages/1",
      "precopy-faults/1",
      "/v1/pages",
      "/v1/control",
      "/v1/events",
      "Precopy-Code: ERR_TLS_EXPIRED",
      "Origin: x",
      "%00",
      "&generation=",
      "Transfer-Encoding: chunked",
      "Content-Length: 9",
    ].map(text),
    seeds: () =>
      [
        text("GET /v1/agent HTTP/1.1\r\nHost: a\r\n\r\n"),
        text(upgrade(`/v1/pages${query}`, "precopy-pages/1", "Precopy-Key: 00\r\n")),
        text(upgrade(`/v1/faults${query}`, "precopy-faults/1")),
        Buffer.concat([text(upgrade("/v1/control", "websocket", websocket)), frame]),
        text(upgrade("/v1/events", "websocket", websocket)),
        Buffer.from([22, 3, 1, 0, 4, 1, 0, 0, 0]),
      ].map((bytes) => Buffer.concat([Buffer.from([0]), bytes])),
    async read(input) {
      listening ??= AgentPort.listen(
        { host: "127.0.0.1", port: 0 },
        {
          onControl: (control) => {
            control.onMessage = () => {};
          },
          onPageChannel: (name, socket) => {
            if (name.session !== SESSION) return false;
            socket.destroy();
            return true;
          },
          onFaultChannel: () => false,
          onRefused: () => {},
        },
        "fuzz",
      );
      const { port: number } = (await listening).address;
      const [how = 0] = input;
      const stream = input.subarray(1);
      await new Promise<void>((resolve) => {
        const socket = createConnection({ host: "127.0.0.1", port: number, noDelay: true });
        const timer = setTimeout(() => socket.destroy(), IDLE_MS);
        socket.on("error", () => {}).resume();
        socket.on("end", () => socket.destroy());
        socket.once("close", () => {
          clearTimeout(timer);
          resolve();
        });
        const at = how % (stream.byteLength + 1);
        socket.write(stream.subarray(0, at));
        socket.end(stream.subarray(at));
      });
    },
    async end() {
      await (await listening)?.close();
    },
  };
}

const MAKERS: Readonly<Record<string, () => FuzzTarget | undefined>> = {
  packets,
  "lz4-napi": () => blocks("lz4-napi", lz4Napi()),
  "lz4-system": () => {
    const codec = systemLz4();
    return codec && blocks("lz4-system", codec);
  },
  zstd: () => zstdOfNode && blocks("zstd", zstdOfNode),
  xbzrle: deltas,
  messages,
  "bitmap-pieces": bitmapPieces,
  "fault-requests": faultRequests,
  "client-hello": hello,
  port,
};

export const targetNames = (): readonly string[] => Object.keys(MAKERS);
/** Undefined where this host has not what it reads with. */
export const makeTarget = (name: string): FuzzTarget | undefined => MAKERS[name]?.();
