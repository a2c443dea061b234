import { declare, systemCallError } from "./library.js";

const syscall = declare("long syscall(long number, long flags)");
const ioctl = declare("int ioctl(int fd, unsigned long request, void *argument)");
const closeDescriptor = declare("int close(int fd)");

const SYS_USERFAULTFD = process.arch === "arm64" ? 282 : 323;
const O_CLOEXEC = 0x80000;
const O_NONBLOCK = 0x800;
const UFFD_USER_MODE_ONLY = 1; // what an ordinary user may open; in async mode the kernel resolves its own faults all the same
const UFFD_API = 0xaan;
const UFFD_FEATURE_WP_ASYNC = 1n << 15n;
const UFFDIO_API = 0xc018aa3f;
const UFFDIO_REGISTER = 0xc020aa00;
const UFFDIO_REGISTER_MODE_WP = 2n;
const UFFDIO_WRITEPROTECT = 0xc018aa06;
const UFFDIO_WRITEPROTECT_MODE_WP = 1n;

/** A descriptor with these features, and only those that the kernel has. @throws {MigrationError} ERR_SYSTEM_CALL */
export function openUserfaultfd(features: bigint): number {
  const fd = syscall(SYS_USERFAULTFD, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY); // without O_NONBLOCK poll answers POLLERR
  if (fd < 0) throw systemCallError("userfaultfd");
  if (ioctl(fd, UFFDIO_API, new BigUint64Array([UFFD_API, features, 0n])) === 0) return fd;
  const error = systemCallError("UFFDIO_API");
  closeDescriptor(fd);
  throw error;
}

/** A range of memory in this process. */
export interface AddressRange {
  readonly address: bigint;
  readonly bytes: number;
}

/**
 * Write protection that the kernel lifts by itself at the first write to a page (UFFD_FEATURE_WP_ASYNC, Linux 6.7):
 * the page tables remember who wrote, and nobody has to answer faults. `close` lifts all of it.
 */
export class WriteProtection {
  readonly #fd: number;

  /** @throws {MigrationError} ERR_SYSTEM_CALL where the kernel refuses any part of it. */
  constructor(ranges: readonly AddressRange[]) {
    this.#fd = openUserfaultfd(UFFD_FEATURE_WP_ASYNC);
    try {
      for (const { address, bytes } of ranges) {
        const argument = new BigUint64Array([address, BigInt(bytes), UFFDIO_REGISTER_MODE_WP, 0n]);
        if (ioctl(this.#fd, UFFDIO_REGISTER, argument) !== 0) throw systemCallError("UFFDIO_REGISTER");
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * Protects all of it at once, memory included that nobody has touched: unlike after a scan, reading that does not count as writing.
   * @throws {MigrationError} ERR_SYSTEM_CALL
   */
  protectAll(ranges: readonly AddressRange[]): void {
    for (const { address, bytes } of ranges) {
      const argument = new BigUint64Array([address, BigInt(bytes), UFFDIO_WRITEPROTECT_MODE_WP]);
      if (ioctl(this.#fd, UFFDIO_WRITEPROTECT, argument) !== 0) throw systemCallError("UFFDIO_WRITEPROTECT");
    }
  }

  close(): void {
    closeDescriptor(this.#fd);
  }
}
