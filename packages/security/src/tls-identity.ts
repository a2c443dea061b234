import { randomBytes } from "node:crypto";
import { isIP } from "node:net";
import { checkServerIdentity, createSecureContext } from "node:tls";
import type { ConnectionOptions, PeerCertificate, SecureContext, SecureContextOptions, TLSSocket, TlsOptions } from "node:tls";
import { HANDSHAKE_TIMEOUT_MS, MigrationError, TLS_SESSIONS_MAX } from "@precopy/protocol";
import type { TlsCredentials } from "./credentials.js";
import { CIPHER_SUITES } from "./record-keys.js";

/** What a connection is for is said in the handshake, so that the right thread can take it before it: HTTP, or a channel of pages or faults. */
export const ALPN_HTTP = "http/1.1";
export const ALPN_CHANNEL = "precopy-channel/1";

/** All that a thread needs to speak TLS as this agent does; can be cloned. */
export interface TlsSettings extends TlsCredentials {
  /** To be found in a server's certificate in place of the host that was connected to. */
  readonly hostname: string | undefined;
  /** Names of which a client's certificate must have one; undefined: every certificate of the CA will do. */
  readonly authz: readonly string[] | undefined;
  /** Shared by all threads of this agent, so that what was begun with one is resumed with another; 48 random bytes. */
  readonly ticketKeys: Uint8Array;
}

const TICKET_KEY_BYTES = 48;
/** A client whose certificate is out of order is told why, so the handshake itself lets it in; `whyNotClient` must be asked. */
const JUDGED_AFTERWARDS = { rejectUnauthorized: false } as const;
const EXPORTER = "EXPORTER-precopy-token";
const BINDING_BYTES = 32;

/** @throws {MigrationError} ERR_TLS_CREDENTIALS if OpenSSL does not take them */
export function tlsSettings(credentials: TlsCredentials, hostname: string | undefined, authz: readonly string[] | undefined): TlsSettings {
  try {
    for (const pair of [credentials.server, credentials.client]) createSecureContext({ ...contextOf(credentials), ...pair });
  } catch (cause) {
    throw new MigrationError("ERR_TLS_CREDENTIALS", "These certificates cannot be used", { cause });
  }
  return { ...credentials, hostname, authz, ticketKeys: randomBytes(TICKET_KEY_BYTES) };
}

const contextOf = ({ ca, crl }: TlsCredentials): SecureContextOptions => ({
  ca,
  ...(crl !== undefined && { crl }),
  minVersion: "TLSv1.3",
  maxVersion: "TLSv1.3",
  ciphers: CIPHER_SUITES.join(":"),
});

/** Who this agent is in TLS 1.3, and whom it lets in. */
export class TlsIdentity {
  readonly settings: TlsSettings;
  /** The latest session with each peer that this side connected to, by host and port. */
  readonly #sessions = new Map<string, Buffer>();
  #clientContext: SecureContext | undefined;

  constructor(settings: TlsSettings) {
    this.settings = settings;
  }

  /** For tls.createServer. @throws {MigrationError} ERR_TLS_CREDENTIALS without a server's certificate */
  serverOptions(protocol: string): TlsOptions {
    const { server, ticketKeys } = this.settings;
    if (server === undefined)
      throw new MigrationError("ERR_TLS_CREDENTIALS", "There is no server-cert.pem, and this agent is to be connected to");
    return {
      ...contextOf(this.settings),
      ...server,
      ...JUDGED_AFTERWARDS,
      requestCert: true,
      ALPNProtocols: [protocol],
      ticketKeys: Buffer.from(ticketKeys),
      sessionIdContext: "precopy",
      handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
    };
  }

  /** For tls.connect, over a socket that is connected to `host`. @param session of `sessionWith`, to be resumed */
  connectOptions(host: string, protocol: string, session?: Uint8Array): ConnectionOptions {
    const name = this.settings.hostname ?? host;
    this.#clientContext ??= createSecureContext({ ...contextOf(this.settings), ...this.settings.client });
    return {
      ...JUDGED_AFTERWARDS,
      secureContext: this.#clientContext,
      checkServerIdentity: () => undefined, // as `whyNotServer` does
      ALPNProtocols: [protocol],
      // A name only: an address may not stand there (RFC 6066, 3).
      ...(isIP(name) === 0 && { servername: name }),
      ...(session !== undefined && { session: Buffer.from(session) }),
    };
  }

