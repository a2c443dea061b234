import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { inspect } from "node:util";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import { Packr } from "msgpackr";
import { decodeControl, encodeControl } from "./control.js";
import type { ControlMessage, ControlType, Message } from "./control.js";
import { CHANNELS_MAX, CONTROL_MESSAGE_BYTES_MAX, MEMORY_BYTES_MAX, VCPUS_MAX } from "./limits.js";

const SESSION = "6f3c1f0e-8f6a-4d8e-9d39-6a4f1f6f7a10";
const VCPU = {
  workload: "random-writer",
  sha256: "ab".repeat(32),
  options: { rate: 100, kind: "text", on: true },
  region: { start: 0, bytes: 4096 },
};
/** One of each type: a type that is left out does not compile. */
const EVERY: { [T in ControlType]: Message<T> } = {
  admit: {
    type: "admit",
    protocolVersion: 1,
    release: "0.1.0",
    session: SESSION,
    epoch: 2,
    pageBytes: 4096,
    endianness: "LE",
    channels: 2,
    capabilities: ["lz4"],
    digest: true,
    manifest: { id: "g1", memoryBytes: 2 ** 26, vcpus: [VCPU], devices: [{ kind: "nic", mac: "52:54:00:aa:bb:cc" }] },
    from: "10.0.0.1:4646",
    arbiterEpoch: 1,
    postcopy: false,
  },
  admitted: {
    type: "admitted",
    session: SESSION,
    release: "0.1.0",
    pump: "direct",
    probeMs: 0.4,
    capabilities: ["lz4", "digest"],
    channelSecret: Buffer.alloc(32, 5),
  },
  refused: { type: "refused", code: "ERR_EPOCH", message: "Guest g1 is offered at epoch 1; epoch 2 was seen here" },
  flushed: { type: "flushed", channel: 1, generation: 2, round: 3, packets: 12 },
  lost: { type: "lost", channel: 1, generation: 2, code: "ERR_BAD_CHECKSUM", message: "" },
  carry: { type: "carry", lane: 1, channel: 0 },
  carried: { type: "carried", lane: 1, stored: { round: 3, page: 512 } },
  rejoin: { type: "rejoin", guest: "g1", epoch: 2, session: SESSION },
  rejoined: {
    type: "rejoined",
    epoch: 2,
    flushed: [{ channel: 1, generation: 2, round: 3, packets: 12 }],
    lost: [{ channel: 0, generation: 4 }],
  },
  discard: { type: "discard", epoch: 2, first: 65_536, words: Buffer.from([1, 2, 3]) },
  listen: { type: "listen", epoch: 2 },
  listening: { type: "listening", epoch: 2, ms: 3.5 },
  serve: { type: "serve", guest: "g1", epoch: 2, session: SESSION },
  serving: { type: "serving", epoch: 2, channelSecret: Buffer.alloc(32, 6) },
  "all-sent": { type: "all-sent", epoch: 2 },
  missing: { type: "missing", epoch: 2, first: 0, words: Buffer.from([]) },
  placed: {
    type: "placed",
    epoch: 2,
    digest: "0123456789abcdef",
    faults: { requests: 3, zeros: 1, medianUs: 40.5, p99Us: 90, maxUs: 1000, distribution: [0, 1, 2], vcpuBlockedMs: [0.3] },
  },
  state: {
    type: "state",
    epoch: 2,
    round: 4,
    registers: [{ program: { random: 7, list: [1, "two", null] }, lastTickMs: 1.25 }],
    devices: [null],
    clockMs: 12345.678,
  },
  image: { type: "image", epoch: 2, digest: "0123456789abcdef" },
  prepared: { type: "prepared", epoch: 2, digest: null, verifyMs: 3 },
  commit: { type: "commit", epoch: 2 ** 32 - 1, elapsedMs: 20.5 },
  active: { type: "active", epoch: 2, resumeMs: 0.7 },
  arrived: { type: "arrived", epoch: 2, guestGapMs: null, ranAt: { boot: "b", ms: 1.5 } },
  abort: { type: "abort", code: "ERR_CANCELLED", message: "" },
  failed: { type: "failed", code: "ERR_MEMORY", message: "no" },
  ask: { type: "ask", guest: "g1", epoch: 2, session: "00000000-0000-4000-8000-000000000001", hasImage: true },
  owner: { type: "owner", epoch: 2, phase: "prepared" },
  "who-owns": { type: "who-owns", guest: "g1" },
  ownership: { type: "ownership", guest: "g1", standing: "moved", epoch: 0, at: "2026-11-20T00:00:00.000Z", peer: "[::1]:4646" },
  ping: { type: "ping", id: 0 },
  pong: { type: "pong", id: 1 },
};
const packr = new Packr({ useRecords: false, variableMapSize: true });
/** What a peer sends that packs anything at all: the checksum is right. */
const sealed = (packed: Uint8Array): Buffer => {
  const checksum = Buffer.alloc(4);
  checksum.writeUInt32LE(crc32(packed));
  return Buffer.concat([checksum, packed]);
};
const refuses = (raw: unknown, note = JSON.stringify(raw)): void =>
  assert.throws(() => decodeControl(sealed(packr.pack(raw))), { code: "ERR_BAD_MESSAGE" }, note);
