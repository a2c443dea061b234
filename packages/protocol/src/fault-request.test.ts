import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import { FAULT_REQUEST_BYTES, decodeFaultRequest, encodeFaultRequest } from "./fault-request.js";
import { PACKET_MAGIC } from "./packet.js";

const u32 = fc.integer({ min: 0, max: 2 ** 32 - 1 });
function encoded(page: number, sequence: number): Buffer {
  const bytes = Buffer.alloc(FAULT_REQUEST_BYTES, 0xee);
  encodeFaultRequest(bytes, page, sequence);
  return bytes;
}
/** With these fields in place, and a checksum that is right. */
function forged(fields: readonly (readonly [at: number, value: number])[]): Buffer {
  const bytes = encoded(7, 3);
  for (const [at, value] of fields) bytes.writeUInt32LE(value, at);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, 12)), 12);
  return bytes;
}

describe("a request for a page", () => {
  it("is these 16 bytes", () => assert.equal(encoded(0x01020304, 5).toString("hex"), "564d46540403020105000000186681fb"));

  it("comes out as it went in, for every page and sequence", () =>
    fc.assert(
      fc.property(u32, u32, (page, sequence) => {
        assert.equal(decodeFaultRequest(encoded(page, sequence), sequence, 2 ** 32), page);
        assert.equal(decodeFaultRequest(encoded(page, sequence), sequence, page + 1), page, "the last page");
      }),
    ));

  it("with any bit changed is refused, with a code that says so", () => {
    for (let bit = 0; bit < FAULT_REQUEST_BYTES * 8; bit++) {
      const bytes = encoded(0x12345, 0x678);
      bytes[bit >>> 3]! ^= 1 << (bit & 7);
      const code = bit < 32 ? "ERR_NOT_A_PACKET" : "ERR_PACKET_CHECKSUM";
      assert.throws(() => decodeFaultRequest(bytes, 0x678, 2 ** 32), { code }, `bit ${bit}`);
    }
  });

  it("of another protocol, another sequence or a page that there is not is refused, though its checksum is right", () => {
    const refused = (fields: Parameters<typeof forged>[0], code: string): void =>
      assert.throws(() => decodeFaultRequest(forged(fields), 3, 8), { code, name: "MigrationError" }, JSON.stringify(fields));
    assert.equal(decodeFaultRequest(forged([]), 3, 8), 7);
    for (const magic of [0, PACKET_MAGIC, 0xffffffff]) refused([[0, magic]], "ERR_NOT_A_PACKET");
    for (const sequence of [0, 2, 4, 0xffffffff]) refused([[8, sequence]], "ERR_PACKET_SEQUENCE");
    for (const page of [8, 9, 2 ** 31, 0xffffffff]) refused([[4, page]], "ERR_RUN_OUT_OF_RANGE");
  });

  it("is nothing that random bytes become", () =>
    fc.assert(
      fc.property(fc.uint8Array({ minLength: FAULT_REQUEST_BYTES, maxLength: FAULT_REQUEST_BYTES }), u32, (bytes, sequence) =>
        assert.throws(() => decodeFaultRequest(Buffer.from(bytes), sequence, 2 ** 32), { name: "MigrationError" }),
      ),
    ));
});
