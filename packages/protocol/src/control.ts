import { crc32 } from "node:zlib";
import { Packr } from "msgpackr";
import * as z from "zod";
import { MigrationError } from "./errors.js";
import { isPlainData } from "./plain-data.js";
import { OWNERSHIPS } from "./ownership.js";
import { OWNER_ANSWERS } from "./target-state.js";
import {
  CHANNELS_MAX,
  CHANNEL_SECRET_BYTES,
  CONTROL_MESSAGE_BYTES_MAX,
  MEMORY_BYTES_MAX,
  MEMORY_BYTES_MIN,
  PAGE_BYTES,
  VCPUS_MAX,
} from "./limits.js";

/**
 * Messages of the control channel, one per binary WebSocket frame, validated on arrival: CRC-32 (u32, little-endian) of what follows, then one
 * msgpack map. TCP's own checksum lets one damaged segment in some ten thousand through, and a flipped bit in a register is no error to a parser.
 *
 *   source                                target
 *     | admit ------------------------------> |  nothing is reserved before this was checked
 *     | <------------------ admitted, refused |
 *     | == page channels: rounds ===========> |
 *     | <---------------------------- flushed |  one for each channel and round
 *     | discard ----------------------------> |  post-copy: what is here of these pages is old; they will come when the guest runs
 *     | listen -----------------------------> |  from here on pages are placed only where they are missing
 *     | <-------------------------- listening |
 *     | state (guest paused) ---------------> |  travels beside the last pages
 *     | image (digest) ---------------------> |  all pages here? digest equal?
 *     | <--------------------------- prepared |
 *     | commit -----------------------------> |  from here only the target's answer decides
 *     | <----------------------------- active |  the guest runs there
 *     | <---------------------------- arrived |  what the guest noticed
 *     | == page channels, fault channel ====> |  post-copy: what is missing, in rounds and as it is needed
 *     | all-sent ---------------------------> |
 *     | <------------------- missing, missing |  these are not here, or none: placed
 *     | <----------------------------- placed |
 * Before commit either side may end it: `abort` from the source, `failed` from the target. In doubt, the source connects again and
 * sends `ask`, and the target answers `owner`. A source whose control channel broke while the guest ran connects again and sends `rejoin`,
 * or in post-copy `serve`, which is answered by what is missing; `lost` and `carry` are about page channels that broke. `who-owns` is anybody's question. `ping` and `pong` go both ways at any time.
 */
const count = z.number().int().nonnegative();
const name = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/);
const digest = z.string().regex(/^[0-9a-f]{16}$/);
const code = z.string().max(64);
const text = z.string().max(2000);
const plainData = z.unknown().refine((value) => isPlainData(value), "not plain data");
const epoch = z
  .number()
  .int()
  .min(1)
  .max(2 ** 32 - 1);

const vcpu = z.strictObject({
  workload: name,
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  options: z.record(name, z.union([z.string().max(1000), z.number(), z.boolean()])),
  /** Guest memory this vCPU's workload may use, in bytes; page-aligned. */
  region: z.strictObject({ start: count, bytes: count }),
});
const generation = z
  .number()
  .int()
  .min(1)
  .max(2 ** 31);
const channel = z
  .number()
  .int()
  .min(0)
  .max(CHANNELS_MAX - 1);
/** Shown to people, so no control characters. */
const address = z.string().regex(/^[\x21-\x7e]{1,300}$/);
/** A moment on a host's monotonic clock, and which start of which host that is. */
const hostTime = z.strictObject({ boot: z.string().max(64), ms: z.number().nonnegative() });
/** Where a lane stands at the target: pages below `page` of this round are stored. */
const stored = z.strictObject({ round: count, page: count });
const device = z.strictObject({ kind: z.literal("nic"), mac: z.string().regex(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/) });

/** What every channel from here on has to show that it knows; see ChannelKey. */
const channelSecret = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.byteLength === CHANNEL_SECRET_BYTES,
  "not a secret",
);

/** What a guest is, apart from its contents. */
const manifest = z.strictObject({
  id: name,
  memoryBytes: z.number().int().min(MEMORY_BYTES_MIN).max(MEMORY_BYTES_MAX).multipleOf(PAGE_BYTES),
  vcpus: z.array(vcpu).min(1).max(VCPUS_MAX),
  devices: z.array(device).max(1),
});