const isText = (key: string): boolean => ["message", "code", "from", "peer"].includes(key);
/** Any value where something else was, deep inside. `path` as in "manifest.vcpus.0.region". */
function changed(message: ControlMessage, path: string, value: unknown): unknown {
  const copy: unknown = structuredClone(message);
  const keys = path.split(".");
  let at = copy;
  for (const key of keys.slice(0, -1)) at = Reflect.get(Object(at), key);
  Reflect.set(Object(at), keys.at(-1) ?? "", value);
  return copy;
}

describe("control messages", () => {
  for (const message of Object.values(EVERY))
    it(`${message.type} comes back as it was sent`, () => assert.deepEqual(decodeControl(encodeControl(message)), message));

  it("carry registers of plain data whatever they are", () =>
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 4 }), (value) => {
        const sent = { ...EVERY.state, registers: [{ program: value, lastTickMs: 0 }] };
        // JSON has keys named __proto__ and the number -0; neither is state that a program may rely on.
        fc.pre(!/__proto__|-0\b/.test(fc.stringify(value)));
        assert.deepEqual(decodeControl(encodeControl(sent)), sent);
      }),
    ));

  it("carry bytes in registers, and what is decoded shares no memory with what arrived", () => {
    const bytes = encodeControl({ ...EVERY.state, registers: [Uint8Array.of(1, 2, 3)], devices: [new Uint8Array(10_000).fill(7)] });
    const state = decodeControl(bytes);
    bytes.fill(0xff);
    assert.ok(state.type === "state");
    const [small, large] = [state.registers[0], state.devices[0]];
    assert.ok(small instanceof Uint8Array && large instanceof Uint8Array);
    assert.deepEqual([...small], [1, 2, 3]);
    assert.deepEqual(new Set(large), new Set([7]));
  });

  it("can each be read by itself: nothing of an earlier message is needed", () => {
    const first = encodeControl(EVERY.state);
    const second = encodeControl(EVERY.state);
    assert.deepEqual(first, second);
    assert.deepEqual(packr.unpack(second.subarray(4)), EVERY.state);
  });

  it("are the CRC-32 of what follows, little-endian, and one msgpack map", () =>
    assert.equal(encodeControl(EVERY.ping).toString("hex"), "ef6b04df82a474797065a470696e67a2696400"));

  it("have a null where there is nothing to say: no listener, no arbiter, no digest, no line in a journal", () => {
    for (const message of [
      { ...EVERY.admit, from: null, arbiterEpoch: null },
      { ...EVERY.ownership, standing: "unknown" as const, at: null, peer: null },
      { ...EVERY.rejoined, flushed: [] },
    ])
      assert.deepEqual(decodeControl(encodeControl(message)), message);
  });
});

