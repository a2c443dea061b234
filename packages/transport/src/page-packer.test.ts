import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Bitmap } from "@precopy/guest";
import type { GuestMemory } from "@precopy/guest";
import {
  HEADER_BYTES,
  PACKET_PAGES_MAX,
  PAGE_BYTES,
  PacketKind,
  PageEncoding,
  RUN_BYTES,
  STRIPE_PAGES,
  checkRunTable,
  decodeHeader,
  laneOfPage,
} from "@precopy/protocol";
import { BlockReader, lz4Napi } from "@precopy/protocol/page-codec";
import type { PacketHeader } from "@precopy/protocol";
import fc from "fast-check";
import { WHOLE, allocate, fillRandom, packRound, recorder } from "./recorded-packets.js";

interface Packet {
  readonly header: PacketHeader;
  readonly runs: readonly (readonly [first: number, pages: number])[];
  readonly payload: Buffer;
}

/** Reads a packet as a peer would: every limit, every checksum, every bound is checked on the way. */
function read(bytes: Buffer, pages: number, carried: readonly number[] = [0], lanes = 1): Packet {
  const header = decodeHeader(bytes);
  const isOneStripe = (first: number, count: number): boolean =>
    Math.floor(first / STRIPE_PAGES) === Math.floor((first + count - 1) / STRIPE_PAGES);
  checkRunTable(bytes, header, {
    pages,
    mayCarry: (first, count) => carried.includes(laneOfPage(first, lanes)) && isOneStripe(first, count),
  });
  const runs = Array.from({ length: header.dataRuns + header.zeroRuns }, (_, run) => {
    const at = HEADER_BYTES + run * RUN_BYTES;
    return [bytes.readUInt32LE(at), bytes.readUInt32LE(at + 4)] as const;
  });
  const payload = bytes.subarray(HEADER_BYTES + runs.length * RUN_BYTES);
  assert.equal(payload.byteLength, header.payloadBytes);
  return { header, runs, payload };
}

/** How often each page was sent as data, how often as zero. */
function tally(packets: readonly Packet[], pages: number): { data: Uint8Array; zero: Uint8Array } {
  const data = new Uint8Array(pages);
  const zero = new Uint8Array(pages);
  for (const { header, runs } of packets)
    runs.forEach(([first, count], run) => {
      const counts = run < header.dataRuns ? data : zero;
      for (let page = first; page < first + count; page++) counts[page]!++;
    });
  return { data, zero };
}

/** The data pages of a packet, end to end, however they were encoded. */
function pagesOf({ header, payload }: Packet, dataPages: number): Buffer {
  if (header.encoding === PageEncoding.Raw) return payload;
  const blocks = new BlockReader(Buffer.from(payload), dataPages, lz4Napi());
  const pieces: Uint8Array[] = [];
  for (let block = blocks.next(); block !== undefined; block = blocks.next()) pieces.push(Buffer.from(block));
  return Buffer.concat(pieces);
}

function fullBitmap(pages: number, step = 1): Bitmap {
  const bitmap = new Bitmap(pages);
  for (let page = 0; page < pages; page += step) bitmap.setRun(page, 1);
  return bitmap;
}

/** 0 to 299 zero, 300 to 899 data, then zero and data in turns; a last stripe that is not whole. */
const MIXED_PAGES = 1300;
const holdsData = (page: number): boolean => (page >= 300 && page < 900) || (page >= 900 && page % 2 === 1);
function mixedMemory(): GuestMemory {
  const memory = allocate(MIXED_PAGES);
  for (let page = 0; page < MIXED_PAGES; page++) if (holdsData(page)) fillRandom(memory, page, 1, page);
  return memory;
}

