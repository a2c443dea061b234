import assert from "node:assert/strict";
import { it } from "node:test";
import { FRAME_BYTES_MAX, MEMORY_BYTES_MIN } from "@precopy/protocol";
import { GuestMemory, SegmentPool } from "./guest-memory.js";
import { MemoryAccess } from "./memory-access.js";
import { NIC_BYTES, NicDriver, NicRings, RING_SLOTS, SLOT_BYTES } from "./nic-ring.js";

const AT = 4096;
const RX_PRODUCED = AT;
const RX_CONSUMED = AT + 64;
const TX_PRODUCED = AT + 128;
const TX_CONSUMED = AT + 192;
const RX_SLOTS = AT + 4096;
const TX_SLOTS = RX_SLOTS + RING_SLOTS * SLOT_BYTES;

const pool = new SegmentPool();
function card() {
  const memory = GuestMemory.allocate(MEMORY_BYTES_MIN, pool);
  const access = new MemoryAccess(memory, undefined);
  let kicks = 0;
  const driver = new NicDriver(access, AT, () => kicks++);
  return { access, view: memory.views[0]!, driver, rings: new NicRings(access, AT), kicks: () => kicks };
}
const frameOf = (number: number, bytes = 60): Uint8Array => new Uint8Array(bytes).fill(number & 0xff);

it("a full ring refuses and keeps what it has, and one frame taken makes room for one", () => {
  const { driver, rings } = card();
  for (let number = 0; number < RING_SLOTS; number++) assert.ok(driver.send(frameOf(number)), `frame ${number}`);
  assert.equal(driver.send(frameOf(200)), false);
  assert.deepEqual(rings.takeSent(), frameOf(0));
  assert.ok(driver.send(frameOf(RING_SLOTS)));
  assert.equal(driver.send(frameOf(200)), false);
  for (let number = 1; number <= RING_SLOTS; number++) assert.deepEqual(rings.takeSent(), frameOf(number));
  assert.equal(rings.takeSent(), undefined);
});

it("frames of every length from empty to the longest come out as they went in, and a longer one is refused", () => {
  const { driver, rings } = card();
  for (let bytes = 0; bytes <= FRAME_BYTES_MAX; bytes++) {
    assert.ok(rings.deliver(frameOf(bytes, bytes)));
    assert.deepEqual(driver.receive(), frameOf(bytes, bytes));
  }
  assert.equal(rings.deliver(frameOf(1, FRAME_BYTES_MAX + 1)), false);
  assert.equal(driver.receive(), undefined);
});

it("the counters pass 2^32 without losing a frame or their order", () => {
  const { access, driver, rings } = card();
  for (const at of [TX_PRODUCED, TX_CONSUMED]) access.storeU32(at, 2 ** 32 - 3);
  for (let number = 0; number < RING_SLOTS; number++) assert.ok(driver.send(frameOf(number)));
  assert.equal(driver.send(frameOf(200)), false);
  for (let number = 0; number < RING_SLOTS; number++) assert.deepEqual(rings.takeSent(), frameOf(number));
  assert.equal(rings.takeSent(), undefined);
  assert.equal(access.loadU32(TX_CONSUMED), RING_SLOTS - 3);
});

it("a length that the guest made up is cut to the longest frame and reads nothing past its slot", () => {
  const { access, driver, rings } = card();
  for (const length of [FRAME_BYTES_MAX + 1, SLOT_BYTES, 2 ** 31, 2 ** 32 - 1]) {
    driver.send(frameOf(7));
    access.storeU32(TX_SLOTS + ((access.loadU32(TX_PRODUCED) - 1) % RING_SLOTS) * SLOT_BYTES, length);
    assert.equal(rings.takeSent()?.byteLength, FRAME_BYTES_MAX);
  }
});

it("whatever the counters say, the device writes only its own counters and the receive slots", () => {
  const { access, view, rings } = card();
  for (const produced of [0, 1, RING_SLOTS, 2 ** 31, 2 ** 32 - 1])
    for (const consumed of [0, 1, RING_SLOTS + 1, 2 ** 31, 2 ** 32 - 1]) {
      for (const at of [RX_PRODUCED, TX_PRODUCED]) access.storeU32(at, produced);
      for (const at of [RX_CONSUMED, TX_CONSUMED]) access.storeU32(at, consumed);
      const before = view.slice();
      rings.deliver(frameOf(9, FRAME_BYTES_MAX));
      rings.takeSent();
      const changed = [...view.keys()].filter((at) => view[at] !== before[at]);
      const isAllowed = (at: number): boolean =>
        (at >= RX_SLOTS && at < TX_SLOTS) || (at >= RX_PRODUCED && at < RX_PRODUCED + 4) || (at >= TX_CONSUMED && at < TX_CONSUMED + 4);
      assert.deepEqual(
        changed.filter((at) => !isAllowed(at)),
        [],
        `produced ${produced}, consumed ${consumed}`,
      );
    }
});

it("a card takes NIC_BYTES: the last transmit slot ends there", () => {
  const { view, driver } = card();
  for (let number = 0; number < RING_SLOTS; number++) driver.send(frameOf(0xee, FRAME_BYTES_MAX));
  assert.equal(view.lastIndexOf(0xee), AT + NIC_BYTES - SLOT_BYTES + 4 + FRAME_BYTES_MAX - 1);
});

it("every frame the guest sends, or could not, kicks the device", () => {
  const { driver, kicks } = card();
  for (let number = 0; number <= RING_SLOTS; number++) driver.send(frameOf(number));
  assert.equal(kicks(), RING_SLOTS + 1);
});
