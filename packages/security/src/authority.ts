import { KeyObject, createPrivateKey, randomBytes, webcrypto } from "node:crypto";
import { isIP } from "node:net";
import { MigrationError } from "@precopy/protocol";
import "reflect-metadata"; // what the next one is made with asks for it
import * as x509 from "@peculiar/x509";
import type { KeyPair } from "./credentials.js";

/** From when to when. */
export interface Validity {
  readonly from: Date;
  readonly to: Date;
}
export interface Order extends Validity {
  /** Host names and addresses; the first one is the common name, too. At least one. */
  readonly names: readonly string[];
  /** To be connected to, or to connect with. */
  readonly side: "server" | "client";
}

/** The same, by the browser's name for it. */
const PROVIDER = webcrypto as unknown as Parameters<typeof x509.cryptoProvider.set>[0];
const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const SERIAL_BYTES = 16;
/** Letters, digits and what stands between labels: nothing that means anything in a distinguished name. */
const NAME = /^[A-Za-z0-9*]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$/;

const USAGE = { server: x509.ExtendedKeyUsage.serverAuth, client: x509.ExtendedKeyUsage.clientAuth } as const;

/** A positive number: the highest bit is not set. */
function serialNumber(): string {
  const bytes = randomBytes(SERIAL_BYTES);
  bytes[0]! &= 0x7f;
  return bytes.toString("hex");
}

const newKeys = (): Promise<webcrypto.CryptoKeyPair> => webcrypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
const pemOf = (key: webcrypto.CryptoKey): string => String(KeyObject.from(key).export({ type: "pkcs8", format: "pem" }));

/** @throws {MigrationError} ERR_PARAMETER */
export function checkCertificateName(name: string): string {
  if (isIP(name) === 0 && !NAME.test(name)) throw new MigrationError("ERR_PARAMETER", `"${name}" is neither a host name nor an address`);
  return name;
}

/** A certificate authority of one's own, for a lab: ECDSA on P-256, SHA-256. */
export class CertificateAuthority {
  readonly #certificate: x509.X509Certificate;
  readonly #key: webcrypto.CryptoKey;

  private constructor(certificate: x509.X509Certificate, key: webcrypto.CryptoKey) {
    this.#certificate = certificate;
    this.#key = key;
  }

  /** @throws {MigrationError} ERR_PARAMETER */
  static async create(name: string, { from, to }: Validity): Promise<CertificateAuthority> {
    x509.cryptoProvider.set(PROVIDER);
    const keys = await newKeys();
    const certificate = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: serialNumber(),
      name: [{ CN: [name] }],
      notBefore: from,
      notAfter: to,
      signingAlgorithm: ALGORITHM,
      keys,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      ],
    });
    return new CertificateAuthority(certificate, keys.privateKey);
  }

  /** One that `create` made. @throws {MigrationError} ERR_PARAMETER if it is something else */
  static async load({ cert, key }: KeyPair): Promise<CertificateAuthority> {
    x509.cryptoProvider.set(PROVIDER);
    try {
      const der = createPrivateKey(key).export({ type: "pkcs8", format: "der" });
      return new CertificateAuthority(
        new x509.X509Certificate(cert),
        await webcrypto.subtle.importKey("pkcs8", der, ALGORITHM, true, ["sign"]),
      );
    } catch (cause) {
      throw new MigrationError("ERR_PARAMETER", "This is not a certificate authority that `precopy certs init` has made", { cause });
    }
  }

  /** Certificate and key of the authority itself. PEM. */
  get pair(): KeyPair {
    return { cert: `${this.#certificate.toString("pem")}\n`, key: pemOf(this.#key) };
  }

  /** A new key, and a certificate for it. @throws {MigrationError} ERR_PARAMETER */
  async issue({ names, side, from, to }: Order): Promise<KeyPair> {
    const [first = ""] = names.map(checkCertificateName);
    const keys = await newKeys();
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      subject: [{ CN: [first] }],
      issuer: this.#certificate.subject,
      notBefore: from,
      notAfter: to,
      signingAlgorithm: ALGORITHM,
      publicKey: keys.publicKey,
      signingKey: this.#key,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([USAGE[side]]),
        new x509.SubjectAlternativeNameExtension(names.map((value) => ({ type: isIP(value) === 0 ? "dns" : "ip", value }))),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
        await x509.AuthorityKeyIdentifierExtension.create(this.#certificate.publicKey),
      ],
    });
    return { cert: `${certificate.toString("pem")}\n`, key: pemOf(keys.privateKey) };
  }
}
