import { constants } from "node:os";
import { PAGE_BYTES } from "@precopy/protocol";
import { declare, errno, systemCallError } from "./library.js";
import { isRetry } from "./socket.js";
import type { AddressRange } from "./userfaultfd.js";
import { openUserfaultfd } from "./userfaultfd.js";

const ioctl = declare("int ioctl(int fd, unsigned long request, void *argument)");
const closeDescriptor = declare("int close(int fd)");
const readInto = declare("long read(int fd, void *buffer, size_t bytes)");
const writeFrom = declare("long write(int fd, void *buffer, size_t bytes)");
const eventfd = declare("int eventfd(unsigned int initial, int flags)");
const pollDescriptors = declare("int poll(void *descriptors, unsigned long count, int timeoutMs)");

const UFFD_FEATURE_THREAD_ID = 1n << 8n;
const UFFDIO_REGISTER = 0xc020aa00;
const UFFDIO_REGISTER_MODE_MISSING = 1n;
const UFFDIO_UNREGISTER = 0x8010aa01;
const UFFDIO_WAKE = 0x8010aa02;
const UFFDIO_COPY = 0xc028aa03;
const UFFDIO_ZEROPAGE = 0xc020aa04;
const UFFD_EVENT_PAGEFAULT = 0x12;
const MESSAGE_BYTES = 32; // struct uffd_msg: event u8 at 0, address u64 at 16, thread u32 at 24
const MESSAGES = 64;
const EFD_NONBLOCK_CLOEXEC = 0x80800;
const POLLIN = 1;

/** Called for each thread that has stopped at a page: the page's address, and the thread's number for the system. */
export type VisitFault = (address: number, thread: number) => void;

/**
 * Stops every thread of this process that touches a page of these ranges that is not there, until somebody places it (userfaultfd in missing
 * mode, user mode only: a system call on such a page fails with EFAULT). Held by one thread; others place pages through `descriptor`.
 * @see Documentation/admin-guide/mm/userfaultfd.rst of Linux.
 */
export class UserFaults {
  readonly descriptor: number;
  readonly #ranges: readonly AddressRange[];
  #isOpen = true;

