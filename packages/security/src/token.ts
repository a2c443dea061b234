import { createHmac, randomBytes, scryptSync } from "node:crypto";
import { TOKEN_BYTES_MAX, TOKEN_BYTES_MIN, MigrationError } from "@precopy/protocol";
import { isSameText } from "./channel-key.js";
import { readSecretFile } from "./credentials.js";

const KEY_BYTES = 32;
const NONCE_BYTES = 16;
/** So that whoever has heard a proof needs this much memory and time for every guess at a weak token. */
const SCRYPT = { N: 2 ** 15, r: 8, p: 1, maxmem: 2 ** 26 } as const;

/** Two numbers used once, and what they are to allow. */
export interface TokenUse {
  /** The server's. */
  readonly nonce: string;
  readonly clientNonce: string;
  /** Of the request, such as `/v1/control`. */
  readonly path: string;
  /** Of the TLS connection (RFC 5705), so that a proof is of no use on another one; empty without TLS. */
  readonly binding: Uint8Array;
}

/**
 * A secret that both agents were given in a file. It never crosses the wire: each side proves that it knows it by an HMAC-SHA-256 over what both have
 * chosen at random, the client first, so that nobody gets anything to guess at from an agent for the asking.
 */
export class Token {
  readonly #key: Buffer;

  /** @param text what the file holds, without white space around it. @throws {MigrationError} ERR_TOKEN_FILE if it is too short to be a secret */
  constructor(text: string) {
    const bytes = Buffer.byteLength(text);
    if (bytes < TOKEN_BYTES_MIN || bytes > TOKEN_BYTES_MAX)
      throw new MigrationError("ERR_TOKEN_FILE", `A token of ${bytes} bytes, must be ${TOKEN_BYTES_MIN} to ${TOKEN_BYTES_MAX}`);
    this.#key = scryptSync(text, "precopy token", KEY_BYTES, SCRYPT);
  }

  /** @throws {MigrationError} ERR_TOKEN_FILE */
  static load(file: string): Token {
    return new Token(readSecretFile(file, "ERR_TOKEN_FILE").trim());
  }

  static nonce(): string {
    return randomBytes(NONCE_BYTES).toString("hex");
  }

  /** 64 hexadecimal digits. */
  proofOf(side: "client" | "server", { nonce, clientNonce, path, binding }: TokenUse): string {
    return createHmac("sha256", this.#key)
      .update(`precopy token\n${side}\n${nonce}\n${clientNonce}\n${path}\n`)
      .update(binding)
      .digest("hex");
  }

  /** In the same time whatever was given. */
  isProof(side: "client" | "server", use: TokenUse, proof: string): boolean {
    return isSameText(this.proofOf(side, use), proof);
  }

  /** The secret of a ChannelKey that only somebody who knows the token can have, though `told` was heard on the way. */
  channelSecret(told: Uint8Array): Buffer {
    return createHmac("sha256", this.#key).update("precopy channels\n").update(told).digest();
  }
}
