import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import type { RemoteInfo, Socket } from "node:dgram";
import { once } from "node:events";
import { it } from "node:test";
import type { TestContext } from "node:test";
import { DatagramKind, MigrationError, decodeDatagram, encodeDatagram, guestTag } from "@precopy/protocol";
import type { Datagram } from "@precopy/protocol";
import { UdpBackend } from "./nic-udp.js";

const TAG = guestTag("guest");
const FRAME = new Uint8Array(60).fill(5);

/** A socket that stands for the switch, and what it received. */
class Peer {
  readonly received: Datagram[] = [];
  readonly socket: Socket;
  readonly host: string;
  last: RemoteInfo | undefined;
  #isClosed = false;
  constructor(host: string) {
    this.host = host;
    this.socket = createSocket(host.includes(":") ? "udp6" : "udp4");
    this.socket.on("message", (bytes, from) => {
      const datagram = decodeDatagram(bytes);
      if (datagram !== undefined) this.received.push(datagram);
      this.last = from;
    });
  }
  async bind(t: TestContext, port = 0): Promise<this> {
    this.socket.bind(port, this.host);
    await once(this.socket, "listening");
    t.after(() => this.close());
    return this;
  }
  close(): void {
    if (!this.#isClosed) this.socket.close();
    this.#isClosed = true;
  }
  get address() {
    return { host: this.host, port: this.socket.address().port };
  }
  async until(count: number): Promise<void> {
    while (this.received.length < count) await once(this.socket, "message");
  }
  /** Resolves when the datagram is at the other socket. */
  async send(frame: Uint8Array, epoch = 0): Promise<void> {
    const bytes = encodeDatagram(DatagramKind.Frame, TAG, epoch, frame);
    await new Promise((resolve) => this.socket.send(bytes, this.last!.port, this.last!.address, resolve));
  }
}
async function open(t: TestContext, peer: Peer): Promise<UdpBackend> {
  const backend = await UdpBackend.open(peer.address, TAG);
  t.after(() => backend.close());
  return backend;
}

for (const host of ["127.0.0.1", "::1"])
  it(`over ${host} it says hello and sends frames with tag and epoch, and delivers what the switch sends`, async (t) => {
    const peer = await new Peer(host).bind(t);
    const backend = await open(t, peer);
    const arrived = new Promise<{ frame: Uint8Array; epoch: number }>((resolve) =>
      backend.start(7, (frame, { epoch }) => resolve({ frame, epoch })),
    );
    assert.equal(backend.send(FRAME), true);
    await peer.until(2);
    assert.deepEqual(
      peer.received.map(({ kind, epoch, guestTag: tag, frame }) => ({ kind, epoch, tag, bytes: frame.byteLength })),
      [
        { kind: DatagramKind.Hello, epoch: 7, tag: TAG, bytes: 0 },
        { kind: DatagramKind.Frame, epoch: 7, tag: TAG, bytes: 60 },
      ],
    );
    await peer.send(FRAME, 6);
    const { frame, epoch } = await arrived;
    assert.deepEqual([Buffer.from(frame), epoch], [Buffer.from(FRAME), 6]);
  });

it("nothing is sent before start or after stop, and a frame that arrives then reaches nobody", async (t) => {
  const peer = await new Peer("127.0.0.1").bind(t);
  const backend = await open(t, peer);
  assert.equal(backend.send(FRAME), false);
  const markers: number[] = [];
  backend.start(0, (frame) => markers.push(frame[0]!));
  await peer.until(1);
  backend.stop();
  assert.equal(backend.send(FRAME), false);
  await peer.send(new Uint8Array(60).fill(1));
  for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve)); // the event loop reads its sockets in between
  const delivered = new Promise<void>((resolve) => backend.start(1, (frame) => resolve(void markers.push(frame[0]!))));
  await peer.send(new Uint8Array(60).fill(2));
  await delivered;
  assert.deepEqual(markers, [2]);
  assert.ok(peer.received.every(({ kind }) => kind === DatagramKind.Hello));
});

it("a datagram from any port but the switch's reaches nobody", async (t) => {
  const peer = await new Peer("127.0.0.1").bind(t);
  const stranger = await new Peer("127.0.0.1").bind(t);
  const backend = await open(t, peer);
  const markers: number[] = [];
  const arrived = new Promise<void>((resolve) =>
    backend.start(0, (frame) => {
      markers.push(frame[0]!);
      if (frame[0] === 1) resolve();
    }),
  );
  await peer.until(1);
  stranger.last = peer.last;
  await stranger.send(new Uint8Array(60).fill(2));
  await peer.send(new Uint8Array(60).fill(1));
  await arrived;
  assert.deepEqual(markers, [1]);
});

it("what is no frame of ours reaches nobody, hellos included", async (t) => {
  const peer = await new Peer("127.0.0.1").bind(t);
  const backend = await open(t, peer);
  let frames = 0;
  const arrived = new Promise<void>((resolve) =>
    backend.start(0, (frame) => {
      frames++;
      if (frame[0] === 5) resolve();
    }),
  );
  await peer.until(1);
  for (const bytes of [Buffer.alloc(0), Buffer.alloc(100, 1), encodeDatagram(DatagramKind.Hello, TAG, 0, new Uint8Array(0))])
    peer.socket.send(bytes, peer.last!.port, peer.last!.address);
  await peer.send(FRAME);
  await arrived;
  assert.equal(frames, 1);
});

it("a switch that is down and comes back costs frames, not the back end", async (t) => {
  const peer = await new Peer("127.0.0.1").bind(t);
  const { address } = peer;
  const backend = await open(t, peer);
  peer.close();
  backend.start(0, () => {});
  for (let turn = 0; turn < 5; turn++) {
    backend.send(FRAME);
    await new Promise((resolve) => setImmediate(resolve));
  }
  const back = await new Peer("127.0.0.1").bind(t, address.port);
  while (back.received.length === 0) {
    backend.send(FRAME); // one may still bring the refusal of an earlier one
    await new Promise((resolve) => setImmediate(resolve));
  }
});

it("beyond 1,024 datagrams under way it drops", async (t) => {
  const peer = await new Peer("127.0.0.1").bind(t);
  const backend = await open(t, peer);
  backend.start(0, () => {}); // a hello is under way
  const accepted = Array.from({ length: 2000 }, () => backend.send(FRAME)).filter(Boolean);
  assert.equal(accepted.length, 1023);
});

it("a switch whose name does not resolve is ERR_DEVICE_UNAVAILABLE with its cause", async () => {
  await assert.rejects(
    UdpBackend.open({ host: "no such host", port: 1 }, TAG),
    (error) => error instanceof MigrationError && error.code === "ERR_DEVICE_UNAVAILABLE" && error.cause !== undefined,
  );
});

it("close may come twice", async (t) => {
  const backend = await open(t, await new Peer("127.0.0.1").bind(t));
  backend.start(0, () => {});
  backend.close();
  backend.close();
});
