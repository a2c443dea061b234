import { constants } from "node:os";
import { declare, errno, systemCallError } from "./library.js";

const openSocket = declare("int socket(int domain, int type, int protocol)");
const openPair = declare("int socketpair(int domain, int type, int protocol, void *fds)");
const dup = declare("int dup(int fd)");
const closeDescriptor = declare("int close(int fd)");
const fcntl = declare("int fcntl(int fd, int command, int argument)");
const ioctl = declare("int ioctl(int fd, unsigned long request, void *argument)");
const getsockopt = declare("int getsockopt(int fd, int level, int option, void *value, void *bytes)");
const setsockopt = declare("int setsockopt(int fd, int level, int option, void *value, int bytes)");
const shutdown = declare("int shutdown(int fd, int how)");
const writev = declare("long writev(int fd, void *pieces, int count)");
const readv = declare("long readv(int fd, void *pieces, int count)");
const recv = declare("long recv(int fd, void *buffer, size_t bytes, int flags)");
const send = declare("long send(int fd, void *buffer, size_t bytes, int flags)");

const AF_UNIX = 1;
const AF_INET = 2;
const SOCK_STREAM_CLOEXEC = 0x80001;
const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0x800;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const SO_SNDTIMEO = 21;
const SO_MAX_PACING_RATE = 47;
const SIOCOUTQ = 0x5411;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const TCP_INFO = 11;
const TCP_CONGESTION = 13;
const TCP_USER_TIMEOUT = 18;
/** In `struct tcp_info`, all in us: `tcpi_rtt`, `tcpi_min_rtt` and, since Linux 4.9, `tcpi_busy_time` and `tcpi_rwnd_limited`. */
const RTT_AT = 68;
const MIN_RTT_AT = 148;
const BUSY_TIME_AT = 168;
const RWND_LIMITED_AT = 176;
const SHUT_RDWR = 2;
const MSG_NOSIGNAL = 0x4000;
const UNLIMITED = 2n ** 64n - 1n;
/** `writev` and `readv` take this many pieces at most. */
export const PIECES_MAX = 1024;

/** Of a socket of Node's, which keeps it there for all that are the system's; undefined if it has none, or is closed. */
export function descriptorOf(socket: object): number | undefined {
  const fd: unknown = Reflect.get(Reflect.get(socket, "_handle") ?? {}, "fd");
  return typeof fd === "number" && fd >= 0 ? fd : undefined;
}

/** Pieces of memory in a row, as `writev` and `readv` take them (`struct iovec`). */
export class Pieces {
  /** Address and length of each. */
  readonly words: BigUint64Array;
  // Their low and high halves: writing numbers here spares a BigInt for each.
  readonly #halves: Uint32Array;

  constructor(count: number) {
    this.words = new BigUint64Array(2 * count);
    this.#halves = new Uint32Array(this.words.buffer);
  }

  /** @param address user addresses end below 2^47. @param bytes below 2^32. */
  set(piece: number, address: number, bytes: number): void {
    this.#halves[4 * piece] = address % 2 ** 32;
    this.#halves[4 * piece + 1] = Math.floor(address / 2 ** 32);
    this.#halves[4 * piece + 2] = bytes;
    this.#halves[4 * piece + 3] = 0;
  }
}

/** What the kernel knows of a connection's way. */
export interface LinkState {
  /** For how long, since the connection was made, something was written and not acknowledged, ms. */
  readonly busyMs: number;
  /** Of that, for how long the peer had no room for it, ms. */
  readonly peerLimitedMs: number;
  /** By how much round trips are longer now than the shortest was: what stands in queues on the way, or waits for a processor. ms */
  readonly queueMs: number;
}

/** The last call was cut short, or there was nothing to be had at that moment. */
export const isRetry = (): boolean => errno() === constants.errno.EAGAIN || errno() === constants.errno.EINTR;

function setCongestionControl(fd: number, name: string): boolean {
  const value = Buffer.from(name);
  return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, value, value.byteLength) === 0;
}

/** 8 bytes on purpose: 4 bytes would end at 34 Gbit/s. */
const pacingValue = (bytesPerSecond: number): BigUint64Array =>
  new BigUint64Array([bytesPerSecond === 0 ? UNLIMITED : BigInt(Math.ceil(bytesPerSecond))]);

/** True if the kernel lets this user have a TCP congestion control by that name; found out on a socket of its own. */
export function mayUseCongestionControl(name: string): boolean {
  const fd = openSocket(AF_INET, SOCK_STREAM_CLOEXEC, 0);
  if (fd < 0) throw systemCallError("socket");
  try {
    return setCongestionControl(fd, name);
  } finally {
    closeDescriptor(fd);
  }
}

/**
 * A connected TCP socket in blocking mode, for one worker. The main thread keeps a SocketHandle to the same descriptor and owns
 * `shutdown` and `close`; the worker never closes, so the number cannot be reused behind anybody's back.
 */
