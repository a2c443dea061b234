import { TlsIdentity, tlsSettings } from "@precopy/security";
import { CertificateAuthority } from "@precopy/security/authority";
import type { KeyPair } from "@precopy/security";

const HOUR_MS = 3_600_000;
/** A validity that began an hour ago and ends in one. */
export const NOW = { from: new Date(Date.now() - HOUR_MS), to: new Date(Date.now() + HOUR_MS) };
export const LAST_YEAR = { from: new Date(Date.now() - 9000 * HOUR_MS), to: new Date(Date.now() - 300 * HOUR_MS) };

export interface LabIdentity {
  /** Default a new one. */
  readonly authority?: CertificateAuthority;
  /** Of whom peers are trusted; default `authority`. */
  readonly trusted?: CertificateAuthority;
  /** Default 127.0.0.1. */
  readonly names?: readonly string[];
  readonly validity?: { readonly from: Date; readonly to: Date };
  /** Default true. */
  readonly hasClient?: boolean;
  readonly hostname?: string;
  readonly authz?: readonly string[];
}

export const newAuthority = (): Promise<CertificateAuthority> => CertificateAuthority.create("lab", NOW);

/** What `--tls-creds` would be made of. */
export async function labIdentity(given: LabIdentity = {}): Promise<TlsIdentity> {
  const { authority = await newAuthority(), names = ["127.0.0.1"], validity = NOW, hasClient = true } = given;
  const issue = (side: "server" | "client"): Promise<KeyPair> => authority.issue({ names, side, ...validity });
  const credentials = {
    ca: (given.trusted ?? authority).pair.cert,
    crl: undefined,
    server: await issue("server"),
    client: hasClient ? await issue("client") : undefined,
  };
  return new TlsIdentity(tlsSettings(credentials, given.hostname, given.authz));
}
