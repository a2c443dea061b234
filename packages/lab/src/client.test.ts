import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import type { RemoteInfo } from "node:dgram";
import { once } from "node:events";
import { it } from "node:test";
import type { TestContext } from "node:test";
import {
  GuestMemory,
  LEDGER_REGION_BYTES,
  LedgerKind,
  MemoryAccess,
  NIC_BYTES,
  Nic,
  NicDriver,
  SegmentPool,
  UdpBackend,
  WorkloadCatalogue,
  decodeLedgerFrame,
  encodeLedgerFrame,
} from "@precopy/guest";
import type { LedgerFrame, Workload } from "@precopy/guest";
import { DatagramKind, MigrationError, PAGE_BYTES, decodeDatagram, encodeDatagram, guestTag, macOf } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import { LedgerClient } from "./client.js";
import { Switch } from "./switch.js";

const ID = "guest";
const MAC = macOf(ID);
const TAG = guestTag(ID);
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

async function startSwitch(t: TestContext): Promise<Switch> {
  const lab = await Switch.listen({ host: "127.0.0.1", port: 0 });
  t.after(() => lab.close());
  return lab;
}

/** What a ledger does, to be got wrong by one function: counter values to answer an Apply with, none for silence. */
class FakeLedger {
  counter = 1000;
  readonly #results = new Map<number, number>();
  /** How often each id was asked for. */
  readonly asked = new Map<number, number>();
  answer: (id: number, asked: number) => readonly number[] | "refused" = (id) => [this.applyOnce(id)];

  applyOnce(id: number): number {
    const result = this.#results.get(id) ?? ++this.counter;
    this.#results.set(id, result);
    return result;
  }

  replies(request: LedgerFrame | undefined): readonly Buffer[] {
    if (request === undefined) return [];
    const reply = (kind: LedgerKind, value: number): Buffer =>
      encodeLedgerFrame({ ...request, targetMac: request.sourceMac, sourceMac: MAC, kind, value });
    if (request.kind === LedgerKind.Read) return [reply(LedgerKind.Value, this.counter)];
    const asked = (this.asked.get(request.id) ?? 0) + 1;
    this.asked.set(request.id, asked);
    const answer = this.answer(request.id, asked);
    return answer === "refused" ? [reply(LedgerKind.Refused, 0)] : answer.map((value) => reply(LedgerKind.Applied, value));
  }
}

/** A fake ledger at a port of a real switch. */
async function startLedger(t: TestContext) {
  const lab = await startSwitch(t);
  const backend = await UdpBackend.open(lab.address, TAG);
  t.after(() => backend.close());
  const ledger = new FakeLedger();
  backend.start(1, (frame) => ledger.replies(decodeLedgerFrame(frame)).forEach((reply) => backend.send(reply)));
  return { lab, backend, ledger };
}
async function bench(t: TestContext) {
  const { lab, backend, ledger } = await startLedger(t);
  return { backend, ledger, client: await connect(t, lab.address) };
}
async function connect(t: TestContext, target: Address): Promise<LedgerClient> {
  const client = await LedgerClient.connect({ target, guestId: ID, connectTimeoutMs: 2000 });
  t.after(() => client.close());
  return client;
}
async function acknowledged(client: LedgerClient, count: number): Promise<void> {
  while (client.statistics().acknowledged < count) await turn();
}

it("with a sound ledger every request is applied once, whatever the counter was before, and the report says so", async (t) => {
  const { ledger, client } = await bench(t);
  await acknowledged(client, 60);
  const report = await client.finish({ timeoutMs: 10_000 });
  const { issued, lost, doubled, unanswered, refused, staleEpochAnswers, counter, isVerified } = report;
  assert.deepEqual(
    { lost, doubled, unanswered, refused, staleEpochAnswers, isVerified },
    { lost: 0, doubled: 0, unanswered: 0, refused: 0, staleEpochAnswers: 0, isVerified: true },
  );
  assert.ok(issued >= 60);
  assert.equal(report.acknowledged, issued);
  assert.equal(counter, 1000 + issued);
  assert.equal(counter, ledger.counter);
  assert.ok(report.p50Ms! > 0 && report.p50Ms! <= report.p99Ms!);
});