  /** Of an agent that was found to be the one. */
  sessionWith(peer: string): Buffer | undefined {
    return this.#sessions.get(peer);
  }

  keepSession(peer: string, session: Buffer): void {
    this.#sessions.delete(peer); // the oldest is the first
    this.#sessions.set(peer, session);
    for (const oldest of this.#sessions.keys()) {
      if (this.#sessions.size <= TLS_SESSIONS_MAX) break;
      this.#sessions.delete(oldest);
    }
  }

  /**
   * Why the agent that we connected to is not the one we want; undefined if it is. Only after the handshake. One that can resume a session is the one
   * that it was kept of, which was looked at then, minutes ago at most; OpenSSL does not keep its certificate.
   */
  whyNotServer(socket: TLSSocket, host: string): MigrationError | undefined {
    if (socket.isSessionReused()) return undefined;
    const name = this.settings.hostname ?? host;
    const certificate = socket.getPeerCertificate();
    const failure = whyNotTrusted(socket, certificate, `the agent at ${host}`);
    if (failure !== undefined) return failure;
    const cause = checkServerIdentity(name, certificate);
    if (cause === undefined) return undefined;
    const names = namesOf(certificate).join(", ");
    return new MigrationError("ERR_TLS_HOSTNAME", `The certificate of the agent at ${host} is for ${names}, not for ${name}`);
  }

  /** Why a peer that connected to us may not; undefined if it may. Only after the handshake. */
  whyNotClient(socket: TLSSocket, peer: string): MigrationError | undefined {
    const certificate = socket.getPeerCertificate();
    const failure = whyNotTrusted(socket, certificate, peer);
    if (failure !== undefined) return failure;
    const { authz } = this.settings;
    const names = namesOf(certificate);
    if (authz === undefined || names.some((name) => authz.includes(name))) return undefined;
    return new MigrationError("ERR_TLS_AUTHZ", `${peer} is ${names.join(", ")}, none of which is allowed here`);
  }
}

/** Of a client, one that resumed a session, too. */
const hasCertificate = (certificate: PeerCertificate): boolean => Object.keys(certificate).length > 0;

function whyNotTrusted(socket: TLSSocket, certificate: PeerCertificate, who: string): MigrationError | undefined {
  // Looked at first: of a session resumed without one, OpenSSL says that all is well.
  if (!hasCertificate(certificate))
    return new MigrationError("ERR_TLS_NO_CERTIFICATE", `${who.replace(/^the/, "The")} showed no certificate`);
  const reason = authorizationError(socket);
  if (reason === undefined) return undefined;
  if (reason === "CERT_HAS_EXPIRED" || reason === "CERT_NOT_YET_VALID")
    return new MigrationError(
      "ERR_TLS_EXPIRED",
      `The certificate of ${who} is valid from ${certificate.valid_from} to ${certificate.valid_to}, and here it is ${new Date().toUTCString()}`,
    );
  const issuer = [certificate.issuer?.CN ?? "somebody unknown"].flat().join(" ");
  return new MigrationError(
    "ERR_TLS_UNTRUSTED",
    `The certificate of ${who} was issued by ${issuer}, which is not trusted here (${reason})`,
  );
}

/** A code of OpenSSL's, though its declaration says that it is an Error. */
function authorizationError(socket: TLSSocket): string | undefined {
  if (socket.authorized) return undefined;
  const reason: unknown = socket.authorizationError;
  return reason instanceof Error ? reason.message : String(reason);
}

/** Common name, DNS names and addresses of a certificate, each once. */
export function namesOf({ subject, subjectaltname }: PeerCertificate): string[] {
  const common = [subject?.CN ?? []].flat(); // several of them are an array
  const alternatives = (subjectaltname ?? "").split(", ").flatMap((one) => /^(?:DNS|IP Address|URI):(.+)$/.exec(one)?.[1] ?? []);
  return [...new Set([...common, ...alternatives])];
}

/** What both ends of this very TLS connection know, and nobody else (RFC 5705). */
export const bindingOf = (socket: TLSSocket): Buffer => socket.exportKeyingMaterial(BINDING_BYTES, EXPORTER, Buffer.alloc(0));
