import { X509Certificate, createPrivateKey } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { MigrationError } from "@precopy/protocol";

/** A certificate, with those between it and the CA behind it, and its private key. PEM. */
export interface KeyPair {
  readonly cert: string;
  readonly key: string;
}

/** What a folder of certificates holds, under the names that QEMU and libvirt give them. PEM. */
export interface TlsCredentials {
  readonly ca: string;
  /** Certificates that the CA has revoked; undefined if it has told of none. */
  readonly crl: string | undefined;
  /** To be connected to; undefined: nobody can. */
  readonly server: KeyPair | undefined;
  /** To connect with; undefined: this side only listens. */
  readonly client: KeyPair | undefined;
}

export const CREDENTIAL_FILES = {
  ca: "ca-cert.pem",
  crl: "ca-crl.pem",
  serverCert: "server-cert.pem",
  serverKey: "server-key.pem",
  clientCert: "client-cert.pem",
  clientKey: "client-key.pem",
} as const;

const OTHERS = 0o007;

/** A file that only its owner, or a group, may see. @throws {MigrationError} `code` if it cannot be read, or anybody can read it */
export function readSecretFile(file: string, code: "ERR_TOKEN_FILE" | "ERR_TLS_CREDENTIALS"): string {
  try {
    const { mode } = statSync(file);
    if (process.platform !== "win32" && (mode & OTHERS) !== 0)
      throw new MigrationError(
        code,
        `${file} can be read by every user of this host (mode ${(mode & 0o777).toString(8)}): chmod o= ${file}`,
      );
    return readFileSync(file, "utf8");
  } catch (cause) {
    if (cause instanceof MigrationError) throw cause;
    throw new MigrationError(code, `Cannot read ${file}`, { cause });
  }
}

function readOptional(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    if (cause instanceof Error && "code" in cause && cause.code === "ENOENT") return undefined;
    throw new MigrationError("ERR_TLS_CREDENTIALS", `Cannot read ${file}`, { cause });
  }
}

/** @throws {MigrationError} ERR_TLS_CREDENTIALS if it holds no certificate */
function checkCertificate(file: string, pem: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (cause) {
    throw new MigrationError("ERR_TLS_CREDENTIALS", `${file} holds no certificate in PEM`, { cause });
  }
}

function readPair(folder: string, certName: string, keyName: string): KeyPair | undefined {
  const certFile = join(folder, certName);
  const keyFile = join(folder, keyName);
  const cert = readOptional(certFile);
  if (cert === undefined) return undefined;
  const certificate = checkCertificate(certFile, cert);
  const key = readSecretFile(keyFile, "ERR_TLS_CREDENTIALS");
  let isItsKey: boolean;
  try {
    isItsKey = certificate.checkPrivateKey(createPrivateKey(key));
  } catch (cause) {
    throw new MigrationError("ERR_TLS_CREDENTIALS", `${keyFile} holds no private key that can be read without a password`, { cause });
  }
  if (!isItsKey) throw new MigrationError("ERR_TLS_CREDENTIALS", `${keyFile} is not the key of ${certFile}`);
  return { cert, key };
}

/** Reads a folder of certificates. @throws {MigrationError} ERR_TLS_CREDENTIALS if something is missing, unreadable, or does not fit */
export function loadTlsCredentials(folder: string): TlsCredentials {
  const caFile = join(folder, CREDENTIAL_FILES.ca);
  const ca = readOptional(caFile);
  if (ca === undefined) throw new MigrationError("ERR_TLS_CREDENTIALS", `There is no ${caFile}`);
  checkCertificate(caFile, ca);
  const server = readPair(folder, CREDENTIAL_FILES.serverCert, CREDENTIAL_FILES.serverKey);
  const client = readPair(folder, CREDENTIAL_FILES.clientCert, CREDENTIAL_FILES.clientKey);
  if (server === undefined && client === undefined)
    throw new MigrationError(
      "ERR_TLS_CREDENTIALS",
      `${folder} has neither ${CREDENTIAL_FILES.serverCert} nor ${CREDENTIAL_FILES.clientCert}`,
    );
  return { ca, crl: readOptional(join(folder, CREDENTIAL_FILES.crl)), server, client };
}

/** Whether a certificate is out of its time, in words; undefined if it is not. */
export function whyOutOfTime(pem: string, now = new Date()): string | undefined {
  const { validFrom, validTo } = new X509Certificate(pem);
  if (now > new Date(validTo)) return `it expired on ${validTo}`;
  return now < new Date(validFrom) ? `it is not valid before ${validFrom}` : undefined;
}