it("settles accounts as often as it is asked, and issues on in between", async (t) => {
  const { ledger, client } = await bench(t);
  await acknowledged(client, 20);
  const first = await client.settle({ timeoutMs: 10_000 });
  assert.ok(first.isVerified);
  await acknowledged(client, first.issued + 20);
  ledger.counter++; // an increment that nobody asked for
  const second = await client.settle({ timeoutMs: 10_000 });
  assert.deepEqual([second.lost, second.doubled, second.isVerified], [0, 1, false]);
  assert.equal(second.acknowledged, second.issued);
  await acknowledged(client, second.issued + 5);
});

it("requests fall due by the clock, not by answers, and a late event loop makes up for them", async (t) => {
  const { ledger, client } = await bench(t);
  ledger.answer = () => [];
  while (client.statistics().issued < 10) await turn();
  const { issued } = client.statistics();
  const until = performance.now() + 30;
  while (performance.now() < until); // a busy event loop is what is tested
  while (client.statistics().issued === issued) await turn();
  assert.ok(client.statistics().issued >= issued + 29, "30 ms late, so 30 were due at once");
});

it("unanswered requests are repeated by id, at most every 50 ms, until they are answered, and count once", async (t) => {
  const { ledger, client } = await bench(t);
  ledger.answer = (id, asked) => (asked === 3 ? [ledger.applyOnce(id)] : []);
  await acknowledged(client, 5);
  assert.ok(client.mark().longestGapMs >= 99, "the first answer takes two repeats");
  const report = await client.finish({ timeoutMs: 10_000 });
  assert.ok(report.isVerified);
  assert.ok(report.repeated >= 2 * report.issued);
  assert.ok(report.p50Ms! >= 99);
});

it("repeats no more often than it is told to", async (t) => {
  const { lab, ledger } = await startLedger(t);
  ledger.answer = (id, asked) => (asked === 2 ? [ledger.applyOnce(id)] : []);
  const client = await LedgerClient.connect({ target: lab.address, guestId: ID, connectTimeoutMs: 10_000, repeatMs: 300 });
  t.after(() => client.close());
  await acknowledged(client, 1);
  assert.ok(client.mark().longestGapMs >= 299, "the first answer takes one repeat");
});

it("with its span full it issues no more until an answer comes", async (t) => {
  const { lab, ledger } = await startLedger(t);
  let isAnswering = false; // a host that is slow must not be taken for one that answers
  ledger.answer = (id) => (isAnswering ? [ledger.applyOnce(id)] : []);
  const client = await LedgerClient.connect({ target: lab.address, guestId: ID, connectTimeoutMs: 2000, spanIds: 20 });
  t.after(() => client.close());
  while (client.statistics().issued < 20) await turn();
  const until = performance.now() + 30;
  while (performance.now() < until) await turn();
  assert.equal(client.statistics().issued, 20);
  isAnswering = true;
  await acknowledged(client, 25);
});

it("a lost request is found: acknowledged, and then not in the counter", async (t) => {
  const { ledger, client } = await bench(t);
  ledger.answer = (id) => [id === 20 ? ledger.counter + 1 : ledger.applyOnce(id)];
  await acknowledged(client, 40);
  const { lost, doubled, unanswered, isVerified } = await client.finish({ timeoutMs: 10_000 });
  assert.deepEqual({ lost, doubled, unanswered, isVerified }, { lost: 1, doubled: 0, unanswered: 0, isVerified: false });
});

it("a ledger that falls back to an older state is found, by what it lost", async (t) => {
  const { ledger, client } = await bench(t);
  await acknowledged(client, 30);
  const report = client.finish({ timeoutMs: 10_000 });
  ledger.answer = (id) => [ledger.applyOnce(id)];
  while (client.statistics().unanswered > 0) await turn();
  ledger.counter -= 7;
  const { lost, doubled, isVerified } = await report;
  assert.deepEqual({ lost, doubled, isVerified }, { lost: 7, doubled: 0, isVerified: false });
});

