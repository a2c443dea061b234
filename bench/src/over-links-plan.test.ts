import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MigrationError } from "@precopy/protocol";
import { planOf } from "./over-links-plan.js";

describe("plan of a sweep over links", () => {
  it("is three rates and two MTUs by default, and a load that 1 Gbit/s carries", () => {
    const { links, benchArguments, filledBytes, plots, isQuick } = planOf([]);
    assert.deepEqual(
      links.map(({ rate, mtu, congestionControl }) => [rate, mtu, congestionControl]),
      [1e9, 1e10, undefined].flatMap((rate) => [1500, 9000].map((mtu) => [rate, mtu, undefined])),
    );
    assert.deepEqual(benchArguments, ["--dirty-rates", "2k", "--working-set", "16MiB", "--fill", "256MiB"]);
    assert.deepEqual([filledBytes, plots, isQuick], [2 ** 28, undefined, false]);
  });

  it("takes what is given, in its order, and leaves the rest to the bench, behind what it would be otherwise", () => {
    const { links, benchArguments, filledBytes, plots } = planOf([
      ...["--channels", "4,1", "--rates", "none,2.5Gbit", "--mtu=9000", "--dirty-rates=5k", "--link-congestion-control", "bbr,none"],
      ...["--fill", "64MiB:text", "--plots", "p", "--json", "--repeats", "1"],
    ]);
    assert.deepEqual(links, [
      { rate: undefined, mtu: 9000, congestionControl: "bbr" },
      { rate: undefined, mtu: 9000, congestionControl: undefined },
      { rate: 2.5e9, mtu: 9000, congestionControl: "bbr" },
      { rate: 2.5e9, mtu: 9000, congestionControl: undefined },
    ]);
    assert.equal(
      benchArguments.join(" "),
      "--dirty-rates 2k --working-set 16MiB --fill 64MiB:text --channels 4,1 --dirty-rates=5k --json --repeats 1",
    );
    assert.deepEqual([filledBytes, plots], [2 ** 26, "p"]);
  });

  it("is one link and the bench's own small run with --quick, and what is given as well still counts", () => {
    const quick = planOf(["--quick", "--channels", "1,2"]);
    assert.deepEqual([quick.links.length, quick.filledBytes, quick.isQuick], [1, 2 ** 25, true]);
    assert.deepEqual(quick.benchArguments, ["--quick", "--fill", "32MiB", "--channels", "1,2"]);
  });

  for (const args of [
    ["--rates", "fast"],
    ["--rates", "0"],
    ["--rates", "1Gbit,"],
    ["--rates"],
    ["--mtu", "1500.5"],
    ["--mtu", "100"],
    ["--fill", "much"],
    ["--plots"],
    ["--link-congestion-control", "reno"],
  ])
    it(`refuses ${args.join(" ")}`, () => {
      assert.throws(
        () => planOf(args),
        (error) => error instanceof MigrationError && error.code === "ERR_PARAMETER",
      );
    });
});
