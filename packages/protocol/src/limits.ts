/** Every bound and every timeout of the product, named once. Bounds on what a peer sends are checked before anything is allocated. */

export const PAGE_BYTES = 4096;
/** A wasm32 memory, and a typed array on Node 20, end at 4 GiB; a guest is several segments of at most this. */
export const SEGMENT_BYTES = 2 ** 32;
/** Page indices are u32; 16 TiB of 4 KiB pages. */
export const MEMORY_BYTES_MAX = 2 ** 32 * PAGE_BYTES;
/** Smallest guest: room for device rings and one region a vCPU. */
export const MEMORY_BYTES_MIN = 2 ** 20;

export const VCPUS_MAX = 64;
export const CHANNELS_MAX = 16;

/** Pages map to channels in stripes of 2 MiB: a whole number of bitmap words and of huge pages. */
export const STRIPE_PAGES = 512;

/** `writev` takes at most 1,024 pieces; header and run table are one of them. */
export const PACKET_DATA_RUNS_MAX = 1000;
export const PACKET_ZERO_RUNS_MAX = 4000;
/** Raw bytes one packet may carry: one stripe. */
export const PACKET_PAGES_MAX = 512;
/** Encoded payload: every block may stay raw and brings its length. */
export const PACKET_PAYLOAD_BYTES_MAX = PACKET_PAGES_MAX * PAGE_BYTES + PACKET_PAGES_MAX * 4;
/** Pages that are compressed together. */
export const BLOCK_PAGES = 16;

/** Post-copy: pages that one answer on the fault channel may carry. A block of them lies in one word of a bitmap. */
export const FAULT_AROUND_PAGES_MAX = 16;

/** As long as a Node timer can wait. */
export const TIMER_MS_MAX = 2 ** 31 - 1;

/** Each channel keeps its part in one WebAssembly memory. */
export const XBZRLE_CACHE_BYTES_MAX = 2 ** 31;

export const CONTROL_MESSAGE_BYTES_MAX = 2 ** 20;
/** Words of a bitmap in one message, before they are deflated: 4 MiB. */
export const BITMAP_PIECE_WORDS = 2 ** 20;
/** Pieces that are sent before an answer is waited for. */
export const BITMAP_PIECES_AT_ONCE = 8;
export const OBSERVERS_MAX = 16;
/** Bytes an observer of events may lag behind before it is dropped. */
export const OBSERVER_BACKLOG_BYTES_MAX = 2 ** 20;
/** Connections that have not said yet what they are. */
export const PENDING_CONNECTIONS_MAX = 64;
export const HTTP_HEADER_BYTES_MAX = 8192;
/** A ClientHello with a session to resume has two or three thousand. */
export const CLIENT_HELLO_BYTES_MAX = 16_384;
/** Peers whose TLS sessions are kept, to be resumed. */
export const TLS_SESSIONS_MAX = 64;
/** Of the secret that binds channels to their admission. */
export const CHANNEL_SECRET_BYTES = 32;
export const TOKEN_BYTES_MIN = 16;
export const TOKEN_BYTES_MAX = 4096;
/** Control channels that peers may have open at one time. */
export const CONTROL_CHANNELS_MAX = 32;

export const CONNECT_TIMEOUT_MS = 5000;
export const HANDSHAKE_TIMEOUT_MS = 5000;
/** Admission may have to start workers and open devices. */
export const ADMISSION_TIMEOUT_MS = 10_000;
export const HEARTBEAT_MS = 1000;
export const PEER_DEAD_MS = 5000;
/** After COMMIT: how long until the missing answer is called in doubt, and how often the source asks again. */
export const ACTIVE_TIMEOUT_MS = 1000;
export const ASK_AGAIN_MS = 1000;
/** While the guest runs, a broken link is made again within this, else the migration fails; the target keeps what it has a little longer. */
export const REJOIN_GRACE_MS = 10_000;
export const RECEIVING_GRACE_MS = REJOIN_GRACE_MS + PEER_DEAD_MS;
/** Between two tries. */
export const REJOIN_AGAIN_MS = 100;
/** In post-copy there is no limit: a broken link is tried again this often. */
export const RECOVER_AGAIN_MS = 1000;
/** A page channel that cannot be made again this often is carried by another one. */
export const CHANNEL_RETRIES = 3;
/** Page channels that one migration may lose before it fails: a peer that breaks every one is no peer. */
export const CHANNEL_LOSSES_MAX = 64;
/** An aborted attempt's target is told so for this long. */
export const ABORT_TELL_MS = 60_000;
/** In doubt for this long, the source asks the arbiter to decide, where there is one. */
export const ARBITRATION_AFTER_MS = 5000;
/** A guest whose owner has not renewed its lease for this long is nobody's to the arbiter; and the owner stops it by then. */
export const LEASE_MS = 15_000;
/** How far the clocks of two agents' hosts may be apart: for everybody else a lease ends only this long after it does for its owner. */
export const CLOCK_SKEW_MS = 1000;
/** How often the owner renews it. */
export const LEASE_RENEW_MS = 3000;
/** How long the report waits for what the target's guest noticed of the pause. */
export const ARRIVAL_REPORT_TIMEOUT_MS = 2000;
/** A page channel whose bytes nobody acknowledges for this long is dead, though the control channel may be well. */
export const SOCKET_DEAD_MS = 10_000;
/** Blocking socket calls return this often to read their stop word. */
export const SOCKET_POLL_MS = 200;
/** A vCPU that does not reach the end of its step within this is reported, and the pause given up. */
export const PAUSE_TIMEOUT_MS = 1000;
/** After everything was released: how long `process.exit` is left to the event loop before the watchdog ends the process. */
export const EXIT_WATCHDOG_MS = 3000;

/** PREPARED must arrive within this of the pause, else the source aborts and the guest runs on there. */
export const preparedTimeoutMs = (downtimeLimitMs: number): number => Math.max(2 * downtimeLimitMs, 1000);

/** A round tells the bandwidth if it carried this much, or if its bytes were under way this long; else only the fixed part of a round. */
export const BANDWIDTH_WINDOW_BYTES = 16 * 2 ** 20;
export const BANDWIDTH_WINDOW_MS = 20;
/** Of a round that carried less nobody knows what kept it: a slow link, a long one, or a busy host. */
export const BANDWIDTH_BYTES_MIN = 2 ** 20;
