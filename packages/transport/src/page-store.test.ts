import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { Bitmap, PageHashes, allocateHashTable, joinDigests } from "@precopy/guest";
import type { GuestMemory } from "@precopy/guest";
import { Pieces, isLinuxAvailable } from "@precopy/linux";
import {
  HEADER_BYTES,
  PAGE_BYTES,
  PacketDecoder,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
  STRIPE_PAGES,
  checkRunTable,
  decodeHeader,
  encodeHeader,
} from "@precopy/protocol";
import type { PacketHeader } from "@precopy/protocol";
import { encodeBlock, lz4Napi } from "@precopy/protocol/page-codec";
import fc from "fast-check";
import { LaneTable } from "./lane-table.js";
import { PageStore } from "./page-store.js";
import type { StoreTarget } from "./page-store.js";
import { WHOLE, allocate, fillRandom, packRound, recorder } from "./recorded-packets.js";

const PAGES = 1300; // two stripes and a piece
type Run = readonly [first: number, pages: number];

interface Target {
  readonly memory: GuestMemory;
  readonly populated: Bitmap;
  readonly hashes: PageHashes;
  readonly lanes: LaneTable;
  readonly push: (bytes: Buffer) => void;
}
function target(given: Partial<StoreTarget> = {}): Target {
  const lanes = given.lanes ?? LaneTable.allocate(1);
  const memory = allocate(PAGES);
  const populated = new Bitmap(PAGES);
  const hashes = new PageHashes(memory, allocateHashTable(PAGES));
  const store = new PageStore({ memory, hashes, channel: 0, populated, ...given, lanes });
  const decoder = new PacketDecoder(store.bounds, store);
  return { memory, populated, hashes, lanes, push: (bytes) => decoder.push(bytes) };
}

/** Data, zeros and never-touched pages, mixed. */
function source(): { memory: GuestMemory; all: Bitmap } {
  const memory = allocate(PAGES);
  fillRandom(memory, 0, 20, 1);
  fillRandom(memory, 500, 30, 2); // over the end of a stripe
  for (let page = 600; page < 700; page += 2) memory.view(page, 1).fill(page & 0xff);
  fillRandom(memory, PAGES - 3, 3, 3);
  const all = new Bitmap(PAGES);
  all.setRun(0, PAGES);
  return { memory, all };
}
const isAllZero = (memory: GuestMemory): boolean => memory.view(0, PAGES).every((byte) => byte === 0);
const NOTHING = { round: 0, page: 0 };
const isZero = (memory: GuestMemory, page: number): boolean => memory.view(page, 1).every((byte) => byte === 0);
const equal = (one: GuestMemory, other: GuestMemory): boolean => Buffer.compare(one.view(0, one.pages), other.view(0, other.pages)) === 0;

function packet(
  data: readonly Run[],
  zero: readonly Run[] = [],
  fields: Partial<PacketHeader> = {},
  payload = Buffer.alloc(data.reduce((sum, [, pages]) => sum + pages, 0) * PAGE_BYTES, 7),
): Buffer {
  const head = Buffer.alloc(HEADER_BYTES + (data.length + zero.length) * RUN_BYTES);
  [...data, ...zero].forEach(([first, pages], at) => {
    head.writeUInt32LE(first, HEADER_BYTES + at * RUN_BYTES);
    head.writeUInt32LE(pages, HEADER_BYTES + at * RUN_BYTES + 4);
  });
  encodeHeader(head, {
    kind: PacketKind.Pages,
    encoding: PageEncoding.Raw,
    round: 1,
    sequence: 0,
    dataRuns: data.length,
    zeroRuns: zero.length,
    payloadBytes: payload.byteLength,
    lanes: 0,
    ...fields,
  });
  return Buffer.concat([head, payload]);
}

const flush = (lanes: number, round: number, sequence: number): Buffer =>
  packet([], [], { kind: PacketKind.Flush, lanes, round, sequence });

