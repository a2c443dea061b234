import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import type { ErrorCode } from "./errors.js";
import {
  CHANNELS_MAX,
  PACKET_DATA_RUNS_MAX,
  PACKET_PAGES_MAX,
  PACKET_PAYLOAD_BYTES_MAX,
  PACKET_ZERO_RUNS_MAX,
  PAGE_BYTES,
} from "./limits.js";
import {
  HEADER_BYTES,
  PROTOCOL_VERSION,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
  TABLE_BYTES_MAX,
  checkRunTable,
  decodeHeader,
  encodeHeader,
} from "./packet.js";
import type { PacketHeader, RunBounds } from "./packet.js";

type Run = readonly [firstPage: number, pages: number];

/** Header and run table of a packet; `fields` may lie. The checksum is right for whatever it says. */
function head(data: readonly Run[], zero: readonly Run[], fields: Partial<PacketHeader> = {}): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + (data.length + zero.length) * RUN_BYTES);
  [...data, ...zero].forEach(([first, pages], at) => {
    bytes.writeUInt32LE(first, HEADER_BYTES + at * RUN_BYTES);
    bytes.writeUInt32LE(pages, HEADER_BYTES + at * RUN_BYTES + 4);
  });
  const payloadBytes = data.reduce((sum, [, pages]) => sum + pages, 0) * PAGE_BYTES;
  const own = {
    kind: PacketKind.Pages,
    encoding: PageEncoding.Raw,
    round: 3,
    sequence: 7,
    dataRuns: data.length,
    zeroRuns: zero.length,
    lanes: 0,
  };
  encodeHeader(bytes, { ...own, payloadBytes, ...fields });
  return bytes;
}
const inGuestOf = (pages: number): RunBounds => ({ pages, mayCarry: () => true });
const check = (bytes: Buffer, bounds: RunBounds): number => checkRunTable(bytes, decodeHeader(bytes), bounds);
/** Refused by the header alone, or by the run table after it. */
const refuses = (bytes: Buffer, code: ErrorCode, bounds = inGuestOf(2 ** 32)): void => assert.throws(() => check(bytes, bounds), { code });

const sample = (): Buffer =>
  head(
    [
      [16, 2],
      [64, 1],
    ],
    [[512, 8]],
  );

describe("a packet's head", () => {
  it("stands on the wire in exactly these bytes: Pages, raw, round 3, sequence 7, 2 data runs, 1 zero run", () => {
    const checked = `4c564d47${"04010000"}03000000${"07000000"}0200${"0100"}00300000${"00000000"}`;
    const table = `10000000${"02000000"}40000000${"01000000"}00020000${"08000000"}`;
    const sum = Buffer.alloc(4);
    sum.writeUInt32LE(crc32(Buffer.from(checked + table, "hex")));
    assert.equal(sample().toString("hex"), checked + sum.toString("hex") + table);
    assert.equal(sum.toString("hex"), "af7504a9", "the checksum itself is pinned too");
  });

  it("comes back as it was written, for every value each field may have", () =>
    fc.assert(
      fc.property(
        fc.record(
          {
            kind: fc.constant(PacketKind.Pages),
            encoding: fc.constantFrom(...Object.values(PageEncoding)),
            round: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
            sequence: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
            dataRuns: fc.integer({ min: 0, max: PACKET_DATA_RUNS_MAX }),
            zeroRuns: fc.integer({ min: 0, max: PACKET_ZERO_RUNS_MAX }),
            payloadBytes: fc.integer({ min: 0, max: PACKET_PAYLOAD_BYTES_MAX }),
            lanes: fc.constant(0),
          },
          { noNullPrototype: true },
        ),
        (header) => {
          const bytes = Buffer.alloc(HEADER_BYTES + (header.dataRuns + header.zeroRuns) * RUN_BYTES);
          assert.equal(encodeHeader(bytes, header), bytes.byteLength);
          assert.deepEqual(decodeHeader(bytes), header);
        },
      ),
    ));

  it("names any lanes that there can be in a FLUSH, and comes back with them", () => {
    for (const lanes of [0, 1, 0b1010, 2 ** CHANNELS_MAX - 1]) {
      const flush = decodeHeader(head([], [], { kind: PacketKind.Flush, lanes }));
      assert.deepEqual([flush.kind, flush.lanes], [PacketKind.Flush, lanes]);
    }
  });

  it("is read from a view that does not start at the beginning of its buffer", () => {
    const shifted = Buffer.concat([Buffer.from("xyz"), sample()]).subarray(3);
    assert.deepEqual(decodeHeader(shifted), decodeHeader(sample()));
  });
});

