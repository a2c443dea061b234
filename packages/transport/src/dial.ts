import { once } from "node:events";
import type { IncomingHttpHeaders } from "node:http";
import { createConnection } from "node:net";
import type { Socket } from "node:net";
import { TLSSocket, connect as connectTls } from "node:tls";
import { CONNECT_TIMEOUT_MS, MigrationError, formatAddress } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import { ALPN_HTTP, Token, bindingOf } from "@precopy/security";
import type { TlsIdentity } from "@precopy/security";
import { formatHead, readHead } from "./http-head.js";
import { refusalHeaders, refusalIn } from "./refusal.js";
import { AGENT_PATH, PROOF_HEADER, TOKEN_SCHEME } from "./token-exchange.js";

/** What this agent shows of itself to its peers, and wants to see of them; with nothing of it, anybody is let in. */
export interface Security {
  readonly tls?: TlsIdentity | undefined;
  readonly token?: Token | undefined;
}
export const OPEN: Security = {};

/** Waits for something on a socket, and destroys it if that takes too long, or is wanted no more; what becomes of it later is nothing to `signal`. */
export async function whileWanted<T>(socket: Socket, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
  const timer = setTimeout(() => socket.destroy(new Error(`no answer for ${CONNECT_TIMEOUT_MS / 1000} s`)), CONNECT_TIMEOUT_MS);
  const abort = (): void => void socket.destroy(new Error("aborted"));
  signal?.addEventListener("abort", abort, { once: true });
  if (signal?.aborted === true) abort(); // before we listened
  try {
    return await work();
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}

/** A TCP connection. @throws {MigrationError} ERR_UNREACHABLE */
export async function connectTcp(to: Address, signal?: AbortSignal): Promise<Socket> {
  const socket = createConnection({ host: to.host, port: to.port, noDelay: true });
  socket.on("error", () => {}); // it may break between two who wait for it, which is nobody's to end a process for: it closes then
  try {
    await whileWanted(socket, signal, () => once(socket, "connect"));
    return socket;
  } catch (cause) {
    socket.destroy();
    throw new MigrationError("ERR_UNREACHABLE", `Cannot reach ${formatAddress(to)}`, { cause });
  }
}

/** A connection on which HTTP may be spoken: with TLS, to an agent whose certificate is in order. @throws {MigrationError} ERR_UNREACHABLE, ERR_TLS_... */
export async function connectTo(to: Address, { tls }: Security, signal?: AbortSignal): Promise<Socket> {
  const socket = await connectTcp(to, signal);
  return tls === undefined ? socket : shakeHands(socket, to, tls, ALPN_HTTP, signal);
}

/** @throws {MigrationError} ERR_TLS_... */
export async function shakeHands(raw: Socket, to: Address, tls: TlsIdentity, protocol: string, signal?: AbortSignal): Promise<TLSSocket> {
  const peer = formatAddress(to);
  const socket = connectTls({ ...tls.connectOptions(to.host, protocol, tls.sessionWith(peer)), socket: raw });
  socket.on("error", () => {}); // as of the one below it
  let latest: Buffer | undefined;
  let isTrusted = false;
  socket.on("session", (session: Buffer) => {
    latest = session;
    if (isTrusted) tls.keepSession(peer, session);
  });
  try {
    await whileWanted(socket, signal, () => once(socket, "secureConnect"));
  } catch (cause) {
    socket.destroy();
    throw handshakeFailure(cause, peer, true);
  }
  const why = tls.whyNotServer(socket, to.host);
  if (why !== undefined) {
    tellPeer(socket, peer, why);
    throw why;
  }
  isTrusted = true;
  if (latest !== undefined) tls.keepSession(peer, latest);
  return socket;
}

/** What is wrong with an agent's certificate its operator has to know, too. */
export function tellPeer(socket: Socket, peer: string, why: MigrationError): void {
  socket.on("error", () => {}); // it may have gone
  socket.end(formatHead(`GET ${AGENT_PATH} HTTP/1.1`, [`Host: ${peer}`, "Connection: close", ...refusalHeaders(why)]));
  socket.resume();
}

/** What OpenSSL says when no handshake came about. @param isClient we are; at a port whoever comes has begun as TLS does, and is not told to be without */
export function handshakeFailure(cause: unknown, peer: string, isClient: boolean): MigrationError {
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : "";
  if (!code.startsWith("ERR_SSL_"))
    return new MigrationError("ERR_TLS_HANDSHAKE", `${peer} ended the connection in the TLS handshake`, { cause });
  if (!isClient) return new MigrationError("ERR_TLS_HANDSHAKE", `${peer} wants no TLS that this agent speaks, which is 1.3`, { cause });
  // An alert is the peer's word in TLS; everything else that cannot be read is no TLS.
  if (code.includes("ALERT")) return new MigrationError("ERR_TLS_HANDSHAKE", `${peer} refused the TLS handshake`, { cause });
  return new MigrationError("ERR_TLS_NOT_OFFERED", `${peer} does not speak TLS`, { cause });
}

/** What goes with a request to an agent that asks for a token. */
export interface TokenProof {
  /** A header of the request. */
  readonly authorization: string;
  /** @throws {MigrationError} ERR_TOKEN_WRONG if the answer does not show that the agent knows the token, too */
  check(answer: IncomingHttpHeaders): void;
}

/**
 * Asks the agent for its number used once, and proves over it that we know the token; one more round trip on the same connection. Without a token,
 * nothing. The socket is closed if it fails. @throws {MigrationError} ERR_TOKEN_REQUIRED if the agent does not ask for one, ERR_NOT_AN_AGENT, ERR_UNREACHABLE
 */
export async function proveToken(socket: Socket, to: Address, { token }: Security, path: string): Promise<TokenProof | undefined> {
  if (token === undefined) return undefined;
  try {
    return await prove(socket, to, token, path);
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

async function prove(socket: Socket, to: Address, token: Token, path: string): Promise<TokenProof> {
  const peer = formatAddress(to);
  socket.write(formatHead(`GET ${AGENT_PATH} HTTP/1.1`, [`Host: ${peer}`]));
  const { start, headers } = await whileWanted(socket, undefined, () => readHead(socket)).catch((cause: unknown) => {
    throw cause instanceof MigrationError ? cause : new MigrationError("ERR_UNREACHABLE", `${peer} did not answer`, { cause });
  });
  const [, nonce] = new RegExp(`^${TOKEN_SCHEME} nonce=([0-9a-f]{32})$`).exec(headers.get("www-authenticate") ?? "") ?? [];
  if (nonce === undefined) {
    const refused = refusalIn((name) => headers.get(name), peer);
    if (refused !== undefined) throw refused;
    if (start.startsWith("HTTP/1.1 200"))
      throw new MigrationError("ERR_TOKEN_REQUIRED", `${peer} asks for no token: it would not have to prove that it knows it`);
    throw new MigrationError("ERR_NOT_AN_AGENT", `${peer} answered ${start}`);
  }
  const use = { nonce, clientNonce: Token.nonce(), path, binding: socket instanceof TLSSocket ? bindingOf(socket) : Buffer.alloc(0) };
  return {
    authorization: `${TOKEN_SCHEME} nonce=${nonce}, client=${use.clientNonce}, proof=${token.proofOf("client", use)}`,
    check: (answer) => {
      if (!token.isProof("server", use, String(answer[PROOF_HEADER.toLowerCase()] ?? "")))
        throw new MigrationError("ERR_TOKEN_WRONG", `${peer} does not prove that it knows the token`);
    },
  };
}
