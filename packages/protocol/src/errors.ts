/** What to do about each code. A code without a remedy cannot exist; docs/runbook.md has a row for each. */
const REMEDY = {
  // what the operator typed
  ERR_PARAMETER: "Correct the value; --help lists every parameter with its unit and range.",
  ERR_ADDRESS: "Give HOST:PORT; an IPv6 address stands in brackets, as in [::1]:4646.",
  ERR_INSECURE_LISTEN:
    "Give an agent --tls-creds or --token-file; or listen on a loopback address, or add --insecure to accept unauthenticated peers.",
  ERR_TLS_CREDENTIALS:
    "See what --tls-creds must hold: ca-cert.pem, server-cert.pem and server-key.pem, client-cert.pem and client-key.pem; `precopy certs` makes them.",
  ERR_TOKEN_FILE: "Give a file of 16 to 4096 bytes that others cannot read: (umask 077; openssl rand -hex 32 > FILE).",
  ERR_PORT_IN_USE: "Choose another --listen port, or stop the process that holds this one.",
  ERR_NO_AGENT: "Start one with `precopy source` or `precopy target`, or give its --name or --socket.",
  ERR_NOT_PERMITTED: "Run the command as the user that the agent runs as, or as root.",
  ERR_NAME_IN_USE: "Choose another --name, or stop the agent that has it.",
  // reaching the peer
  ERR_UNREACHABLE: "Check host, port and firewall, and that `precopy target` runs there.",
  ERR_NOT_AN_AGENT: "Point it at the --listen port of a precopy agent.",
  ERR_LINK_LOST: "See the peer's log; the guest runs on at the source, so migrate again when the link is back.",
  ERR_PEER_DEAD: "Check the network and the peer's host; the guest runs on at the source, so migrate again when it answers.",
  ERR_BAD_MESSAGE: "Report it with both logs: a peer of this release never sends such a message.",
  // who may talk to whom
  ERR_TLS_REQUIRED: "That port takes TLS only: give --tls-creds on this side, too.",
  ERR_TLS_NOT_OFFERED: "That port has no TLS: start that agent with --tls-creds, or this side without.",
  ERR_TLS_HOSTNAME:
    "Connect by a name that the certificate is for, give one of its names with --tls-hostname, or issue a certificate for this name.",
  ERR_TLS_UNTRUSTED: "Both sides need certificates of one CA: its ca-cert.pem must be in --tls-creds on both hosts.",
  ERR_TLS_EXPIRED: "Issue a new certificate, and compare the clocks of both hosts.",
  ERR_TLS_NO_CERTIFICATE: "Put client-cert.pem and client-key.pem into --tls-creds on the side that connects.",
  ERR_TLS_AUTHZ: "Add one of its names to --tls-authz on the side that refused it, or connect with another certificate.",
  ERR_TLS_HANDSHAKE: "Both sides need TLS 1.3; the logs of both have what OpenSSL said.",
  ERR_TOKEN_REQUIRED: "Only one side has a token: give both the same --token-file.",
  ERR_TOKEN_WRONG: "The sides have different tokens: give both the same --token-file.",
  ERR_TOKEN_REPLAYED: "Somebody on the network repeats what an agent said: look for who it is, and use --tls-creds.",
  ERR_CHANNEL_KEY: "Somebody who was not admitted asked for a page channel: look for who it is at that address.",
  ERR_KEY_REPLAYED: "Somebody on the network repeats what an agent said: look for who it is, and use --tls-creds.",
  // page packets
  ERR_NOT_A_PACKET: "Run the same release on both hosts.",
  ERR_PROTOCOL_VERSION: "Run the same release on both hosts.",
  ERR_PAYLOAD_TOO_LARGE: "Report it with both logs: a peer of this release never sends such a packet.",
  ERR_PACKET_CHECKSUM: "Check the network hardware between the hosts; the guest runs on at the source.",
  ERR_PACKET_SEQUENCE: "Report it with both logs: packets of one channel never change their order.",
  ERR_RUN_OUT_OF_RANGE: "Report it with both logs: a peer of this release never names such a page.",
  ERR_BLOCK_CORRUPT: "Check the network hardware between the hosts; the guest runs on at the source.",
  ERR_STALE_GENERATION: "Nothing to do: the channel belonged to an earlier attempt.",
  // admission
  ERR_PAGE_SIZE: "Move the guest between hosts with 4 KiB pages.",
  ERR_ENDIANNESS: "Move the guest between hosts of the same byte order.",
  ERR_CAPABILITY: "Run the same release on both hosts, or switch the named capability off.",
  ERR_MEMORY: "Free memory on the target, or choose another one.",
  ERR_MEMORY_LIMIT: "Raise --memory-limit at the target, or choose another one.",
  ERR_WORKLOAD_UNKNOWN: "Start that agent with --workload NAME=FILE or --workload-dir DIR.",
  ERR_WORKLOAD_DIFFERS: "Give both agents the very same file; its SHA-256 must be equal.",
  ERR_DEVICE_UNAVAILABLE: "Start that agent with --switch HOST:PORT, so that the guest's network card has a back end.",
  ERR_GUEST_PRESENT: "The guest is here already: look at `precopy status` on both hosts.",
  ERR_AGENT_FULL: "An agent holds one guest: migrate that one away first, or start another agent.",
  ERR_EPOCH: "This offer is older than one seen before: migrate from the agent that owns the guest now.",
  ERR_SHUTTING_DOWN: "Start the agent again.",
  ERR_STATE_DIR_IN_USE: "Give each agent its own --state-dir, or stop the agent that uses this one.",
  // who owns the guest
  ERR_OWNED_ELSEWHERE:
    "Look at `precopy who-owns`. Only if it ended there too: `precopy resolve --give-up --other-side-is-fenced`, then boot it.",
  ERR_UNRESOLVED: "Look at `precopy who-owns`; then `precopy resolve --guest ID --take-back` or `--give-up` on the side that has it.",
  ERR_NOT_FENCED: "Make sure that the other side cannot run the guest (power it off, cut its network), then add --other-side-is-fenced.",
  ERR_ROLLBACK: "Add --accept-rollback if losing the later operations is better than losing the guest.",
  ERR_NOTHING_TO_RESOLVE: "Nothing to do: look at `precopy who-owns`.",
  ERR_ARBITER: "Check the --arbiter folder: both agents must see the same one, and may write there.",
  ERR_GUEST_HELD:
    "Give --evacuate-to HOST:PORT at the start, migrate the guest away first, or send the signal again to end it with the agent.",
  // the guest and its dirty log
  ERR_NO_GUEST: "Boot one with `precopy source --workload NAME`, or migrate one to this agent.",
  ERR_WORKLOAD_FAILED: "Mend the workload: it must step, save and load without throwing.",
  ERR_DIRTY_LOG_UNAVAILABLE: "Use --dirty-log auto, or a kernel with userfaultfd write protection and PAGEMAP_SCAN (Linux 6.7).",
  ERR_UNTRACKED_WRITES: "Let the workload write through its memory accessor, or run it where --dirty-log mmu works.",
  ERR_ALREADY_TRACKING: "Wait for the migration that uses the dirty log, or cancel it.",
  ERR_NOT_TRACKING: "Report it with the log: collect() ran before start().",
  ERR_SYSTEM_CALL: "See the named system call and error number.",
  // the migration
  ERR_BUSY: "Wait for the migration in progress, or cancel it with `precopy cancel`.",
  ERR_NO_MIGRATION: "Nothing to do: look at `precopy status`.",
  ERR_NOT_CONVERGING:
    "Raise --downtime-limit or --max-bandwidth, let the guest be throttled with --throttle sdps, or use --mode stop-and-copy.",
  ERR_TIMEOUT:
    "The guest runs on at the source. Raise --timeout, let the guest be throttled with --throttle sdps, or use --timeout-action force.",
  ERR_CANCELLED: "Nothing to do: the guest runs on at the source.",
  ERR_CANCEL_TOO_LATE: "COMMIT is out: only the target's answer decides now. Look at `precopy status`.",
  ERR_PREPARED_TIMEOUT: "The guest runs on at the source. Raise --downtime-limit or look at the target's load, then migrate again.",
  ERR_DIGEST_MISMATCH: "The guest runs on at the source. Report it with both logs: the images differ.",
  ERR_IN_DOUBT: "The source asks on by itself; look at `precopy status` at the target. Do not start the guest anywhere else.",
  ERR_POSTCOPY_LOST: "The guest is gone, as after any crash of its host: boot it anew.",
  ERR_GIVEN_UP: "Look at `precopy who-owns`: what was left of the guest here was ended by its operator.",
  ERR_TAKEN_BACK: "The guest runs on at the source, one epoch higher; look at the target's log, then migrate again.",
  ERR_VERIFICATION: "Do not trust the moved guest. Report it with both logs and the --report file.",
  ERR_ILLEGAL_TRANSITION: "Report it with the log: this is a bug in the agent.",
  ERR_INTERNAL: "Report it with the log: this is a bug in the agent.",
} as const;

