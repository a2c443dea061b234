import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import type { Socket } from "node:net";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { Bitmap, MissingPages, PageHashes, allocateHashTable, whyNoMissingPages, whyNoMmuDirtyLog } from "@precopy/guest";
import type { GuestMemory, HashTable } from "@precopy/guest";
import { PagePlacing, PagemapScanner, Pieces, freePages } from "@precopy/linux";
import {
  FAULT_AROUND_PAGES_MAX,
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
import { hasCodec } from "@precopy/protocol/page-codec";
import fc from "fast-check";
import { LaneProgress } from "./lane-progress.js";
import { LaneTable } from "./lane-table.js";
import { PagePlacer } from "./page-placer.js";
import type { PlaceTarget } from "./page-placer.js";
import { receiveDirect } from "./pump-direct.js";
import { allocate, fillRandom, packRound } from "./recorded-packets.js";
import { takeDescriptor } from "./take-descriptor.js";

const PAGES = 1300; // two stripes and a piece
type Run = readonly [first: number, pages: number];

/** A target all of whose pages are missing. Nobody here may touch one before it is placed, or before `letGo`: this thread would stop for ever. */
interface Target extends PlaceTarget {
  readonly memory: GuestMemory;
  readonly lanes: LaneTable;
  readonly placer: PagePlacer;
  readonly push: (bytes: Buffer) => void;
  /** Pages that are there, without touching them. */
  there(): number[];
  letGo(): void;
}
function target(context: TestContext, given: Partial<PlaceTarget> & { readonly isFaultChannel?: boolean } = {}): Target {
  const memory = given.memory ?? allocate(PAGES);
  const pages = new MissingPages(memory);
  pages.bitmap.setRun(0, memory.pages);
  const scanner = new PagemapScanner();
  const lanes = LaneTable.allocate(1);
  const where: PlaceTarget = {
    memory,
    table: allocateHashTable(memory.pages),
    missing: pages.bitmap,
    populated: new Bitmap(memory.pages),
    descriptor: pages.listen(),
    progress: given.isFaultChannel === true ? undefined : new LaneProgress(lanes, 0, memory.pages),
    ...given,
  };
  const placer = new PagePlacer(where);
  const decoder = new PacketDecoder(placer.bounds, placer);
  context.after(() => {
    pages.close();
    scanner.close();
    for (const { address, bytes } of memory.ranges()) freePages(address, bytes);
  });
  const there = (): number[] => {
    const found: number[] = [];
    for (const range of memory.ranges())
      scanner.listPopulated(range, (first, count) => found.push(...Array.from({ length: count }, (_, at) => first + at)));
    return found;
  };
  return { ...where, lanes, placer, push: (bytes) => decoder.push(bytes), there, letGo: () => pages.close() };
}

/** Data, zeros and never-touched pages, mixed. */
function source(): { memory: GuestMemory; all: Bitmap; hashes: HashTable } {
  const memory = allocate(PAGES);
  fillRandom(memory, 0, 20, 1);
  fillRandom(memory, 500, 30, 2); // over the end of a stripe
  for (let page = 600; page < 700; page += 2) memory.view(page, 1).fill(page & 0xff);
  fillRandom(memory, PAGES - 3, 3, 3);
  const all = new Bitmap(PAGES);
  all.setRun(0, PAGES);
  const hashes = allocateHashTable(PAGES);
  const hashing = new PageHashes(memory, hashes);
  for (let page = 0; page < PAGES; page++) if (!hashing.isZeroPage(page)) hashing.renew(page, 1);
  return { memory, all, hashes };
}
const equal = (one: GuestMemory, other: GuestMemory): boolean => Buffer.compare(one.view(0, one.pages), other.view(0, other.pages)) === 0;
const pagesOf = (bitmap: Bitmap): number[] => {
  const pages: number[] = [];
  bitmap.forEachRun((first, count) => pages.push(...Array.from({ length: count }, (_, at) => first + at)));
  return pages;
};
const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, at) => from + at);
const hashOf = (table: HashTable | undefined, page: number): readonly (number | undefined)[] => [table?.[2 * page], table?.[2 * page + 1]];

