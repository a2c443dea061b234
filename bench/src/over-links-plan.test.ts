import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MigrationError } from "@precopy/protocol";
import { planOf } from "./over-links-plan.js";

describe("plan of a sweep over links", () => {
  it("runs every setting on every link by default: three rates, two MTUs, three numbers of channels, with and without lz4", () => {
    const { links, settings, repeat, guest, filledBytes } = planOf([]);
    assert.deepEqual(
      links.map(({ rate, mtu }) => [rate, mtu]),
      [1e9, 1e10, undefined].flatMap((rate) => [1500, 9000].map((mtu) => [rate, mtu])),
    );
    assert.deepEqual(
      settings.map(({ channels, compression }) => [channels, compression]),
      [1, 2, 4].flatMap((channels) => ["none", "lz4"].map((compression) => [channels, compression])),
    );
    assert.equal(repeat, 3);
    assert.deepEqual(guest, { memory: "2GiB", fill: "256MiB:random", "dirty-rate": "2k", "working-set": "16MiB" });
    assert.equal(filledBytes, 2 ** 28);
  });

  it("takes what is given, in its order", () => {
    const plan = planOf([
      ...["--rates", "none,2.5Gbit", "--mtu", "9000", "--channels", "4,1", "--compression", "lz4", "--repeat", "1", "--fill", "64MiB"],
      ...["--dirty-rate", "5k", "--congestion-control", "bbr", "--compressible"],
    ]);
    assert.deepEqual(plan.links, [
      { rate: undefined, mtu: 9000, congestionControl: "bbr" },
      { rate: 2.5e9, mtu: 9000, congestionControl: "bbr" },
    ]);
    assert.deepEqual(plan.settings, [
      { channels: 4, compression: "lz4" },
      { channels: 1, compression: "lz4" },
    ]);
    assert.equal(plan.guest.fill, "64MiB:text");
    assert.equal(plan.guest["dirty-rate"], "5k");
  });

  it("is one combination, once, with --quick, and what is given as well still counts", () => {
    const quick = planOf(["--quick"]);
    assert.deepEqual([quick.links.length, quick.settings.length, quick.repeat, quick.isQuick], [1, 1, 1, true]);
    assert.deepEqual(planOf(["--quick", "--channels", "1,2"]).settings.length, 2);
    assert.equal(planOf([]).isQuick, false);
  });

  for (const args of [
    ["--rates", "fast"],
    ["--rates", "0"],
    ["--rates", "1Gbit,"],
    ["--mtu", "1500.5"],
    ["--mtu", "100"],
    ["--channels", "0"],
    ["--channels", "1000"],
    ["--compression", "zstd"],
    ["--repeat", "0"],
    ["--fill", "much"],
    ["--congestion-control", "reno"],
  ])
    it(`refuses ${args.join(" ")}`, () => {
      assert.throws(
        () => planOf(args),
        (error) => error instanceof MigrationError && error.code === "ERR_PARAMETER",
      );
    });

  it("refuses an option that it does not have", () => assert.throws(() => planOf(["--rate", "1Gbit"]), TypeError));
});
