import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DEFAULT_PARAMETERS } from "@precopy/protocol";
import { changesThatHelp, forecast } from "./forecast.js";
import type { Measured } from "./forecast.js";
import { TYPICAL_COSTS } from "./simulator.js";
import { randomWriter } from "./writer-models.js";

const GIB_PAGES = 2 ** 18;
const LINK = { bytesPerSecond: 117_000_000, roundTripMs: 0.3 };
const PAGES_PER_SECOND = LINK.bytesPerSecond / TYPICAL_COSTS.wireBytesPerPage;
const measured = (ofLink: number, workingSetPages = GIB_PAGES / 4): Measured => ({
  guest: { pages: GIB_PAGES, populatedPages: GIB_PAGES / 2, vcpus: [randomWriter(ofLink * PAGES_PER_SECOND, workingSetPages)] },
  link: LINK,
  costs: TYPICAL_COSTS,
  linkSpread: 0.05,
  dirtySpread: 0.1,
});
const P = DEFAULT_PARAMETERS;

describe("forecast", () => {
  it("is a range around what is expected: sooner if link and guest do better, later if they do worse", async () => {
    const { ends, "total-ms": total, "downtime-ms": downtime, bytes } = await forecast("plan", measured(0.25), P);
    assert.equal(ends, true);
    for (const { low, expected, high } of [total, downtime, bytes]) assert.ok(0 < low && low <= expected && expected <= high);
    assert.ok(total.low < total.expected && total.expected < total.high, JSON.stringify(total));
    const alone = ((GIB_PAGES / 2) * TYPICAL_COSTS.wireBytesPerPage) / (LINK.bytesPerSecond / 1000);
    assert.ok(total.expected > alone && total.expected < 1.5 * alone, `${total.expected} ms, ${alone} ms if it stood still`);
  });

  it("names the parts of the pause, which are the pause", async () => {
    const { "downtime-parts": parts, "downtime-ms": downtime } = await forecast("plan", measured(0.25), P);
    assert.ok(Math.abs(parts.pause + parts.collect + parts.send + parts.commit - downtime.expected) < 1e-9);
  });

  it("says why, if the migration would be given up", async () => {
    const { ends, failure, "total-ms": total } = await forecast("plan", measured(4), P);
    assert.deepEqual([ends, total.expected], [false, 0]);
    assert.match(failure, /After \d+ rounds: /);
  });

  it("knows stop-and-copy: everything is sent in the pause", async () => {
    const { "total-ms": total, "downtime-ms": downtime } = await forecast("plan", measured(4), { ...P, mode: "stop-and-copy" });
    assert.ok(downtime.expected > 0.99 * total.expected);
  });
});

describe("changes that help", () => {
  const options = async (of: Measured, lz4 = { ratio: 0.2, bytesPerSecond: 1e9 }, parameters = P): Promise<string[]> =>
    (await changesThatHelp(of, parameters, lz4, 2)).map(({ option }) => option.replace(/ \d+$/, " N"));

  it("come cheapest first: compression, throttling, a much longer pause, post-copy, no guest at all", async () => {
    assert.deepEqual(await options(measured(2)), [
      "--multifd-compression lz4",
      "--throttle sdps",
      "--downtime-limit N",
      "--mode hybrid",
      "--mode stop-and-copy",
    ]);
  });

  it("do not name compression where pages do not get smaller, nor what is on already", async () => {
    const incompressible = { ratio: 1.01, bytesPerSecond: 1e9 };
    assert.deepEqual(await options(measured(2), incompressible), [
      "--throttle sdps",
      "--downtime-limit N",
      "--mode hybrid",
      "--mode stop-and-copy",
    ]);
    assert.deepEqual((await options(measured(2), incompressible, { ...P, multifdCompression: "lz4" }))[0], "--throttle sdps");
  });

  it("name a pause that is little longer before anything is taken from the guest", async () => {
    const pages = (0.45 * LINK.bytesPerSecond) / TYPICAL_COSTS.wireBytesPerPage; // 0.45 s of sending
    const [first] = await options(measured(20, Math.floor(pages)), { ratio: 1, bytesPerSecond: 1e9 });
    assert.equal(first, "--downtime-limit N");
  });
});
