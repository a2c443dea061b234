import { createHmac } from "node:crypto";

/** The cipher suites of TLS 1.3 that agents offer each other. The processors of today have instructions for the first two; 128 bits are enough, and cheaper. */
const SUITES = {
  TLS_AES_128_GCM_SHA256: { aead: "aes-128-gcm", keyBytes: 16, hash: "sha256" },
  TLS_AES_256_GCM_SHA384: { aead: "aes-256-gcm", keyBytes: 32, hash: "sha384" },
  TLS_CHACHA20_POLY1305_SHA256: { aead: "chacha20-poly1305", keyBytes: 32, hash: "sha256" },
} as const;
export type CipherSuite = keyof typeof SUITES;
const NONCE_BYTES = 12;
/** As OpenSSL names them, the one that is liked best first. */
export const CIPHER_SUITES = Object.keys(SUITES).filter(isCipherSuite);
/** Of its hash, that is of its secrets. */
export const secretBytesOf = (suite: CipherSuite): number => (SUITES[suite].hash === "sha384" ? 48 : 32);

export function isCipherSuite(name: string): name is CipherSuite {
  return Object.hasOwn(SUITES, name);
}

/** From which one direction of a connection has its keys: an application traffic secret of its handshake, or a later one. */
export interface TrafficSecret {
  readonly suite: CipherSuite;
  readonly secret: Buffer;
}

export interface RecordKeys {
  readonly aead: (typeof SUITES)[CipherSuite]["aead"];
  readonly key: Buffer;
  /** 12 bytes, from which each record's nonce is made. */
  readonly nonce: Buffer;
}

/** HKDF-Expand-Label with nothing to hash (RFC 8446, 7.1), of a block of the hash at most: one round of HKDF-Expand (RFC 5869, 2.3). */
function expandLabel({ suite, secret }: TrafficSecret, label: string, bytes: number): Buffer {
  const name = `tls13 ${label}`;
  const info = Buffer.concat([Buffer.from([bytes >> 8, bytes & 0xff, name.length]), Buffer.from(name, "latin1"), Buffer.from([0, 1])]);
  return createHmac(SUITES[suite].hash, secret).update(info).digest().subarray(0, bytes);
}

/** RFC 8446, 7.3. */
export function recordKeys(secret: TrafficSecret): RecordKeys {
  const { aead, keyBytes } = SUITES[secret.suite];
  return { aead, key: expandLabel(secret, "key", keyBytes), nonce: expandLabel(secret, "iv", NONCE_BYTES) };
}

/** Behind a KeyUpdate (RFC 8446, 7.2). */
export const nextSecret = (secret: TrafficSecret): TrafficSecret => ({
  suite: secret.suite,
  secret: expandLabel(secret, "traffic upd", secret.secret.byteLength),
});

const LABEL = Buffer.from("CLIENT_TRAFFIC_SECRET_0 ");
const [SPACE, LINE_FEED, DIGIT_0, DIGIT_9, LETTER_A] = [0x20, 0x0a, 0x30, 0x39, 0x61];

/**
 * What a client's pages will be sealed with, if this line of a key log (Node's `keylog` event) says it: label, 32 random bytes of the handshake,
 * secret. The line is wiped, whatever it says; no string is made of it, for nobody could wipe that.
 */
export function takeClientSecret(line: Buffer): Buffer | undefined {
  const digits = line.subarray(line.lastIndexOf(SPACE) + 1, line.at(-1) === LINE_FEED ? -1 : undefined);
  const isOurs = line.subarray(0, LABEL.byteLength).equals(LABEL) && digits.byteLength % 2 === 0;
  const secret = isOurs ? Buffer.allocUnsafeSlow(digits.byteLength / 2) : undefined;
  const digit = (at: number): number => digits[at]! - (digits[at]! <= DIGIT_9 ? DIGIT_0 : LETTER_A - 10);
  for (let at = 0; at < (secret?.byteLength ?? 0); at++) secret![at] = digit(2 * at) * 16 + digit(2 * at + 1);
  line.fill(0);
  return secret;
}