  /** @param ranges without huge pages: one store would make 512 pages present. @throws {MigrationError} ERR_SYSTEM_CALL where the kernel refuses any part of it. */
  constructor(ranges: readonly AddressRange[]) {
    this.#ranges = ranges;
    this.descriptor = openUserfaultfd(UFFD_FEATURE_THREAD_ID);
    try {
      for (const { address, bytes } of ranges) {
        const argument = new BigUint64Array([address, BigInt(bytes), UFFDIO_REGISTER_MODE_MISSING, 0n]);
        if (ioctl(this.descriptor, UFFDIO_REGISTER, argument) !== 0) throw systemCallError("UFFDIO_REGISTER");
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * Lets go of the ranges. A thread that waits for a page goes on, on a page of zeros: so only when nothing is missing any more, or when every
   * thread that may wait was told to end.
   */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    for (const { address, bytes } of this.#ranges) ioctl(this.descriptor, UFFDIO_UNREGISTER, new BigUint64Array([address, BigInt(bytes)]));
    closeDescriptor(this.descriptor);
  }
}

/** The faults of one UserFaults, as one thread reads them. */
export class FaultReader {
  readonly #descriptor: number;
  readonly #messages = Buffer.alloc(MESSAGES * MESSAGE_BYTES);

  constructor(descriptor: number) {
    this.#descriptor = descriptor;
  }

  /** Visits the faults that wait, without blocking. @throws {MigrationError} ERR_SYSTEM_CALL */
  read(visit: VisitFault): void {
    for (;;) {
      const bytes = readInto(this.#descriptor, this.#messages, this.#messages.byteLength);
      if (bytes < 0) {
        if (isRetry()) return;
        throw systemCallError("read of faults");
      }
      for (let at = 0; at + MESSAGE_BYTES <= bytes; at += MESSAGE_BYTES) {
        if (this.#messages[at] !== UFFD_EVENT_PAGEFAULT) continue;
        const address = this.#messages.readUInt32LE(at + 20) * 2 ** 32 + this.#messages.readUInt32LE(at + 16);
        visit(address - (address % PAGE_BYTES), this.#messages.readUInt32LE(at + 24));
      }
      if (bytes < this.#messages.byteLength) return;
    }
  }
}

/** Places whole pages where they are missing, from any thread; of two that place one page the first wins. */
export class PagePlacing {
  readonly #descriptor: number;
  readonly #argument = new BigUint64Array(5);
  readonly #results = new BigInt64Array(this.#argument.buffer);

  constructor(descriptor: number) {
    this.#descriptor = descriptor;
  }

  /**
   * Copies pages in and wakes whoever waits for them. @param address of the first page. @param from where the bytes are.
   * @returns bytes that were placed, from the first on; 0 if that page was there already. @throws {MigrationError} ERR_SYSTEM_CALL
   */
  copy(address: number, from: number, bytes: number): number {
    return this.#place("UFFDIO_COPY", UFFDIO_COPY, 4, bytes, () => {
      this.#argument[0] = BigInt(address);
      this.#argument[1] = BigInt(from);
      this.#argument[2] = BigInt(bytes);
      this.#argument[3] = 0n;
    });
  }

  /** Pages of zeros, as `copy`. @throws {MigrationError} ERR_SYSTEM_CALL */
  zero(address: number, bytes: number): number {
    return this.#place("UFFDIO_ZEROPAGE", UFFDIO_ZEROPAGE, 3, bytes, () => {
      this.#argument[0] = BigInt(address);
      this.#argument[1] = BigInt(bytes);
      this.#argument[2] = 0n;
    });
  }

  /** @param at word in which the kernel says how much it placed. */
  #place(name: string, request: number, at: number, bytes: number, fill: () => void): number {
    for (;;) {
      fill();
      this.#argument[at] = 0n;
      if (ioctl(this.#descriptor, request, this.#argument) === 0) return bytes;
      const number = errno();
      const done = Number(this.#results[at]);
      if (done > 0) return done; // it stopped at a page that was there
      if (number === constants.errno.EEXIST) return 0;
      if (number !== constants.errno.EAGAIN && number !== constants.errno.EINTR) throw systemCallError(name);
    }
  }

  /** Lets threads go on that wait for a page which is there by now. */
  wake(address: number, bytes: number): void {
    this.#argument[0] = BigInt(address);
    this.#argument[1] = BigInt(bytes);
    ioctl(this.#descriptor, UFFDIO_WAKE, this.#argument);
  }
}

/** A thread's bell: whoever rings it ends its `waitReadable`. */
export class Bell {
  readonly descriptor: number;
  readonly #word = new BigUint64Array([1n]);

  /** @param descriptor of a bell that another thread made. @throws {MigrationError} ERR_SYSTEM_CALL */
  constructor(descriptor?: number) {
    this.descriptor = descriptor ?? eventfd(0, EFD_NONBLOCK_CLOEXEC);
    if (this.descriptor < 0) throw systemCallError("eventfd");
  }

  ring(): void {
    this.#word[0] = 1n;
    writeFrom(this.descriptor, this.#word, 8);
  }

  /** It does not ring any more. */
  quiet(): void {
    readInto(this.descriptor, this.#word, 8);
  }

  close(): void {
    closeDescriptor(this.descriptor);
  }
}

/** Waits until one of some descriptors can be read, or is broken. */
export class Poll {
  readonly #descriptors: Int32Array;
  readonly #halves: Int16Array;

  constructor(descriptors: readonly number[]) {
    this.#descriptors = new Int32Array(descriptors.flatMap((fd) => [fd, POLLIN])); // struct pollfd: fd i32, events i16, revents i16
    this.#halves = new Int16Array(this.#descriptors.buffer);
  }

  /** False if `timeoutMs` passed. @throws {MigrationError} ERR_SYSTEM_CALL */
  wait(timeoutMs: number): boolean {
    const count = this.#descriptors.length / 2;
    const found = pollDescriptors(this.#descriptors, count, timeoutMs);
    if (found < 0 && !isRetry()) throw systemCallError("poll");
    return found > 0;
  }

  /** Whether the descriptor at this place was ready at the end of the last wait. */
  isReady(at: number): boolean {
    return this.#halves[4 * at + 3] !== 0;
  }
}
