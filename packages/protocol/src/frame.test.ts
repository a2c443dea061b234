import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import {
  BROADCAST_MAC,
  DatagramKind,
  ETHERNET_HEADER_BYTES,
  FRAME_BYTES_MAX,
  FRAME_HEADER_BYTES,
  NO_GUEST_TAG,
  announceFrame,
  decodeDatagram,
  encodeDatagram,
  formatMac,
  guestTag,
  macBytes,
  macOf,
} from "./frame.js";

const frames = fc.uint8Array({ minLength: ETHERNET_HEADER_BYTES, maxLength: FRAME_BYTES_MAX });
const tags = fc.string().map(guestTag);
const epochs = fc.integer({ min: 0, max: 2 ** 32 - 1 });
const sample = (): Buffer => encodeDatagram(DatagramKind.Frame, "0123456789abcdef", 7, Buffer.alloc(14, 0xee));

describe("datagrams", () => {
  it("stand on the wire in exactly these bytes", () =>
    assert.equal(sample().toString("hex"), `50434652${"01010000"}0123456789abcdef${"07000000"}${"00000000"}${"ee".repeat(14)}`));
  it("come back as they were sent, for every frame, tag and epoch", () =>
    fc.assert(
      fc.property(frames, tags, epochs, (frame, tag, epoch) => {
        const got = decodeDatagram(encodeDatagram(DatagramKind.Frame, tag, epoch, frame));
        assert.deepEqual(got && { ...got, frame: [...got.frame] }, { kind: DatagramKind.Frame, guestTag: tag, epoch, frame: [...frame] });
      }),
    ));
  it("may be a Hello without a frame, and only without", () => {
    assert.equal(decodeDatagram(encodeDatagram(DatagramKind.Hello, NO_GUEST_TAG, 0, Buffer.alloc(0)))?.kind, DatagramKind.Hello);
    assert.equal(decodeDatagram(encodeDatagram(DatagramKind.Hello, NO_GUEST_TAG, 0, Buffer.alloc(14))), undefined);
  });
  it("are dropped, not believed, if a fixed field is wrong", () => {
    for (const at of [0, 1, 2, 3, 4, 5, 6, 7, 20, 21, 22, 23]) {
      const bytes = sample();
      bytes[at]! ^= 0x40;
      assert.equal(decodeDatagram(bytes), undefined, `byte ${at} changed`);
    }
  });
  it("are dropped if truncated anywhere before the end of the Ethernet header, or longer than a frame may be", () => {
    const bytes = sample();
    for (let length = 0; length < FRAME_HEADER_BYTES + ETHERNET_HEADER_BYTES; length++)
      assert.equal(decodeDatagram(bytes.subarray(0, length)), undefined, `${length} bytes`);
    assert.notEqual(decodeDatagram(encodeDatagram(DatagramKind.Frame, NO_GUEST_TAG, 0, Buffer.alloc(FRAME_BYTES_MAX))), undefined);
    assert.equal(decodeDatagram(encodeDatagram(DatagramKind.Frame, NO_GUEST_TAG, 0, Buffer.alloc(FRAME_BYTES_MAX + 1))), undefined);
  });
  it("never make the decoder throw, whatever arrives", () =>
    fc.assert(fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => void decodeDatagram(Buffer.from(bytes)))));
});

describe("addresses", () => {
  it("of guests are unicast, locally administered, fixed by the id, and in QEMU's range", () =>
    fc.assert(
      fc.property(fc.string(), (id) => {
        const mac = macOf(id);
        assert.match(mac, /^52:54:00(:[0-9a-f]{2}){3}$/);
        assert.equal(mac, macOf(id));
        assert.equal(macBytes(mac)[0]! & 3, 2);
      }),
    ));
  it("come back as they were written", () => {
    for (const mac of [BROADCAST_MAC, macOf("g1"), "00:00:00:00:00:00"]) assert.equal(formatMac(macBytes(mac)), mac);
  });
  it("of two guests differ, and so do their tags", () => {
    assert.notEqual(macOf("g1"), macOf("g2"));
    assert.notEqual(guestTag("g1"), guestTag("g2"));
    assert.match(guestTag("g1"), /^[0-9a-f]{16}$/);
  });
});

it("announceFrame is a broadcast reverse ARP from the guest's own address, of the least length Ethernet allows", () => {
  const mac = "52:54:00:aa:bb:cc";
  const own = "525400aabbcc";
  const expected = `ffffffffffff${own}8035${"00010800060400" + "03"}${own}00000000${own}00000000`;
  assert.equal(announceFrame(mac).toString("hex"), expected.padEnd(120, "0"));
  assert.notEqual(decodeDatagram(encodeDatagram(DatagramKind.Frame, guestTag("g"), 1, announceFrame(mac))), undefined);
});
