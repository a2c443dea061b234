import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BROADCAST_MAC, MigrationError, PAGE_BYTES, macOf } from "@precopy/protocol";
import { Bitmap } from "../bitmap.js";
import { BarrierDirtyLog, allocateBarrier } from "../dirty-log-barrier.js";
import { GuestMemory, SegmentPool } from "../guest-memory.js";
import {
  LEDGER_CLIENTS_MAX,
  LEDGER_REGION_BYTES,
  LEDGER_WINDOW_IDS,
  LedgerKind,
  decodeLedgerFrame,
  encodeLedgerFrame,
} from "../ledger-frames.js";
import type { LedgerFrame } from "../ledger-frames.js";
import { MemoryAccess } from "../memory-access.js";
import { NIC_BYTES, NicDriver, NicRings, RING_SLOTS } from "../nic-ring.js";
import type { Program, WorkloadContext } from "../workload.js";
import ledger from "./ledger.js";

const MAC = macOf("guest");
const CLIENT_MAC = macOf("client 1");
const BYTES = NIC_BYTES + LEDGER_REGION_BYTES;
const REGION = { start: NIC_BYTES, bytes: LEDGER_REGION_BYTES };
const pool = new SegmentPool();

type Asked = Partial<LedgerFrame> & { readonly id: number };

/** A guest with a ledger, its card driven from outside as the device would. */
class Bench {
  readonly memory = GuestMemory.allocate(BYTES, pool);
  readonly barrier;
  readonly rings: NicRings;
  readonly context: WorkloadContext;
  program: Program;

  constructor(hasBarrier: boolean) {
    this.barrier = hasBarrier ? allocateBarrier(this.memory.pages) : undefined;
    const access = new MemoryAccess(this.memory, this.barrier);
    this.rings = new NicRings(access, 0);
    this.context = {
      vcpu: 0,
      options: { mac: MAC },
      region: REGION,
      memory: access,
      segments: this.memory.segments,
      nic: new NicDriver(access, 0, () => {}),
      now: () => 0,
    };
    this.program = ledger.create(this.context);
  }

  request(asked: Asked): void {
    const frame = { targetMac: MAC, sourceMac: CLIENT_MAC, kind: LedgerKind.Apply, client: 1, value: 1, ...asked };
    assert.ok(this.rings.deliver(encodeLedgerFrame(frame)));
  }

  reply(): LedgerFrame | undefined {
    const frame = this.rings.takeSent();
    return frame === undefined ? undefined : decodeLedgerFrame(frame);
  }

  ask(asked: Asked): LedgerFrame | undefined {
    this.request(asked);
    this.program.step();
    return this.reply();
  }

  apply(id: number, client = 1): number | "refused" {
    const reply = this.ask({ id, client });
    assert.equal(reply?.id, id);
    return reply.kind === LedgerKind.Applied ? reply.value : "refused";
  }

  counter(): number {
    return this.ask({ id: 1, kind: LedgerKind.Read })!.value;
  }
}

for (const hasBarrier of [true, false])
  describe(hasBarrier ? "with the barrier log" : "without a barrier", () => {
    it("a request counts once however often it is repeated, in whatever order, and always gets its first result", () => {
      const bench = new Bench(hasBarrier);
      const results = [3, 1, 2].map((id) => bench.apply(id));
      assert.deepEqual(results, [1, 2, 3]);
      for (const [at, id] of [3, 1, 2, 2, 1, 3].entries()) assert.equal(bench.apply(id), [1, 2, 3, 3, 2, 1][at]);
      assert.equal(bench.counter(), 3);
    });

    it("an id whose slot a later one took is refused and not applied again", () => {
      const bench = new Bench(hasBarrier);
      bench.apply(5);
      assert.equal(bench.apply(5 + LEDGER_WINDOW_IDS), 2);
      assert.equal(bench.apply(5), "refused");
      assert.equal(bench.apply(6), 3);
      assert.equal(bench.counter(), 3);
    });

    it("clients have ids of their own, and one beyond the eighth is refused and not applied", () => {
      const bench = new Bench(hasBarrier);
      for (let client = 0; client < LEDGER_CLIENTS_MAX; client++) assert.equal(bench.apply(1, client), client + 1);
      assert.equal(bench.apply(1, 99), "refused");
      for (let client = 0; client < LEDGER_CLIENTS_MAX; client++) assert.equal(bench.apply(1, client), client + 1);
      assert.equal(bench.counter(), LEDGER_CLIENTS_MAX);
    });

    it("a fresh program on the same memory goes on as if nothing had happened: all state is there", () => {
      const bench = new Bench(hasBarrier);
      for (let id = 1; id <= 40; id++) bench.apply(id);
      assert.equal(bench.program.save(), null);
      bench.program = ledger.create(bench.context);
      bench.program.load(null);
      assert.equal(bench.apply(17), 17);
      assert.equal(bench.apply(41), 41);
    });
  });

