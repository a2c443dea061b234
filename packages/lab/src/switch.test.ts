import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { UdpBackend } from "@precopy/guest";
import { BROADCAST_MAC, DatagramKind, MigrationError, NO_GUEST_TAG, guestTag, macBytes, macOf } from "@precopy/protocol";
import type { Address, Datagram } from "@precopy/protocol";
import { ForwardingTable, PORT_AGE_MS, SWITCH_GUESTS_MAX, SWITCH_MACS_MAX, SWITCH_PORTS_MAX, Switch } from "./switch.js";

const GUEST = guestTag("guest");
const GUEST_MAC = macOf("guest");
const CLIENT_MAC = macOf("client 1");
const at = (port: number): Address => ({ host: "10.0.0.1", port });

interface Sent {
  readonly from: string;
  readonly to: string;
  readonly tag?: string;
  readonly epoch?: number;
}
function frame({ from, to, tag = NO_GUEST_TAG, epoch = 0 }: Sent): Datagram {
  const bytes = Buffer.alloc(60);
  bytes.set(macBytes(to), 0);
  bytes.set(macBytes(from), 6);
  return { kind: DatagramKind.Frame, guestTag: tag, epoch, frame: bytes };
}
const hello = (tag = NO_GUEST_TAG, epoch = 0): Datagram => ({ kind: DatagramKind.Hello, guestTag: tag, epoch, frame: Buffer.alloc(0) });
const numberedMac = (number: number): string =>
  `02:00:00:00:${(number >> 8).toString(16).padStart(2, "0")}:${(number & 255).toString(16).padStart(2, "0")}`;

/** A table, and the port numbers that each datagram goes to. */
function bench() {
  const table = new ForwardingTable();
  const accept = (datagram: Datagram | undefined, port: number, nowMs = 0): number[] =>
    table.accept(datagram, at(port), nowMs).map((target) => target.port);
  const guestAt = (port: number, epoch: number, tag = GUEST, nowMs = 0): number[] =>
    accept(frame({ from: GUEST_MAC, to: BROADCAST_MAC, tag, epoch }), port, nowMs);
  const toGuest = (port: number, nowMs = 0): number[] => accept(frame({ from: CLIENT_MAC, to: GUEST_MAC }), port, nowMs);
  return { table, accept, guestAt, toGuest };
}

describe("learning", () => {
  it("broadcast and unknown addresses go to every other port, a known one to its own, and nothing goes back", () => {
    const { accept, toGuest, guestAt } = bench();
    for (const port of [1, 2, 3]) assert.deepEqual(accept(hello(), port), []);
    assert.deepEqual(toGuest(1), [2, 3]);
    assert.deepEqual(guestAt(2, 0), [1, 3]);
    assert.deepEqual(toGuest(1), [2]);
    assert.deepEqual(toGuest(2), []);
  });

  it("an address that is no guest's goes where it was heard last", () => {
    const { accept } = bench();
    const fromClient = (port: number): number[] => accept(frame({ from: CLIENT_MAC, to: BROADCAST_MAC }), port);
    accept(hello(), 9);
    fromClient(1);
    fromClient(2);
    assert.deepEqual(accept(frame({ from: macOf("x"), to: CLIENT_MAC }), 9), [2]);
  });

  it("a port that was silent for 10 s gets nothing more, and its addresses are unknown again; a hello keeps it", () => {
    const { table, accept, guestAt, toGuest } = bench();
    guestAt(1, 0);
    accept(hello(), 2, PORT_AGE_MS - 1);
    assert.deepEqual(toGuest(3, PORT_AGE_MS - 1), [1]);
    assert.deepEqual(toGuest(3, PORT_AGE_MS + 999), [2]); // it looks for silent ports once a second
    assert.deepEqual([table.counts().ports, table.counts().macs], [2, 1]);
  });

  it("what is no datagram of ours, and a frame from a group's address, are dropped and teach nothing", () => {
    const { table, accept } = bench();
    accept(hello(), 2);
    assert.deepEqual(accept(undefined, 1), []);
    assert.deepEqual(accept(frame({ from: BROADCAST_MAC, to: BROADCAST_MAC }), 1), []);
    const { droppedMalformed, ports, macs } = table.counts();
    assert.deepEqual({ droppedMalformed, ports, macs }, { droppedMalformed: 2, ports: 1, macs: 0 });
  });
});