it("a request that was applied twice is found, though the client saw one answer", async (t) => {
  const { ledger, client } = await bench(t);
  ledger.answer = (id, asked) => {
    if (id !== 20) return [ledger.applyOnce(id)];
    ledger.counter++;
    return asked === 1 ? [] : [ledger.counter];
  };
  await acknowledged(client, 40);
  const { lost, doubled, isVerified } = await client.finish({ timeoutMs: 10_000 });
  assert.deepEqual({ lost, doubled, isVerified }, { lost: 0, doubled: 1, isVerified: false });
});

it("a lost and a doubled request do not cancel out although the counter is right", async (t) => {
  const { ledger, client } = await bench(t);
  ledger.answer = (id) => {
    if (id === 10) return [ledger.counter + 1];
    if (id === 20) ledger.counter++;
    return [ledger.applyOnce(id)];
  };
  await acknowledged(client, 40);
  const { issued, counter, lost, doubled, isVerified } = await client.finish({ timeoutMs: 10_000 });
  assert.equal(counter, 1000 + issued);
  assert.deepEqual({ lost, doubled, isVerified }, { lost: 1, doubled: 1, isVerified: false });
});

it("an id answered with two different results is found; with the same result twice it is sound", async (t) => {
  const { ledger, client } = await bench(t);
  ledger.answer = (id) => [ledger.applyOnce(id), id === 20 ? ledger.counter + 1 : ledger.applyOnce(id)];
  await acknowledged(client, 40);
  const { lost, doubled, isVerified } = await client.finish({ timeoutMs: 10_000 });
  assert.deepEqual({ lost, doubled, isVerified }, { lost: 0, doubled: 1, isVerified: false });
});

it("an absurd result is a lost request, not a gigabyte", async (t) => {
  const { ledger, client } = await bench(t);
  ledger.answer = (id) => [id === 20 ? 2 ** 32 - 1 : ledger.applyOnce(id)];
  await acknowledged(client, 40);
  assert.equal((await client.finish({ timeoutMs: 10_000 })).lost, 1);
});

it("a request without an answer is reported as that, applied or not, and neither as lost nor as doubled", async (t) => {
  for (const isApplied of [true, false]) {
    const { ledger, client } = await bench(t);
    ledger.answer = (id) => {
      if (id !== 20) return [ledger.applyOnce(id)];
      if (isApplied) ledger.applyOnce(id);
      return [];
    };
    await acknowledged(client, 40);
    const { issued, acknowledged: answered, lost, doubled, unanswered, isVerified } = await client.finish({ timeoutMs: 120 });
    assert.deepEqual({ lost, doubled, unanswered, isVerified }, { lost: 0, doubled: 0, unanswered: 1, isVerified: false });
    assert.equal(answered, issued - 1);
  }
});

it("a gap that is open shows in the mark as far as it got, and whole in the next one", async (t) => {
  const { ledger, client } = await bench(t);
  await acknowledged(client, 10);
  client.mark();
  const sound = ledger.answer;
  ledger.answer = () => [];
  let before = client.mark();
  while (before.longestGapMs < 60) {
    await turn();
    before = client.mark();
  }
  ledger.answer = sound;
  const { acknowledged: count } = client.statistics();
  await acknowledged(client, count + 5);
  const after = client.mark();
  assert.ok(after.longestGapMs >= before.longestGapMs, `${after.longestGapMs} ms after ${before.longestGapMs} ms`);
  assert.ok(after.acknowledged >= 5);
  await acknowledged(client, count + 100); // answers every millisecond now
  client.mark();
  await acknowledged(client, count + 105);
  assert.ok(client.mark().longestGapMs < before.longestGapMs, "so a gap that ended is in one mark only");
  assert.ok((await client.finish({ timeoutMs: 10_000 })).longestGapMs >= after.longestGapMs);
});

