import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Bitmap, PageHashes, allocateHashTable, joinDigests } from "@precopy/guest";
import type { GuestMemory } from "@precopy/guest";
import { isLinuxAvailable } from "@precopy/linux";
import {
  HEADER_BYTES,
  PAGE_BYTES,
  PacketDecoder,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
  checkRunTable,
  decodeHeader,
  encodeHeader,
} from "@precopy/protocol";
import fc from "fast-check";
import { PageStore } from "./page-store.js";
import type { StoreTarget } from "./page-store.js";
import { allocate, fillRandom, packRound, recorder } from "./recorded-packets.js";

const PAGES = 1300; // two stripes and a piece
type Run = readonly [first: number, pages: number];

interface Target {
  readonly memory: GuestMemory;
  readonly populated: Bitmap;
  readonly hashes: PageHashes;
  readonly push: (bytes: Buffer) => void;
}
function target(given: Partial<StoreTarget> = {}): Target {
  const memory = allocate(PAGES);
  const populated = new Bitmap(PAGES);
  const hashes = new PageHashes(memory, allocateHashTable(PAGES));
  const store = new PageStore({ memory, hashes, channel: 0, channels: 1, populated, ...given });
  const decoder = new PacketDecoder(store.bounds, store);
  return { memory, populated, hashes, push: (bytes) => decoder.push(bytes) };
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
const isZero = (memory: GuestMemory, page: number): boolean => memory.view(page, 1).every((byte) => byte === 0);
const equal = (one: GuestMemory, other: GuestMemory): boolean => Buffer.compare(one.view(0, one.pages), other.view(0, other.pages)) === 0;

function packet(
  data: readonly Run[],
  zero: readonly Run[],
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
  });
  return Buffer.concat([head, payload]);
}

describe("PageStore", () => {
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
      const { digest } = await packer.sendRound(round, dirty);
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
    ["across two stripes, although both are this channel's", [511, 2], 1, 0],
    ["of another channel", [512, 1], 2, 0],
    ["of this channel's stripe with a foreign end", [0, 513], 2, 0],
    ["of stripe 0 on channel 1", [0, 1], 2, 1],
    ["without pages", [5, 0], 1, 0],
  ];
  for (const [what, run, channels, channel] of refused)
    it(`refuses a run ${what} with ERR_RUN_OUT_OF_RANGE, as data and as zeros, and stores nothing of its packet`, () => {
      const good: Run = channel === 0 ? [1, 1] : [513, 1];
      for (const bytes of [packet([good, run], [], Buffer.alloc(PAGE_BYTES, 7)), packet([good], [run])]) {
        const to = target({ channel, channels });
        assert.throws(() => to.push(bytes), { code: "ERR_RUN_OUT_OF_RANGE" });
        assert.equal(to.populated.count(), 0);
        assert.ok(to.memory.view(0, PAGES).every((byte) => byte === 0));
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
    const store = new PageStore({ memory, hashes: undefined, channel: 0, channels: 1, populated: new Bitmap(PAGES) });
    const bytes = packet(
      [
        [3, 2],
        [9, 1],
      ],
      [[20, 4]],
    );
    const header = decodeHeader(bytes);
    store.begin(header, bytes, checkRunTable(bytes, header, store.bounds));
    const pieces = new BigUint64Array(8);
    assert.equal(store.pieces(pieces), 2);
    const base = BigInt(memory.addressOf(0));
    assert.deepEqual([...pieces], [base + 3n * 4096n, 8192n, base + 9n * 4096n, 4096n, 0n, 0n, 0n, 0n]);
  });
});