describe("epochs", () => {
  it("once a newer epoch was heard, frames and hellos of an older one are dropped and teach nothing", () => {
    const { table, accept, guestAt, toGuest } = bench();
    accept(hello(), 9);
    assert.deepEqual(guestAt(1, 4), [9]);
    assert.deepEqual(guestAt(2, 5), [9, 1]);
    assert.deepEqual(guestAt(1, 4), []);
    assert.deepEqual(accept(hello(GUEST, 4), 3), []);
    assert.deepEqual(toGuest(9), [2]);
    const { droppedStaleEpoch, ports, guests } = table.counts();
    assert.deepEqual({ droppedStaleEpoch, ports, guests }, { droppedStaleEpoch: 2, ports: 3, guests: 1 });
  });

  it("a hello at a newer epoch is enough to fence the old owner, and to reach the new one before it sends a frame", () => {
    const { accept, guestAt, toGuest } = bench();
    guestAt(1, 4);
    assert.deepEqual(toGuest(9), [1]);
    accept(hello(GUEST, 5), 2);
    assert.deepEqual(guestAt(1, 4), []);
    assert.ok(toGuest(9).includes(2));
    guestAt(2, 5);
    assert.deepEqual(toGuest(9), [2]);
  });

  it("the fence holds after all ports aged out", () => {
    const { guestAt } = bench();
    guestAt(1, 5);
    guestAt(2, 5, GUEST, 3 * PORT_AGE_MS);
    assert.deepEqual(guestAt(1, 4, GUEST, 6 * PORT_AGE_MS), []);
    assert.deepEqual(guestAt(1, 5, GUEST, 6 * PORT_AGE_MS), [], "nobody else is there");
  });

  it("a guest's address moves with the guest at the same epoch or a newer one", () => {
    for (const epoch of [5, 6]) {
      const { guestAt, toGuest } = bench();
      guestAt(1, 5);
      guestAt(2, epoch);
      assert.deepEqual(toGuest(9), [2]);
    }
  });

  it("a guest's address does not move to another guest or to a port without one, and their frames are dropped", () => {
    for (const [tag, epoch] of [
      [NO_GUEST_TAG, 0],
      [NO_GUEST_TAG, 9],
      [guestTag("another"), 9],
    ] as const) {
      const { table, guestAt, toGuest } = bench();
      guestAt(1, 5);
      assert.deepEqual(guestAt(2, epoch, tag), []);
      assert.deepEqual(toGuest(9), [1]);
      assert.equal(table.counts().droppedForeignMac, 1);
    }
  });

  it("two guests' epochs have nothing to do with each other", () => {
    const { accept, guestAt } = bench();
    guestAt(1, 9);
    assert.deepEqual(accept(frame({ from: macOf("another"), to: GUEST_MAC, tag: guestTag("another"), epoch: 1 }), 2), [1]);
  });
});

describe("bounds", () => {
  it("one port beyond 256 is dropped, and there is room again when one ages out", () => {
    const { table, accept } = bench();
    for (let port = 1; port <= SWITCH_PORTS_MAX + 1; port++) accept(hello(), port, port);
    assert.deepEqual([table.counts().ports, table.counts().droppedFull], [SWITCH_PORTS_MAX, 1]);
    accept(hello(), 1000, PORT_AGE_MS + 1);
    assert.deepEqual([table.counts().ports, table.counts().droppedFull], [SWITCH_PORTS_MAX, 1]);
  });

  it("one address beyond 4,096 is dropped, and the known ones go on", () => {
    const { table, accept } = bench();
    accept(hello(), 2);
    const from = (number: number): number[] => accept(frame({ from: numberedMac(number), to: BROADCAST_MAC }), 1);
    for (let number = 0; number < SWITCH_MACS_MAX; number++) assert.deepEqual(from(number), [2]);
    assert.deepEqual(from(SWITCH_MACS_MAX), []);
    assert.deepEqual(from(0), [2]);
    assert.deepEqual([table.counts().macs, table.counts().droppedFull], [SWITCH_MACS_MAX, 1]);
  });

  it("one guest beyond 4,096 is dropped rather than an epoch forgotten", () => {
    const { table, accept, guestAt } = bench();
    for (let number = 0; number < SWITCH_GUESTS_MAX; number++) accept(hello(guestTag(String(number)), 1), 1);
    assert.deepEqual(guestAt(2, 1), []);
    accept(hello(guestTag("0"), 0), 3);
    const { guests, ports, droppedFull, droppedStaleEpoch } = table.counts();
    assert.deepEqual(
      { guests, ports, droppedFull, droppedStaleEpoch },
      { guests: SWITCH_GUESTS_MAX, ports: 1, droppedFull: 1, droppedStaleEpoch: 1 },
    );
  });
});

for (const host of ["127.0.0.1", "::1", "localhost"])
  it(`frames pass between two ports over ${host}, and an old owner's do not`, async (t) => {
    const lab = await Switch.listen({ host, port: 0 });
    t.after(() => lab.close());
    const [guest, oldOwner, client] = await Promise.all([GUEST, GUEST, NO_GUEST_TAG].map((tag) => UdpBackend.open(lab.address, tag)));
    t.after(() => [guest, oldOwner, client].forEach((port) => port?.close()));
    const epochs: number[] = [];
    const answered = new Promise<void>((resolve) =>
      client!.start(0, (_frame, { epoch }) => {
        epochs.push(epoch);
        if (epochs.length === 2) resolve();
      }),
    );
    guest!.start(2, () => guest!.send(frame({ from: GUEST_MAC, to: CLIENT_MAC }).frame));
    const ask = (): boolean => client!.send(frame({ from: CLIENT_MAC, to: GUEST_MAC }).frame);
    while (lab.statistics().ports < 2) await new Promise((resolve) => setImmediate(resolve));
    ask();
    while (epochs.length < 1) await new Promise((resolve) => setImmediate(resolve));
    oldOwner!.start(1, () => {});
    oldOwner!.send(frame({ from: GUEST_MAC, to: CLIENT_MAC }).frame);
    while (lab.statistics().droppedStaleEpoch < 2) await new Promise((resolve) => setImmediate(resolve));
    ask();
    await answered;
    assert.deepEqual(epochs, [2, 2]);
    const { received, sent, ports, macs } = lab.statistics();
    assert.deepEqual({ received, sent, ports, macs }, { received: 8, sent: 4, ports: 2, macs: 2 });
  });

it("a port that is taken is ERR_PORT_IN_USE, an address of another host ERR_ADDRESS, and close frees the port", async () => {
  const lab = await Switch.listen({ host: "127.0.0.1", port: 0 });
  const { address } = lab;
  const isCode = (code: string) => (error: unknown) => error instanceof MigrationError && error.code === code && error.cause !== undefined;
  await assert.rejects(Switch.listen(address), isCode("ERR_PORT_IN_USE"));
  await assert.rejects(Switch.listen({ host: "192.0.2.1", port: 0 }), isCode("ERR_ADDRESS"));
  await lab.close();
  await lab.close();
  await (await Switch.listen(address)).close();
});
