import assert from "node:assert/strict";
import { it } from "node:test";
import type { TestContext } from "node:test";
import { BROADCAST_MAC, MEMORY_BYTES_MIN, MigrationError, announceFrame, macBytes, macOf } from "@precopy/protocol";
import { GuestMemory, SegmentPool } from "./guest-memory.js";
import { MemoryAccess } from "./memory-access.js";
import { NicDriver, RING_SLOTS } from "./nic-ring.js";
import { ANNOUNCE_DELAYS_MS, Nic } from "./nic.js";
import type { FrameBackend } from "./nic.js";

const MAC = macOf("guest");
const pool = new SegmentPool();

class FakeBackend implements FrameBackend {
  readonly sent: { readonly epoch: number; readonly frame: Uint8Array }[] = [];
  onFrame: ((frame: Uint8Array) => void) | undefined;
  epoch = 0;
  isFull = false;
  closes = 0;
  start(epoch: number, onFrame: (frame: Uint8Array) => void): void {
    this.epoch = epoch;
    this.onFrame = onFrame;
  }
  stop(): void {}
  send(frame: Uint8Array): boolean {
    if (!this.isFull) this.sent.push({ epoch: this.epoch, frame });
    return !this.isFull;
  }
  close(): void {
    this.closes++;
  }
}

function card() {
  const memory = GuestMemory.allocate(MEMORY_BYTES_MIN, pool);
  const access = new MemoryAccess(memory, undefined);
  const backend = new FakeBackend();
  let wakes = 0;
  const nic = new Nic({ access, at: 0, mac: MAC, backend, wakeGuest: () => wakes++ });
  const driver = new NicDriver(access, 0, () => nic.kick());
  const silentDriver = new NicDriver(access, 0, () => {});
  return { nic, backend, access, driver, silentDriver, view: memory.views[0]!, wakes: () => wakes };
}
function frameTo(target: string, marker = 0): Uint8Array {
  const frame = Buffer.alloc(60, marker);
  frame.set(macBytes(target), 0);
  return new Uint8Array(frame);
}
const fakeTime = (t: TestContext): void => t.mock.timers.enable({ apis: ["setTimeout"] });
const isAnnouncement = ({ frame }: { readonly frame: Uint8Array }): boolean => Buffer.from(frame).equals(announceFrame(MAC));

it("frames go both ways while it runs, with the epoch, and what comes in wakes the guest", () => {
  const { nic, backend, driver, wakes } = card();
  nic.start(3, false);
  driver.send(frameTo(BROADCAST_MAC, 1));
  assert.deepEqual(backend.sent.at(-1), { epoch: 3, frame: frameTo(BROADCAST_MAC, 1) });
  backend.onFrame?.(frameTo(MAC, 2));
  assert.equal(wakes(), 1);
  assert.deepEqual(driver.receive(), frameTo(MAC, 2));
  nic.close();
});

it("quiesce first sends what the guest has put into the ring; after it nothing goes in or out or into memory, whoever asks", (t) => {
  fakeTime(t);
  const { nic, backend, silentDriver, view, wakes } = card();
  nic.start(1, true);
  t.mock.timers.tick(60);
  const before = backend.sent.length;
  for (let number = 0; number < 5; number++) silentDriver.send(frameTo(BROADCAST_MAC, number));
  assert.equal(backend.sent.length, before);
  nic.quiesce();
  assert.equal(backend.sent.length, before + 5);

  silentDriver.send(frameTo(BROADCAST_MAC, 9));
  const memory = view.slice();
  backend.onFrame?.(frameTo(MAC));
  nic.kick();
  nic.quiesce();
  t.mock.timers.tick(10_000);
  assert.deepEqual(view, memory);
  assert.equal(backend.sent.length, before + 5);
  assert.equal(wakes(), 0);

  nic.start(1, false);
  assert.deepEqual(backend.sent.at(-1)?.frame, frameTo(BROADCAST_MAC, 9), "so there was something to send");
  backend.onFrame?.(frameTo(MAC));
  assert.notDeepEqual(view, memory, "so there was something to write");
  nic.close();
});

it("after a move it announces on QEMU's schedule, five times in 800 ms, and a quiesce ends that", (t) => {
  fakeTime(t);
  const { nic, backend } = card();
  assert.deepEqual(ANNOUNCE_DELAYS_MS, [0, 50, 150, 250, 350]);
  nic.start(2, true);
  const times: number[] = [];
  for (let ms = 0, seen = 0; ms <= 2000; ms++, t.mock.timers.tick(1)) {
    for (; seen < backend.sent.length; seen++) times.push(ms);
  }
  assert.deepEqual(times, [0, 50, 200, 450, 800]);
  assert.ok(backend.sent.every(isAnnouncement));
  nic.start(3, true);
  nic.quiesce();
  t.mock.timers.tick(2000);
  assert.equal(backend.sent.length, 6);
});

it("it announces once on first boot and at a new epoch, and not when it goes on after a pause", (t) => {
  fakeTime(t);
  const { nic, backend } = card();
  const announced: number[] = [];
  for (const epoch of [0, 0, 1]) {
    nic.start(epoch, false);
    t.mock.timers.tick(2000);
    announced.push(backend.sent.length);
    nic.quiesce();
  }
  assert.deepEqual(announced, [1, 1, 2]);
});

it("frames to another address and fragments of frames take no slot; broadcast does", () => {
  const { nic, backend, driver } = card();
  nic.start(0, false);
  backend.onFrame?.(frameTo(macOf("another")));
  backend.onFrame?.(new Uint8Array(13));
  assert.equal(driver.receive(), undefined);
  backend.onFrame?.(frameTo(BROADCAST_MAC));
  assert.deepEqual(driver.receive(), frameTo(BROADCAST_MAC));
  nic.close();
});

it("a full ring, a full back end and a fragment from the guest are counted as dropped, and the counts move with the guest", () => {
  const { nic, backend, driver } = card();
  nic.start(0, false);
  for (let number = 0; number < RING_SLOTS + 2; number++) backend.onFrame?.(frameTo(MAC));
  driver.send(new Uint8Array(13));
  backend.isFull = true;
  driver.send(frameTo(BROADCAST_MAC));
  nic.quiesce();
  assert.deepEqual(nic.save(), { received: RING_SLOTS, sent: 1, dropped: 4 });
  const target = card().nic;
  target.load(structuredClone(nic.save()));
  assert.deepEqual(target.statistics(), nic.statistics());
});

it("a guest that lies about its counters costs one ring of frames a kick, not for ever", () => {
  const { nic, backend, access } = card();
  nic.start(0, false);
  access.storeU32(128, 2 ** 31); // transmit frames produced
  nic.kick();
  assert.equal(backend.sent.length + nic.statistics().dropped, RING_SLOTS + 1);
  nic.close();
});

it("state that is no card's is refused", () => {
  const { nic } = card();
  for (const state of [
    undefined,
    null,
    1,
    {},
    { received: 1, sent: 1 },
    { received: -1, sent: 0, dropped: 0 },
    { received: 0.5, sent: 0, dropped: "0" },
  ])
    assert.throws(
      () => nic.load(state),
      (error) => error instanceof MigrationError && error.code === "ERR_BAD_MESSAGE",
    );
});

it("close may come twice, and without a start", () => {
  const { nic, backend } = card();
  nic.close();
  nic.close();
  assert.equal(backend.closes, 2);
  nic.kick();
  assert.equal(backend.sent.length, 0);
});