it("every page it writes is in the dirty log, and no other", () => {
  const bench = new Bench(true);
  const log = new BarrierDirtyLog(bench.barrier!);
  log.start(new Bitmap(bench.memory.pages));
  const before = bench.memory.views[0]!.slice();
  for (const id of [1, 600, 5000, 65_536]) bench.apply(id);
  const dirty = new Bitmap(bench.memory.pages);
  log.collect(dirty);
  for (let page = 0; page < bench.memory.pages; page++) {
    const bytes = (view: Uint8Array): Buffer => Buffer.from(view.slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES));
    if (!bytes(before).equals(bytes(bench.memory.views[0]!))) assert.ok(dirty.has(page), `page ${page} changed without a mark`);
    else assert.ok(!dirty.has(page) || page * PAGE_BYTES < NIC_BYTES, `page ${page} marked without a change`);
  }
});

it("amounts add up and the counter wraps at 2^32", () => {
  const bench = new Bench(false);
  assert.equal(bench.ask({ id: 1, value: 2 ** 32 - 1 })?.value, 2 ** 32 - 1);
  assert.equal(bench.ask({ id: 2, value: 3 })?.value, 2);
});

it("it answers to its own address and to broadcast, from its own address, and to nothing else", () => {
  const bench = new Bench(false);
  for (const targetMac of [MAC, BROADCAST_MAC]) {
    const reply = bench.ask({ id: 1, targetMac });
    assert.deepEqual([reply?.sourceMac, reply?.targetMac], [MAC, CLIENT_MAC]);
  }
  assert.equal(bench.ask({ id: 2, targetMac: macOf("another") }), undefined);
  for (const kind of [LedgerKind.Applied, LedgerKind.Value, LedgerKind.Refused]) assert.equal(bench.ask({ id: 3, kind }), undefined);
  bench.rings.deliver(new Uint8Array(3));
  bench.program.step();
  assert.equal(bench.reply(), undefined);
  assert.equal(bench.counter(), 1);
});

it("a step answers 16 frames at most and says whether there may be more", () => {
  const bench = new Bench(false);
  for (let id = 1; id <= 20; id++) bench.request({ id });
  assert.equal(bench.program.step(), 0);
  const answered = (): number => {
    let replies = 0;
    while (bench.reply() !== undefined) replies++;
    return replies;
  };
  assert.equal(answered(), 16);
  assert.ok(bench.program.step() > 100);
  assert.equal(answered(), 4);
});

it("with the transmit ring full it keeps the reply, receives nothing more, and goes on when there is room", () => {
  const bench = new Bench(false);
  for (let slot = 0; slot < RING_SLOTS; slot++) bench.context.nic?.send(new Uint8Array(60));
  bench.request({ id: 1 });
  bench.request({ id: 2 });
  for (let step = 0; step < 3; step++) assert.equal(bench.program.step(), 1);
  assert.equal(bench.context.memory.loadU32(REGION.start), 1, "the second is not applied");
  for (let slot = 0; slot < RING_SLOTS; slot++) bench.rings.takeSent();
  bench.program.step();
  assert.deepEqual([bench.reply()?.id, bench.reply()?.id], [1, 2]);
});

it("a reply that a pause loses is given again when the client repeats the request", () => {
  const bench = new Bench(false);
  for (let slot = 0; slot < RING_SLOTS; slot++) bench.context.nic?.send(new Uint8Array(60));
  bench.request({ id: 1 });
  bench.program.step();
  bench.program = ledger.create(bench.context);
  for (let slot = 0; slot < RING_SLOTS; slot++) bench.rings.takeSent();
  bench.program.step();
  assert.equal(bench.reply(), undefined, "so there is something to repeat");
  assert.equal(bench.apply(1), 1);
  assert.equal(bench.counter(), 1);
});

it("without a card it idles, and without its option or its region it is refused", () => {
  const { context } = new Bench(false);
  assert.ok(ledger.create({ ...context, nic: undefined, options: {} }).step() > 100);
  const isRefused = (error: unknown): boolean => error instanceof MigrationError && error.code === "ERR_PARAMETER";
  assert.throws(() => ledger.create({ ...context, options: {} }), isRefused);
  assert.throws(() => ledger.create({ ...context, region: { start: NIC_BYTES, bytes: LEDGER_REGION_BYTES - PAGE_BYTES } }), isRefused);
});
