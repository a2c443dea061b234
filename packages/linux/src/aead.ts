import { MigrationError } from "@precopy/protocol";
import { addressOf, openLibrary } from "./library.js";

/** Of OpenSSL's, those that TLS 1.3 uses: where each is to be had, and the bytes of its keys. */
const CIPHERS = {
  "aes-128-gcm": { symbol: "EVP_aes_128_gcm", keyBytes: 16 },
  "aes-256-gcm": { symbol: "EVP_aes_256_gcm", keyBytes: 32 },
  "chacha20-poly1305": { symbol: "EVP_chacha20_poly1305", keyBytes: 32 },
} as const;
export type AeadName = keyof typeof CIPHERS;
export const AEAD_NONCE_BYTES = 12;
export const AEAD_TAG_BYTES = 16;

const EVP_CTRL_AEAD_GET_TAG = 0x10;
const EVP_CTRL_AEAD_SET_TAG = 0x11;

type Functions = NonNullable<ReturnType<typeof bindAll>>;
function bindAll() {
  try {
    const program = openLibrary(null);
    if (program === undefined) return undefined;
    return {
      make: program("uintptr_t EVP_CIPHER_CTX_new()"),
      free: program("void EVP_CIPHER_CTX_free(uintptr_t context)"),
      init: program(
        "int EVP_CipherInit_ex(uintptr_t context, uintptr_t cipher, uintptr_t engine, uintptr_t key, uintptr_t nonce, int isSealing)",
      ),
      update: program("int EVP_CipherUpdate(uintptr_t context, uintptr_t into, uintptr_t done, uintptr_t from, int bytes)"),
      final: program("int EVP_CipherFinal_ex(uintptr_t context, uintptr_t into, uintptr_t done)"),
      control: program("int EVP_CIPHER_CTX_ctrl(uintptr_t context, int command, int bytes, uintptr_t value)"),
      ciphers: Object.fromEntries(Object.entries(CIPHERS).map(([name, { symbol }]) => [name, program(`uintptr_t ${symbol}()`)])),
    };
  } catch {
    return undefined; // koffi throws for a symbol that is not there: this Node keeps its OpenSSL to itself
  }
}
let bound: Functions | null | undefined; // null: it cannot be had
function functions(): Functions | undefined {
  if (bound === undefined) bound = bindAll() ?? null;
  return bound ?? undefined;
}

/** True where Node's own OpenSSL can be called. */
export const hasAead = (): boolean => functions() !== undefined;

/** OpenSSL returns 1 for what it has done. */
function must(done: number, what: string): void {
  if (done !== 1) throw new MigrationError("ERR_INTERNAL", `OpenSSL: ${what} failed`);
}

/**
 * Authenticated encryption, one message after another under one key, from and into memory anywhere: Node's own calls make an object and a buffer for
 * each message, which takes twice as long as to encrypt 16 KiB. Addresses are user addresses, numbers below 2^47.
 */
export class Aead {
  /** The next message's; AEAD_NONCE_BYTES. Never the same twice under one key. */
  readonly nonce: Buffer;
  readonly #nonceAt: number;
  readonly #done = Buffer.allocUnsafeSlow(8); // where OpenSSL says how many bytes it wrote: always as many as it was given
  readonly #doneAt: number;
  readonly #functions: Functions;
  #context: number;

  /** @throws {MigrationError} ERR_CAPABILITY where there is no calling OpenSSL */
  constructor(name: AeadName, key: Uint8Array, isSealing: boolean) {
    const there = functions();
    if (there === undefined) throw new MigrationError("ERR_CAPABILITY", "This Node keeps its OpenSSL to itself");
    if (key.byteLength !== CIPHERS[name].keyBytes) throw new MigrationError("ERR_INTERNAL", `${key.byteLength} B are no key of ${name}`); // OpenSSL would read on behind it
    this.#functions = there;
    this.nonce = Buffer.allocUnsafeSlow(AEAD_NONCE_BYTES);
    this.#nonceAt = Number(addressOf(this.nonce));
    this.#doneAt = Number(addressOf(this.#done));
    const keyBytes = Buffer.allocUnsafeSlow(key.byteLength);
    keyBytes.set(key);
    this.#context = there.make();
    const isSet =
      this.#context !== 0 && there.init(this.#context, there.ciphers[name]!(), 0, Number(addressOf(keyBytes)), 0, isSealing ? 1 : 0) === 1;
    keyBytes.fill(0);
    if (isSet) return;
    this.close();
    throw new MigrationError("ERR_CAPABILITY", `This Node's OpenSSL has no ${name}`);
  }

  /** Begins a message, with `nonce` as it stands. @param associated what is not secret and yet vouched for */
  begin(associated: number, bytes: number): void {
    if (this.#context === 0) throw new MigrationError("ERR_INTERNAL", "Its key is forgotten");
    must(this.#functions.init(this.#context, 0, 0, 0, this.#nonceAt, -1), "EVP_CipherInit_ex");
    must(this.#functions.update(this.#context, 0, this.#doneAt, associated, bytes), "EVP_CipherUpdate");
  }

  /** The next bytes of it, which may lie where they are to go. */
  update(into: number, from: number, bytes: number): void {
    must(this.#functions.update(this.#context, into, this.#doneAt, from, bytes), "EVP_CipherUpdate");
  }

  /** Writes the tag, AEAD_TAG_BYTES, which ends the message. */
  seal(tagInto: number): void {
    must(this.#functions.final(this.#context, tagInto, this.#doneAt), "EVP_CipherFinal_ex");
    must(this.#functions.control(this.#context, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG_BYTES, tagInto), "EVP_CIPHER_CTX_ctrl");
  }

  /** Ends a message that is opened. False: somebody else wrote it, and nothing of it may be believed. */
  isGenuine(tag: number): boolean {
    must(this.#functions.control(this.#context, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG_BYTES, tag), "EVP_CIPHER_CTX_ctrl");
    return this.#functions.final(this.#context, this.#doneAt, this.#doneAt) === 1;
  }

  /** Forgets the key. */
  close(): void {
    if (this.#context !== 0) this.#functions.free(this.#context);
    this.#context = 0;
  }
}
