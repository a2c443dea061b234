import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { PAGE_BYTES } from "@precopy/protocol";
import { CompressionChoice } from "./compression-choice.js";

const PACKET_PAGES = 512;
const BUFFER_BYTES = 4 * 2 ** 20;

/** A channel: a link, a socket's buffer in front of it, and a compressor. Speeds in bytes a ms. */
class Channel {
  nowMs = 0;
  samples = 0;
  sampleMs = 0;
  tellsBacklog = true;
  bufferBytes = BUFFER_BYTES;
  linkSpeed: number;
  packSpeed: number;
  ratio: number;
  /** Of the peer, in bytes of pages; what it has not unpacked stays in the socket. */
  unpackSpeed = Infinity;
  packetPages = PACKET_PAGES;
  /** Of the time, for which the peer has no room. */
  peerShare = 0;
  #peerLimitedMs = 0;
  #busyMs = 0;
  /** Of the time for which packets are in the socket, for which none of their bytes is on its way. */
  idleShare = 0;
  /** What a few pages alone are compressed faster by than a whole packet. */
  sampleGain = 1;
  readonly #choice: CompressionChoice;
  /** In the socket. */
  readonly #queue: { bytes: number; readonly speed: number }[] = [];
  #drainedMs = 0;

  constructor(linkSpeed: number, packSpeed: number, ratio: number) {
    this.#choice = new CompressionChoice(["lz4"]);
    this.linkSpeed = linkSpeed;
    this.packSpeed = packSpeed;
    this.ratio = ratio;
  }

  /** Sends one packet. @returns whether it was compressed */
  send(): boolean {
    const raw = this.packetPages * PAGE_BYTES;
    const chosen = this.#choice.choose(this.packetPages, () => {
      this.samples++;
      const ms = (16 * PAGE_BYTES) / this.packSpeed / this.sampleGain;
      this.nowMs += ms;
      this.sampleMs += ms;
      return { pages: 16, bytes: 16 * PAGE_BYTES * this.ratio, ms };
    });
    const isCompressed = chosen !== "none";
    const started = this.nowMs;
    if (isCompressed) this.nowMs += raw / this.packSpeed;
    const packedAt = this.nowMs;
    const bytes = isCompressed ? raw * this.ratio : raw;
    this.#drain();
    this.#queue.push({ bytes, speed: Math.min(this.linkSpeed, isCompressed ? this.unpackSpeed * this.ratio : Infinity) });
    while (this.#backlogBytes() > this.bufferBytes) {
      this.nowMs += 0.1;
      this.#drain();
    }
    this.#drain();
    this.nowMs += 0.1; // a system call and the copy into the socket
    this.#peerLimitedMs += this.peerShare * (this.nowMs - started);
    const backlogBytes = this.tellsBacklog ? this.#backlogBytes() : undefined;
    this.#choice.sent({
      compression: chosen,
      pages: this.packetPages,
      bytes,
      startedAt: started,
      packedAt,
      endedAt: this.nowMs,
      backlogBytes,
      link: { busyMs: this.#busyMs, peerLimitedMs: this.#peerLimitedMs, queueMs: 0 },
    });
    return isCompressed;
  }

  /** What was sent last waits for room at the peer meanwhile. */
  standBetweenRounds(ms: number): void {
    this.nowMs += ms;
    this.#busyMs += ms;
    this.#peerLimitedMs += ms;
    this.beginRound();
  }

  beginRound(): void {
    this.#choice.beginRound();
  }

  #backlogBytes(): number {
    return this.#queue.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  #drain(): void {
    for (let ms = this.nowMs - this.#drainedMs; ms > 0 && this.#queue.length > 0; ) {
      const first = this.#queue[0]!;
      const leaves = Math.min(first.bytes, ms * first.speed);
      ms -= leaves / first.speed;
      this.#busyMs += (1 - this.idleShare) * (leaves / first.speed);
      first.bytes -= leaves;
      if (first.bytes < 1) this.#queue.shift();
    }
    this.#drainedMs = this.nowMs;
  }

  /** @returns share of the packets that were compressed */
  sendMany(packets: number): number {
    let compressed = 0;
    for (let packet = 0; packet < packets; packet++) if (this.send()) compressed++;
    return compressed / packets;
  }
}
const GBIT = 125_000;
const LZ4 = 1_200_000;