/** Stable codes: never renamed, never reused. */
export type ErrorCode = keyof typeof REMEDY;

export const isErrorCode = (value: string): value is ErrorCode => Object.hasOwn(REMEDY, value);

/** Every code, for documentation and its test. */
export const errorCodes = (): readonly ErrorCode[] => Object.keys(REMEDY).filter(isErrorCode);

/** A failure a person has to deal with: a stable code, what happened with its numbers, the cause, and what to do about it. */
export class MigrationError extends Error {
  override readonly name = "MigrationError";
  readonly code: ErrorCode;
  readonly remedy: string;
  /** @param options pass the original as `cause`; its text is never pasted into `message`. */
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.remedy = REMEDY[code];
  }

  /** `thrown` itself if it is one of ours, else wrapped as ERR_INTERNAL, so that whoever reports always has code and remedy. */
  static from(thrown: unknown): MigrationError {
    if (thrown instanceof MigrationError) return thrown;
    const message = thrown instanceof Error ? thrown.message : String(thrown);
    return new MigrationError("ERR_INTERNAL", message, { cause: thrown });
  }
}

/** For the default branch of a switch over a union: a case that was forgotten does not compile. */
export function assertNever(value: never): never {
  throw new MigrationError("ERR_INTERNAL", `Unreachable case: ${JSON.stringify(value)}`);
}