describe("decodeControl refuses", () => {
  it("an unknown type, no type, and what is no message", () => {
    for (const raw of [
      { ...EVERY.ping, type: "pang" },
      { id: 1 },
      {},
      [],
      null,
      7,
      "ping",
      true,
      [EVERY.ping],
      { type: { type: "ping" } },
      { type: "toString" },
    ])
      refuses(raw);
  });

  it("an unknown key, at the top and deep inside", () => {
    for (const message of Object.values(EVERY)) refuses({ ...message, extra: 1 });
    for (const path of ["manifest.extra", "manifest.vcpus.0.extra", "manifest.vcpus.0.region.extra", "manifest.devices.0.extra"])
      refuses(changed(EVERY.admit, path, 1), path);
    refuses(changed(EVERY.carried, "stored.extra", 1));
    refuses(changed(EVERY.rejoined, "flushed.0.extra", 1));
  });

  it("every message with any one of its fields left out", () => {
    for (const message of Object.values(EVERY))
      for (const key of Object.keys(message))
        refuses(Object.fromEntries(Object.entries(message).filter(([name]) => name !== key)), `${message.type} without ${key}`);
  });

  it("every message with any one of its fields of a wrong type", () => {
    for (const message of Object.values(EVERY))
      for (const key of Object.keys(message))
        for (const value of [undefined, { a: {} }, new Date(0), -1.5, isText(key) ? [] : "\u0000".repeat(65)])
          refuses({ ...message, [key]: value }, `${message.type}.${key} = ${inspect(value)}`);
  });

  it("numbers, names and lists past their bounds", () => {
    const bad: [ControlMessage, string, unknown][] = [
      [EVERY.admit, "channels", 0],
      [EVERY.admit, "channels", CHANNELS_MAX + 1],
      [EVERY.admit, "epoch", 0],
      [EVERY.admit, "epoch", 2 ** 32],
      [EVERY.admit, "session", "not-a-uuid"],
      [EVERY.admit, "endianness", "ME"],
      [EVERY.admit, "capabilities", new Array(33).fill("lz4")],
      [EVERY.admit, "release", "x".repeat(65)],
      [EVERY.admit, "manifest.id", "../../etc/passwd"],
      [EVERY.admit, "manifest.id", ""],
      [EVERY.admit, "manifest.id", "x".repeat(65)],
      [EVERY.admit, "manifest.memoryBytes", 2 ** 20 - 4096],
      [EVERY.admit, "manifest.memoryBytes", 2 ** 20 + 1],
      [EVERY.admit, "manifest.memoryBytes", MEMORY_BYTES_MAX + 4096],
      [EVERY.admit, "manifest.vcpus", []],
      [EVERY.admit, "manifest.vcpus", new Array(VCPUS_MAX + 1).fill(VCPU)],
      [EVERY.admit, "manifest.vcpus.0.workload", "/bin/sh"],
      [EVERY.admit, "manifest.vcpus.0.sha256", "AB".repeat(32)],
      [EVERY.admit, "manifest.vcpus.0.options", { rate: { deep: 1 } }],
      [EVERY.admit, "manifest.vcpus.0.options", { "a b": 1 }],
      [EVERY.admit, "manifest.vcpus.0.region.start", -4096],
      [EVERY.admit, "manifest.vcpus.0.region.bytes", 0.5],
      [EVERY.admit, "manifest.devices.0.mac", "52:54:00:AA:BB:CC"],
      [EVERY.admit, "manifest.devices.0.kind", "gpu"],
      [EVERY.admit, "manifest.devices", new Array(5).fill(EVERY.admit.manifest.devices[0])],
      [EVERY.image, "digest", "0123456789ABCDEF"],
      [EVERY.image, "digest", "0123456789abcde"],
      [EVERY.flushed, "generation", 0],
      [EVERY.flushed, "generation", 2 ** 31 + 1],
      [EVERY.flushed, "channel", CHANNELS_MAX],
      [EVERY.lost, "channel", -1],
      [EVERY.lost, "code", "x".repeat(65)],
      [EVERY.carry, "lane", CHANNELS_MAX],
      [EVERY.carry, "channel", CHANNELS_MAX],
      [EVERY.carried, "stored", { round: 1 }],
      [EVERY.carried, "stored.page", 0.5],
      [EVERY.rejoin, "session", "g1"],
      [EVERY.rejoin, "epoch", 0],
      [EVERY.rejoined, "flushed", new Array(CHANNELS_MAX + 1).fill(EVERY.rejoined.flushed[0])],
      [EVERY.rejoined, "flushed.0.generation", 0],
      [EVERY.admit, "from", "x".repeat(301)],
      [EVERY.admit, "arbiterEpoch", 0],
      [EVERY["who-owns"], "guest", "../g1"],
      [EVERY.ownership, "standing", "running"],
      [EVERY.ownership, "epoch", -1],
      [EVERY.ownership, "at", "x".repeat(65)],
      [EVERY.ownership, "peer", "x".repeat(301)],
      [EVERY.state, "registers", new Array(VCPUS_MAX + 1).fill(null)],
      [EVERY.state, "clockMs", -1],
      [EVERY.state, "clockMs", Number.NaN],
      [EVERY.state, "clockMs", Number.POSITIVE_INFINITY],
      [EVERY.commit, "elapsedMs", -0.001],
      [EVERY.refused, "message", "x".repeat(2001)],
      [EVERY.owner, "phase", "running"],
      [EVERY.ping, "id", 2 ** 53],
      [EVERY.ping, "id", "1"],
    ];
    for (const [message, path, value] of bad) refuses(changed(message, path, value), `${message.type}.${path} = ${String(value)}`);
  });

  it("more bytes than a message may have, before it reads any; and encodeControl never makes such a message", () => {
    const bytes = Buffer.alloc(CONTROL_MESSAGE_BYTES_MAX + 1, 0xc1);
    assert.throws(() => decodeControl(bytes), { code: "ERR_BAD_MESSAGE", message: /1048577 B/ });
    const large = { ...EVERY.state, registers: [new Uint8Array(CONTROL_MESSAGE_BYTES_MAX)] };
    assert.throws(() => encodeControl(large), { code: "ERR_PARAMETER" });
    const nearly = { ...EVERY.state, registers: [new Uint8Array(CONTROL_MESSAGE_BYTES_MAX - 1000)] };
    assert.equal(decodeControl(encodeControl(nearly)).type, "state");
  });

  it("every message that is truncated or has bytes after its end", () => {
    for (const message of Object.values(EVERY)) {
      const bytes = encodeControl(message);
      for (let length = 0; length < bytes.byteLength; length++)
        assert.throws(() => decodeControl(bytes.subarray(0, length)), { code: "ERR_PACKET_CHECKSUM" }, `${message.type}, ${length} bytes`);
      assert.throws(() => decodeControl(Buffer.concat([bytes, Buffer.from([0])])), { code: "ERR_PACKET_CHECKSUM" }, message.type);
    }
  });

  it("every message with any one bit flipped, the checksum's own included", () => {
    for (const message of Object.values(EVERY)) {
      const bytes = encodeControl(message);
      for (let bit = 0; bit < bytes.byteLength * 8; bit++) {
        const damaged = Buffer.from(bytes);
        damaged[bit >>> 3] = (damaged[bit >>> 3] ?? 0) ^ (1 << (bit & 7));
        assert.throws(() => decodeControl(damaged), { code: "ERR_PACKET_CHECKSUM", message: /is damaged$/ }, `${message.type}, bit ${bit}`);
      }
    }
  });

  it("garbage: no string of bytes is a message, with a right checksum or without, and nothing but the two codes for that is thrown", () =>
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        assert.throws(() => decodeControl(bytes), { code: "ERR_PACKET_CHECKSUM" });
        assert.throws(() => decodeControl(sealed(bytes)), { code: "ERR_BAD_MESSAGE" });
      }),
      { numRuns: 3000 },
    ));

  it("a message changed by a peer that mends the checksum, or takes it for a good one; and the next message is read as ever", () =>
    fc.assert(
      fc.property(
        fc.constantFrom(...Object.values(EVERY)),
        fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 4 }),
        (message, changes) => {
          const packed = encodeControl(message).subarray(4);
          for (const [at, value] of changes) packed[at % packed.byteLength] = value;
          try {
            decodeControl(sealed(packed));
          } catch (error) {
            assert.equal(error instanceof Error && "code" in error && error.code, "ERR_BAD_MESSAGE");
          }
          assert.deepEqual(decodeControl(encodeControl(EVERY.admit)), EVERY.admit);
        },
      ),
      { numRuns: 3000 },
    ));

  it("a few bytes that announce long lists, without setting memory aside for them", () => {
    const before = process.resourceUsage().maxRSS;
    const list = [0xdd, 0x01, 0xff, 0xff, 0xff]; // array32 of 33,554,431 entries
    for (const depth of [1, 8]) {
      const bytes = sealed(Buffer.from(new Array<number[]>(depth).fill(list).flat()));
      assert.throws(() => decodeControl(bytes), { code: "ERR_BAD_MESSAGE" });
    }
    const grownKib = process.resourceUsage().maxRSS - before;
    assert.ok(grownKib < 64 * 2 ** 10, `grew by ${grownKib} KiB for 40 bytes`);
  });

  it("lists nested as deep as a message is long", () => {
    for (const opening of [0x91, 0x81])
      assert.throws(() => decodeControl(sealed(Buffer.alloc(CONTROL_MESSAGE_BYTES_MAX - 4, opening))), {
        code: "ERR_BAD_MESSAGE",
        message: /not msgpack/,
      });
  });
});