describe("CompressionChoice", () => {
  it("compresses on a slow link what becomes smaller, after the few packets that tell how slow it is", () => {
    const channel = new Channel(GBIT, LZ4, 0.4);
    assert.ok(channel.sendMany(200) >= 0.95);
  });

  it("finds out within a few packets, although the socket's buffer takes the first as fast as they come", () => {
    for (const [tellsBacklog, most] of [
      [true, 4],
      [false, 8],
    ] as const) {
      const channel = new Channel(GBIT, LZ4, 0.06);
      channel.tellsBacklog = tellsBacklog;
      let raw = 0;
      while (!channel.send()) raw++;
      assert.ok(raw <= most, `${raw} packets`);
    }
  });

  it("learns what the link carries as well where the system buffers less than a packet, as it does on slow links", () => {
    for (const bufferBytes of [2 ** 19, 2 ** 20, 1.5 * 2 ** 20]) {
      const channel = new Channel(GBIT / 10, LZ4, 0.34);
      channel.bufferBytes = bufferBytes;
      assert.ok(channel.sendMany(100) > 0.9, `${bufferBytes} B`);
    }
  });

  it("chooses among several what leaves fastest: the smaller one on a slow link, the faster one on a fast one", () => {
    const speeds = {
      lz4: { pages: 16, bytes: 0.5 * 16 * PAGE_BYTES, ms: 0.05 },
      zstd: { pages: 16, bytes: 0.25 * 16 * PAGE_BYTES, ms: 0.2 },
    };
    for (const [pagesAMs, expected] of [
      [30, "zstd"],
      [60, "lz4"],
      [2000, "none"],
    ] as const) {
      const choice = new CompressionChoice(["lz4", "zstd"]);
      let expectedPackets = 0;
      let nowMs = 0;
      for (let packet = 0; packet < 100; packet++) {
        const chosen = choice.choose(PACKET_PAGES, (compression) => speeds[compression]);
        const [bytes, packMs] =
          chosen === "none" ? [1, 0] : [speeds[chosen].bytes / 16 / PAGE_BYTES, (speeds[chosen].ms / 16) * PACKET_PAGES];
        const endedAt = nowMs + Math.max(packMs, (PACKET_PAGES * bytes) / pagesAMs);
        choice.sent({
          ...{ compression: chosen, pages: PACKET_PAGES, bytes: bytes * PACKET_PAGES * PAGE_BYTES },
          ...{ startedAt: nowMs, packedAt: nowMs + packMs, endedAt, backlogBytes: undefined, link: undefined },
        });
        nowMs = endedAt;
        if (chosen === expected) expectedPackets++;
      }
      assert.ok(expectedPackets > 75, `${pagesAMs} pages a ms: ${expected} ${expectedPackets} times of 100`);
    }
  });

  it("does not compress what does not become smaller", () => {
    assert.equal(new Channel(GBIT, LZ4, 1.01).sendMany(200), 0);
    assert.equal(new Channel(GBIT, LZ4, 0.95).sendMany(200), 0);
  });

  it("does not compress on a link that is faster than the compressor, and hardly looks at contents there", () => {
    const channel = new Channel(4_000_000, LZ4, 0.1);
    assert.ok(channel.sendMany(320) <= 8 / 320, "but for the first, which tell how fast it is");
    assert.ok(channel.sampleMs < 0.011 * channel.nowMs, `${channel.samples} samples took ${channel.sampleMs} of ${channel.nowMs} ms`);
  });

  it("does not try what samples alone promise little of", () => {
    assert.equal(new Channel(LZ4 / 1.4, LZ4, 0.5).sendMany(200), 0);
    assert.ok(new Channel(LZ4 / 1.6, LZ4, 0.5).sendMany(200) > 0.5);
  });

  it("goes by what each packet holds", () => {
    const channel = new Channel(GBIT, LZ4, 0.3);
    channel.sendMany(50);
    for (let packet = 0; packet < 40; packet++) {
      channel.ratio = packet % 2 === 0 ? 1 : 0.3;
      assert.equal(channel.send(), packet % 2 === 1, `packet ${packet}`);
    }
  });

  it("stops when the link has become faster than the compressor, and begins again when it is slow again", () => {
    const channel = new Channel(GBIT, LZ4, 0.4);
    channel.sendMany(100);
    channel.linkSpeed = 8_000_000;
    channel.sendMany(150);
    assert.ok(channel.sendMany(100) < 0.05, "on the fast link");
    channel.linkSpeed = GBIT;
    channel.sendMany(50);
    assert.ok(channel.sendMany(100) > 0.9, "on the slow link again");
  });

  it("takes a peer that unpacks slowly for no slow link", () => {
    const channel = new Channel(10 * GBIT, 20 * GBIT, 0.06);
    channel.unpackSpeed = 5 * GBIT;
    channel.bufferBytes = 2 ** 20;
    const share = channel.sendMany(500);
    assert.ok(share < 0.1, `${share} compressed, ${channel.nowMs} ms`);
  });

  it("does not compress where the peer's processor is what uncompressed pages wait for, and does as soon as it is not", () => {
    const channel = new Channel(GBIT, LZ4, 0.06);
    channel.peerShare = 0.7;
    assert.equal(channel.sendMany(100), 0);
    channel.peerShare = 0;
    channel.sendMany(10);
    assert.ok(channel.sendMany(100) > 0.9);
  });

  it("does not compress where nothing is on its way for much of the time: it is a processor that limits, whatever samples promise", () => {
    const channel = new Channel(GBIT, LZ4, 0.06);
    channel.idleShare = 0.3;
    assert.equal(channel.sendMany(200), 0);
    assert.equal(channel.samples, 0);
    channel.idleShare = 0;
    channel.sendMany(10);
    assert.ok(channel.sendMany(100) > 0.9);
  });

  it("does not go by the little that it saw of a link in less time than the kernel counts in", () => {
    const channel = new Channel(10 * GBIT, 20 * GBIT, 0.06);
    channel.bufferBytes = 2 ** 20;
    while (!channel.send());
    assert.ok(channel.nowMs > 25 && channel.nowMs < 35, `${channel.nowMs} ms`);
  });

  it("does not take the peer's want of room between two rounds for one while packets are sent", () => {
    const channel = new Channel(GBIT, LZ4, 0.3);
    channel.sendMany(50);
    channel.standBetweenRounds(500);
    channel.ratio = 1;
    assert.equal(channel.sendMany(3), 0);
    channel.ratio = 0.3;
    assert.ok(channel.send());
  });

  it("believes whole packets more than samples", () => {
    const channel = new Channel(10 * GBIT, 5 * GBIT, 0.06);
    channel.sampleGain = 6;
    assert.ok(channel.sendMany(500) < 0.02);
  });

  it("tries again what was no gain while the peer had no time", () => {
    const channel = new Channel(GBIT, LZ4, 0.3);
    channel.unpackSpeed = GBIT / 10;
    channel.sendMany(100);
    channel.unpackSpeed = Infinity;
    channel.sendMany(150);
    assert.ok(channel.sendMany(100) > 0.9);
  });

  it("does not take the time between two rounds for the link's", () => {
    const channel = new Channel(10 * GBIT, LZ4, 0.3);
    for (let round = 0; round < 20; round++) {
      assert.equal(channel.sendMany(3), 0, `round ${round}`);
      channel.nowMs += 500;
      channel.beginRound();
    }
  });

  it("goes on as before with the small packets of short rounds, which tell nothing of a link", () => {
    const channel = new Channel(GBIT / 10, LZ4, 0.3);
    channel.sendMany(100);
    channel.packetPages = 60;
    for (let round = 0; round < 200; round++) {
      channel.nowMs += 100;
      channel.beginRound();
      assert.ok(channel.send(), `round ${round}`);
    }
  });

  it("is never slower than sending everything as it is by more than a twentieth, nor than compressing everything where that is faster", () => {
    for (const link of [GBIT / 10, GBIT, 4 * GBIT, 10 * GBIT, 30 * GBIT, 60 * GBIT])
      for (const ratio of [0.05, 0.3, 0.6, 0.9, 1]) {
        const channel = new Channel(link, LZ4, ratio);
        channel.sendMany(1000);
        const raw = PACKET_PAGES * PAGE_BYTES;
        const none = Math.max(raw / link, 0.1);
        const lz4 = Math.max(raw / LZ4 + 0.1, (raw * ratio) / link);
        const best = 1000 * Math.min(none, lz4);
        assert.ok(
          channel.nowMs < 1.12 * best && channel.nowMs < 1.05 * 1000 * (none + 0.1),
          `${link} B/ms, ratio ${ratio}: ${channel.nowMs} for ${best} ms`,
        );
      }
  });
});
