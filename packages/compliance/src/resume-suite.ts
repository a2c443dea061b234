import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { joinDigests } from "@precopy/guest";
import type { Bitmap, GuestMemory } from "@precopy/guest";
import { laneOfPage } from "@precopy/protocol";
import { ChannelThreads } from "@precopy/transport";
import type { PumpKind } from "@precopy/transport";
import { CuttingProxy } from "./cutting-proxy.js";
import type { Cut, PassedRun } from "./cutting-proxy.js";
import { allPages, assertEqualImages, fillMixed, fillRandom, randomNumbers } from "./guest-images.js";
import { PageTarget, withMemories } from "./page-wire.js";
import type { WireOptions } from "./page-wire.js";
import { ResumingSource } from "./resuming-source.js";

const IMAGE_BYTES = 16 * 2 ** 20;
const ROUNDS = 4;
const SEEDS = 4;

/** A migration whose channels are cut where `cutOf` says. */
interface Course {
  readonly options: WireOptions;
  readonly cutOf: (channel: number, generation: number) => Cut | undefined;
  readonly heirOf?: (channel: number, generation: number) => number | undefined;
  readonly seed: number;
}
interface Travelled {
  readonly passed: readonly PassedRun[];
  readonly rounds: readonly Bitmap[];
  readonly cuts: number;
  readonly resentPages: number;
  readonly target: PageTarget;
}

/** Dirties some pages in a way that depends on round and seed: rewritten, cleared, and cleared after they held something. */
function rewrite(memory: GuestMemory, dirty: Bitmap, round: number, seed: number): void {
  const next = randomNumbers(seed * 31 + round);
  dirty.clear();
  for (let page = next() % 5; page < memory.pages; page += 1 + (next() % 5)) {
    if (next() % 3 === 0) memory.view(page, 1).fill(0);
    else fillRandom(memory, page, 1, page * round + seed);
    dirty.setRun(page, 1);
  }
}

/** Moves a guest in four rounds, and checks after each that both images are equal, and at the end that both digests are. */
async function travel({ options, cutOf, heirOf = () => undefined, seed }: Course): Promise<Travelled> {
  return withMemories([IMAGE_BYTES, IMAGE_BYTES], async (from, to) => {
    assert.ok(from !== undefined && to !== undefined);
    fillMixed(from);
    const target = await PageTarget.listen(to, options);
    const proxy = await CuttingProxy.listen(target.port.address, cutOf);
    const source = new ResumingSource(from, proxy.address, target, { ...options, heirOf });
    try {
      const dirty = allPages(from);
      const rounds: Bitmap[] = [];
      await source.open();
      for (let round = 1; round <= ROUNDS; round++) {
        const pages = allPages(from);
        pages.words.set(dirty.words);
        rounds.push(pages);
        await source.round(round, pages);
        assert.ok(target.receiver.hasDelivered(round), `round ${round}, seed ${seed}`);
        assertEqualImages(from, to, `after round ${round}, seed ${seed}`);
        if (round < ROUNDS) rewrite(from, dirty, round, seed);
      }
      const { digest } = target.receiver;
      assert.equal(digest === undefined ? undefined : joinDigests([digest]), await source.end(), `digests, seed ${seed}`);
      await target.receiver.end();
      assert.equal(target.receiver.digest, digest, `digest after the end, seed ${seed}`);
      return { passed: proxy.passed, rounds, cuts: proxy.cuts, resentPages: source.resentPages, target };
    } finally {
      await source.end();
      await Promise.all([proxy.close(), target.close()]);
    }
  });
}

/** In packets that went through whole, every page of every round came exactly once: nothing that was stored is sent again. */
function assertEachOnce({ passed, rounds }: Travelled, seed: number): void {
  rounds.forEach((pages, at) => {
    const times = new Uint8Array(pages.pages);
    for (const { first, pages: count } of passed.filter(({ round }) => round === at + 1))
      for (let page = first; page < first + count; page++) times[page]!++;
    for (let page = 0; page < pages.pages; page++)
      if (times[page] !== (pages.has(page) ? 1 : 0)) assert.fail(`page ${page} came ${times[page]} times in round ${at + 1}, seed ${seed}`);
  });
}