describe("decodeHeader refuses", () => {
  const changed = (at: number, value: number): Buffer => {
    const bytes = sample();
    bytes[at] = value;
    return bytes;
  };

  it("another magic, in any of its bytes, with ERR_NOT_A_PACKET", () => {
    for (const at of [0, 1, 2, 3]) refuses(changed(at, 0), "ERR_NOT_A_PACKET");
  });
  it("every version but ours with ERR_PROTOCOL_VERSION, even if all the rest is unknown as well", () => {
    for (let version = 0; version < 256; version++) if (version !== PROTOCOL_VERSION) refuses(changed(4, version), "ERR_PROTOCOL_VERSION");
    const later = changed(4, PROTOCOL_VERSION + 1);
    later.fill(0xff, 5);
    refuses(later, "ERR_PROTOCOL_VERSION");
  });
  it("every unknown kind, encoding, flag and reserved bit with ERR_NOT_A_PACKET", () => {
    for (let value = 0; value < 256; value++) {
      if (value !== PacketKind.Pages && value !== PacketKind.Flush) refuses(changed(5, value), "ERR_NOT_A_PACKET");
      if (!(Object.values(PageEncoding) as number[]).includes(value)) refuses(changed(6, value), "ERR_NOT_A_PACKET");
      if (value !== 0) for (const at of [7, 24, 25, 26, 27]) refuses(changed(at, value), "ERR_NOT_A_PACKET");
    }
  });
  it("one run or one byte more than the limits with ERR_PAYLOAD_TOO_LARGE, from the header alone", () => {
    const over = [
      { dataRuns: PACKET_DATA_RUNS_MAX + 1 },
      { zeroRuns: PACKET_ZERO_RUNS_MAX + 1 },
      { payloadBytes: PACKET_PAYLOAD_BYTES_MAX + 1 },
    ];
    for (const fields of [...over, { dataRuns: 0xffff }, { zeroRuns: 0xffff }, { payloadBytes: 0xffffffff }])
      assert.throws(
        () => decodeHeader(head([], [], fields).subarray(0, HEADER_BYTES)),
        { code: "ERR_PAYLOAD_TOO_LARGE" },
        JSON.stringify(fields),
      );
  });
  it("lanes in a packet of pages, and more of them in a FLUSH than there can be, with ERR_NOT_A_PACKET", () => {
    refuses(head([], [], { lanes: 1 }), "ERR_NOT_A_PACKET");
    for (const lanes of [2 ** CHANNELS_MAX, 2 ** 31, 2 ** 32 - 1])
      refuses(head([], [], { kind: PacketKind.Flush, lanes }), "ERR_NOT_A_PACKET");
  });
  it("a FLUSH that carries anything with ERR_NOT_A_PACKET", () => {
    const kind = PacketKind.Flush;
    assert.equal(decodeHeader(head([], [], { kind })).kind, kind);
    for (const bytes of [
      head([[0, 1]], [], { kind, payloadBytes: 0 }),
      head([], [[0, 1]], { kind }),
      head([], [], { kind, payloadBytes: 1 }),
    ])
      refuses(bytes, "ERR_NOT_A_PACKET");
  });
});

