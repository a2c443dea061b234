import { randomUUID } from "node:crypto";
import { crc32, deflateRawSync } from "node:zlib";
import { FAULT_REQUEST_BYTES, PAGE_BYTES, PROTOCOL_VERSION, decodeFaultRequest, encodeFaultRequest, joinPiece } from "@precopy/protocol";
import { decodeControl, encodeControl } from "@precopy/protocol/control";
import { Finding, number, refusing, text } from "./fuzz-target.js";
import type { FuzzTarget } from "./fuzz-target.js";

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

export function messages(): FuzzTarget {
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

export function bitmapPieces(): FuzzTarget {
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

export function faultRequests(): FuzzTarget {
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
