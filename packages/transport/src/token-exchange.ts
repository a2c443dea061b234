import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import { TLSSocket } from "node:tls";
import { MigrationError } from "@precopy/protocol";
import { Token, bindingOf } from "@precopy/security";

/** Where a peer gets the number used once that it is to prove its token over; as a GET, with that proof, a word about the agent. */
export const AGENT_PATH = "/v1/agent";
/** Of `WWW-Authenticate: Precopy nonce=N` and `Authorization: Precopy nonce=N, client=N, proof=P`. */
export const TOKEN_SCHEME = "Precopy";
/** The agent's own proof, in its answer. */
export const PROOF_HEADER = "Precopy-Proof";

const AUTHORIZATION = new RegExp(`^${TOKEN_SCHEME} nonce=([0-9a-f]{32}), client=([0-9a-f]{32}), proof=([0-9a-f]{64})$`);

/** The listening side of a token's proofs. A number is good once, and on the connection that it was given out on, so nothing is kept of peers that leave. */
export class TokenDesk {
  readonly #token: Token;
  readonly #onLeft: (socket: Socket) => void;
  readonly #nonces = new WeakMap<Socket, string>();

  /** @param onLeft told of a peer that was asked for the token, and left without a proof */
  constructor(token: Token, onLeft: (socket: Socket) => void) {
    this.#token = token;
    this.#onLeft = onLeft;
  }

  /** The value of `WWW-Authenticate`. */
  challenge(socket: Socket): string {
    const nonce = Token.nonce();
    if (!this.#nonces.has(socket))
      socket.once("close", () => {
        if (this.#nonces.delete(socket)) this.#onLeft(socket);
      });
    this.#nonces.set(socket, nonce);
    return `${TOKEN_SCHEME} nonce=${nonce}`;
  }

  /** Looks at a request's proof. @returns ours, for the answer. @throws {MigrationError} ERR_TOKEN_REQUIRED, ERR_TOKEN_WRONG, ERR_TOKEN_REPLAYED */
  check({ headers, socket }: IncomingMessage, path: string): string {
    const { authorization } = headers;
    if (authorization === undefined) throw new MigrationError("ERR_TOKEN_REQUIRED", "This agent asks for a token");
    const [, nonce = "", clientNonce = "", proof = ""] = AUTHORIZATION.exec(authorization) ?? [];
    const use = { nonce, clientNonce, path, binding: socket instanceof TLSSocket ? bindingOf(socket) : Buffer.alloc(0) };
    const given = this.#nonces.get(socket);
    this.#nonces.delete(socket);
    if (nonce !== given) {
      // With TLS a proof of another connection looks wrong, for what it is bound to is not known here.
      if (this.#token.isProof("client", use, proof))
        throw new MigrationError("ERR_TOKEN_REPLAYED", "A proof of the token that was made for another connection");
      throw new MigrationError("ERR_TOKEN_WRONG", "The proof is not of this agent's token");
    }
    if (!this.#token.isProof("client", use, proof)) throw new MigrationError("ERR_TOKEN_WRONG", "The proof is not of this agent's token");
    return this.#token.proofOf("server", use);
  }
}