describe("checkRunTable", () => {
  it("counts the pages of the data runs and not those of the zero runs", () => {
    assert.equal(check(sample(), inGuestOf(1000)), 3);
    assert.equal(check(head([], []), inGuestOf(1)), 0);
    assert.equal(check(head([], [[0, 1000]]), inGuestOf(1000)), 0);
  });
  it("refuses any single flipped bit in header or table, whatever the bit means", () => {
    const whole = sample();
    for (let bit = 0; bit < whole.byteLength * 8; bit++) {
      const bytes = Buffer.from(whole);
      bytes[bit >>> 3]! ^= 1 << (bit & 7);
      const padded = Buffer.concat([bytes, Buffer.alloc(TABLE_BYTES_MAX)]); // it may name more runs than there are
      assert.throws(() => check(padded, inGuestOf(1000)), { name: "MigrationError" }, `bit ${bit & 7} of byte ${bit >>> 3}`);
    }
  });
  it("refuses a run past the guest's end and an empty run with ERR_RUN_OUT_OF_RANGE, as data and as zeros", () => {
    const bad: Run[] = [
      [1000, 1],
      [999, 2],
      [0, 1001],
      [0xffffffff, 1],
      [0xffffffff, 0xffffffff],
      [1, 0xffffffff],
      [5, 0],
      [1000, 0],
    ];
    for (const run of bad) {
      refuses(head([run], [], { payloadBytes: PAGE_BYTES }), "ERR_RUN_OUT_OF_RANGE", inGuestOf(1000));
      refuses(head([], [run]), "ERR_RUN_OUT_OF_RANGE", inGuestOf(1000));
      refuses(head([[1, 1]], [[2, 3], run]), "ERR_RUN_OUT_OF_RANGE", inGuestOf(1000));
    }
    assert.equal(check(head([[999, 1]], [[0, 1000]]), inGuestOf(1000)), 1);
  });
  it("takes the last page of the largest guest, and no page after it", () => {
    assert.equal(check(head([[0xffffffff, 1]], []), inGuestOf(2 ** 32)), 1);
    refuses(head([[0xffffffff, 2]], []), "ERR_RUN_OUT_OF_RANGE");
  });
  it("refuses a run that its channel may not carry, and asks for every run", () => {
    const asked: Run[] = [];
    const bounds = { pages: 1000, mayCarry: (first: number, pages: number) => asked.push([first, pages]) > 0 && first !== 512 };
    refuses(sample(), "ERR_RUN_OUT_OF_RANGE", bounds);
    assert.deepEqual(asked, [
      [16, 2],
      [64, 1],
      [512, 8],
    ]);
  });
  it("refuses more than one stripe of data pages with ERR_PAYLOAD_TOO_LARGE, however the runs add up", () => {
    assert.equal(check(head([[0, PACKET_PAGES_MAX]], []), inGuestOf(2000)), PACKET_PAGES_MAX);
    refuses(head([[0, PACKET_PAGES_MAX + 1]], [], { payloadBytes: 0 }), "ERR_PAYLOAD_TOO_LARGE");
    refuses(
      head(
        [
          [0, 256],
          [256, 256],
          [512, 1],
        ],
        [],
        { payloadBytes: 0 },
      ),
      "ERR_PAYLOAD_TOO_LARGE",
    );
    const wrapping = Array.from({ length: PACKET_DATA_RUNS_MAX }, (): Run => [0, 0xffffffff]); // the sum passes 2^32 often
    refuses(head(wrapping, [], { payloadBytes: 0 }), "ERR_PAYLOAD_TOO_LARGE");
  });
  it("refuses a raw payload of any length but that of its pages with ERR_NOT_A_PACKET", () => {
    for (const payloadBytes of [0, 1, 3 * PAGE_BYTES - 1, 3 * PAGE_BYTES + 1, 4 * PAGE_BYTES])
      refuses(
        head(
          [
            [16, 2],
            [64, 1],
          ],
          [],
          { payloadBytes },
        ),
        "ERR_NOT_A_PACKET",
      );
  });
  it("refuses LZ4 pages without a payload, which nobody would ever decode, and a payload without pages", () => {
    const encoding = PageEncoding.Lz4;
    refuses(head([[0, 3]], [], { encoding, payloadBytes: 0 }), "ERR_NOT_A_PACKET");
    refuses(head([], [[0, 3]], { encoding, payloadBytes: 9 }), "ERR_NOT_A_PACKET");
    assert.equal(check(head([[0, 3]], [], { encoding, payloadBytes: 9 }), inGuestOf(10)), 3);
    assert.equal(check(head([], [[0, 3]], { encoding, payloadBytes: 0 }), inGuestOf(10)), 0);
  });
});