function packet(data: readonly Run[], zero: readonly Run[] = [], fields: Partial<PacketHeader> = {}, payload?: Buffer): Buffer {
  const head = Buffer.alloc(HEADER_BYTES + (data.length + zero.length) * RUN_BYTES);
  [...data, ...zero].forEach(([first, pages], at) => {
    head.writeUInt32LE(first, HEADER_BYTES + at * RUN_BYTES);
    head.writeUInt32LE(pages, HEADER_BYTES + at * RUN_BYTES + 4);
  });
  const bytes = payload ?? Buffer.concat(data.flatMap(([first, pages]) => range(first, first + pages).map((page) => pageBytes(page))));
  encodeHeader(head, {
    kind: PacketKind.Pages,
    encoding: PageEncoding.Raw,
    round: 1,
    sequence: 0,
    dataRuns: data.length,
    zeroRuns: zero.length,
    payloadBytes: bytes.byteLength,
    lanes: 0,
    ...fields,
  });
  return Buffer.concat([head, bytes]);
}
const pageBytes = (page: number): Buffer => Buffer.alloc(PAGE_BYTES, Buffer.from([1 + (page % 250), 255, page & 0xff, page >>> 8]));
const flush = (lanes: number, sequence = 0): Buffer => packet([], [], { kind: PacketKind.Flush, lanes, sequence });
/** Both ends of a TCP connection. */
async function pair(context: TestContext): Promise<readonly [near: Socket, far: Socket]> {
  const server = createServer({ pauseOnConnect: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  const near = connect(address.port, "127.0.0.1");
  const [[far]] = (await Promise.all([once(server, "connection"), once(near, "connect")])) as [[Socket], unknown];
  server.close();
  context.after(() => [near, far].forEach((socket) => socket.destroy()));
  return [near, far];
}

/** What is there is asked of the page tables. */
const why = whyNoMissingPages() ?? whyNoMmuDirtyLog();

describe("PagePlacer", { skip: why ?? false, timeout: 300_000 }, () => {
  for (const compression of ["none", "lz4", ...(hasCodec("zstd") ? (["zstd"] as const) : [])] as const)
    for (const pieceBytes of [1_000_000, 4097, 100])
      it(`makes the image equal to the source's, with the source's hashes and nothing missing (${compression}, in pieces of ${pieceBytes} B)`, async (context) => {
        const { memory, all, hashes } = source();
        const { packets } = await packRound(memory, all, { compression });
        const into = target(context);
        const stream = Buffer.concat(packets);
        for (let at = 0; at < stream.byteLength; at += pieceBytes) into.push(Buffer.from(stream.subarray(at, at + pieceBytes)));
        assert.equal(into.missing.count(), 0);
        assert.deepEqual(into.there(), range(0, PAGES));
        assert.equal(into.populated.count(), PAGES);
        assert.deepEqual(into.table, hashes);
        assert.deepEqual(into.lanes.storedAt(0), { round: 1, page: PAGES });
        into.letGo();
        assert.ok(equal(into.memory, memory));
      });

  it("does so by the direct pump, too, which reads into private memory and not into the guest's", async (context) => {
    const { memory, all, hashes } = source();
    const { packets } = await packRound(memory, all);
    const into = target(context);
    const [near, far] = await pair(context);
    near.end(Buffer.concat(packets));
    await once(near, "finish");
    const handle = await takeDescriptor(far);
    context.after(() => handle.close());
    let flushed = 0;
    assert.throws(
      () =>
        receiveDirect(
          handle.fd,
          Buffer.from("go"),
          into.placer,
          () => true,
          () => flushed++,
        ),
      { code: "ERR_LINK_LOST" },
    );
    assert.equal(flushed, 1);
    assert.equal(into.missing.count(), 0);
    assert.deepEqual(into.table, hashes);
    into.letGo();
    assert.ok(equal(into.memory, memory));
  });

  it("hands out one piece for all pages of a packet, once, and none of it is guest memory", (context) => {
    const { placer, memory } = target(context);
    const pieces = new Pieces(1);
    const start = BigInt(memory.addressOf(0));
    for (const [data, pages] of [
      [
        [
          [3, 2],
          [9, 5],
        ],
        7,
      ],
      [[[0, STRIPE_PAGES]], STRIPE_PAGES],
      [[], 0],
    ] as const) {
      const head = packet(data, [[700, 1]]);
      const header = decodeHeader(head);
      placer.begin(header, head, checkRunTable(head, header, placer.bounds));
      assert.equal(placer.nextPieces(pieces), pages === 0 ? 0 : 1);
      if (pages > 0) {
        assert.equal(pieces.words[1], BigInt(pages * PAGE_BYTES));
        assert.ok(pieces.words[0]! + BigInt(pages * PAGE_BYTES) <= start || pieces.words[0]! >= start + BigInt(memory.bytes));
      }
      assert.equal(placer.nextPieces(pieces), 0, "twice");
    }
  });

  it("places, hashes and unmarks exactly those pages of a run that are missing, for every set of 6 pages that are there, data and zeros", (context) => {
    const SIX = 6;
    const into = target(context);
    const placing = new PagePlacing(into.descriptor);
    const before = allocate(PAGES);
    before.view(0, SIX).fill(200);
    let sequence = 0;
    for (const isZero of [false, true])
      for (let there = 0; there < 1 << SIX; there++) {
        for (const { address, bytes } of into.memory.ranges()) freePages(address, bytes); // all are missing again
        into.table?.fill(0xabc);
        into.populated.clear();
        into.missing.setRun(0, SIX);
        const own = range(0, SIX).filter((page) => ((there >>> page) & 1) === 1);
        for (const page of own) placing.copy(into.memory.addressOf(page), before.addressOf(page), PAGE_BYTES);
        into.push(isZero ? packet([], [[0, SIX]], { sequence: sequence++ }) : packet([[0, SIX]], [], { sequence: sequence++ }));
        const what = `${isZero ? "zeros" : "data"} over ${there.toString(2)}`;
        const placed = range(0, SIX).filter((page) => !own.includes(page));
        assert.deepEqual(into.there(), range(0, SIX), what);
        assert.deepEqual(
          pagesOf(into.missing).filter((page) => page < SIX),
          own,
          `${what}: whoever placed the others unmarks them`,
        );
        assert.deepEqual(pagesOf(into.populated), placed, what);
        const hashing = new PageHashes(into.memory, into.table!); // given none, it made one
        for (const page of range(0, SIX)) {
          const expected = own.includes(page) ? Buffer.alloc(PAGE_BYTES, 200) : isZero ? Buffer.alloc(PAGE_BYTES) : pageBytes(page);
          assert.ok(expected.equals(into.memory.view(page, 1)), `${what}: page ${page}`);
          if (own.includes(page) || isZero) assert.deepEqual(hashOf(into.table, page), [0xabc, 0xabc], `${what}: hash of page ${page}`);
          else assert.ok(hashing.matches(page), `${what}: hash of page ${page}`);
        }
      }
  });

  it("leaves a page alone that the guest wrote since it came first", (context) => {
    const into = target(context);
    into.push(packet([[10, 3]]));
    const kept = hashOf(into.table, 11);
    into.memory.view(11, 1)[77] = 99; // it is there
    const expected = pageBytes(11);
    expected[77] = 99;
    into.push(packet([[9, 5]], [], { sequence: 1 }, Buffer.alloc(5 * PAGE_BYTES, 5)));
    into.push(packet([], [[9, 6]], { sequence: 2 }));
    assert.ok(expected.equals(into.memory.view(11, 1)));
    assert.deepEqual(hashOf(into.table, 11), kept, "its hash is that of what was placed");
    assert.deepEqual(into.there(), range(9, 15));
  });

  it("places nothing of a packet before all of it is there: cut anywhere, every page is missing still and marked so, and a next life brings it", (context) => {
    const bytes = packet(
      [
        [3, 1],
        [7, 2],
      ],
      [[20, 3]],
      { sequence: 0 },
    );
    const into = target(context);
    for (const cut of [
      0,
      1,
      HEADER_BYTES,
      HEADER_BYTES + 3 * RUN_BYTES,
      HEADER_BYTES + 3 * RUN_BYTES + 1,
      bytes.byteLength - PAGE_BYTES,
      bytes.byteLength - 1,
    ]) {
      const life = new PagePlacer(into);
      new PacketDecoder(life.bounds, life).push(Buffer.from(bytes.subarray(0, cut)));
      assert.deepEqual(into.there(), [], `cut after ${cut} B`);
      assert.equal(into.missing.count(), PAGES);
      assert.equal(into.populated.count(), 0);
      assert.deepEqual(into.lanes.storedAt(0), { round: 0, page: 0 });
      assert.ok(into.table?.every((word) => word === 0));
    }
    const life = new PagePlacer(into);
    new PacketDecoder(life.bounds, life).push(bytes);
    assert.deepEqual(into.there(), [3, 7, 8, 20, 21, 22]);
    for (const page of [3, 7, 8]) assert.ok(pageBytes(page).equals(into.memory.view(page, 1)), `page ${page}`);
  });

  it("unmarks a page only when it is there, hashed and populated: whoever sees the bit clear can rely on all three", (context) => {
    let cleared = 0;
    /** Looks around at the moment at which a bit is cleared. */
    class Watched extends Bitmap {
      override clearRunShared(first: number, pages: number): void {
        for (let page = first; page < first + pages; page++) {
          assert.ok(into.there().includes(page), `page ${page} is not there`);
          assert.ok(into.populated.has(page), `page ${page} is not populated`);
          assert.ok(isZeroRun || new PageHashes(into.memory, into.table!).matches(page), `page ${page} is not hashed`); // given none, it made one
          assert.ok(this.has(page));
        }
        cleared++;
        super.clearRunShared(first, pages);
      }
    }
    let isZeroRun = false;
    const missing = new Watched(PAGES);
    missing.setRun(0, PAGES);
    const into = target(context, { missing });
    into.push(
      packet([
        [3, 1],
        [7, 20],
      ]),
    );
    assert.equal(cleared, 2);
    isZeroRun = true;
    into.push(
      packet(
        [],
        [
          [5, 1],
          [20, 20],
        ],
        { sequence: 1 },
      ),
    );
    assert.deepEqual([cleared, missing.count()], [4, PAGES - 21 - 14]);
  });

  it("gives a page to the first of two channels that bring it, whatever their order: hash and mark are of the page that is there", (context) =>
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(20), fc.integer({ min: 1, max: 8 }), fc.boolean()), { maxLength: 12 }), (runs) => {
        const into = target(context);
        const other = new PagePlacer({ ...into, progress: undefined });
        const decoders = [into.placer, other].map((placer) => new PacketDecoder({ pages: PAGES, mayCarry: () => true }, placer));
        const sequences = [0, 0];
        const expected = new Map<number, number>();
        for (const [first, pages, isOther] of runs) {
          const at = isOther ? 1 : 0;
          const value = isOther ? 8 : 7;
          decoders[at]?.push(packet([[first, pages]], [], { sequence: sequences[at]!++ }, Buffer.alloc(pages * PAGE_BYTES, value)));
          for (const page of range(first, first + pages)) if (!expected.has(page)) expected.set(page, value);
        }
        const pages = [...expected.keys()].sort((a, b) => a - b);
        assert.deepEqual(into.there(), pages);
        assert.equal(into.missing.count(), PAGES - pages.length);
        const hashing = new PageHashes(into.memory, into.table!); // given none, it made one
        for (const [page, value] of expected) {
          assert.ok(into.memory.view(page, 1).every((byte) => byte === value));
          assert.ok(hashing.matches(page), `hash of page ${page}`);
        }
        into.letGo();
      }),
      { numRuns: 30 },
    ));

  it("keeps no hashes with the digest off, and places all the same", (context) => {
    const into = target(context, { table: undefined });
    into.push(packet([[0, 2]], [[2, 1]]));
    assert.deepEqual(into.there(), [0, 1, 2]);
    assert.equal(into.missing.count(), PAGES - 3);
  });

  it("refuses a delta with ERR_NOT_A_PACKET, on both kinds of channel, and places nothing", (context) => {
    for (const isFaultChannel of [false, true]) {
      const into = target(context, { isFaultChannel });
      const delta = packet([[3, 1]], [], { encoding: PageEncoding.Xbzrle }, Buffer.of(0, 1, 9));
      assert.throws(() => into.push(delta), { code: "ERR_NOT_A_PACKET" });
      assert.deepEqual([into.there(), into.missing.count()], [[], PAGES]);
    }
  });

  it("refuses blocks that do not decode, or decode to more or less, with ERR_BLOCK_CORRUPT, and places nothing of their packet", (context) => {
    const into = target(context);
    const block = (length: number, bytes: Buffer): Buffer => Buffer.concat([Buffer.from(Uint32Array.of(length).buffer), bytes]);
    for (const payload of [
      block(100, Buffer.alloc(100, 0xff)),
      block(5, Buffer.alloc(3)),
      block(PAGE_BYTES * 2, Buffer.alloc(PAGE_BYTES * 2, 1)),
      Buffer.concat([block(PAGE_BYTES, Buffer.alloc(PAGE_BYTES, 1)), Buffer.of(0)]),
      Buffer.of(1, 2),
    ]) {
      const life = new PagePlacer(into);
      const bad = packet([[3, 1]], [[9, 1]], { encoding: PageEncoding.Lz4 }, payload);
      assert.throws(
        () => new PacketDecoder(life.bounds, life).push(bad),
        { code: "ERR_BLOCK_CORRUPT" },
        payload.subarray(0, 8).toString("hex"),
      );
      assert.deepEqual([into.there(), into.missing.count()], [[], PAGES]);
    }
  });

  it("takes rounds and lanes on a page channel: a FLUSH ends the round, and one of a lane that is not carried is refused", (context) => {
    const into = target(context);
    into.push(packet([[100, 3]], [[200, 4]], { round: 9 }));
    assert.deepEqual(into.lanes.storedAt(0), { round: 9, page: 204 });
    assert.throws(() => into.push(flush(2, 1)), { code: "ERR_RUN_OUT_OF_RANGE" });
    const next = target(context);
    next.push(flush(1));
    assert.deepEqual(next.lanes.storedAt(0), { round: 1, page: PAGES });
    assert.throws(() => next.push(packet([[STRIPE_PAGES - 1, 2]], [], { sequence: 1 })), { code: "ERR_RUN_OUT_OF_RANGE" }, "two stripes");
  });

  it("takes on a fault channel few pages in a run, any page there is, and no FLUSH", (context) => {
    const refused = (bytes: Buffer, code: string): void => {
      const into = target(context, { isFaultChannel: true });
      assert.throws(() => into.push(bytes), { code });
      assert.deepEqual([into.there(), into.missing.count()], [[], PAGES]);
    };
    refused(flush(0), "ERR_NOT_A_PACKET");
    refused(flush(1), "ERR_NOT_A_PACKET");
    refused(packet([[3, FAULT_AROUND_PAGES_MAX + 1]]), "ERR_RUN_OUT_OF_RANGE");
    refused(packet([], [[3, FAULT_AROUND_PAGES_MAX + 1]]), "ERR_RUN_OUT_OF_RANGE");
    refused(packet([[PAGES, 1]]), "ERR_RUN_OUT_OF_RANGE");
    const into = target(context, { isFaultChannel: true });
    into.push(packet([])); // the greeting
    into.push(packet([[PAGES - FAULT_AROUND_PAGES_MAX, FAULT_AROUND_PAGES_MAX]], [[0, 1]], { sequence: 1 }));
    assert.deepEqual(into.there(), [0, ...range(PAGES - FAULT_AROUND_PAGES_MAX, PAGES)]);
    assert.deepEqual(into.lanes.storedAt(0), { round: 0, page: 0 }, "it is no round's");
  });

  it("fails with ERR_SYSTEM_CALL where nothing is missing any more because it was let go, and writes nothing", (context) => {
    const into = target(context);
    into.letGo();
    assert.throws(() => into.push(packet([[3, 1]])), { code: "ERR_SYSTEM_CALL" });
    assert.ok(into.memory.view(3, 1).every((byte) => byte === 0));
    assert.equal(into.missing.has(3), true);
  });
});
