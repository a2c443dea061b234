import assert from "node:assert/strict";
import { mkdtempSync, openSync, readSync, readdirSync, rmSync, writeSync, closeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { setTimeout as delay, setImmediate as turn } from "node:timers/promises";
import { isMainThread, parentPort } from "node:worker_threads";
import { PAGE_BYTES } from "@precopy/protocol";
import { addressOf, declare, isLinuxAvailable } from "./library.js";
import { freePages } from "./memory.js";
import { NativeThread } from "./native-thread.js";
import { hostPageBytes } from "./pagemap-scan.js";
import { threadId } from "./thread-faults.js";
import { Bell, FaultReader, PagePlacing, Poll, UserFaults } from "./user-faults.js";

/** This file is also the thread that stops: it touches one page after another, and says of each what it holds. */
interface Order {
  readonly memory: SharedArrayBuffer;
  readonly pages: readonly number[];
  /** Undefined to read a page, else what to store at its first byte. */
  readonly store?: number;
  /** A bell to ring first, by its descriptor. */
  readonly ring?: number;
}
interface Touched {
  readonly page: number;
  readonly bytes: Uint8Array;
  readonly thread: number | undefined;
}
if (!isMainThread) {
  parentPort?.on("message", ({ memory, pages, store, ring }: Order) => {
    if (ring !== undefined) new Bell(ring).ring();
    const view = new Uint8Array(memory);
    for (const page of pages) {
      if (store === undefined) void view[page * PAGE_BYTES + PAGE_BYTES - 1];
      else view[page * PAGE_BYTES] = store;
      const touched: Touched = { page, bytes: view.slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES), thread: threadId() };
      parentPort?.postMessage(touched);
    }
  });
  parentPort?.postMessage("up");
}

const PAGES = 64;
const scratch = isMainThread ? mkdtempSync(join(tmpdir(), "precopy-faults-")) : "";
if (isMainThread) process.once("exit", () => rmSync(scratch, { recursive: true }));

/** Page-aligned shared memory that nobody has touched, as a guest's. */
function newMemory(bytes: number): SharedArrayBuffer {
  // @types/node 20 does not declare WebAssembly; its Memory is a constructor with a shared buffer (ECMAScript's JavaScript Interface).
  const wasm = Reflect.get(globalThis, "WebAssembly") as { Memory: new (limits: object) => { buffer: SharedArrayBuffer } };
  const units = bytes / 65536;
  return new wasm.Memory({ initial: units, maximum: units, shared: true }).buffer;
}

/** A thread that touches missing pages, and what it said so far. */
class Toucher {
  readonly thread = new NativeThread(new URL(import.meta.url));
  readonly touched: Touched[] = [];

  constructor() {
    this.thread.on("message", (message: Touched | "up") => message !== "up" && this.touched.push(message));
  }

  touch(order: Order): void {
    this.thread.postMessage(order);
  }
}

/** Memory whose pages are missing, and threads that may stop there. Nothing here may touch it but through `look`. */
class Missing {
  readonly memory = newMemory(PAGES * PAGE_BYTES);
  readonly view = new Uint8Array(this.memory);
  readonly start = Number(addressOf(this.view));
  readonly range = { address: BigInt(this.start), bytes: this.view.byteLength };
  readonly faults = new UserFaults([this.range]);
  readonly placing = new PagePlacing(this.faults.descriptor);
  readonly poll = new Poll([this.faults.descriptor]);
  readonly threads: Toucher[] = [];
  readonly #reader = new FaultReader(this.faults.descriptor);
  readonly #file = openSync(join(scratch, "page"), "w+");

  addressOf(page: number): number {
    return this.start + page * PAGE_BYTES;
  }

