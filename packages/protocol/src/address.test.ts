import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { DEFAULT_PORT, formatAddress, isLoopback, parseAddress } from "./address.js";

describe("parseAddress", () => {
  it("reads host and port in every accepted form", () => {
    const table: Readonly<Record<string, readonly [string, number]>> = {
      "10.0.0.1:80": ["10.0.0.1", 80],
      "host.example": ["host.example", DEFAULT_PORT],
      "host-1:0": ["host-1", 0],
      "[::1]:4646": ["::1", 4646],
      "[fe80::1%eth0]:1": ["fe80::1%eth0", 1],
      "[::1]": ["::1", DEFAULT_PORT],
      "::1": ["::1", DEFAULT_PORT],
      "::": ["::", DEFAULT_PORT],
      "2001:db8::7": ["2001:db8::7", DEFAULT_PORT],
      "::ffff:10.0.0.1": ["::ffff:10.0.0.1", DEFAULT_PORT],
      ":65535": ["0.0.0.0", 65535],
    };
    for (const [text, [host, port]] of Object.entries(table)) assert.deepEqual(parseAddress(text), { host, port }, text);
  });

  it("takes the given default port only where the text has none", () => {
    assert.equal(parseAddress("host", 7).port, 7);
    assert.equal(parseAddress("host:9", 7).port, 9);
  });

  it("refuses what is no address", () => {
    const bad = [
      "",
      ":",
      "host:",
      "host:x",
      "host:65536",
      "host:999999999999999999999",
      "a b",
      "host/path:1",
      "http://host:1",
      "host:-1",
      "host:1.5",
    ];
    for (const text of bad) assert.throws(() => parseAddress(text), { code: "ERR_ADDRESS" }, `${JSON.stringify(text)} was accepted`);
  });

  it("refuses broken brackets and colons that are no IPv6 address", () => {
    const bad = [
      "[::1",
      "::1]",
      "[::1]:",
      "[::1]:x",
      "[::1]]:80",
      "[[::1]]:80",
      "[host]:80",
      "[]:80",
      "host:80:90",
      "1.2.3.4:80:90",
      ":::",
      "[::1]:65536",
    ];
    for (const text of bad) assert.throws(() => parseAddress(text), { code: "ERR_ADDRESS" }, `${JSON.stringify(text)} was accepted`);
  });

  it("reads back what formatAddress wrote, IPv4 and IPv6", () =>
    fc.assert(
      fc.property(fc.oneof(fc.ipV4(), fc.ipV6(), fc.domain()), fc.integer({ min: 0, max: 65535 }), (host, port) =>
        assert.deepEqual(parseAddress(formatAddress({ host, port })), { host, port }),
      ),
    ));

  it("never gives a host with a bracket, a slash or a space, whatever the text", () =>
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom("[", "]", ":", "1", "f", ".", "%", "h", "/", " "), maxLength: 12 }), (text) => {
        let host: string;
        try {
          ({ host } = parseAddress(text));
        } catch (error) {
          assert.equal(error instanceof Error && "code" in error && error.code, "ERR_ADDRESS");
          return;
        }
        assert.doesNotMatch(host, /[[\]/\s]/);
      }),
      { numRuns: 2000 },
    ));
});

it("isLoopback holds for this host only, so that a public listener is never taken for a private one", () => {
  for (const host of ["localhost", "::1", "127.0.0.1", "127.8.9.10"]) assert.equal(isLoopback(host), true, host);
  for (const host of ["0.0.0.0", "::", "", "10.0.0.1", "127.0.0.1.example.com", "localhost.example.com", "128.0.0.1", "1127.0.0.1"])
    assert.equal(isLoopback(host), false, host);
});