/** Words of a bitmap; see BitmapPiece. */
const piece = {
  first: count,
  words: z.custom<Uint8Array>((value) => value instanceof Uint8Array, "not bytes"),
};
const microseconds = z.number().nonnegative();
/** Of the faults that waited for the source, from the kernel's word to the page's being there; us. */
const faultStatistics = z.strictObject({
  requests: count,
  /** Faults at pages that were known to hold zeros only. */
  zeros: count,
  medianUs: microseconds,
  p99Us: microseconds,
  maxUs: microseconds,
  /** How many took up to 1, 2, 4, ... us, as QEMU's postcopy-latency-dist. */
  distribution: z.array(count).max(32),
  /** Each vCPU's time at missing pages, ms. */
  vcpuBlockedMs: z.array(z.number().nonnegative()).max(VCPUS_MAX),
});

const messages = {
  admit: {
    protocolVersion: count,
    release: z.string().max(64),
    session: z.uuid(),
    epoch,
    pageBytes: count,
    endianness: z.enum(["LE", "BE"]),
    channels: z.number().int().min(1).max(CHANNELS_MAX),
    /** Encodings and checks this migration needs; the target refuses what it does not know. */
    capabilities: z.array(name).max(32),
    digest: z.boolean(),
    manifest,
    /** Where the source listens, for an operator's questions; null if it does not. */
    from: address.nullable(),
    /** The epoch at which the arbiter knows the source as owner; null without an arbiter. */
    arbiterEpoch: epoch.nullable(),
    /** It may come to post-copy: no huge pages, and a way to stop vCPUs at missing pages. */
    postcopy: z.boolean(),
  },
  admitted: {
    session: z.uuid(),
    release: z.string().max(64),
    pump: z.enum(["direct", "portable"]),
    probeMs: z.number().nonnegative(),
    /** All that this target has, whatever was asked for. */
    capabilities: z.array(name).max(32),
    channelSecret,
  },
  refused: { code, message: text },
  /** packets: received since this generation of the channel began, this FLUSH included. */
  flushed: { channel, generation, round: count, packets: count },
  /** The target's end of a page channel ended, and why. */
  lost: { channel, generation, code, message: text },
  /** The page channel of a lane cannot be made again: another one is to carry it. Answered when the old one has ended there. */
  carry: { lane: channel, channel },
  carried: { lane: channel, stored },
  /** session: of the admission. */
  rejoin: { guest: name, epoch, session: z.uuid() },
  /** What the source may have missed: the last FLUSH of each page channel, and the channels that ended. */
  rejoined: {
    epoch,
    flushed: z.array(z.strictObject({ channel, generation, round: count, packets: count })).max(CHANNELS_MAX),
    lost: z.array(z.strictObject({ channel, generation })).max(CHANNELS_MAX),
  },
  /** The target's version of these pages is older than the source's, or it has none: it lets go of it, and of the answer to a fault until they come. */
  discard: { epoch, ...piece },
  listen: { epoch },
  listening: { epoch, ms: z.number().nonnegative() },
  /** In post-copy: the source serves from here on, on a new connection. Answered by `missing` and `serving`. */
  serve: { guest: name, epoch, session: z.uuid() },
  serving: { epoch, channelSecret },
  /** Every page that was missing has been sent. */
  "all-sent": { epoch },
  missing: { epoch, ...piece },
  /** Nothing is missing. digest: of all pages, from their hashes; null with the digest off. */
  placed: { epoch, digest: digest.nullable(), faults: faultStatistics },
  state: {
    epoch,
    round: count,
    registers: z.array(plainData).max(VCPUS_MAX),
    devices: z.array(plainData).max(4),
    clockMs: z.number().nonnegative(),
  },
  /** Everything was sent, and this is its digest. Only where the admission asked for one. */
  image: { epoch, digest },
  prepared: { epoch, digest: digest.nullable(), verifyMs: z.number().nonnegative() },
  /** elapsedMs: since the guest was paused, on the source's clock; the guest's clock goes on from there. */
  commit: { epoch, elapsedMs: z.number().nonnegative() },
  active: { epoch, resumeMs: z.number().nonnegative() },
  /** guestGapMs: the longest gap between two ticks of the guest around the switch. ranAt: when the guest ran, on the monotonic clock of that start of the host. */
  arrived: { epoch, guestGapMs: z.number().nonnegative().nullable(), ranAt: hostTime.nullable() },
  abort: { code, message: text },
  failed: { code, message: text },
  /** session: of the admission; nobody else may go on with it. */
  /** hasImage: the source has the guest's memory still. */
  ask: { guest: name, epoch, session: z.uuid(), hasImage: z.boolean() },
  owner: { epoch, phase: z.enum(OWNER_ANSWERS) },
  "who-owns": { guest: name },
  /** standing: see OWNERSHIPS. at: of the last journal entry, ISO 8601. peer: the other side of the last hand-over. */
  ownership: { guest: name, standing: z.enum(OWNERSHIPS), epoch: count, at: z.string().max(64).nullable(), peer: address.nullable() },
  ping: { id: count },
  pong: { id: count },
} as const;