  /** A page's bytes, undefined if it is missing: a system call fails there where a load would stop this thread for ever. */
  look(page: number): Buffer | undefined {
    try {
      writeSync(this.#file, this.view, page * PAGE_BYTES, PAGE_BYTES, 0);
    } catch (error) {
      assert.equal(Reflect.get(Object(error), "code"), "EFAULT");
      return undefined;
    }
    const bytes = Buffer.alloc(PAGE_BYTES);
    assert.equal(readSync(this.#file, bytes, 0, PAGE_BYTES, 0), PAGE_BYTES);
    return bytes;
  }

  /** Starts a thread that touches these pages. */
  async touch(order: Omit<Order, "memory">): Promise<Toucher> {
    const toucher = new Toucher();
    this.threads.push(toucher);
    await toucher.thread.up();
    toucher.touch({ memory: this.memory, ...order });
    return toucher;
  }

  /** The next faults: page and thread of each. None if `ms` pass without one. */
  async faulted(ms = 5000): Promise<{ page: number; thread: number }[]> {
    const found: { page: number; thread: number }[] = [];
    for (const until = performance.now() + ms; found.length === 0 && performance.now() < until; await turn())
      if (this.poll.wait(5)) this.#reader.read((address, thread) => found.push({ page: (address - this.start) / PAGE_BYTES, thread }));
    return found;
  }

  /** What a thread says of its next page; fails the test if it says nothing. */
  async told(toucher: Toucher): Promise<Touched> {
    for (const until = performance.now() + 5000; toucher.touched.length === 0; await delay(1))
      assert.ok(performance.now() < until, "the thread did not go on within 5 s");
    return toucher.touched.shift()!; // looked at above
  }

  async end(): Promise<void> {
    await Promise.all(this.threads.map(({ thread }) => thread.terminate(() => this.faults.close())));
    this.faults.close();
    closeSync(this.#file);
    freePages(this.range.address, this.range.bytes);
  }
}
async function withMissing(use: (missing: Missing) => void | Promise<void>): Promise<void> {
  const missing = new Missing();
  try {
    await use(missing);
  } finally {
    await missing.end();
  }
}

/** Pages of bytes that tell from where they are. */
function source(pages: number, seed = 1): { readonly bytes: Buffer; readonly address: number } {
  const bytes = Buffer.alloc(pages * PAGE_BYTES);
  for (let at = 0; at < bytes.byteLength; at++) bytes[at] = 1 + ((at * 31 + (at >>> 12) * 7 + seed * 13) % 251);
  return { bytes, address: Number(addressOf(bytes)) };
}
const pageOf = (bytes: Buffer, page: number): Buffer => bytes.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
const ZEROS = Buffer.alloc(PAGE_BYTES);
const descriptors = (): number => readdirSync("/proc/self/fd").length;

function whyNot(): string | undefined {
  if (!isLinuxAvailable) return `no system calls on ${process.platform} ${process.arch}`;
  if (hostPageBytes() !== PAGE_BYTES) return `host pages of ${hostPageBytes()} B`;
  try {
    const view = new Uint8Array(newMemory(65536));
    new UserFaults([{ address: addressOf(view), bytes: view.byteLength }]).close();
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

if (isMainThread) {
  const why = whyNot();
  const skip = why === undefined ? false : `no faults for user space here: ${why}`;
  const options = { skip, timeout: 300_000 };

  describe("a thread at a missing page", options, () => {
    it("stops there, is told of with its number and the page's address, and goes on with the bytes that are placed, all of them", () =>
      withMissing(async (missing) => {
        const reader = await missing.touch({ pages: [5] });
        const [fault, ...more] = await missing.faulted();
        assert.deepEqual([fault?.page, more], [5, []]);
        await delay(50); // the time is what is tested
        assert.deepEqual(reader.touched, [], "it went on before anything was placed");
        const { bytes, address } = source(1);
        assert.equal(missing.placing.copy(missing.addressOf(5), address, PAGE_BYTES), PAGE_BYTES);
        const touched = await missing.told(reader);
        assert.deepEqual(Buffer.from(touched.bytes), bytes);
        assert.equal(fault?.thread, touched.thread);
      }));

    it("that writes stops as well, and its bytes come on top of those that are placed", () =>
      withMissing(async (missing) => {
        const writer = await missing.touch({ pages: [PAGES - 1], store: 255 });
        assert.equal((await missing.faulted())[0]?.page, PAGES - 1);
        const { bytes, address } = source(1);
        missing.placing.copy(missing.addressOf(PAGES - 1), address, PAGE_BYTES);
        const { bytes: found } = await missing.told(writer);
        bytes[0] = 255;
        assert.deepEqual(Buffer.from(found), bytes);
        assert.deepEqual(missing.look(PAGES - 1), bytes);
      }));

    it("is let go on by zero(), on a page of zeros that counts as placed", () =>
      withMissing(async (missing) => {
        const reader = await missing.touch({ pages: [7] });
        await missing.faulted();
        assert.equal(missing.placing.zero(missing.addressOf(7), PAGE_BYTES), PAGE_BYTES);
        assert.deepEqual(Buffer.from((await missing.told(reader)).bytes), ZEROS);
        assert.equal(missing.placing.copy(missing.addressOf(7), source(1).address, PAGE_BYTES), 0, "it is there");
      }));

    it("goes on with the next page by a fault of its own, to the last one of many", () =>
      withMissing(async (missing) => {
        const pages = Array.from({ length: PAGES }, (_, at) => (at * 29) % PAGES);
        const reader = await missing.touch({ pages });
        const { bytes, address } = source(PAGES);
        for (const page of pages) {
          assert.deepEqual(
            (await missing.faulted()).map((fault) => fault.page),
            [page],
          );
          missing.placing.copy(missing.addressOf(page), address + page * PAGE_BYTES, PAGE_BYTES);
          assert.deepEqual(Buffer.from((await missing.told(reader)).bytes), pageOf(bytes, page));
        }
        assert.deepEqual(await missing.faulted(20), []);
      }));

    it("is one of several that a single copy lets go on, each told of once", () =>
      withMissing(async (missing) => {
        const readers = await Promise.all([1, 2, 3].map(() => missing.touch({ pages: [9] })));
        const told: number[] = [];
        while (told.length < 3) {
          const faults = await missing.faulted();
          assert.ok(faults.length > 0, "a fault was not told of");
          for (const { page, thread } of faults) {
            assert.equal(page, 9);
            told.push(thread);
          }
        }
        const { bytes, address } = source(1);
        missing.placing.copy(missing.addressOf(9), address, PAGE_BYTES);
        const touched = await Promise.all(readers.map((reader) => missing.told(reader)));
        for (const one of touched) assert.deepEqual(Buffer.from(one.bytes), bytes);
        assert.deepEqual(
          told.sort((a, b) => a - b),
          touched.map(({ thread }) => thread ?? 0).sort((a, b) => a - b),
        );
      }));

    it("does not go on when other pages are placed, and does by wake() when its own was placed by one who woke nobody", () =>
      withMissing(async (missing) => {
        const ioctl = declare("int ioctl(int fd, unsigned long request, void *argument)");
        const reader = await missing.touch({ pages: [3] });
        await missing.faulted();
        const { bytes, address } = source(1);
        missing.placing.copy(missing.addressOf(2), address, PAGE_BYTES);
        missing.placing.copy(missing.addressOf(4), address, PAGE_BYTES);
        missing.placing.wake(missing.addressOf(2), PAGE_BYTES);
        const DONTWAKE = 1n;
        const quietly = new BigUint64Array([BigInt(missing.addressOf(3)), BigInt(address), BigInt(PAGE_BYTES), DONTWAKE, 0n]);
        assert.equal(ioctl(missing.faults.descriptor, 0xc028aa03, quietly), 0);
        await delay(50); // the time is what is tested
        assert.deepEqual(reader.touched, []);
        missing.placing.wake(missing.addressOf(3), PAGE_BYTES);
        assert.deepEqual(Buffer.from((await missing.told(reader)).bytes), bytes);
      }));

    it("that is woken while its page is missing still stops anew, and is told of again", () =>
      withMissing(async (missing) => {
        const reader = await missing.touch({ pages: [3] });
        const [first] = await missing.faulted();
        missing.placing.wake(missing.addressOf(3), PAGE_BYTES);
        const [second] = await missing.faulted();
        assert.deepEqual(second, first);
        assert.deepEqual(reader.touched, []);
      }));

    it("goes on by close() on a page of zeros, silently: so nobody may close while a page is needed", () =>
      withMissing(async (missing) => {
        const reader = await missing.touch({ pages: [3, 4] });
        await missing.faulted();
        missing.faults.close();
        for (const page of [3, 4]) {
          const touched = await missing.told(reader);
          assert.deepEqual([touched.page, Buffer.from(touched.bytes)], [page, ZEROS]);
        }
      }));

    it("cannot be ended before it is let go, and says nothing more if it was told to end first", () =>
      withMissing(async (missing) => {
        const reader = await missing.touch({ pages: [3, 4] });
        await missing.faulted();
        let isTold = false;
        const ended = reader.thread.terminate(() => {
          isTold = true;
        });
        const outcome = await Promise.race([ended.then(() => "ended"), delay(100, "stopped")]); // the time is what is tested
        assert.deepEqual([isTold, outcome], [true, "stopped"]);
        missing.faults.close();
        await ended;
        assert.deepEqual(reader.touched, [], "it computed with zeros that are not the guest's");
      }));

    it("ends by terminate() alone if that lets it go when it is bound to end", () =>
      withMissing(async (missing) => {
        const readers = await Promise.all([3, 4].map((page) => missing.touch({ pages: [page, page] })));
        for (let seen = 0; seen < 2; ) seen += (await missing.faulted()).length;
        let running = readers.length;
        const letGo = (): void => {
          if (--running === 0) missing.faults.close();
        };
        await Promise.all(readers.map(({ thread }) => thread.terminate(letGo)));
        assert.deepEqual(
          readers.map(({ touched }) => touched),
          [[], []],
        );
      }));
  });

  describe("PagePlacing", options, () => {
    it("places a page once: whoever comes second changes nothing and hears 0, be it bytes or zeros", () =>
      withMissing((missing) => {
        const [one, other] = [source(1, 1), source(1, 2)];
        const { placing } = missing;
        for (const [page, first, bytes] of [
          [1, () => placing.copy(missing.addressOf(1), one.address, PAGE_BYTES), one.bytes],
          [2, () => placing.zero(missing.addressOf(2), PAGE_BYTES), ZEROS],
        ] as const) {
          assert.equal(missing.look(page), undefined);
          assert.equal(first(), PAGE_BYTES);
          assert.equal(placing.copy(missing.addressOf(page), other.address, PAGE_BYTES), 0);
          assert.equal(placing.zero(missing.addressOf(page), PAGE_BYTES), 0);
          assert.deepEqual(missing.look(page), bytes);
        }
      }));

    it("keeps what was written to a page since it was placed, whoever places it again", () =>
      withMissing((missing) => {
        const { bytes, address } = source(1);
        missing.placing.copy(missing.addressOf(6), address, PAGE_BYTES);
        missing.view[6 * PAGE_BYTES + 100] = bytes[100] = 255; // it is there
        missing.placing.copy(missing.addressOf(6), source(1, 2).address, PAGE_BYTES);
        missing.placing.zero(missing.addressOf(6), PAGE_BYTES);
        assert.deepEqual(missing.look(6), bytes);
      }));

    it("places a run up to the first page that is there and says how much, for every run over every set of 6 pages", () =>
      withMissing((missing) => {
        const SIX = 6;
        const [before, after] = [source(SIX, 1), source(SIX, 2)];
        for (const kind of ["copy", "zero"] as const)
          for (let there = 0; there < 1 << SIX; there++)
            for (let first = 0; first < SIX; first++)
              for (let pages = 1; pages <= SIX - first; pages++) {
                freePages(missing.range.address, missing.range.bytes); // all are missing again
                const isThere = (page: number): boolean => ((there >>> page) & 1) === 1;
                for (let page = 0; page < SIX; page++)
                  if (isThere(page)) missing.placing.copy(missing.addressOf(page), before.address + page * PAGE_BYTES, PAGE_BYTES);
                let free = 0;
                while (free < pages && !isThere(first + free)) free++;
                const at = missing.addressOf(first);
                const from = after.address + first * PAGE_BYTES;
                const placed =
                  kind === "copy" ? missing.placing.copy(at, from, pages * PAGE_BYTES) : missing.placing.zero(at, pages * PAGE_BYTES);
                const what = `${kind} of ${first}+${pages} over ${there.toString(2)}`;
                assert.equal(placed, free * PAGE_BYTES, what);
                for (let page = 0; page < SIX; page++) {
                  const isPlaced = page >= first && page < first + free;
                  const fresh = kind === "copy" ? pageOf(after.bytes, page) : ZEROS;
                  const expected = isThere(page) ? pageOf(before.bytes, page) : isPlaced ? fresh : undefined;
                  const found = missing.look(page);
                  assert.ok(expected === undefined ? found === undefined : found?.equals(expected), `${what}: page ${page}`);
                }
              }
      }));

    it("refuses with ERR_SYSTEM_CALL bytes that are nowhere, memory that nobody watches, and everything after close()", () =>
      withMissing((missing) => {
        const { address } = source(1);
        const elsewhere = new Uint8Array(newMemory(65536));
        const { placing, faults } = missing;
        assert.throws(() => placing.copy(missing.addressOf(0), 4096, PAGE_BYTES), {
          code: "ERR_SYSTEM_CALL",
          message: "UFFDIO_COPY: EFAULT",
        });
        assert.throws(() => placing.copy(Number(addressOf(elsewhere)), address, PAGE_BYTES), { code: "ERR_SYSTEM_CALL" });
        assert.throws(() => placing.zero(Number(addressOf(elsewhere)), PAGE_BYTES), { code: "ERR_SYSTEM_CALL" });
        assert.throws(() => placing.copy(missing.addressOf(0) + 1, address, PAGE_BYTES), { message: "UFFDIO_COPY: EINVAL" });
        assert.equal(missing.look(0), undefined, "a page was placed all the same");
        faults.close();
        assert.throws(() => placing.copy(missing.addressOf(0), address, PAGE_BYTES), { code: "ERR_SYSTEM_CALL" });
        assert.ok(elsewhere.every((byte) => byte === 0));
      }));
  });

  describe("UserFaults", options, () => {
    it("stops threads only: a system call on a missing page fails with EFAULT, on one that is there it works, and nobody is told", () =>
      withMissing(async (missing) => {
        const zero = openSync("/dev/zero", "r");
        try {
          const into = (page: number): number => readSync(zero, missing.view, page * PAGE_BYTES, PAGE_BYTES, null);
          assert.throws(() => into(8), { code: "EFAULT" });
          assert.equal(missing.look(8), undefined);
          missing.placing.copy(missing.addressOf(8), source(1).address, PAGE_BYTES);
          assert.equal(into(8), PAGE_BYTES);
          assert.deepEqual(missing.look(8), ZEROS);
          assert.deepEqual(await missing.faulted(20), []);
        } finally {
          closeSync(zero);
        }
      }));

    it("makes no page missing that is there already, and those missing again that were freed", () => {
      const view = new Uint8Array(newMemory(65536));
      view[0] = 7;
      const range = { address: addressOf(view), bytes: view.byteLength };
      const faults = new UserFaults([range]);
      try {
        const placing = new PagePlacing(faults.descriptor);
        const { address } = source(1);
        assert.equal(placing.copy(Number(range.address), address, PAGE_BYTES), 0);
        assert.equal(view[0], 7);
        freePages(range.address, PAGE_BYTES);
        assert.equal(placing.copy(Number(range.address), address, PAGE_BYTES), PAGE_BYTES);
      } finally {
        faults.close();
      }
    });

    it("watches several ranges at once, and none of them after close()", async () => {
      const memories = [1, 2].map(() => newMemory(65536));
      const ranges = memories.map((memory) => ({ address: addressOf(new Uint8Array(memory)), bytes: memory.byteLength }));
      const faults = new UserFaults(ranges);
      const poll = new Poll([faults.descriptor]);
      const reader = new FaultReader(faults.descriptor);
      const placing = new PagePlacing(faults.descriptor);
      const toucher = new Toucher();
      try {
        await toucher.thread.up();
        const { bytes, address } = source(1);
        for (const [at, memory] of memories.entries()) {
          toucher.touch({ memory, pages: [3] });
          let found = -1;
          for (const until = performance.now() + 5000; found < 0 && performance.now() < until; await turn())
            if (poll.wait(5)) reader.read((where) => (found = where));
          assert.equal(found, Number(ranges[at]?.address) + 3 * PAGE_BYTES);
          placing.copy(found, address, PAGE_BYTES);
          while (toucher.touched.length <= at) await delay(1);
          assert.deepEqual(Buffer.from(toucher.touched[at]!.bytes), bytes);
        }
      } finally {
        await toucher.thread.terminate(() => faults.close());
      }
      for (const memory of memories) assert.equal(new Uint8Array(memory)[5 * PAGE_BYTES], 0); // stops here for ever if it is watched still
    });

    it("refuses what is no memory, no whole page, or somebody else's with ERR_SYSTEM_CALL, and leaves neither a descriptor nor a watched range", () => {
      const view = new Uint8Array(newMemory(65536));
      const good = { address: addressOf(view), bytes: view.byteLength };
      new UserFaults([good]).close(); // whatever this loads is loaded
      const before = descriptors();
      for (const [bad, message] of [
        [{ address: 4096n, bytes: PAGE_BYTES }, /^UFFDIO_REGISTER: /],
        [{ address: good.address + 1n, bytes: PAGE_BYTES }, "UFFDIO_REGISTER: EINVAL"],
        [{ address: good.address, bytes: 100 }, "UFFDIO_REGISTER: EINVAL"],
      ] as const) {
        assert.throws(() => new UserFaults([good, bad]), { code: "ERR_SYSTEM_CALL", message });
        assert.equal(view[40_000], 0); // stops here for ever if it is watched still
        freePages(good.address, good.bytes);
      }
      const holder = new UserFaults([good]);
      assert.throws(() => new UserFaults([good]), { code: "ERR_SYSTEM_CALL", message: "UFFDIO_REGISTER: EBUSY" });
      const { address } = source(1);
      assert.equal(new PagePlacing(holder.descriptor).copy(Number(good.address), address, PAGE_BYTES), PAGE_BYTES, "its holder lost it");
      holder.close();
      assert.equal(descriptors(), before);
    });

    it("closed once stays closed: a descriptor that got the same number is not closed by it", () => {
      const view = new Uint8Array(newMemory(65536));
      const faults = new UserFaults([{ address: addressOf(view), bytes: view.byteLength }]);
      faults.close();
      const files: number[] = [];
      do files.push(openSync("/dev/null", "r"));
      while (files.at(-1) !== faults.descriptor && files.length < 1000);
      faults.close();
      assert.ok(files.includes(faults.descriptor), "the number was not used again, so this shows nothing");
      for (const file of files) closeSync(file); // EBADF if one is closed already
    });
  });

  describe("Poll", options, () => {
    it("is ready at a thread's fault, not before it and not after it was read", () =>
      withMissing(async (missing) => {
        const started = performance.now();
        assert.equal(missing.poll.wait(30), false);
        assert.ok(performance.now() - started >= 29, "it did not wait");
        assert.equal(missing.poll.isReady(0), false);
        await missing.touch({ pages: [1] });
        while (!missing.poll.wait(5)) await turn();
        assert.equal(missing.poll.isReady(0), true);
        assert.equal(missing.poll.wait(0), true, "it is told until somebody reads it");
        assert.equal((await missing.faulted()).length, 1);
        assert.equal(missing.poll.wait(0), false);
        assert.equal(missing.poll.isReady(0), false);
      }));

    it("can wait for faults only because their descriptor does not block: one that does is ready at once, and for ever", () => {
      const syscall = declare("long syscall(long number, long flags)");
      const close = declare("int close(int fd)");
      const ioctl = declare("int ioctl(int fd, unsigned long request, void *argument)");
      const USER_MODE_ONLY = 1;
      const blocking = syscall(process.arch === "arm64" ? 282 : 323, USER_MODE_ONLY);
      assert.ok(blocking >= 0);
      try {
        assert.equal(ioctl(blocking, 0xc018aa3f, new BigUint64Array([0xaan, 0n, 0n])), 0);
        assert.equal(new Poll([blocking]).wait(0), true);
      } finally {
        close(blocking);
      }
    });

    it("tells which of several descriptors is ready, and leaves the others alone", () => {
      const bells = [new Bell(), new Bell(), new Bell()];
      const poll = new Poll(bells.map(({ descriptor }) => descriptor));
      try {
        for (let rung = 0; rung < 1 << bells.length; rung++) {
          bells.forEach((bell, at) => (rung >>> at) & 1 && bell.ring());
          assert.equal(poll.wait(0), rung !== 0);
          bells.forEach((bell, at) => {
            assert.equal(poll.isReady(at), ((rung >>> at) & 1) === 1, `bell ${at} of ${rung.toString(2)}`);
            bell.quiet();
          });
        }
      } finally {
        for (const bell of bells) bell.close();
      }
    });

    it("calls a descriptor that is closed ready, so that whoever reads it finds out", () => {
      const bell = new Bell();
      const poll = new Poll([bell.descriptor]);
      bell.close();
      assert.equal(poll.wait(1000), true);
      assert.equal(poll.isReady(0), true);
    });
  });

  describe("FaultReader", options, () => {
    it("visits nobody where no thread waits, and does not block", () =>
      withMissing((missing) => {
        const started = performance.now();
        new FaultReader(missing.faults.descriptor).read(() => assert.fail("a fault that is none"));
        assert.ok(performance.now() - started < 1000);
      }));

    it("throws ERR_SYSTEM_CALL for what holds no faults", () =>
      assert.throws(() => new FaultReader(1 << 20).read(() => {}), { code: "ERR_SYSTEM_CALL", message: "read of faults: EBADF" }));
  });

  describe("Bell", options, () => {
    it("rung by another thread ends a wait; however often it rang, it is quiet after one quiet()", () =>
      withMissing(async (missing) => {
        const bell = new Bell();
        const poll = new Poll([bell.descriptor]);
        try {
          bell.quiet(); // of a quiet bell; does not block
          assert.equal(poll.wait(0), false);
          await missing.touch({ pages: [], ring: bell.descriptor });
          assert.equal(poll.wait(5000), true);
          for (let time = 0; time < 10; time++) bell.ring();
          bell.quiet();
          assert.equal(poll.wait(0), false);
          bell.ring();
          assert.equal(poll.wait(0), true, "it rings after it was quiet");
        } finally {
          bell.close();
        }
      }));
  });
}
