import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { isLinuxAvailable } from "@precopy/linux";
import { MigrationError, PAGE_BYTES } from "@precopy/protocol";
import { Bitmap } from "./bitmap.js";
import { allocateBarrier } from "./dirty-log-barrier.js";
import { whyNoMmuDirtyLog } from "./dirty-log-mmu.js";
import { GuestMemory, SegmentPool } from "./guest-memory.js";
import { MemoryAccess } from "./memory-access.js";
import { MemoryService } from "./memory-service.js";
import { PageHashes, allocateHashTable } from "./page-hashes.js";

const MIB = 2 ** 20;
const pool = new SegmentPool();
const why = whyNoMmuDirtyLog();
const KINDS = { barrier: false, mmu: why === undefined ? false : `no mmu dirty log here: ${why}` } as const;

interface Served {
  readonly service: MemoryService;
  readonly memory: GuestMemory;
  readonly access: MemoryAccess;
  pagesOf(call: (into: Bitmap) => Promise<number>): Promise<number[]>;
}
async function withService(
  kind: keyof typeof KINDS,
  bytes: number,
  use: (served: Served) => Promise<void>,
  options: ConstructorParameters<typeof MemoryService>[0] = {},
): Promise<void> {
  const memory = GuestMemory.allocate(bytes, pool);
  const barrier = kind === "barrier" ? allocateBarrier(memory.pages) : undefined;
  const service = new MemoryService(options);
  try {
    await service.attach(memory, barrier);
    const pagesOf: Served["pagesOf"] = async (call) => {
      const into = new Bitmap(memory.pages);
      assert.ok((await call(into)) >= 0, "ms it took");
      const pages: number[] = [];
      into.forEachRun((first, count) => pages.push(...Array.from({ length: count }, (_, at) => first + at)));
      return pages;
    };
    await use({ service, memory, access: new MemoryAccess(memory, barrier), pagesOf });
  } finally {
    await service.end();
  }
}

