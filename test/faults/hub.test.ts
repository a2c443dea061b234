import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import type { Socket } from "node:dgram";
import { once } from "node:events";
import { afterEach, beforeEach, it } from "node:test";
import { DatagramKind, NO_GUEST_TAG, encodeDatagram, guestTag } from "@precopy/protocol";
import { Hub } from "./hub.js";

const TAG = guestTag("g");
const FRAME = Buffer.alloc(60, 2);

let hub: Hub;
let ports: Socket[];
beforeEach(async () => {
  hub = await Hub.open();
  ports = await Promise.all(
    Array.from({ length: 3 }, async () => {
      const socket = createSocket("udp4");
      socket.bind(0, "127.0.0.1");
      await once(socket, "listening");
      return socket;
    }),
  );
});
afterEach(() => {
  for (const socket of ports) socket.close();
  hub.close();
});

/** Resolves when the last port has got it: then the hub has seen it. */
async function send(from: Socket, tag: string, epoch: number): Promise<void> {
  const last = ports[2]!;
  const arrived = once(last, "message");
  last.send(encodeDatagram(DatagramKind.Hello, NO_GUEST_TAG, 0, Buffer.alloc(0)), hub.address.port, "127.0.0.1");
  from.send(encodeDatagram(DatagramKind.Frame, tag, epoch, FRAME), hub.address.port, "127.0.0.1");
  await arrived;
}

it("a frame reaches every other port, and a guest that changes hands once is no finding", async () => {
  const [a, b] = [ports[0]!, ports[1]!];
  await send(a, TAG, 1);
  await send(a, TAG, 1);
  await send(b, TAG, 2);
  assert.equal(hub.epochOf(TAG), 2);
  assert.equal(hub.takeFinding(TAG), undefined);
});

it("a former owner's frame is a finding, and told once", async () => {
  await send(ports[0]!, TAG, 1);
  await send(ports[1]!, TAG, 2);
  await send(ports[0]!, TAG, 1);
  assert.equal(hub.takeFinding(TAG), "a frame of epoch 1 after one of epoch 2");
  assert.equal(hub.takeFinding(TAG), undefined);
});

it("a second card at the same epoch is a finding; two clients are none", async () => {
  await send(ports[0]!, TAG, 3);
  await send(ports[1]!, NO_GUEST_TAG, 0);
  await send(ports[0]!, NO_GUEST_TAG, 0);
  assert.equal(hub.takeFinding(TAG), undefined);
  await send(ports[1]!, TAG, 3);
  assert.equal(hub.takeFinding(TAG), "two cards sent frames at epoch 3");
});