const object = <T extends keyof typeof messages>(type: T) => z.strictObject({ type: z.literal(type), ...messages[type] });
const schema = z.discriminatedUnion("type", [
  object("admit"),
  object("admitted"),
  object("refused"),
  object("flushed"),
  object("state"),
  object("image"),
  object("prepared"),
  object("commit"),
  object("active"),
  object("arrived"),
  object("abort"),
  object("failed"),
  object("lost"),
  object("carry"),
  object("carried"),
  object("rejoin"),
  object("rejoined"),
  object("discard"),
  object("listen"),
  object("listening"),
  object("serve"),
  object("serving"),
  object("all-sent"),
  object("missing"),
  object("placed"),
  object("ask"),
  object("owner"),
  object("who-owns"),
  object("ownership"),
  object("ping"),
  object("pong"),
]);

export type ControlMessage = z.infer<typeof schema>;
export type ControlType = ControlMessage["type"];
export type Message<T extends ControlType> = Extract<ControlMessage, { type: T }>;
export type GuestManifest = z.infer<typeof manifest>;
export type VcpuManifest = z.infer<typeof vcpu>;
export type DeviceManifest = z.infer<typeof device>;
export type FaultStatistics = z.infer<typeof faultStatistics>;

const CHECKSUM_BYTES = 4;
// Stateless: no shared structures, so any message can be read by itself.
const packr = new Packr({ useRecords: false, variableMapSize: true });

/** @throws {MigrationError} ERR_PARAMETER if our own message would be larger than a peer accepts. */
export function encodeControl(message: ControlMessage): Buffer {
  const packed = packr.pack(message);
  const bytes = Buffer.allocUnsafe(CHECKSUM_BYTES + packed.byteLength);
  bytes.writeUInt32LE(crc32(packed), 0);
  bytes.set(packed, CHECKSUM_BYTES);
  if (bytes.byteLength > CONTROL_MESSAGE_BYTES_MAX)
    throw new MigrationError(
      "ERR_PARAMETER",
      `Message ${message.type} of ${bytes.byteLength} B, at most ${CONTROL_MESSAGE_BYTES_MAX} B: let the workload keep its state in guest memory`,
    );
  return bytes;
}

/** @param bytes the result never aliases them. @throws {MigrationError} ERR_BAD_MESSAGE, ERR_PACKET_CHECKSUM if they were damaged on the way */
export function decodeControl(bytes: Uint8Array): ControlMessage {
  if (bytes.byteLength > CONTROL_MESSAGE_BYTES_MAX) throw new MigrationError("ERR_BAD_MESSAGE", `Message of ${bytes.byteLength} B`);
  const packed = Buffer.from(bytes.subarray(CHECKSUM_BYTES)); // a copy: decoded binaries alias what they were decoded from
  if (bytes.byteLength < CHECKSUM_BYTES || crc32(packed) !== new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true))
    throw new MigrationError("ERR_PACKET_CHECKSUM", `Message of ${bytes.byteLength} B is damaged`);
  let raw: unknown;
  try {
    raw = packr.unpack(packed);
  } catch (cause) {
    throw new MigrationError("ERR_BAD_MESSAGE", "Message is not msgpack", { cause });
  }
  const parsed = schema.safeParse(raw);
  if (!parsed.success) throw new MigrationError("ERR_BAD_MESSAGE", z.prettifyError(parsed.error).slice(0, 500));
  return parsed.data;
}
