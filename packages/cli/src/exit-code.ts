import type { ErrorCode, MigrationError } from "@precopy/protocol";

/**
 * What the process ends with; 0 is fine. Scripts may rely on the numbers, they are never reused.
 *
 *   1 internal: a bug of ours           2 usage: what was typed             3 cannot reach the agent or the peer
 *   4 the peer is no agent, or speaks another protocol                      5 refused: at admission, or not possible at this moment
 *   6 link lost, peer dead, or the migration failed                         7 did not converge, or not in time
 *   8 cancelled                         9 in doubt                         10 resources of this host
 *  11 verification failed             12 not let in: certificate, token, key or user
 */
const EXIT_CODE = {
  ERR_NOT_TRACKING: 1,
  ERR_ILLEGAL_TRANSITION: 1,
  ERR_INTERNAL: 1,

  ERR_PARAMETER: 2,
  ERR_ADDRESS: 2,
  ERR_INSECURE_LISTEN: 2,
  ERR_TLS_CREDENTIALS: 2,
  ERR_TOKEN_FILE: 2,

  ERR_UNREACHABLE: 3,
  ERR_NO_AGENT: 3,

  ERR_NOT_AN_AGENT: 4,
  ERR_BAD_MESSAGE: 4,
  ERR_NOT_A_PACKET: 4,
  ERR_PROTOCOL_VERSION: 4,
  ERR_PAYLOAD_TOO_LARGE: 4,
  ERR_PACKET_SEQUENCE: 4,
  ERR_RUN_OUT_OF_RANGE: 4,

  ERR_PAGE_SIZE: 5,
  ERR_ENDIANNESS: 5,
  ERR_CAPABILITY: 5,
  ERR_MEMORY: 5,
  ERR_MEMORY_LIMIT: 5,
  ERR_WORKLOAD_UNKNOWN: 5,
  ERR_WORKLOAD_DIFFERS: 5,
  ERR_DEVICE_UNAVAILABLE: 5,
  ERR_GUEST_PRESENT: 5,
  ERR_AGENT_FULL: 5,
  ERR_EPOCH: 5,
  ERR_NO_GUEST: 5,
  ERR_BUSY: 5,
  ERR_ALREADY_TRACKING: 5,
  ERR_CANCEL_TOO_LATE: 5,
  ERR_NO_MIGRATION: 5,

  ERR_OWNED_ELSEWHERE: 5,
  ERR_UNRESOLVED: 9,
  ERR_NOT_FENCED: 5,
  ERR_ROLLBACK: 5,
  ERR_NOTHING_TO_RESOLVE: 5,
  ERR_GUEST_HELD: 5,

  ERR_LINK_LOST: 6,
  ERR_SHUTTING_DOWN: 6,
  ERR_PEER_DEAD: 6,
  ERR_PACKET_CHECKSUM: 6,
  ERR_BLOCK_CORRUPT: 6,
  ERR_STALE_GENERATION: 6,
  ERR_PREPARED_TIMEOUT: 6,
  ERR_TAKEN_BACK: 6,
  ERR_POSTCOPY_LOST: 6,
  ERR_WORKLOAD_FAILED: 6,

  ERR_NOT_CONVERGING: 7,
  ERR_TIMEOUT: 7,
  ERR_CANCELLED: 8,
  ERR_GIVEN_UP: 8,
  ERR_IN_DOUBT: 9,

  ERR_PORT_IN_USE: 10,
  ERR_NAME_IN_USE: 10,
  ERR_DIRTY_LOG_UNAVAILABLE: 10,
  ERR_UNTRACKED_WRITES: 10,
  ERR_SYSTEM_CALL: 10,
  ERR_STATE_DIR_IN_USE: 10,
  ERR_ARBITER: 10,

  ERR_DIGEST_MISMATCH: 11,
  ERR_VERIFICATION: 11,

  ERR_NOT_PERMITTED: 12,
  ERR_TLS_REQUIRED: 12,
  ERR_TLS_NOT_OFFERED: 12,
  ERR_TLS_HOSTNAME: 12,
  ERR_TLS_UNTRUSTED: 12,
  ERR_TLS_EXPIRED: 12,
  ERR_TLS_NO_CERTIFICATE: 12,
  ERR_TLS_AUTHZ: 12,
  ERR_TLS_HANDSHAKE: 12,
  ERR_TOKEN_REQUIRED: 12,
  ERR_TOKEN_WRONG: 12,
  ERR_TOKEN_REPLAYED: 12,
  ERR_CHANNEL_KEY: 12,
  ERR_KEY_REPLAYED: 12,
} as const satisfies Record<ErrorCode, number>; // a new code without a number does not compile

export const exitCodeOf = (code: ErrorCode): number => EXIT_CODE[code];

/** Text from anywhere, a peer included, as one line without control characters. */
export const oneLine = (text: string): string => text.replace(/[\s\p{Cc}]+/gu, " ").trim();

/** An AggregateError of `net` (one failure an address tried) has no message of its own. */
const causeOf = (cause: unknown): string => {
  if (cause instanceof AggregateError && cause.message === "") return cause.errors.map(causeOf).join("; ");
  return cause instanceof Error ? cause.message : "";
};

/** One line: `precopy: ERR_CODE: message. Remedy. (cause)`. */
export function formatError(error: MigrationError): string {
  const message = oneLine(error.message);
  const cause = oneLine(causeOf(error.cause));
  const line = `precopy: ${error.code}: ${message}${/[.?!]$/.test(message) ? "" : "."} ${error.remedy}`;
  return cause === "" || cause === message ? line : `${line} (${cause})`;
}
