import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { CHANNEL_SECRET_BYTES, MigrationError } from "@precopy/protocol";

/** What a channel is for, and which life of it this is. */
export interface ChannelUse {
  readonly kind: "pages" | "faults";
  /** Of the admission. */
  readonly session: string;
  /** 0 for faults. */
  readonly channel: number;
  readonly generation: number;
}

/**
 * Binds channels to the control channel over which their guest was admitted: the target makes the secret, and each connection shows that it knows it
 * by an HMAC-SHA-256 over what it asks for.
 */
export class ChannelKey {
  readonly #secret: Buffer;

  constructor(secret: Uint8Array) {
    this.#secret = Buffer.from(secret);
  }

  /** What the target makes for one admission, and tells its source; CHANNEL_SECRET_BYTES. */
  static fresh(): Buffer {
    return randomBytes(CHANNEL_SECRET_BYTES);
  }

  /** 64 hexadecimal digits. */
  keyFor({ kind, session, channel, generation }: ChannelUse): string {
    return createHmac("sha256", this.#secret).update(`precopy channel\n${kind}\n${session}\n${channel}\n${generation}`).digest("hex");
  }
}

/** The target's side of one admission: lets each key in once. */
export class KeyRing {
  readonly #key: ChannelKey;
  /** The latest generation that was let in, by channel. */
  readonly #latest = new Map<string, number>();

  constructor(secret: Uint8Array) {
    this.#key = new ChannelKey(secret);
  }

  /** @param key as it was shown. @throws {MigrationError} ERR_CHANNEL_KEY, ERR_KEY_REPLAYED */
  use(use: ChannelUse, key: string): void {
    const { kind, channel, generation } = use;
    const which = `the ${kind === "pages" ? `page channel ${channel}` : "fault channel"}, generation ${generation}`;
    if (!isSameText(this.#key.keyFor(use), key))
      throw new MigrationError("ERR_CHANNEL_KEY", `A connection asked for ${which}, ${key === "" ? "without a key" : "with a wrong key"}`);
    const name = `${kind} ${channel}`;
    if (generation <= (this.#latest.get(name) ?? 0))
      throw new MigrationError("ERR_KEY_REPLAYED", `A connection asked for ${which} with a key that was used before`);
    this.#latest.set(name, generation);
  }
}

/** Compares texts of one length in a time that does not depend on where they differ. */
export function isSameText(expected: string, given: string): boolean {
  const [one, other] = [Buffer.from(expected), Buffer.from(given)];
  return one.byteLength === other.byteLength && timingSafeEqual(one, other);
}
