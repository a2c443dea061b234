import assert from "node:assert/strict";
import { closeSync, openSync, readSync } from "node:fs";
import { describe, it } from "node:test";
import { Bitmap, ForgetfulDirtyLog } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";
import { copyWhileWritten } from "./hostile-writers.js";
import { NEIGHBOUR_PAGES, listed, withTrackedGuest } from "./tracked-guest.js";
import type { MakeLog } from "./tracked-guest.js";

const GUEST_BYTES = 16 * 2 ** 20;
const HOSTILE_BYTES = 64 * 2 ** 20;
const HARDSHIP = { randomWrites: 2_000_000, copies: 20, sweeps: 6 } as const;
const FORGET_EVERY = 10_000;

/**
 * What every dirty log must do. @param skip why it cannot be tried here, or false.
 * @param neighbours how far from a written page others may be listed: over huge pages, a whole one.
 */
export function dirtyLogSuite(name: string, makeLog: MakeLog, skip: string | false = false, neighbours = NEIGHBOUR_PAGES): void {
  /** `pages` and nothing else but neighbours. */
  const assertListed = (found: readonly number[], pages: readonly number[]): void => {
    for (const page of pages) assert.ok(found.includes(page), `page ${page} is missing`);
    for (const page of found)
      assert.ok(
        pages.some((written) => Math.abs(written - page) <= neighbours),
        `page ${page} was never written`,
      );
  };

  describe(`${name} dirty log`, () => {
    it("lists at start every page that holds something, and none that was never touched or only read", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
        const written = [0, 1, 7, 31, 32, 63, 500];
        for (const page of written) access.storeU32(page * PAGE_BYTES + 8, page + 1);
        for (const page of [3, 64, 3000]) assert.equal(access.loadU32(page * PAGE_BYTES), 0);
        const found = listed(memory, (into) => log.start(into));
        assertListed(found, written);
        const holding = new Set(found);
        for (let page = 0; page < memory.pages; page++)
          if (!holding.has(page))
            assert.ok(
              memory.view(page, 1).every((byte) => byte === 0),
              `page ${page} holds something`,
            );
      }),
    );

    it("adds to the caller's bitmap and takes nothing out of it, at start and in a collection", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
        const into = new Bitmap(memory.pages);
        into.setRun(2000, 3);
        access.storeU32(0, 1);
        log.start(into);
        access.storeU32(1000 * PAGE_BYTES, 1);
        log.collect(into);
        assertListed(
          listed(memory, (all) => all.join(into)),
          [0, 1000, 2000, 2001, 2002],
        );
      }),
    );

    it("refuses a second start with ERR_ALREADY_TRACKING and goes on as before", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
        log.start(new Bitmap(memory.pages));
        access.storeU32(9 * PAGE_BYTES, 1);
        assert.throws(() => log.start(new Bitmap(memory.pages)), { code: "ERR_ALREADY_TRACKING" });
        assertListed(
          listed(memory, (into) => log.collect(into)),
          [9],
        );
      }),
    );

    it("tells by peek what was written so far, and forgets none of it: the next collection lists all of it", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
        assert.throws(() => log.peek(new Bitmap(memory.pages)), { code: "ERR_NOT_TRACKING" });
        log.start(new Bitmap(memory.pages));
        const peeked = (): number[] => listed(memory, (into) => log.peek(into));
        assert.deepEqual(peeked(), []);
        access.storeU32(9 * PAGE_BYTES, 1);
        assertListed(peeked(), [9]);
        access.storeU32(3000 * PAGE_BYTES, 1);
        access.storeU32(9 * PAGE_BYTES, 2);
        for (let look = 0; look < 3; look++) assertListed(peeked(), [9, 3000]);
        assertListed(
          listed(memory, (into) => log.collect(into)),
          [9, 3000],
        );
        assert.deepEqual(peeked(), []);
      }),
    );

    it(
      "with pages that are known tells what was written in any stripe that is not known as a whole, and leaves the others for the next collection at most",
      {
        skip,
      },
      () =>
        withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
          log.start(new Bitmap(memory.pages));
          const written = [511, 600, 1024, memory.pages - 1];
          for (const page of written) access.storeU32(page * PAGE_BYTES, 1);
          const known = new Bitmap(memory.pages);
          known.setRun(512, 512);
          known.setRun(1024, 1);
          assertListed(
            listed(memory, (into) => log.collect(into, known)),
            log.kind === "mmu" ? [511, 1024, memory.pages - 1] : written,
          );
          assertListed(
            listed(memory, (into) => log.collect(into)),
            log.kind === "mmu" ? [600] : [],
          );
          assert.deepEqual(
            listed(memory, (into) => log.collect(into)),
            [],
          );
        }),
    );

    it("refuses a collection before start and after stop with ERR_NOT_TRACKING", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, log }) => {
        assert.throws(() => log.collect(new Bitmap(memory.pages)), { code: "ERR_NOT_TRACKING" });
        log.start(new Bitmap(memory.pages));
        log.stop();
        log.stop();
        assert.throws(() => log.collect(new Bitmap(memory.pages)), { code: "ERR_NOT_TRACKING" });
      }),
    );

    it("lists at a start after a stop also what was written in between, and what was collected long ago", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
        access.storeU32(1 * PAGE_BYTES, 1);
        log.start(new Bitmap(memory.pages));
        access.storeU32(2 * PAGE_BYTES, 1);
        log.collect(new Bitmap(memory.pages));
        log.stop();
        access.storeU32(3 * PAGE_BYTES, 1);
        assertListed(
          listed(memory, (into) => log.start(into)),
          [1, 2, 3],
        );
        assert.deepEqual(
          listed(memory, (into) => log.collect(into)),
          [],
        );
      }),
    );

    it("lists a write in the next collection, once, and a page that holds zeros again as well", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
        access.storeU32(5 * PAGE_BYTES, 1);
        log.start(new Bitmap(memory.pages));
        assert.deepEqual(
          listed(memory, (into) => log.collect(into)),
          [],
        );
        const rounds = [[0], [4095], [31, 32, 33], [5], [700, 701, 702, 900]];
        for (const pages of rounds) {
          for (const page of pages) access.storeU32(page * PAGE_BYTES + 4092, page);
          assertListed(
            listed(memory, (into) => log.collect(into)),
            pages,
          );
          assert.deepEqual(
            listed(memory, (into) => log.collect(into)),
            [],
          );
        }
        access.fill(5 * PAGE_BYTES, PAGE_BYTES, 0);
        assertListed(
          listed(memory, (into) => log.collect(into)),
          [5],
        );
      }),
    );

    it("lists a page that was only read before and is written for the first time while the log is armed", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
        access.loadU32(100 * PAGE_BYTES);
        log.start(new Bitmap(memory.pages));
        access.loadU32(200 * PAGE_BYTES);
        log.collect(new Bitmap(memory.pages));
        for (const page of [100, 200, 300]) access.storeU32(page * PAGE_BYTES, 1);
        assertListed(
          listed(memory, (into) => log.collect(into)),
          [100, 200, 300],
        );
      }),
    );

    it("lists every page of a write that spans several", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
        log.start(new Bitmap(memory.pages));
        access.write(10 * PAGE_BYTES - 1, new Uint8Array(PAGE_BYTES + 2).fill(1));
        assertListed(
          listed(memory, (into) => log.collect(into)),
          [9, 10, 11],
        );
      }),
    );

    it("lists what the kernel wrote into guest memory", { skip }, () =>
      withTrackedGuest(GUEST_BYTES, makeLog, ({ memory, access, log }) => {
        access.storeU32(40 * PAGE_BYTES, 1);
        log.start(new Bitmap(memory.pages));
        const file = openSync(process.execPath, "r");
        try {
          assert.equal(readSync(file, memory.view(40, 3), 0, 3 * PAGE_BYTES, 0), 3 * PAGE_BYTES);
        } finally {
          closeSync(file);
        }
        access.wrote(40 * PAGE_BYTES, 3 * PAGE_BYTES); // says nothing to mmu, which saw it
        assertListed(
          listed(memory, (into) => log.collect(into)),
          [40, 41, 42],
        );
      }),
    );

    it(`loses no write of two threads at full speed: after ${HARDSHIP.randomWrites} writes both images are equal byte for byte`, {
      skip,
    }, async (context) => {
      const seed = Math.floor(Math.random() * 2 ** 31);
      const result = await withTrackedGuest(HOSTILE_BYTES, makeLog, (guest) => copyWhileWritten(guest, { ...HARDSHIP, seed }));
      context.diagnostic(`seed ${seed}: ${result.writes} writes, ${result.collections} collections, ${result.copiedPages} pages copied`);
      assert.ok(result.writes >= HARDSHIP.randomWrites);
      assert.deepEqual(result.differing, [], `lost pages; seed ${seed}`);
    });

    it(`is found out if it forgets one page in ${FORGET_EVERY}: the test above can fail`, { skip }, async () => {
      const makeForgetful: MakeLog = (memory) => {
        const { log, barrier } = makeLog(memory);
        return { log: new ForgetfulDirtyLog(log, FORGET_EVERY, memory.pages), barrier };
      };
      const result = await withTrackedGuest(HOSTILE_BYTES, makeForgetful, (guest) =>
        copyWhileWritten(guest, { randomWrites: 0, copies: 1, sweeps: 1, seed: 1 }),
      );
      // The sweep writes each of 16,384 pages once, so one or two of them are forgotten and not written again.
      assert.ok(result.differing.length >= 1, "no difference was found");
      assert.ok(result.differing.length <= 2 + result.copiedPages / FORGET_EVERY, `${result.differing.length} pages differ`);
    });
  });
}
