import { TlsIdentity, Token, loadTlsCredentials, tlsSettings } from "@precopy/security";
import type { Security } from "@precopy/transport";
import type { SecurityOptions } from "./security-options.js";

/** Reads certificates and token. @throws {MigrationError} ERR_TLS_CREDENTIALS, ERR_TOKEN_FILE */
export function loadSecurity({ tlsCreds, tlsHostname, tlsAuthz, tokenFile }: SecurityOptions): Security {
  return {
    tls: tlsCreds === undefined ? undefined : new TlsIdentity(tlsSettings(loadTlsCredentials(tlsCreds), tlsHostname, tlsAuthz)),
    token: tokenFile === undefined ? undefined : Token.load(tokenFile),
  };
}
