import { Packr } from "msgpackr";
import { z } from "zod";
import { MigrationError } from "./errors.js";
import { isPlainData } from "./plain-data.js";
import { CHANNELS_MAX, CONTROL_MESSAGE_BYTES_MAX, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, PAGE_BYTES, VCPUS_MAX } from "./limits.js";

/**
 * Messages of the control channel, one msgpack map per binary WebSocket frame, validated on arrival.
 *
 *   source                                target
 *     | admit ------------------------------> |  nothing is reserved before this was checked
 *     | <------------------ admitted, refused |
 *     | == page channels: rounds ===========> |
 *     | <---------------------------- flushed |  one for each channel and round
 *     | state (guest paused, digest) -------> |  all pages here? digest equal?
 *     | <--------------------------- prepared |
 *     | commit -----------------------------> |  from here only the target's answer decides
 *     | <----------------------------- active |  the guest runs there
 *     | <---------------------------- arrived |  what the guest noticed
 * Before commit either side may end it: `abort` from the source, `failed` from the target. In doubt, the source connects again and
 * sends `ask`, and the target answers `owner`. `ping` and `pong` go both ways at any time.
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
const device = z.strictObject({ kind: z.literal("nic"), mac: z.string().regex(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/) });

/** What a guest is, apart from its contents. */
const manifest = z.strictObject({
  id: name,
  memoryBytes: z.number().int().min(MEMORY_BYTES_MIN).max(MEMORY_BYTES_MAX).multipleOf(PAGE_BYTES),
  vcpus: z.array(vcpu).min(1).max(VCPUS_MAX),
  devices: z.array(device).max(1),
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
  },
  admitted: { session: z.uuid(), release: z.string().max(64), pump: z.enum(["direct", "portable"]), probeMs: z.number().nonnegative() },
  refused: { code, message: text },
  flushed: { channel: count, round: count, packets: count },
  state: {
    epoch,
    round: count,
    digest: digest.nullable(),
    /** Packets each channel has sent, FLUSH included: the target holds all of them or says so. */
    packets: z.array(count).max(CHANNELS_MAX),
    registers: z.array(plainData).max(VCPUS_MAX),
    devices: z.array(plainData).max(4),
    clockMs: z.number().nonnegative(),
  },
  prepared: { epoch, digest: digest.nullable(), verifyMs: z.number().nonnegative() },
  /** elapsedMs: since the guest was paused, on the source's clock; the guest's clock goes on from there. */
  commit: { epoch, elapsedMs: z.number().nonnegative() },
  active: { epoch, resumeMs: z.number().nonnegative() },
  /** guestGapMs: the longest gap between two ticks of the guest around the switch; absent if it did not tick in time. */
  arrived: { epoch, guestGapMs: z.number().nonnegative().nullable() },
  abort: { code, message: text },
  failed: { code, message: text },
  /** session: of the admission; nobody else may go on with it. */
  ask: { guest: name, epoch, session: z.uuid() },
  owner: { epoch, phase: z.enum(["receiving", "prepared", "active", "discarded", "unknown"]) },
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
  object("prepared"),
  object("commit"),
  object("active"),
  object("arrived"),
  object("abort"),
  object("failed"),
  object("ask"),
  object("owner"),
  object("ping"),
  object("pong"),
]);

export type ControlMessage = z.infer<typeof schema>;
export type ControlType = ControlMessage["type"];
export type Message<T extends ControlType> = Extract<ControlMessage, { type: T }>;
export type GuestManifest = z.infer<typeof manifest>;
export type VcpuManifest = z.infer<typeof vcpu>;
export type DeviceManifest = z.infer<typeof device>;

// Stateless: no shared structures, so any message can be read by itself.
const packr = new Packr({ useRecords: false, variableMapSize: true });

/** @throws {MigrationError} ERR_PARAMETER if our own message would be larger than a peer accepts. */
export function encodeControl(message: ControlMessage): Buffer {
  const bytes = packr.pack(message);
  if (bytes.byteLength > CONTROL_MESSAGE_BYTES_MAX)
    throw new MigrationError(
      "ERR_PARAMETER",
      `Message ${message.type} of ${bytes.byteLength} B, at most ${CONTROL_MESSAGE_BYTES_MAX} B: let the workload keep its state in guest memory`,
    );
  return bytes;
}

/** @param bytes copied where needed: the result never aliases them. @throws {MigrationError} ERR_BAD_MESSAGE */
export function decodeControl(bytes: Uint8Array): ControlMessage {
  if (bytes.byteLength > CONTROL_MESSAGE_BYTES_MAX) throw new MigrationError("ERR_BAD_MESSAGE", `Message of ${bytes.byteLength} B`);
  let raw: unknown;
  try {
    raw = packr.unpack(Buffer.from(bytes)); // a copy: decoded binaries alias what they were decoded from
  } catch (cause) {
    throw new MigrationError("ERR_BAD_MESSAGE", "Message is not msgpack", { cause });
  }
  const parsed = schema.safeParse(raw);
  if (!parsed.success) throw new MigrationError("ERR_BAD_MESSAGE", z.prettifyError(parsed.error).slice(0, 500));
  return parsed.data;
}