export class BlockingSocket {
  readonly #fd: number;
  readonly #mayGoOn: () => boolean;
  readonly #backlog = new Int32Array(1);
  readonly #info = Buffer.alloc(RWND_LIMITED_AT + 8);
  readonly #infoBytes = new Uint32Array(1);

  /**
   * @param mayGoOn asked whenever a call timed out (`pollMs`); false ends the transfer.
   * @param deadMs bytes that nobody acknowledges for this long break the connection; the system alone would wait for a quarter of an hour.
   */
  constructor(fd: number, pollMs: number, deadMs: number, mayGoOn: () => boolean) {
    this.#fd = fd;
    this.#mayGoOn = mayGoOn;
    const flags = fcntl(fd, F_GETFL, 0);
    // O_NONBLOCK belongs to the open file: libuv must have let go of its descriptor before.
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) throw systemCallError("fcntl");
    const wait = new BigInt64Array([BigInt(Math.floor(pollMs / 1000)), BigInt((pollMs % 1000) * 1000)]);
    this.#set(SOL_SOCKET, SO_RCVTIMEO, wait);
    this.#set(SOL_SOCKET, SO_SNDTIMEO, wait);
    this.#set(IPPROTO_TCP, TCP_NODELAY, new Int32Array([1]));
    this.#set(IPPROTO_TCP, TCP_USER_TIMEOUT, new Int32Array([deadMs]));
  }

  #set(level: number, option: number, value: BigInt64Array | BigUint64Array | Int32Array): void {
    if (setsockopt(this.#fd, level, option, value, value.byteLength) !== 0) throw systemCallError("setsockopt");
  }

  /** Paces what is sent; 0 lifts it. */
  setPacing(bytesPerSecond: number): void {
    this.#set(SOL_SOCKET, SO_MAX_PACING_RATE, pacingValue(bytesPerSecond));
  }

  /** Bytes that were written and not acknowledged by the peer's system; undefined if the kernel does not tell. */
  backlogBytes(): number | undefined {
    return ioctl(this.#fd, SIOCOUTQ, this.#backlog) === 0 ? this.#backlog[0] : undefined;
  }

  /** Undefined if the kernel does not tell. */
  linkState(): LinkState | undefined {
    this.#infoBytes[0] = this.#info.byteLength;
    const isTold =
      getsockopt(this.#fd, IPPROTO_TCP, TCP_INFO, this.#info, this.#infoBytes) === 0 && this.#infoBytes[0] === this.#info.byteLength;
    if (!isTold) return undefined;
    const queueMs = (this.#info.readUInt32LE(RTT_AT) - this.#info.readUInt32LE(MIN_RTT_AT)) / 1000;
    const ms = (at: number): number => Number(this.#info.readBigUInt64LE(at)) / 1000;
    return { busyMs: ms(BUSY_TIME_AT), peerLimitedMs: ms(RWND_LIMITED_AT), queueMs };
  }

  /**
   * Writes the first `count` pieces, which it changes while it goes. Returns false if told to stop.
   * @throws {MigrationError} ERR_SYSTEM_CALL, for example EPIPE or ECONNRESET.
   */
  writeAll({ words }: Pieces, count: number): boolean {
    return this.#transfer("writev", writev, words, count);
  }

  /** Fills the first `count` pieces. Returns false if told to stop or at the end of the stream. @throws {MigrationError} ERR_SYSTEM_CALL */
  readAll({ words }: Pieces, count: number): boolean {
    return this.#transfer("readv", readv, words, count);
  }

  #transfer(name: string, call: (...args: unknown[]) => number, pieces: BigUint64Array, count: number): boolean {
    let at = 0;
    while (at < count) {
      const done = call(this.#fd, at === 0 ? pieces : pieces.subarray(2 * at), Math.min(count - at, PIECES_MAX));
      if (done === 0) return false;
      if (done < 0) {
        if (!isRetry()) throw systemCallError(name);
        if (!this.#mayGoOn()) return false;
        continue;
      }
      let left = BigInt(done);
      for (; at < count && left >= pieces[2 * at + 1]!; at++) left -= pieces[2 * at + 1]!;
      if (left > 0n) {
        pieces[2 * at]! += left;
        pieces[2 * at + 1]! -= left;
      }
    }
    return true;
  }

  /** Fills `buffer[from..to)`; false at the end of the stream or when told to stop. */
  read(buffer: Buffer, from: number, to: number): boolean {
    for (let at = from; at < to; ) {
      const got = recv(this.#fd, buffer.subarray(at, to), to - at, 0);
      if (got > 0) at += got;
      else if (got === 0) return false;
      else if (!isRetry()) throw systemCallError("recv");
      else if (!this.#mayGoOn()) return false;
    }
    return true;
  }

  /** What is there of the stream, at least a byte, into `buffer`: how many; 0 at its end or when told to stop. @throws {MigrationError} ERR_SYSTEM_CALL */
  readSome(buffer: Buffer): number {
    for (;;) {
      const got = recv(this.#fd, buffer, buffer.byteLength, 0);
      if (got >= 0) return got;
      if (!isRetry()) throw systemCallError("recv");
      if (!this.#mayGoOn()) return 0;
    }
  }

  /** For what lies in one buffer. Returns false if told to stop. */
  write(bytes: Uint8Array): boolean {
    for (let at = 0; at < bytes.byteLength; ) {
      const sent = send(this.#fd, bytes.subarray(at), bytes.byteLength - at, MSG_NOSIGNAL);
      if (sent > 0) at += sent;
      else if (!isRetry()) throw systemCallError("send");
      else if (!this.#mayGoOn()) return false;
    }
    return true;
  }
}

const MSG_DONTWAIT = 0x40;
/** Small messages on a polled socket are written whole, or the peer has stopped reading. */
const WRITE_TRIES = 100;
const WRITE_AGAIN_MS = 10;

/** A connected socket of a worker that waits with `Poll`; never blocks for long. The main thread owns `shutdown` and `close`, as of BlockingSocket. */
export class PolledSocket {
  readonly #fd: number;

  /** @throws {MigrationError} ERR_SYSTEM_CALL */
  constructor(fd: number) {
    this.#fd = fd;
    const isSet = setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, new Int32Array([1]), 4) === 0;
    if (!isSet && errno() !== constants.errno.EOPNOTSUPP) throw systemCallError("setsockopt"); // one of a pair does not wait either
  }

  /** Bytes that are there, into `buffer`: how many; 0 at the end of the stream, undefined if there are none now. @throws {MigrationError} ERR_SYSTEM_CALL */
  read(buffer: Buffer): number | undefined {
    const got = recv(this.#fd, buffer, buffer.byteLength, MSG_DONTWAIT);
    if (got >= 0) return got;
    if (isRetry()) return undefined;
    throw systemCallError("recv");
  }

  /** A small message. False if the peer does not take it. @throws {MigrationError} ERR_SYSTEM_CALL */
  write(bytes: Uint8Array): boolean {
    let at = 0;
    for (let tries = 0; at < bytes.byteLength; ) {
      const sent = send(this.#fd, bytes.subarray(at), bytes.byteLength - at, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) at += sent;
      else if (!isRetry()) throw systemCallError("send");
      else if (++tries > WRITE_TRIES) return false;
      else Atomics.wait(PAUSE, 0, 0, WRITE_AGAIN_MS);
    }
    return true;
  }
}
const PAUSE = new Int32Array(new SharedArrayBuffer(4));

/** The main thread's hold on a descriptor that a worker uses. */
export class SocketHandle {
  readonly fd: number;
  #isOpen = true;

  /** Takes a descriptor of its own to the same socket. @throws {MigrationError} ERR_SYSTEM_CALL */
  constructor(ofFd: number) {
    this.fd = dup(ofFd);
    if (this.fd < 0) throw systemCallError("dup");
  }

  /** Two sockets that are connected to each other: one to be kept, and the descriptor of the other, for a user that closes it by itself. */
  static pair(): { readonly near: SocketHandle; readonly far: number } {
    const fds = new Int32Array(2);
    if (openPair(AF_UNIX, SOCK_STREAM_CLOEXEC, 0, fds) !== 0) throw systemCallError("socketpair");
    const [near = -1, far = -1] = fds;
    try {
      return { near: new SocketHandle(near), far };
    } finally {
      closeDescriptor(near);
    }
  }

  /** Another descriptor of the same socket, for a user that closes it by itself. */
  duplicate(): number {
    const fd = dup(this.fd);
    if (fd < 0) throw systemCallError("dup");
    return fd;
  }

  /** True if the kernel let this user have it (`tcp_allowed_congestion_control`). */
  tryCongestionControl(name: string): boolean {
    return this.#isOpen && setCongestionControl(this.fd, name);
  }

  /** Frees a worker that is blocked in a call on this socket. */
  shutdown(): void {
    if (this.#isOpen) shutdown(this.fd, SHUT_RDWR);
  }

  /** Paces what the worker sends, while it is blocked in a call too; 0 lifts it. @throws {MigrationError} ERR_SYSTEM_CALL */
  setPacing(bytesPerSecond: number): void {
    const value = pacingValue(bytesPerSecond);
    if (this.#isOpen && setsockopt(this.fd, SOL_SOCKET, SO_MAX_PACING_RATE, value, value.byteLength) !== 0)
      throw systemCallError("setsockopt");
  }

  /** Only after the worker said that it has ended. */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    closeDescriptor(this.fd);
  }
}