it("an answer of an older epoch after a newer one is counted and fails the verification, should a switch let it through", async (t) => {
  const socket = createSocket("udp4"); // stands for a switch that does not fence, and the guest behind it
  t.after(() => socket.close());
  const ledger = new FakeLedger();
  let isMoved = false;
  socket.on("message", (bytes: Buffer, from: RemoteInfo) => {
    const request = decodeLedgerFrame(decodeDatagram(bytes)?.frame ?? new Uint8Array(0));
    const id = request?.kind === LedgerKind.Apply ? request.id : 0;
    const replies = ledger.replies(request);
    isMoved ||= id >= 10;
    const isStale = (id === 20 || id === 21) && ledger.asked.get(id) === 1;
    const epoch = id === 0 ? 0 : isMoved && !isStale ? 2 : 1;
    for (const reply of replies) socket.send(encodeDatagram(DatagramKind.Frame, TAG, epoch, reply), from.port, from.address);
  });
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  const client = await connect(t, { host: "127.0.0.1", port: socket.address().port });
  await acknowledged(client, 40);
  assert.equal(client.statistics().staleEpochAnswers, 2);
  const { lost, doubled, unanswered, isVerified, staleEpochAnswers } = await client.finish({ timeoutMs: 10_000 });
  assert.deepEqual({ lost, doubled, unanswered, isVerified }, { lost: 0, doubled: 0, unanswered: 0, isVerified: false });
  assert.equal(staleEpochAnswers, 3, "the counter came from epoch 0");
});

it("the switch keeps a former owner's answers from the client, so nothing is counted and nothing is lost", async (t) => {
  const lab = await startSwitch(t);
  const [oldOwner, owner] = await Promise.all([UdpBackend.open(lab.address, TAG), UdpBackend.open(lab.address, TAG)]);
  t.after(() => [oldOwner, owner].forEach((backend) => backend.close()));
  const ledger = new FakeLedger();
  const serve = (backend: UdpBackend) => (frame: Uint8Array) =>
    ledger.replies(decodeLedgerFrame(frame)).forEach((reply) => backend.send(reply));
  oldOwner.start(1, serve(oldOwner));
  const client = await connect(t, lab.address);
  await acknowledged(client, 10);
  const before = client.statistics().acknowledged;
  owner.start(2, serve(owner)); // the old owner does not stop
  await acknowledged(client, before + 20);
  const report = await client.finish({ timeoutMs: 10_000 });
  assert.ok(lab.statistics().droppedStaleEpoch > 0);
  assert.deepEqual([report.isVerified, report.staleEpochAnswers], [true, 0]);
});

it("a refused request is counted, not repeated, and fails the verification", async (t) => {
  const { ledger, client } = await bench(t);
  ledger.answer = (id) => (id === 20 ? "refused" : [ledger.applyOnce(id)]);
  while (client.statistics().refused === 0) await turn();
  const asked = ledger.asked.get(20);
  await acknowledged(client, 120);
  assert.equal(ledger.asked.get(20), asked);
  const { refused, unanswered, lost, doubled, isVerified } = await client.finish({ timeoutMs: 10_000 });
  assert.deepEqual(
    { refused, unanswered, lost, doubled, isVerified },
    { refused: 1, unanswered: 1, lost: 0, doubled: 0, isVerified: false },
  );
});

it("a client without an answer gives up with ERR_DEVICE_UNAVAILABLE, one with a rate of nothing is refused", async (t) => {
  const { address } = await startSwitch(t);
  const isCode = (code: string) => (error: unknown) => error instanceof MigrationError && error.code === code;
  await assert.rejects(LedgerClient.connect({ target: address, guestId: ID, connectTimeoutMs: 20 }), isCode("ERR_DEVICE_UNAVAILABLE"));
  for (const rate of [0, -1, Number.NaN])
    await assert.rejects(LedgerClient.connect({ target: address, guestId: ID, rate }), isCode("ERR_PARAMETER"));
});

it("a client that is closed before the end reports an unknown counter, and nothing verified", async (t) => {
  const { backend, client } = await bench(t);
  await acknowledged(client, 10);
  backend.close();
  while (client.statistics().unanswered === 0) await turn();
  const report = client.finish({ timeoutMs: 60_000 });
  client.close();
  const { counter, lost, doubled, isVerified } = await report;
  assert.deepEqual({ counter, lost, doubled, isVerified }, { counter: undefined, lost: 0, doubled: 0, isVerified: false });
});

