import assert from "node:assert/strict";
import { it } from "node:test";
import { LedgerKind, decodeLedgerFrame, encodeLedgerFrame } from "./ledger-frames.js";
import type { LedgerFrame } from "./ledger-frames.js";

const FRAME: LedgerFrame = {
  targetMac: "52:54:00:01:02:03",
  sourceMac: "52:54:00:0a:0b:0c",
  kind: LedgerKind.Apply,
  client: 0x11223344,
  id: 7,
  value: 0xfffffffe,
};

it("the bytes of one request are these", () => {
  const header = "525400010203" + "5254000a0b0c" + "88b5";
  assert.equal(
    encodeLedgerFrame(FRAME).toString("hex"),
    header + "50434c47" + "01000000" + "44332211" + "07000000" + "feffffff" + "00".repeat(26),
  );
});

it("every kind comes back as it went in, also from the middle of a larger buffer", () => {
  for (const kind of Object.values(LedgerKind)) {
    const bytes = encodeLedgerFrame({ ...FRAME, kind });
    assert.deepEqual(decodeLedgerFrame(bytes), { ...FRAME, kind });
    assert.deepEqual(decodeLedgerFrame(Buffer.concat([Buffer.alloc(5), bytes, Buffer.alloc(5)]).subarray(5, 65)), { ...FRAME, kind });
  }
});

it("a frame of any other length is not one of ours", () => {
  const bytes = Buffer.concat([encodeLedgerFrame(FRAME), Buffer.alloc(1)]);
  for (let length = 0; length <= bytes.byteLength; length++)
    if (length !== 60) assert.equal(decodeLedgerFrame(bytes.subarray(0, length)), undefined);
});

it("ethertype, magic, kind, reserved bytes, a zero id and padding are each checked", () => {
  const sound = encodeLedgerFrame(FRAME);
  const decodedWith = (at: number, value: number) => decodeLedgerFrame(sound.map((byte, index) => (index === at ? value : byte)));
  for (const at of [12, 13, 14, 15, 16, 17, 19, 20, 21, 34, 59]) assert.equal(decodedWith(at, 0xaa), undefined, `byte ${at}`);
  for (const kind of [0, 6, 255]) assert.equal(decodedWith(18, kind), undefined, `kind ${kind}`);
  assert.equal(decodedWith(26, 0), undefined, "id 0");
  assert.notEqual(decodedWith(26, 9), undefined, "so the checks above can fail");
});