for (const kind of ["barrier", "mmu"] as const)
  describe(`MemoryService with the ${kind} log`, { skip: KINDS[kind] }, () => {
    it("starts, collects into the caller's bitmap, stops, and starts anew", () =>
      withService(kind, MIB, async ({ service, access, pagesOf }) => {
        access.storeU32(3 * PAGE_BYTES, 1);
        assert.deepEqual(await pagesOf((into) => service.start(into)), [3]);
        access.storeU32(4 * PAGE_BYTES, 1);
        assert.deepEqual(await pagesOf((into) => service.collect(into)), [4]);
        assert.deepEqual(await pagesOf((into) => service.collect(into)), []);
        await service.stop();
        assert.deepEqual(await pagesOf((into) => service.start(into)), [3, 4]);
      }));

    it("gives a refusal back with its code, and goes on", () =>
      withService(kind, MIB, async ({ service, pagesOf }) => {
        await assert.rejects(service.collect(new Bitmap(256)), { code: "ERR_NOT_TRACKING" });
        await pagesOf((into) => service.start(into));
        await assert.rejects(service.start(new Bitmap(256)), { code: "ERR_ALREADY_TRACKING" });
        await service.detach();
        await assert.rejects(service.collect(new Bitmap(256)), { code: "ERR_NO_GUEST" });
      }));

    it("lists what a first round would look at, and arms nothing", () =>
      withService(kind, MIB, async ({ service, access, pagesOf }) => {
        for (const page of [3, 200]) access.storeU32(page * PAGE_BYTES, 1);
        for (let time = 0; time < 2; time++) assert.deepEqual(await pagesOf((into) => service.list(into)), [3, 200]);
        await assert.rejects(service.peek(new Bitmap(256)), { code: "ERR_NOT_TRACKING" });
        assert.deepEqual(await pagesOf((into) => service.start(into)), [3, 200]);
        access.storeU32(7 * PAGE_BYTES, 1);
        for (let time = 0; time < 2; time++) assert.deepEqual(await pagesOf((into) => service.peek(into)), [7]);
        assert.deepEqual(await pagesOf((into) => service.collect(into)), [7]);
      }));

    it("watches some pages and no others, by as many looks as one likes, and leaves the dirty log as it was", () =>
      withService(kind, MIB, async ({ service, memory, access, pagesOf }) => {
        access.fill(0, MIB, 1);
        const watched = new Bitmap(memory.pages);
        for (const [first, pages] of [
          [10, 20],
          [100, 1],
          [250, 6],
        ] as const)
          watched.setRun(first, pages);
        await service.watch(watched);
        const look = (): Promise<number[]> =>
          pagesOf(async (into) => {
            await service.look(into);
            return 0;
          });
        assert.deepEqual(await look(), []);
        for (const page of [9, 10, 29, 30, 99, 100, 255]) access.storeU32(page * PAGE_BYTES, 7);
        for (let time = 0; time < 2; time++) assert.deepEqual(await look(), [10, 29, 100, 255]);
        await service.unwatch();
        assert.equal((await pagesOf((into) => service.start(into))).length, memory.pages);
        access.storeU32(5 * PAGE_BYTES, 9);
        assert.deepEqual(await pagesOf((into) => service.collect(into)), [5]);
      }));

    it("audits a frozen image: nothing if all hashes are of what is there, one page if one is stale", () =>
      withService(kind, MIB, async ({ service, memory, access }) => {
        const table = allocateHashTable(memory.pages);
        const hashes = new PageHashes(memory, table);
        for (let page = 10; page < 30; page++) {
          access.storeU32(page * PAGE_BYTES, page);
          hashes.renew(page, 1);
        }
        const clean = await service.audit(table);
        assert.equal(clean.mismatched, 0);
        assert.ok(clean.pages >= 20, `only ${clean.pages} pages were looked at`);
        access.storeU32(17 * PAGE_BYTES + 4092, 1);
        assert.equal((await service.audit(table)).mismatched, 1);
        access.storeU32(200 * PAGE_BYTES, 1); // written, and never sent at all
        assert.equal((await service.audit(table)).mismatched, 2);
        access.fill(20 * PAGE_BYTES, PAGE_BYTES, 0); // zero now, and sent with data
        assert.equal((await service.audit(table)).mismatched, 3);
      }));

    it(
      "audits a page that is not there any more but was sent with data",
      { skip: isLinuxAvailable ? false : "memory stays where it is" },
      () =>
        withService(kind, MIB, async ({ service, memory, access }) => {
          const table = allocateHashTable(memory.pages);
          access.storeU32(5 * PAGE_BYTES, 1);
          new PageHashes(memory, table).renew(5, 1);
          await service.free();
          assert.equal((await service.audit(table)).mismatched, 1);
        }),
    );

    it("loses one page in as many as it was told to, and only then", () =>
      withService(
        kind,
        MIB,
        async ({ service, access, pagesOf }) => {
          await pagesOf((into) => service.start(into));
          for (let page = 0; page < 10; page++) access.storeU32(page * PAGE_BYTES, 1);
          assert.deepEqual(await pagesOf((into) => service.collect(into)), [0, 1, 2, 4, 5, 6, 8, 9]);
        },
        { forgetEvery: 4 },
      ));

    it("lists every page at the start if it was made to, and after that only what is written, however much of it is read", () =>
      withService(
        kind,
        MIB,
        async ({ service, memory, access, pagesOf }) => {
          access.storeU32(3 * PAGE_BYTES, 1);
          const all = Array.from({ length: memory.pages }, (_, page) => page);
          for (let migration = 1; migration <= 2; migration++) {
            assert.deepEqual(await pagesOf((into) => service.start(into)), all);
            for (const page of all) assert.equal(access.loadU32(page * PAGE_BYTES), page === 3 ? 1 : 0);
            assert.deepEqual(await pagesOf((into) => service.collect(into)), []);
            for (const page of [3, 100, 255]) access.storeU32(page * PAGE_BYTES, page === 3 ? 1 : 0);
            assert.deepEqual(await pagesOf((into) => service.collect(into)), [3, 100, 255]);
            await service.stop();
          }
        },
        { firstList: "all" },
      ));
  });