describe("PagePacker", () => {
  const memory = mixedMemory();
  const runsOfPages = fc.array(fc.tuple(fc.nat(MIXED_PAGES - 1), fc.integer({ min: 1, max: 600 })), { maxLength: 12 });

  it("sends every page of any bitmap exactly once over all lanes, as zero if it is zero and else as data, within every limit", async () => {
    await fc.assert(
      fc.asyncProperty(
        runsOfPages,
        fc.integer({ min: 1, max: 4 }),
        fc.constantFrom("none" as const, "lz4" as const),
        async (runs, lanes, compression) => {
          const bitmap = new Bitmap(MIXED_PAGES);
          for (const [first, pages] of runs) bitmap.setRun(first, Math.min(pages, MIXED_PAGES - first));
          const packets: Packet[] = [];
          for (let lane = 0; lane < lanes; lane++) {
            const round = await packRound(memory, bitmap, { lanes, compression }, [{ lane, page: 0 }]);
            packets.push(...round.packets.map((bytes) => read(bytes, MIXED_PAGES, [lane], lanes)));
          }
          const { data, zero } = tally(packets, MIXED_PAGES);
          for (let page = 0; page < MIXED_PAGES; page++) {
            assert.equal(data[page], bitmap.has(page) && holdsData(page) ? 1 : 0, `page ${page} as data`);
            assert.equal(zero[page], bitmap.has(page) && !holdsData(page) ? 1 : 0, `page ${page} as zero`);
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  it("sends the bytes of its data pages, in the order of its runs, raw and lz4", async () => {
    for (const compression of ["none", "lz4"] as const) {
      const { packets } = await packRound(memory, fullBitmap(MIXED_PAGES), { compression });
      let seen = 0;
      for (const packet of packets.map((bytes) => read(bytes, MIXED_PAGES))) {
        const dataRuns = packet.runs.slice(0, packet.header.dataRuns);
        const expected = Buffer.concat(dataRuns.map(([first, pages]) => memory.view(first, pages)));
        assert.ok(pagesOf(packet, expected.byteLength / PAGE_BYTES).equals(expected), `packet ${packet.header.sequence}`);
        seen += expected.byteLength / PAGE_BYTES;
      }
      assert.equal(seen, 800);
    }
  });

  it("stays within the limits for a full, an alternating and a sparse bitmap of 64 MiB that is all data, all zeros, or both in turns", async () => {
    const pages = 2 ** 14;
    for (const fill of ["data", "zeros", "turns"] as const) {
      const big = allocate(pages);
      if (fill === "data") fillRandom(big, 0, pages, 1);
      if (fill === "turns") for (let page = 0; page < pages; page += 2) big.view(page, 1)[PAGE_BYTES - 1] = 1;
      for (const step of [1, 2, 3, 511])
        for (const lanes of [1, 3]) {
          const bitmap = fullBitmap(pages, step);
          let normal = 0;
          let zeros = 0;
          for (let lane = 0; lane < lanes; lane++) {
            const { packets, sent } = await packRound(big, bitmap, { lanes, hashes: undefined }, [{ lane, page: 0 }]);
            const { data, zero } = tally(
              packets.map((bytes) => read(bytes, pages, [lane], lanes)),
              pages,
            );
            normal += data.reduce((sum, count) => sum + count, 0);
            zeros += zero.reduce((sum, count) => sum + count, 0);
            assert.ok([...data].every((count, page) => count + zero[page]! <= 1));
            assert.equal(
              sent.bytes,
              packets.reduce((sum, { byteLength }) => sum + byteLength, 0),
              "what it says it sent is what it sent",
            );
          }
          assert.equal(normal + zeros, bitmap.count(), `${fill}, every ${step}th page, ${lanes} lanes`);
          if (fill !== "turns") assert.equal(fill === "data" ? zeros : normal, 0);
        }
    }
  });

  it("fills packets: a full 64 MiB of data goes out in packets of 512 pages, not of less", async () => {
    const pages = 2 ** 14;
    const big = allocate(pages);
    fillRandom(big, 0, pages, 2);
    const { packets } = await packRound(big, fullBitmap(pages), { hashes: undefined });
    assert.equal(packets.length, pages / PACKET_PAGES_MAX + 1);
  });

  it("numbers packets from 0 without a gap through all rounds, names the round, and ends each with one FLUSH", async () => {
    const { packer, pump } = recorder(memory);
    const rounds = [fullBitmap(MIXED_PAGES), new Bitmap(MIXED_PAGES), fullBitmap(MIXED_PAGES, 7)];
    const sent = [];
    for (const [at, bitmap] of rounds.entries()) sent.push(await packer.sendRound(at + 1, bitmap, WHOLE));
    const packets = pump.packets.map((bytes) => read(bytes, MIXED_PAGES).header);
    assert.deepEqual(
      packets.map(({ sequence }) => sequence),
      [...packets.keys()],
    );
    const flushes = packets.filter(({ kind }) => kind === PacketKind.Flush);
    assert.deepEqual(
      flushes.map(({ round }) => round),
      [1, 2, 3],
    );
    assert.deepEqual(
      flushes.map(({ sequence }) => sequence + 1),
      sent.map(({ packets: count }) => count),
      "its count includes the FLUSH",
    );
    let round = 1;
    for (const packet of packets) {
      assert.equal(packet.round, round);
      if (packet.kind === PacketKind.Flush) round++;
    }
    assert.equal(packets.at(-1)?.kind, PacketKind.Flush);
    assert.deepEqual([sent[1]?.normalPages, sent[1]?.zeroPages, sent[1]?.bytes], [0, 0, HEADER_BYTES], "an empty round is a FLUSH");
  });

  it("counts normal and zero pages of each round by itself", async () => {
    const { packer } = recorder(memory);
    const expected = { normalPages: 800, zeroPages: 500 };
    for (const round of [1, 2]) {
      const { normalPages, zeroPages } = await packer.sendRound(round, fullBitmap(MIXED_PAGES), WHOLE);
      assert.deepEqual({ normalPages, zeroPages }, expected);
    }
  });

  it("sends of each lane that it is told to exactly the pages from its point on, in ascending order, and a FLUSH that names these lanes", async () => {
    await fc.assert(
      fc.asyncProperty(
        runsOfPages,
        fc.integer({ min: 1, max: 4 }).chain((lanes) =>
          fc.record({
            lanes: fc.constant(lanes),
            from: fc.uniqueArray(fc.record({ lane: fc.nat(lanes - 1), page: fc.nat(MIXED_PAGES) }), { selector: ({ lane }) => lane }),
          }),
        ),
        fc.constantFrom("none" as const, "lz4" as const),
        async (runs, { lanes, from }, compression) => {
          const bitmap = new Bitmap(MIXED_PAGES);
          for (const [first, pages] of runs) bitmap.setRun(first, Math.min(pages, MIXED_PAGES - first));
          const round = await packRound(memory, bitmap, { lanes, compression }, from);
          const carried = from.map(({ lane }) => lane);
          const packets = round.packets.map((bytes) => read(bytes, MIXED_PAGES, carried, lanes));
          const { data, zero } = tally(packets, MIXED_PAGES);
          for (let page = 0; page < MIXED_PAGES; page++) {
            const start = from.find(({ lane }) => lane === laneOfPage(page, lanes))?.page ?? MIXED_PAGES;
            assert.equal(data[page]! + zero[page]!, bitmap.has(page) && page >= start ? 1 : 0, `page ${page}, lanes from ${start}`);
          }
          let reached = 0; // what makes one point of a lane's progress: no packet has a page below an earlier packet's
          for (const { runs: own } of packets) {
            assert.ok(own.every(([first]) => first >= reached));
            reached = Math.max(reached, ...own.map(([first, pages]) => first + pages));
          }
          assert.equal(
            packets.at(-1)?.header.lanes,
            carried.reduce((bits, lane) => bits + 2 ** lane, 0),
          );
        },
      ),
      { numRuns: 60 },
    );
  });

  it("says after every packet how far it came, and that all of the round is out only after its FLUSH", async () => {
    const { packer, pump } = recorder(memory);
    assert.ok(packer.position === undefined);
    const point = (): unknown => packer.position && { round: packer.position.round, page: packer.position.page };
    const seen: unknown[] = [];
    const { sendPages, sendBytes } = pump;
    pump.sendPages = (...packet): undefined => {
      seen.push(point());
      return sendPages.apply(pump, packet);
    };
    pump.sendBytes = (...packet): undefined => {
      seen.push(point());
      return sendBytes.apply(pump, packet);
    };
    await packer.sendRound(3, fullBitmap(MIXED_PAGES), WHOLE);
    assert.deepEqual(
      seen,
      [0, 512, 1024, MIXED_PAGES].map((page) => ({ round: 3, page })), // a packet for each stripe, and the FLUSH
    );
    assert.deepEqual(point(), { round: 3, page: MIXED_PAGES });
    assert.match(JSON.stringify(packer.position), /"normalPages":[1-9].*"bytes":[1-9]/, "and what it cost");
    pump.sendPages = () => {
      throw new Error("cut");
    };
    await assert.rejects(packer.sendRound(4, fullBitmap(MIXED_PAGES), [{ lane: 0, page: 700 }]), /cut/);
    assert.deepEqual(point(), { round: 4, page: 0 }, "what was cut off does not count");
  });

  it("sends what changed of a page with xbzrle, from the third time on that it is sent, and the page itself after it was zero", async () => {
    const guest = allocate(256);
    fillRandom(guest, 0, 4, 1);
    const { packer, pump } = recorder(guest, { xbzrleCacheBytes: 4 * PAGE_BYTES });
    const all = new Bitmap(guest.pages);
    all.setRun(0, 4);
    const write = (): void => void guest.view(2, 1).fill(Math.floor(Math.random() * 255) + 1, 100, 164);
    const sent: [encoding: number, payloadBytes: number, counts: unknown][] = [];
    const round = async (number: number): Promise<void> => {
      const { xbzrle } = await packer.sendRound(number, all, WHOLE);
      const { encoding, payloadBytes } = read(pump.packets.at(-2)!, guest.pages).header; // the last is the FLUSH
      sent.push([encoding, payloadBytes, xbzrle]);
    };
    await round(1);
    write();
    await round(2);
    guest.view(2, 1).fill(0, 0, 50); // as long as the delta may be, and no zero page
    await round(3);
    guest.view(2, 1).fill(0);
    await round(4);
    fillRandom(guest, 2, 1, 9);
    await round(5);
    const whole = 2 + PAGE_BYTES;
    assert.deepEqual(sent, [
      [PageEncoding.Raw, 4 * PAGE_BYTES, undefined],
      [PageEncoding.Xbzrle, 4 * whole, { pages: 0, bytes: 0, misses: 4, overflows: 0 }],
      [PageEncoding.Xbzrle, 3 * 2 + 2 + sent[2]![1] - 8, { pages: 4, bytes: sent[2]![1] - 8, misses: 0, overflows: 0 }],
      [PageEncoding.Xbzrle, 3 * 2, { pages: 3, bytes: 0, misses: 0, overflows: 0 }],
      [PageEncoding.Xbzrle, 3 * 2 + whole, { pages: 3, bytes: 0, misses: 1, overflows: 0 }],
    ]);
    assert.ok(sent[2]![1] < 100, `${sent[2]![1]} B for 50 that changed`);
  });

  it("gives a digest with hashes and none without, and the same whether the pages go in one round or in many", async () => {
    assert.equal((await packRound(memory, fullBitmap(MIXED_PAGES), { hashes: undefined })).sent.digest, undefined);
    const { sent } = await packRound(memory, fullBitmap(MIXED_PAGES));
    const { packer } = recorder(memory);
    await packer.sendRound(1, fullBitmap(MIXED_PAGES, 2), WHOLE);
    const { digest } = await packer.sendRound(2, fullBitmap(MIXED_PAGES), WHOLE);
    assert.equal(typeof digest, "bigint");
    assert.equal(digest, sent.digest);
  });
});
