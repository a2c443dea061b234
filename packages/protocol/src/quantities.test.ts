import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { formatBandwidth, formatBytes, parseBandwidth, parseCount, parseMilliseconds, parseSize } from "./quantities.js";

type Parser = (text: string) => number;
const refuses = (parse: Parser, texts: readonly string[]): void => {
  for (const text of texts) assert.throws(() => parse(text), { code: "ERR_PARAMETER" }, `${JSON.stringify(text)} was accepted`);
};
const gives = (parse: Parser, table: Readonly<Record<string, number>>): void => {
  for (const [text, value] of Object.entries(table)) assert.equal(parse(text), value, `${JSON.stringify(text)}`);
};

describe("parseSize", () => {
  it("reads KiB and bare prefixes as binary, KB as decimal, a bare number as bytes", () =>
    gives(parseSize, {
      "0": 0,
      "1048576": 2 ** 20,
      "64k": 65536,
      "512M": 512 * 2 ** 20,
      "8GiB": 8 * 2 ** 30,
      "8gib": 8 * 2 ** 30,
      "1T": 2 ** 40,
      "8GB": 8e9,
      "1 MiB": 2 ** 20,
      "1.5k": 1536,
      " 4k ": 4096,
      "17B": 17,
    }));
  it("refuses signs, junk, several numbers, other prefixes and what no number holds exactly", () =>
    refuses(parseSize, [
      "",
      " ",
      "-1",
      "+1",
      "k",
      "1x",
      "1P",
      "1e3",
      "0x10",
      "1,5M",
      "1.M",
      ".5M",
      "1M1",
      "1 2",
      "NaN",
      "Infinity",
      "9007199254740993",
      "9".repeat(400),
    ]));
  it("never turns a size above nothing into nothing", () => refuses(parseSize, ["0.4", "0.0001k"]));
  it("reads every whole number of bytes back as it is", () =>
    fc.assert(fc.property(fc.maxSafeNat(), (bytes) => parseSize(String(bytes)) === bytes)));
});

describe("parseBandwidth", () => {
  it("reads bits as decimal and divides by eight, sizes as bytes, 0 as no limit", () =>
    gives(parseBandwidth, {
      "0": 0,
      "10Gbit": 1.25e9,
      "10gbit/s": 1.25e9,
      "100 Mbit": 12.5e6,
      "8kbps": 1000,
      "128MiB": 128 * 2 ** 20,
      "128MiB/s": 128 * 2 ** 20,
      "1GB/s": 1e9,
      "1000": 1000,
    }));
  it("refuses junk, and units that could be bits or bytes", () =>
    refuses(parseBandwidth, ["", "bit", "10Gbits", "10G/bit", "-1Mbit", "10Gbit/m", "fast", "10MBps", "10GBPS"]));
  it("never turns a low limit into 0, which would mean no limit", () => refuses(parseBandwidth, ["1bit", "3bit/s", "0.4", "0.001kbit"]));
});

describe("parseCount", () => {
  it("reads prefixes as decimal", () => gives(parseCount, { "25000": 25000, "25k": 25000, "1.5M": 1.5e6, "2G": 2e9 }));
  it("refuses units and junk", () => refuses(parseCount, ["", "25kB", "1T", "-5", "many"]));
});

describe("parseMilliseconds", () => {
  it("reads milliseconds unless it says s", () =>
    gives(parseMilliseconds, { "300": 300, "300ms": 300, "300 MS": 300, "2s": 2000, "0.5s": 500 }));
  it("refuses other units, signs and what no number holds exactly", () =>
    refuses(parseMilliseconds, ["", "2m", "-1", "1h", "ms", "s", "1e3", "9".repeat(30), "9".repeat(400)]));
});

describe("formatBytes and formatBandwidth", () => {
  it("show three digits and the unit", () => {
    assert.equal(formatBytes(17), "17 B");
    assert.equal(formatBytes(2 ** 16), "64.0 KiB");
    assert.equal(formatBytes(2 ** 30), "1.00 GiB");
    assert.equal(formatBytes(300 * 2 ** 20), "300 MiB");
    assert.equal(formatBytes(3 * 2 ** 50), "3072 TiB");
    assert.equal(formatBandwidth(1.55e9), "12.4 Gbit/s");
    assert.equal(formatBandwidth(0), "0.00 bit/s");
  });
  it("show a number that parseSize reads back to within one part in a hundred", () =>
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 2 ** 50 }), (bytes) => {
        const again = parseSize(formatBytes(bytes));
        assert.ok(Math.abs(again - bytes) <= bytes / 100, `${bytes} -> ${formatBytes(bytes)} -> ${again}`);
      }),
    ));
});