describe("MemoryService", () => {
  /** Some pages of data, hashed as whoever stored them would have. */
  const fill = (memory: GuestMemory, access: MemoryAccess, pages: readonly number[]): ReturnType<typeof allocateHashTable> => {
    const table = allocateHashTable(memory.pages);
    const hashes = new PageHashes(memory, table);
    for (const page of pages) {
      access.fill(page * PAGE_BYTES, PAGE_BYTES, (page % 250) + 1);
      hashes.renew(page, 1);
    }
    return table;
  };
  const PAGES = [0, 3, 4, 5, 511, 512, 700, 1023];
  const bitmapOf = (memory: GuestMemory, pages: readonly number[]): Bitmap => {
    const bitmap = new Bitmap(memory.pages);
    for (const page of pages) bitmap.setRun(page, 1);
    return bitmap;
  };

  it("digest() of a frozen image is that of its hashes if all was stored as it is, and another after any byte changed", () =>
    withService("barrier", 4 * MIB, async ({ service, memory, access }) => {
      const table = fill(memory, access, PAGES);
      const told = await service.digestOfHashes(table);
      const scratch = allocateHashTable(memory.pages).fill(0xdeadbeef); // overwritten, whatever it held
      assert.equal(await service.digest(scratch), told);
      assert.deepEqual(scratch, table);
      assert.equal(told, new PageHashes(memory, table).digestOfTable());
      for (const at of [0, 512 * PAGE_BYTES + 77, 1024 * PAGE_BYTES - 1, 600 * PAGE_BYTES]) {
        memory.views[0]![at]! ^= 1; // the last one is a page of zeros so far
        assert.notEqual(await service.digest(scratch), told, `byte ${at}`);
        memory.views[0]![at]! ^= 1;
        assert.equal(await service.digest(scratch), told, `byte ${at} as it was`);
      }
      assert.equal(await service.digestOfHashes(table), told, "the table is the caller's");
    }));

  it("digests are 0 for an image of zeros, touched or not", () =>
    withService("barrier", MIB, async ({ service, memory }) => {
      const table = allocateHashTable(memory.pages);
      assert.equal(await service.digest(table), 0n);
      memory.views[0]![5 * PAGE_BYTES] = 0;
      void memory.views[0]![6 * PAGE_BYTES];
      assert.equal(await service.digest(table), 0n);
      assert.equal(await service.digestOfHashes(table), 0n);
    }));

  it(
    "discard() lets go of these pages and their hashes, and of no others: they read zero, hold no memory, and are in no digest",
    { skip: KINDS.mmu },
    () =>
      withService("mmu", 4 * MIB, async ({ service, memory, access, pagesOf }) => {
        const table = fill(memory, access, PAGES);
        const [gone, kept] = [
          [3, 5, 512, 1023],
          [0, 4, 511, 700],
        ];
        assert.deepEqual(await pagesOf((into) => service.list(into)), PAGES);
        await service.discard(bitmapOf(memory, [...gone, 900]), table); // 900 holds nothing anyway
        assert.deepEqual(await pagesOf((into) => service.list(into)), kept);
        for (const page of gone) {
          assert.ok(
            memory.view(page, 1).every((byte) => byte === 0),
            `page ${page}`,
          );
          assert.deepEqual([table[2 * page], table[2 * page + 1]], [0, 0], `hash of page ${page}`);
        }
        for (const page of kept)
          assert.ok(
            memory.view(page, 1).every((byte) => byte === (page % 250) + 1),
            `page ${page}`,
          );
        const expected = await service.digestOfHashes(fill(memory, access, kept));
        assert.equal(await service.digestOfHashes(table), expected);
        assert.equal(await service.digest(allocateHashTable(memory.pages)), expected);
        assert.equal((await service.audit(table)).mismatched, 0);
      }),
  );

  it("discard() takes thousands of scattered pages, whole stripes, no page at all, and a guest without hashes", { skip: KINDS.mmu }, () =>
    withService("mmu", 16 * MIB, async ({ service, memory, access, pagesOf }) => {
      const everyOther = Array.from({ length: memory.pages / 2 }, (_, at) => 2 * at);
      access.fill(0, memory.bytes, 7);
      const table = allocateHashTable(memory.pages).fill(9);
      await service.discard(bitmapOf(memory, []), table);
      assert.equal((await pagesOf((into) => service.list(into))).length, memory.pages);
      assert.ok(table.every((word) => word === 9));
      await service.discard(bitmapOf(memory, everyOther), table);
      assert.deepEqual(
        await pagesOf((into) => service.list(into)),
        everyOther.map((page) => page + 1),
      );
      assert.ok(table.every((word, at) => word === (Math.floor(at / 2) % 2 === 0 ? 0 : 9)));
      const whole = new Bitmap(memory.pages);
      whole.setRun(0, memory.pages);
      await service.discard(whole, undefined);
      assert.deepEqual(await pagesOf((into) => service.list(into)), []);
      assert.ok(
        table.some((word) => word === 9),
        "a table that was not given",
      );
    }),
  );

  it("free() makes all pages read zero, and gives their memory back to the system", () =>
    withService("barrier", 128 * MIB, async ({ service, memory, access }) => {
      const residentBytes = (): number | undefined =>
        process.platform === "linux"
          ? Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]) * 1024
          : undefined;
      access.fill(0, memory.bytes, 0xaa);
      const before = residentBytes();
      await service.free();
      const after = residentBytes();
      if (before !== undefined && after !== undefined && isLinuxAvailable)
        assert.ok(before - after > 100 * MIB, `resident memory fell by ${before - after} B`);
      for (let page = 0; page < memory.pages; page += 512)
        assert.ok(
          memory.view(page, 512).every((byte) => byte === 0),
          `page ${page}`,
        );
    }));

  it("refuses every call without a guest with ERR_NO_GUEST, but for detach", async () => {
    const service = new MemoryService();
    try {
      for (const call of [
        service.start(new Bitmap(1)),
        service.stop(),
        service.free(),
        service.audit(allocateHashTable(1)),
        service.digest(allocateHashTable(1)),
        service.digestOfHashes(allocateHashTable(1)),
        service.discard(new Bitmap(1), undefined),
      ])
        await assert.rejects(call, { code: "ERR_NO_GUEST" });
      await service.detach();
    } finally {
      await service.end();
    }
  });

  it("leaves no call hanging when its thread ends: one under way is answered or refused, and those to come are refused", async () => {
    const service = new MemoryService();
    const underWay = service.detach().catch((error: unknown) => error); // the thread may just have come up
    await service.end();
    const answer = await underWay;
    if (answer !== undefined) assert.equal(MigrationError.from(answer).code, "ERR_INTERNAL");
    await assert.rejects(service.detach(), { code: "ERR_INTERNAL" });
  });
});