/** With room for all pages of a channel: a version that was sent and never arrived is one that a delta must not be taken to. */
const ENCODINGS = [
  { name: "none", compression: "none" },
  { name: "lz4", compression: "lz4" },
  { name: "xbzrle", compression: "none", xbzrleCacheBytes: IMAGE_BYTES },
] as const;

/** What every pump must do when channels die. @param skip why it cannot be tried here, or false. */
export function resumeSuite(pump: PumpKind, skip: string | false = false): void {
  describe(`${pump} pump, cut off`, () => {
    const threads = new ChannelThreads();
    after(() => threads.end());

    for (const { name, ...encoding } of ENCODINGS) {
      it(`resumes where the target stands, wherever its connections end, and sends nothing that is stored again (${name})`, {
        skip,
      }, async () => {
        let cuts = 0;
        for (let seed = 1; seed <= SEEDS; seed++) {
          const next = randomNumbers(seed);
          const channels = 1 + (seed % 3);
          const reach = Math.floor((name === "lz4" ? IMAGE_BYTES / 4 : IMAGE_BYTES / 2) / channels);
          const cutOf = (_: number, generation: number): Cut | undefined =>
            generation <= 4 ? { afterBytes: 1 + (next() % reach), how: "end" } : undefined;
          const travelled = await travel({ options: { pump, threads, channels, ...encoding }, cutOf, seed });
          assertEachOnce(travelled, seed);
          cuts += travelled.cuts;
        }
        assert.ok(cuts > 2 * SEEDS, `only ${cuts} cuts`);
      });

      it(`ends with equal images and digests although its connections are reset wherever they are (${name})`, { skip }, async () => {
        let cuts = 0;
        for (let seed = 1; seed <= SEEDS; seed++) {
          const next = randomNumbers(seed + 1000);
          const channels = 1 + (seed % 3);
          const cutOf = (_: number, generation: number): Cut | undefined =>
            generation <= 4 ? { afterBytes: 1 + (next() % Math.floor(IMAGE_BYTES / 4 / channels)), how: "reset" } : undefined;
          cuts += (await travel({ options: { pump, threads, channels, ...encoding }, cutOf, seed })).cuts;
        }
        assert.ok(cuts > 2 * SEEDS, `only ${cuts} cuts`);
      });
    }

    it("lets another channel carry the lanes of one that is not made again, from where they stand, and then of that one, too", {
      skip,
    }, async () => {
      let moved = 0;
      for (let seed = 1; seed <= SEEDS; seed++) {
        const next = randomNumbers(seed + 2000);
        const cutOf = (channel: number): Cut | undefined =>
          channel === 0 ? undefined : { afterBytes: 1 + (next() % (IMAGE_BYTES / 4)), how: "end" };
        const heirOf = (channel: number): number => (channel === 2 ? 1 : 0);
        const travelled = await travel({ options: { pump, threads, channels: 3 }, cutOf, heirOf, seed });
        assertEachOnce(travelled, seed);
        const homes = travelled.passed.filter(({ channel, first }) => channel !== laneOfPage(first, 3));
        if (homes.length > 0) moved++;
      }
      assert.ok(moved > SEEDS / 2, `lanes moved in ${moved} of ${SEEDS}`);
    });

    it("makes a channel again that carries several lanes, and resumes each of them where it stands", { skip }, async () => {
      for (let seed = 1; seed <= SEEDS; seed++) {
        const next = randomNumbers(seed + 3000);
        const cutOf = (channel: number, generation: number): Cut | undefined =>
          channel === 1 || generation > 4 ? undefined : { afterBytes: 1 + (next() % Math.floor(IMAGE_BYTES / 6)), how: "end" };
        // Channel 2 is carried by 0, which is cut and made again with two lanes.
        const heirOf = (channel: number): number | undefined => (channel === 2 ? 0 : undefined);
        assertEachOnce(await travel({ options: { pump, threads, channels: 3 }, cutOf, heirOf, seed }), seed);
      }
    });
  });
}