/** A ledger program with its card on its memory, stepped by the event loop as a vCPU would. */
class LedgerGuest {
  readonly #nic: Nic;
  readonly #program;
  #isRunning = false;
  private constructor(memory: GuestMemory, backend: UdpBackend, workload: Workload) {
    const access = new MemoryAccess(memory, undefined);
    this.#nic = new Nic({ access, at: 0, mac: MAC, backend, wakeGuest: () => this.#run() });
    this.#program = workload.create({
      vcpu: 0,
      options: { mac: MAC },
      region: { start: NIC_BYTES, bytes: LEDGER_REGION_BYTES },
      memory: access,
      segments: memory.segments,
      nic: new NicDriver(access, 0, () => this.#nic.kick()),
      now: () => performance.now(),
    });
  }
  static async open(t: TestContext, target: Address, memory: GuestMemory): Promise<LedgerGuest> {
    const module: { default: Workload } = await import(new WorkloadCatalogue().find("ledger").url);
    const guest = new LedgerGuest(memory, await UdpBackend.open(target, TAG), module.default);
    t.after(() => guest.#nic.close());
    return guest;
  }
  #run(): void {
    while (this.#isRunning && this.#program.step() === 0);
  }
  run(epoch: number, isMoved: boolean): void {
    this.#isRunning = true;
    this.#nic.start(epoch, isMoved);
    this.#run();
  }
  /** Pauses it. What it carries apart from memory. */
  pause(): { readonly registers: unknown; readonly card: unknown } {
    this.#isRunning = false;
    this.#nic.quiesce();
    return { registers: this.#program.save(), card: this.#nic.save() };
  }
  load({ registers, card }: { readonly registers: unknown; readonly card: unknown }): void {
    this.#program.load(registers);
    this.#nic.load(card);
  }
}

it("a real ledger moves twice behind the switch while the client goes on, and every request is applied once", async (t) => {
  const lab = await startSwitch(t);
  const pool = new SegmentPool();
  const memories = [0, 1].map(() => GuestMemory.allocate(NIC_BYTES + LEDGER_REGION_BYTES, pool));
  const guests = await Promise.all(memories.map((memory) => LedgerGuest.open(t, lab.address, memory)));
  guests[0]!.run(1, false);
  const client = await connect(t, lab.address);
  for (const [source, target, epoch] of [
    [0, 1, 2],
    [1, 0, 3],
  ] as const) {
    const { acknowledged: count } = client.statistics();
    await acknowledged(client, count + 50);
    const state = guests[source]!.pause();
    memories[target]!.views[0]!.set(memories[source]!.views[0]!);
    guests[target]!.load(state);
    await turn();
    guests[target]!.run(epoch, true);
  }
  const { acknowledged: count } = client.statistics();
  await acknowledged(client, count + 50);
  const { issued, counter, lost, doubled, unanswered, staleEpochAnswers, isVerified } = await client.finish({ timeoutMs: 10_000 });
  assert.deepEqual(
    { lost, doubled, unanswered, staleEpochAnswers, isVerified },
    { lost: 0, doubled: 0, unanswered: 0, staleEpochAnswers: 0, isVerified: true },
  );
  assert.equal(counter, issued);
});

it("a real ledger that moves without one page it wrote is found: the test above can fail", async (t) => {
  const lab = await startSwitch(t);
  const pool = new SegmentPool();
  const memories = [0, 1].map(() => GuestMemory.allocate(NIC_BYTES + LEDGER_REGION_BYTES, pool));
  const guests = await Promise.all(memories.map((memory) => LedgerGuest.open(t, lab.address, memory)));
  guests[0]!.run(1, false);
  const client = await connect(t, lab.address);
  await acknowledged(client, 20);
  const stale = memories[0]!.views[0]!.slice(NIC_BYTES, NIC_BYTES + PAGE_BYTES); // the counter's
  await acknowledged(client, 60);
  const state = guests[0]!.pause();
  memories[1]!.views[0]!.set(memories[0]!.views[0]!);
  memories[1]!.views[0]!.set(stale, NIC_BYTES);
  guests[1]!.load(state);
  guests[1]!.run(2, true);
  const { acknowledged: count } = client.statistics();
  await acknowledged(client, count + 20);
  const { lost, isVerified } = await client.finish({ timeoutMs: 10_000 });
  assert.ok(lost > 0);
  assert.equal(isVerified, false);
});