/** Bytes of a memory that the kernel keeps in huge pages. */
function hugeBytes(memory: GuestMemory): number {
  const start = memory.addressOf(0);
  let sum = 0;
  let isInside = false;
  for (const line of readFileSync("/proc/self/smaps", "utf8").split("\n")) {
    const [, from, to] = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line) ?? [];
    if (from !== undefined && to !== undefined)
      isInside = Number.parseInt(from, 16) < start + memory.bytes && Number.parseInt(to, 16) > start;
    const [, kib] = /^AnonHugePages: +(\d+) kB/.exec(line) ?? [];
    if (isInside && kib !== undefined) sum += Number(kib) * 1024;
  }
  return sum;
}
const THP = "/sys/kernel/mm/transparent_hugepage/enabled";
const skipHuge =
  isLinuxAvailable && existsSync(THP) && readFileSync(THP, "utf8").includes("[madvise]")
    ? false
    : "this kernel does not give huge pages to those who ask, and to nobody else";

describe("PageStore", () => {
  it("lets whole stripes come to lie in huge pages, and scattered pages in pages of their own", { skip: skipHuge }, () => {
    const dense = allocate(8 * STRIPE_PAGES);
    const sparse = allocate(8 * STRIPE_PAGES);
    const all = { populated: new Bitmap(8 * STRIPE_PAGES), hashes: undefined };
    target({ ...all, memory: dense }).push(
      Buffer.concat([0, 1, 2, 3].map((at) => packet([[at * STRIPE_PAGES, STRIPE_PAGES]], [], { sequence: at }))),
    );
    target({ ...all, memory: sparse }).push(packet([0, 1, 2, 3].map((at) => [at * STRIPE_PAGES + 77, 20] as const)));
    assert.equal(hugeBytes(dense), 4 * STRIPE_PAGES * PAGE_BYTES);
    assert.equal(hugeBytes(sparse), 0);
  });

  for (const compression of ["none", "lz4"] as const) {
    it(`stores a round (${compression}) that comes in one piece, byte for byte, with the source's hashes`, async () => {
      const { memory, all } = source();
      const { packets, sent } = await packRound(memory, all, { compression });
      const to = target();
      to.push(Buffer.concat(packets));
      assert.ok(equal(to.memory, memory));
      assert.equal(joinDigests([to.hashes.digest()]), joinDigests([sent.digest ?? -1n]));
      for (let page = 0; page < PAGES; page++) assert.ok(to.hashes.matches(page), `hash of page ${page}`);
    });

    it(`stores a round (${compression}) that comes in chunks of any size, cut anywhere`, async () => {
      const { memory, all } = source();
      const bytes = Buffer.concat((await packRound(memory, all, { compression })).packets);
      fc.assert(
        fc.property(
          fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 70_000 })), { minLength: 1, maxLength: 200 }),
          (sizes) => {
            const to = target({ hashes: undefined });
            for (let at = 0, chunk = 0; at < bytes.byteLength; chunk++) {
              const size = sizes[chunk] ?? bytes.byteLength;
              to.push(bytes.subarray(at, at + size));
              at += size;
            }
            assert.ok(equal(to.memory, memory));
          },
        ),
        { numRuns: 25 },
      );
    });
  }

  it("follows many rounds in which pages change, become zero and come back, with equal hashes after each", async () => {
    const { memory, all } = source();
    const { packer, pump } = recorder(memory);
    const to = target();
    const dirty = new Bitmap(PAGES);
    dirty.join(all);
    for (let round = 1; round <= 4; round++) {
      pump.packets.length = 0;
      const { digest } = await packer.sendRound(round, dirty, WHOLE);
      to.push(Buffer.concat(pump.packets));
      assert.ok(equal(to.memory, memory), `after round ${round}`);
      assert.equal(to.hashes.digest(), digest, `after round ${round}`);
      dirty.clear();
      for (let page = round; page < PAGES; page += 50) {
        if (round === 3) memory.view(page, 1).fill(0);
        else fillRandom(memory, page, 1, round * PAGES + page);
        dirty.setRun(page, 1);
      }
    }
  });

  it("clears a page that held something when it comes as zero, and marks what comes as data", () => {
    const to = target();
    to.push(packet([[10, 3]], []));
    for (const page of [10, 11, 12]) assert.ok(to.populated.has(page) && !isZero(to.memory, page));
    assert.equal(to.populated.count(), 3);
    const { memory, populated } = to;
    const later = target({ memory, populated, hashes: undefined });
    later.push(packet([], [[11, 1]]));
    assert.deepEqual(
      [10, 11, 12].map((page) => isZero(memory, page)),
      [false, true, false],
    );
  });

  it("writes nothing for a zero page that never held anything: it stays untouched", () => {
    const to = target();
    to.memory.view(20, 1)[5] = 1; // a mark that any write would wipe out
    to.push(packet([], [[0, 300]]));
    assert.equal(to.memory.view(20, 1)[5], 1);
    assert.equal(to.populated.count(), 0);
    assert.equal(to.hashes.digest(), 0n);
  });

  const refused: readonly (readonly [what: string, run: Run, channels: number, channel: number])[] = [
    ["past the guest's end", [PAGES, 1], 1, 0],
    ["that begins inside and ends outside the guest", [PAGES - 1, 2], 1, 0],
    ["at the last page number there is", [0xffffffff, 1], 1, 0],
    ["across two stripes, although this channel carries both", [511, 2], 1, 0],
    ["of another channel", [512, 1], 2, 0],
    ["of this channel's stripe with a foreign end", [0, 513], 2, 0],
    ["of stripe 0 on channel 1", [0, 1], 2, 1],
    ["without pages", [5, 0], 1, 0],
  ];
  for (const [what, run, channels, channel] of refused)
    it(`refuses a run ${what} with ERR_RUN_OUT_OF_RANGE, as data and as zeros, and stores nothing of its packet`, () => {
      const good: Run = channel === 0 ? [1, 1] : [513, 1];
      for (const bytes of [packet([good, run], [], {}, Buffer.alloc(PAGE_BYTES, 7)), packet([good], [run])]) {
        const to = target({ channel, lanes: LaneTable.allocate(channels) });
        assert.throws(() => to.push(bytes), { code: "ERR_RUN_OUT_OF_RANGE" });
        assert.equal(to.populated.count(), 0);
        assert.ok(to.memory.view(0, PAGES).every((byte) => byte === 0));
      }
    });

  // Cut off, a packet leaves part of its payload in guest memory. If the page comes as zero next, nothing but the map tells that it must be cleared.
  const cuts = [
    ["in the middle of a raw payload", packet([[8, 4]]), HEADER_BYTES + RUN_BYTES + PAGE_BYTES + 100],
    ["before the last byte of a raw payload", packet([[8, 4]]), HEADER_BYTES + RUN_BYTES + 4 * PAGE_BYTES - 1],
  ] as const;
  for (const [what, bytes, at] of cuts)
    it(`clears a page whose packet was cut ${what} when it comes as zero on the channel's next generation`, () => {
      const { memory, populated, hashes, lanes, push } = target();
      push(bytes.subarray(0, at));
      assert.ok(!isZero(memory, 8) && !isZero(memory, 9), "part of it has landed, or this test shows nothing");
      assert.deepEqual(lanes.storedAt(0), { round: 0, page: 0 }, "a packet counts when it is whole");
      const next = target({ memory, populated, hashes, lanes });
      next.push(packet([], [[8, 4]]));
      assert.ok(isAllZero(memory));
      assert.equal(hashes.digest(), 0n);
      assert.deepEqual(lanes.storedAt(0), { round: 1, page: 12 });
    });

  it("clears a page that came in a good block before a corrupt one when it comes as zero on the channel's next generation", () => {
    const { memory, populated, hashes, lanes, push } = target();
    const block = Buffer.alloc(4 + 16 * PAGE_BYTES);
    const good = block.subarray(0, encodeBlock(Buffer.alloc(16 * PAGE_BYTES, 7), block, 0, lz4Napi()));
    const blocks = Buffer.concat([good, Buffer.alloc(good.byteLength, 0xff)]);
    const bytes = packet([[0, 32]], [], { encoding: PageEncoding.Lz4 }, blocks);
    assert.throws(() => push(bytes), { code: "ERR_BLOCK_CORRUPT" });
    assert.ok(!isZero(memory, 15));
    assert.deepEqual(lanes.storedAt(0), { round: 0, page: 0 });
    target({ memory, populated, hashes, lanes }).push(packet([], [[0, 32]]));
    assert.ok(isAllZero(memory));
  });

  it("clears a page that readv has written part of when it comes as zero on the channel's next generation", () => {
    const memory = allocate(PAGES);
    const populated = new Bitmap(PAGES);
    const lanes = LaneTable.allocate(1);
    const store = new PageStore({ memory, hashes: undefined, channel: 0, lanes, populated });
    const bytes = packet([[8, 4]]);
    const header = decodeHeader(bytes);
    store.begin(header, bytes, checkRunTable(bytes, header, store.bounds));
    memory.view(8, 1).fill(7, 0, 100); // as the kernel does, before the connection breaks
    target({ memory, populated, hashes: undefined, lanes }).push(packet([], [[8, 4]]));
    assert.ok(isAllZero(memory));
  });

  it("marks each lane at the end of its last page when a packet is whole, as data or as zeros, and the lanes that a FLUSH names as done", () => {
    const lanes = LaneTable.allocate(3);
    lanes.move(2, 0);
    const { push } = target({ lanes });
    push(packet([[10, 3]], [[20, 5]])); // lane 0
    assert.deepEqual(
      [0, 1, 2].map((lane) => lanes.storedAt(lane)),
      [{ round: 1, page: 25 }, NOTHING, NOTHING],
    );
    push(
      packet(
        [
          [500, 12],
          [1024, 1],
        ],
        [[400, 1]],
        { sequence: 1 },
      ),
    );
    assert.deepEqual(
      [0, 1, 2].map((lane) => lanes.storedAt(lane)),
      [{ round: 1, page: 512 }, NOTHING, { round: 1, page: 1025 }],
    );
    push(flush(0b001, 1, 2));
    assert.deepEqual(
      [0, 1, 2].map((lane) => lanes.storedAt(lane)),
      [{ round: 1, page: PAGES }, NOTHING, { round: 1, page: 1025 }],
    );
    push(flush(0b101, 2, 3));
    assert.deepEqual(
      [0, 1, 2].map((lane) => lanes.storedAt(lane)),
      [{ round: 2, page: PAGES }, NOTHING, { round: 2, page: PAGES }],
    );
  });

  it("leaves a lane that was moved here where it stood when a FLUSH comes that was sent before the move", () => {
    const lanes = LaneTable.allocate(2);
    lanes.markStored(1, 4, 700);
    const { push } = target({ lanes });
    push(packet([[3, 1]], [], { round: 4 }));
    lanes.move(1, 0); // while the channel's own lane is still under way
    push(flush(0b01, 4, 1));
    assert.deepEqual(
      [lanes.storedAt(0), lanes.storedAt(1)],
      [
        { round: 4, page: PAGES },
        { round: 4, page: 700 },
      ],
    );
    push(packet([[700, 10]], [], { round: 4, sequence: 2 }));
    assert.deepEqual(lanes.storedAt(1), { round: 4, page: 710 });
  });

  it("takes a run of a lane from the moment it was moved here, and refuses one of a lane that was moved away", () => {
    const lanes = LaneTable.allocate(2);
    const { push, populated } = target({ lanes });
    const bytes = packet([[512, 1]]);
    assert.throws(() => push(bytes), { code: "ERR_RUN_OUT_OF_RANGE" });
    lanes.move(1, 0);
    lanes.move(0, 1);
    target({ lanes, populated }).push(bytes);
    assert.ok(populated.has(512));
    for (const refused of [packet([[0, 1]]), packet([], [[0, 1]])])
      assert.throws(() => target({ lanes, populated }).push(refused), { code: "ERR_RUN_OUT_OF_RANGE" });
    assert.equal(populated.count(), 1);
  });

  it("refuses a FLUSH of a lane that this channel does not carry, or that there is not, and marks none", () => {
    for (const bits of [0b10, 0b11, 0b100, 0b101, 0x8001]) {
      const { push, lanes } = target({ lanes: LaneTable.allocate(2) });
      assert.throws(() => push(flush(bits, 1, 0)), { code: "ERR_RUN_OUT_OF_RANGE" }, bits.toString(2));
      assert.deepEqual([lanes.storedAt(0), lanes.storedAt(1)], [NOTHING, NOTHING]);
    }
  });

  it("takes a run of exactly one stripe, and the last page of the guest", () => {
    const to = target();
    to.push(packet([[512, 512]], []));
    assert.equal(to.populated.count(), 512);
    const last = target();
    last.push(packet([[PAGES - 1, 1]], [[0, 512]]));
    assert.ok(last.populated.has(PAGES - 1));
  });

  it("names for readv the addresses and lengths of the packet's data runs, and of nothing else", {
    skip: isLinuxAvailable ? false : "no system calls here",
  }, () => {
    const memory = allocate(PAGES);
    const store = new PageStore({ memory, hashes: undefined, channel: 0, lanes: LaneTable.allocate(1), populated: new Bitmap(PAGES) });
    const bytes = packet(
      [
        [3, 2],
        [9, 1],
      ],
      [[20, 4]],
    );
    const header = decodeHeader(bytes);
    store.begin(header, bytes, checkRunTable(bytes, header, store.bounds));
    const pieces = new Pieces(4);
    assert.equal(store.nextPieces(pieces), 2);
    const base = BigInt(memory.addressOf(0));
    assert.deepEqual([...pieces.words], [base + 3n * 4096n, 8192n, base + 9n * 4096n, 4096n, 0n, 0n, 0n, 0n]);
    assert.equal(store.nextPieces(pieces), 0);
  });

  it("come in slices with hashes, and each is hashed when the next is asked for", {
    skip: isLinuxAvailable ? false : "no system calls here",
  }, () => {
    const memory = allocate(512);
    const table = allocateHashTable(512);
    const hashes = new PageHashes(memory, table);
    const store = new PageStore({ memory, hashes, channel: 0, lanes: LaneTable.allocate(1), populated: new Bitmap(512) });
    const bytes = packet(
      [
        [0, 40],
        [100, 200],
      ],
      [],
    );
    const header = decodeHeader(bytes);
    store.begin(header, bytes, checkRunTable(bytes, header, store.bounds));
    fillRandom(memory, 0, 512, 1); // what readv would have brought
    const hashed = (): number => Array.from({ length: 512 }, (_, page) => page).filter((page) => table[2 * page] !== 0).length;
    const pieces = new Pieces(4);
    const seen: [pieces: number, hashed: number][] = [];
    for (let count = store.nextPieces(pieces); count > 0; count = store.nextPieces(pieces)) seen.push([count, hashed()]);
    assert.deepEqual(seen, [
      [2, 0],
      [1, 64],
      [1, 128],
      [1, 192],
    ]);
    assert.equal(hashed(), 240);
    assert.ok([0, 39, 100, 299].every((page) => hashes.matches(page)));
  });
});
