import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { FaultReader, PagePlacing, Poll, addressOf } from "@precopy/linux";
import { MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { GuestManifest } from "@precopy/protocol";
import { hostNowMs } from "./clock.js";
import type { Device } from "./device.js";
import { Guest, layOutGuest } from "./guest.js";
import type { GuestHost, GuestState, VcpuOrder } from "./guest.js";
import { SegmentPool } from "./guest-memory.js";
import { MemoryService } from "./memory-service.js";
import { whyNoMissingPages } from "./missing-pages.js";
import { NIC_BYTES } from "./nic-ring.js";
import { VcpuThreads } from "./vcpu.js";
import { WorkloadCatalogue } from "./workload.js";

const MIB = 2 ** 20;
const segments = new SegmentPool();
const noDevice: GuestHost["openDevice"] = async () => {
  throw new MigrationError("ERR_DEVICE_UNAVAILABLE", "no devices in this test");
};
const IDLE: VcpuOrder = { workload: "idle", options: {} };
const WRITER: VcpuOrder = { workload: "random-writer", options: {} };

/** An agent's worth of threads; `make` lays out and creates a guest, and whatever is left of it is ended afterwards. */
interface Bench {
  readonly host: GuestHost;
  make(vcpus: readonly VcpuOrder[], hasNic?: boolean): Promise<Guest>;
  /** A second host: with a thread of its own for memory. */
  makeElsewhere(manifest: GuestManifest): Promise<Guest>;
}
async function withHost(
  use: (bench: Bench) => Promise<void>,
  options: Partial<Pick<GuestHost, "openDevice" | "workloads" | "segments">> = {},
): Promise<void> {
  const threads = new VcpuThreads(2);
  const services: MemoryService[] = [];
  const guests: Guest[] = [];
  const newHost = (): GuestHost => {
    const memory = new MemoryService();
    services.push(memory);
    return {
      segments,
      threads,
      memory,
      workloads: new WorkloadCatalogue(),
      dirtyLog: "barrier",
      onGuestFailure: () => {},
      openDevice: noDevice,
      ...options,
    };
  };
  const host = newHost();
  const create = async (manifest: GuestManifest, on: GuestHost): Promise<Guest> => {
    const guest = await Guest.create(manifest, on);
    guests.push(guest);
    return guest;
  };
  try {
    await use({
      host,
      make: (vcpus, hasNic = false) => create(layOutGuest("g1", 4 * MIB, vcpus, hasNic, host.workloads), host),
      makeElsewhere: (manifest) => create(manifest, newHost()),
    });
  } finally {
    // A guest that its test destroyed has no memory attached any more; that refusal is the only one to expect here.
    for (const guest of guests)
      await guest.destroy().catch((error: unknown) => assert.equal(MigrationError.from(error).code, "ERR_NO_GUEST"));
    await threads.end();
    await Promise.all(services.map((service) => service.end()));
  }
}
/** Workloads of this test, each a module of its own. */
const program = (body: string): string => `export default { create: (context) => { ${body} } };\n`;
const FILES = {
  "clock-watcher": program(
    "const at = {}; return { boot() { at.bootedAt = context.now(); }, step() { at.firstAt ??= context.now(); at.lastAt = context.now(); return 1; }, save: () => at, load() {} };",
  ),
  "bad-step": program(
    "let steps = 0; return { step() { if (++steps > 3) throw new Error('out of luck'); return 1; }, save: () => null, load() {} };",
  ),
  "bad-boot": program("return { boot() { throw new Error('no boot'); }, step: () => 1, save: () => null, load() {} };"),
  "bad-save": program("return { step: () => 1, save() { throw new Error('no save'); }, load() {} };"),
  "bad-registers": program("return { step: () => 1, save: () => () => {}, load() {} };"),
  "bad-create": program("throw new Error('no create');"),
  "bad-module": "export default 7;\n",
  "bad-code": "this is no JavaScript\n",
  "bad-write": program("return { step() { context.memory.storeU32(context.memory.bytes, 1); return 1; }, save: () => null, load() {} };"),
  "slow-step": program(
    "let n = 0; return { step() { context.memory.storeU32(0, ++n); const until = Date.now() + 1500; while (Date.now() < until); return 0; }, save: () => null, load() {} };",
  ),
};
const folder = mkdtempSync(join(tmpdir(), "precopy-guest-"));
for (const [name, code] of Object.entries(FILES)) writeFileSync(join(folder, `${name}.mjs`), code);
const workloads = new WorkloadCatalogue();
workloads.addDirectory(folder);
process.once("exit", () => rmSync(folder, { recursive: true }));
const only = (name: keyof typeof FILES): VcpuOrder[] => [{ workload: name, options: {} }];
const imageOf = (guest: Guest): Buffer => Buffer.concat(guest.memory.views);
/** Until `isSo` holds; what never comes true fails the test instead of hanging it. */
async function until(what: string, isSo: () => boolean): Promise<void> {
  for (const started = performance.now(); !isSo(); await delay(1))
    assert.ok(performance.now() - started < 5000, `${what} did not come true within 5 s`);
}
const isChangedSince = (guest: Guest, image: Buffer) => (): boolean => Buffer.compare(imageOf(guest), image) !== 0;
/** By all its writers. */
const writtenOf = ({ registers }: GuestState): number =>
  registers.reduce((sum, { program }) => sum + Number(Reflect.get(Object(program), "written")), 0);

describe("layOutGuest", () => {
  const workloads = new WorkloadCatalogue();
  const regions = (vcpus: readonly VcpuOrder[], hasNic: boolean, bytes = 4 * MIB): (readonly [number, number])[] =>
    layOutGuest("g1", bytes, vcpus, hasNic, workloads).vcpus.map(({ region }) => [region.start, region.bytes]);

  it("shares memory out equally, in whole pages, without overlap, after the card", () => {
    assert.deepEqual(regions([IDLE], false), [[0, 4 * MIB]]);
    assert.deepEqual(regions([IDLE], true), [[NIC_BYTES, 4 * MIB - NIC_BYTES]]);
    const third = Math.floor((4 * MIB) / 3 / PAGE_BYTES) * PAGE_BYTES;
    assert.deepEqual(regions([IDLE, IDLE, IDLE], false), [
      [0, third],
      [third, third],
      [2 * third, third],
    ]);
  });

  it("gives a fixed region its size and the others what is left", () =>
    assert.deepEqual(regions([{ ...IDLE, regionBytes: MIB }, IDLE, { ...IDLE, regionBytes: PAGE_BYTES }], false), [
      [0, MIB],
      [MIB, 3 * MIB - PAGE_BYTES],
      [4 * MIB - PAGE_BYTES, PAGE_BYTES],
    ]));

  it("names each workload with the hash of its file, and the card with an address fixed by the id", () => {
    const manifest = layOutGuest("g1", 4 * MIB, [WRITER], true, workloads);
    assert.equal(manifest.vcpus[0]?.sha256, workloads.find("random-writer").sha256);
    assert.deepEqual(manifest, layOutGuest("g1", 4 * MIB, [WRITER], true, workloads));
    assert.notEqual(layOutGuest("g2", 4 * MIB, [WRITER], true, workloads).devices[0]?.mac, manifest.devices[0]?.mac);
    assert.deepEqual(layOutGuest("g1", 4 * MIB, [WRITER], false, workloads).devices, []);
  });

  it("refuses no vCPU, too many, regions that do not fit or are no whole pages, and unknown workloads", () => {
    const bad: [readonly VcpuOrder[], boolean, number][] = [
      [[], false, 4 * MIB],
      [new Array<VcpuOrder>(65).fill(IDLE), false, 4 * MIB],
      [[{ ...IDLE, regionBytes: 4 * MIB + PAGE_BYTES }], false, 4 * MIB],
      [[{ ...IDLE, regionBytes: 4 * MIB }], true, 4 * MIB],
      [[{ ...IDLE, regionBytes: 4 * MIB }, IDLE], false, 4 * MIB],
      [[IDLE, IDLE], true, NIC_BYTES + PAGE_BYTES],
      [[{ ...IDLE, regionBytes: 5000 }, IDLE], false, 4 * MIB],
      [[{ ...IDLE, regionBytes: -PAGE_BYTES }, IDLE], false, 4 * MIB],
      [[{ ...IDLE, regionBytes: Number.NaN }, IDLE], false, 4 * MIB],
    ];
    for (const [vcpus, hasNic, bytes] of bad)
      assert.throws(() => layOutGuest("g1", bytes, vcpus, hasNic, workloads), { code: "ERR_PARAMETER" }, JSON.stringify(vcpus.slice(0, 2)));
    assert.throws(() => layOutGuest("g1", 4 * MIB, [{ workload: "nothing", options: {} }], false, workloads), {
      code: "ERR_WORKLOAD_UNKNOWN",
    });
  });
});

describe("Guest", () => {
  it("boots idle and random-writer side by side, and each writes in its own region only", () =>
    withHost(async ({ make }) => {
      const guest = await make([IDLE, WRITER]);
      await guest.boot();
      await guest.run(1, false);
      await until("the writer writes", isChangedSince(guest, Buffer.alloc(4 * MIB)));
      await guest.pause();
      assert.ok(
        imageOf(guest)
          .subarray(0, 2 * MIB)
          .every((byte) => byte === 0),
        "idle has written",
      );
      assert.equal(guest.hasDirectWriter, false);
      assert.ok(guest.probeMs() >= 0);
    }));

  it("fills memory at boot as its options say", () =>
    withHost(async ({ make }) => {
      const fill = (fillKind: string): VcpuOrder => ({ workload: "idle", options: { fill: MIB, fillKind } });
      const guest = await make([fill("random"), fill("text"), fill("zeros"), IDLE]);
      await guest.boot();
      const image = imageOf(guest);
      for (const at of [0, MIB])
        for (let page = at; page < at + MIB; page += PAGE_BYTES)
          assert.ok(image.readUInt32LE(page + 8) + image.readUInt32LE(page + 800) > 0);
      assert.ok(image.subarray(2 * MIB).every((byte) => byte === 0));
    }));

  it("stands still while it is paused: not a byte changes in 50 ms; and goes on after resume", () =>
    withHost(async ({ make }) => {
      const guest = await make([WRITER, WRITER]);
      await guest.boot();
      await guest.run(1, false);
      await until("the writers write", isChangedSince(guest, Buffer.alloc(4 * MIB)));
      const state = await guest.pause();
      const image = imageOf(guest);
      await delay(50); // the time is what is tested
      assert.equal(Buffer.compare(imageOf(guest), image), 0);
      guest.resume();
      await until("the writers go on", isChangedSince(guest, image));
      assert.ok(writtenOf(await guest.pause()) > writtenOf(state));
    }));

  it("tells since when all of its vCPUs run, on the host's own clock; a pause changes nothing about it", () =>
    withHost(async ({ make }) => {
      const guest = await make([IDLE, WRITER]);
      await guest.boot();
      const before = hostNowMs();
      await guest.run(1, false);
      const ranAtMs = guest.ranAt?.ms ?? NaN;
      assert.ok(before <= ranAtMs && ranAtMs <= hostNowMs(), `${before} to ${hostNowMs()}: ${ranAtMs}`);
      await guest.pause();
      guest.resume();
      assert.equal(guest.ranAt?.ms, ranAtMs);
    }));

  it("can be paused again the moment it was resumed, any number of times, each time with the registers of that very pause", () =>
    withHost(async ({ make }) => {
      const guest = await make([WRITER]);
      await guest.boot();
      await guest.run(1, false);
      let written = 0;
      for (let turn = 0; turn < 50; turn++) {
        const state = await guest.pause();
        assert.ok(writtenOf(state) >= written);
        written = writtenOf(state);
        const image = imageOf(guest);
        if (turn % 5 === 0) await delay(1);
        assert.equal(Buffer.compare(imageOf(guest), image), 0, `turn ${turn}`);
        guest.resume();
      }
    }));

  it("goes on in another guest where it stood: registers, memory, and a clock that never jumps back", () =>
    withHost(async ({ make, makeElsewhere }) => {
      const source = await make([{ workload: "random-writer", options: { rate: 20_000 } }]);
      await source.boot();
      await source.run(1, false);
      await until("the writer writes", isChangedSince(source, Buffer.alloc(4 * MIB)));
      const state = await source.pause();
      const pausedAt = hostNowMs();
      const target = await makeElsewhere(source.manifest);
      target.memory.views[0]?.set(source.memory.views[0] ?? []);
      await target.load(structuredClone(state)); // as the control channel does: before anybody knows how long the pause will be
      target.clock.set(state.clockMs + hostNowMs() - pausedAt);
      let gapMs = -1;
      target.onTicked = (ms) => {
        gapMs = ms;
      };
      const image = imageOf(target);
      await target.run(2, true);
      await until("the writer goes on at the target", isChangedSince(target, image));
      await until("the guest tells its gap", () => gapMs >= 0);
      const after = await target.pause();
      assert.equal(target.epoch, 2);
      assert.ok(after.clockMs >= state.clockMs, `${after.clockMs} after ${state.clockMs}`);
      assert.ok(after.registers[0]!.lastTickMs > state.registers[0]!.lastTickMs);
      assert.ok(writtenOf(after) > writtenOf(state));
      assert.ok(gapMs > 0 && gapMs <= after.clockMs - state.registers[0]!.lastTickMs, `gap of ${gapMs} ms`);
      assert.equal(Buffer.compare(imageOf(source), image), 0, "the source's memory changed while it was paused");
    }));

  it("has a clock that starts near 0 at boot and never goes back, so that a program's boot is in its past", () =>
    withHost(
      async ({ make }) => {
        const guest = await make(only("clock-watcher"));
        await guest.boot();
        await delay(5);
        await guest.run(1, false);
        await delay(5);
        const [registers] = (await guest.pause()).registers;
        const { bootedAt, firstAt, lastAt } = Object(registers?.program) as Record<string, number | undefined>;
        assert.ok(bootedAt !== undefined && firstAt !== undefined && lastAt !== undefined);
        assert.ok(bootedAt >= 0 && bootedAt < firstAt && firstAt <= lastAt, `${bootedAt}, ${firstAt}, ${lastAt}`);
        assert.ok(lastAt < 60_000, `${lastAt} ms after boot`);
      },
      { workloads },
    ));

  it("refuses a state of another number of vCPUs or devices with ERR_BAD_MESSAGE, and registers of another workload", () =>
    withHost(async ({ make }) => {
      const guest = await make([WRITER]);
      const registers = { program: { random: 1, written: 0 }, lastTickMs: 0 };
      for (const state of [
        { registers: [], devices: [] },
        { registers: [registers, registers], devices: [] },
        { registers: [registers], devices: [1] },
      ])
        await assert.rejects(guest.load({ ...state, clockMs: 0 }), { code: "ERR_BAD_MESSAGE" });
      await assert.rejects(guest.load({ registers: [{ program: "mine", lastTickMs: 0 }], devices: [], clockMs: 0 }), {
        code: "ERR_WORKLOAD_FAILED",
      });
    }));

  it("refuses a workload that differs or is unknown, before it takes any memory", () =>
    withHost(async ({ host }) => {
      const manifest = layOutGuest("g1", 4 * MIB, [IDLE], false, host.workloads);
      const changed = (change: object): GuestManifest => ({ ...manifest, vcpus: [{ ...manifest.vcpus[0]!, ...change }] });
      await assert.rejects(Guest.create(changed({ sha256: "0".repeat(64) }), host), { code: "ERR_WORKLOAD_DIFFERS" });
      await assert.rejects(Guest.create(changed({ workload: "nothing" }), host), { code: "ERR_WORKLOAD_UNKNOWN" });
    }));

  it("whose device cannot be had is refused with that code, and leaves nothing behind: the next guest can be made", () =>
    withHost(async ({ make }) => {
      await assert.rejects(make([IDLE], true), { code: "ERR_DEVICE_UNAVAILABLE" });
      await (await make([IDLE])).boot();
    }));

  it("quiets its device after the vCPUs stand still, saves it, and starts it with the epoch", () => {
    const calls: string[] = [];
    const device: Device = {
      start: (epoch, isMoved) => void calls.push(`start ${epoch} ${isMoved}`),
      kick: () => {},
      quiesce: () => void calls.push("quiesce"),
      save: () => ({ frames: calls.push("save") }),
      load: (state) => void calls.push(`load ${JSON.stringify(state)}`),
      close: () => void calls.push("close"),
    };
    return withHost(
      async ({ make }) => {
        const guest = await make([IDLE], true);
        await guest.boot();
        await guest.run(3, true);
        const state = await guest.pause();
        assert.deepEqual(state.devices, [{ frames: 3 }]);
        guest.resume(4);
        assert.equal(guest.epoch, 4);
        await guest.destroy();
        assert.deepEqual(calls, ["start 3 true", "quiesce", "save", "start 4 false", "close"]);
      },
      { openDevice: async () => device },
    );
  });

  it("destroy ends its threads, makes its memory read zero, lends it to the next guest, and is no failure of the workload", () =>
    withHost(
      async ({ make }) => {
        const guest = await make([WRITER, WRITER]);
        const failures: MigrationError[] = [];
        guest.onFailure = (error) => failures.push(error);
        await guest.boot();
        await guest.run(1, false);
        await until("the writers write", isChangedSince(guest, Buffer.alloc(4 * MIB)));
        await guest.destroy(); // while they run
        assert.ok(imageOf(guest).every((byte) => byte === 0));
        await delay(10); // a thread that still ran would write again
        assert.ok(imageOf(guest).every((byte) => byte === 0));
        assert.deepEqual(failures, []);
        assert.equal((await make([IDLE])).memory.segments[0], guest.memory.segments[0]);
      },
      { segments: new SegmentPool() },
    ));
});

describe("a guest of which some memory is missing", { skip: whyNoMissingPages() ?? false, timeout: 300_000 }, () => {
  /** Waits until so many threads stand at missing pages; each is told of once. */
  async function stopped(descriptor: number, threads: number): Promise<{ address: number; thread: number }[]> {
    const poll = new Poll([descriptor]);
    const reader = new FaultReader(descriptor);
    const found: { address: number; thread: number }[] = [];
    await until(`${threads} stop`, () => {
      if (poll.wait(0)) reader.read((address, thread) => found.push({ address, thread }));
      return found.length >= threads;
    });
    return found;
  }
  const isIn = (guest: Guest, address: number): boolean =>
    address >= guest.memory.addressOf(0) && address < guest.memory.addressOf(0) + guest.memory.bytes;

  it("is whole until it listens, and again when it is let go", () =>
    withHost(async ({ make }) => {
      const guest = await make([IDLE]);
      assert.equal(guest.isWhole, true);
      assert.equal(guest.missing, guest.missing, "one for all who ask");
      assert.equal(guest.isWhole, true, "asked for, and nobody listens");
      guest.missing.listen();
      assert.equal(guest.isWhole, false);
      guest.missing.close();
      assert.equal(guest.isWhole, true);
    }));

  it("stops each vCPU at the page it needs, by the number of its thread, and lets it run on when that is placed", () =>
    withHost(async ({ make }) => {
      const guest = await make([{ workload: "sequential-writer", options: { rate: 1000 } }]);
      const placing = new PagePlacing(guest.missing.listen());
      await guest.boot();
      await guest.run(1, false);
      const from = Buffer.alloc(PAGE_BYTES, 0xaa);
      const touched = new Set<number>();
      for (let pages = 0; pages < 20; pages++) {
        const [fault] = await stopped(guest.missing.listen(), 1);
        assert.ok(fault !== undefined && isIn(guest, fault.address));
        assert.deepEqual([fault.thread], guest.threads);
        assert.ok(!touched.has(fault.address), "it stopped at a page that is there");
        touched.add(fault.address);
        assert.equal(placing.copy(fault.address, Number(addressOf(from)), PAGE_BYTES), PAGE_BYTES);
      }
    }));

  for (const [what, vcpus, waiting] of [
    ["one vCPU waits at a missing page", [WRITER], 1],
    ["all its vCPUs wait", [WRITER, WRITER, WRITER], 3],
    ["one of them waits and others run", [IDLE, WRITER, IDLE], 1],
    ["nobody waits", [IDLE], 0],
  ] as const)
    it(`can be destroyed while ${what}: its threads end, its memory is free for the next guest, and it is no failure`, () =>
      withHost(
        async ({ make }) => {
          const guest = await make(vcpus);
          const failures: MigrationError[] = [];
          guest.onFailure = (error) => failures.push(error);
          const descriptor = guest.missing.listen();
          await guest.boot();
          await guest.run(1, false);
          const faults = await stopped(descriptor, waiting);
          assert.equal(new Set(faults.map(({ thread }) => thread)).size, waiting);
          assert.ok(faults.every(({ thread, address }) => guest.threads.includes(thread) && isIn(guest, address)));
          await guest.destroy();
          assert.equal(guest.missing.isListening, false);
          assert.ok(imageOf(guest).every((byte) => byte === 0)); // stops this thread for ever if it is missing still
          assert.deepEqual(failures, []);
          const next = await make([WRITER]);
          assert.equal(next.memory.segments[0], guest.memory.segments[0]);
          await next.boot();
          await next.run(1, false);
          await until("the next guest runs there", isChangedSince(next, Buffer.alloc(4 * MIB)));
        },
        { segments: new SegmentPool() },
      ));

  it("can be destroyed before it runs, and if its memory was let go already", () =>
    withHost(async ({ make }) => {
      for (const isLetGo of [false, true]) {
        const guest = await make([WRITER]);
        guest.missing.listen();
        if (isLetGo) guest.missing.close();
        await guest.destroy();
        assert.equal(guest.isWhole, true);
      }
    }));
});

describe("a workload that fails", () => {
  const failed = (message: RegExp): object => ({ code: "ERR_WORKLOAD_FAILED", message });
  const failureOf = (guest: Guest): Promise<MigrationError> =>
    new Promise((resolve) => {
      guest.onFailure = resolve;
    });

  it("in a step is reported with ERR_WORKLOAD_FAILED and its own words, and cannot be paused any more", () =>
    withHost(
      async ({ make }) => {
        const guest = await make(only("bad-step"));
        const failure = failureOf(guest);
        await guest.boot();
        await guest.run(1, false);
        const { code, message } = await failure;
        assert.deepEqual([code, message], ["ERR_WORKLOAD_FAILED", "vCPU 0 (bad-step): out of luck"]);
        await assert.rejects(guest.pause(), failed(/out of luck/));
      },
      { workloads },
    ));

  it("by writing past guest memory is reported and writes nothing", () =>
    withHost(
      async ({ make }) => {
        const guest = await make(only("bad-write"));
        const failure = failureOf(guest);
        await guest.boot();
        await guest.run(1, false);
        assert.match((await failure).message, /Word at 4194304/);
        assert.ok(imageOf(guest).every((byte) => byte === 0));
      },
      { workloads },
    ));

  it("before it runs is refused where that is asked for: code, module, create, boot", () =>
    withHost(
      async ({ make }) => {
        await assert.rejects(make(only("bad-code")), { code: "ERR_WORKLOAD_FAILED" });
        await assert.rejects(make(only("bad-module")), failed(/has no create/));
        await assert.rejects(make(only("bad-create")), failed(/no create/));
        await assert.rejects((await make(only("bad-boot"))).boot(), failed(/no boot/));
      },
      { workloads },
    ));

  for (const [name, words] of [
    ["bad-save", /no save/],
    ["bad-registers", /could not be cloned/],
  ] as const)
    it(`when it is saved refuses the pause (${name})`, () =>
      withHost(
        async ({ make }) => {
          const guest = await make(only(name));
          await guest.boot();
          await guest.run(1, false);
          await assert.rejects(guest.pause(), failed(words));
        },
        { workloads },
      ));

  it("to end a step in time refuses the pause, and the rest of the guest goes on", () =>
    withHost(
      async ({ make }) => {
        const guest = await make([...only("slow-step"), WRITER]);
        await guest.boot();
        await guest.run(1, false);
        await until("the slow step has begun", () => guest.memory.view(0, 1)[0] !== 0);
        await assert.rejects(guest.pause(), failed(/a step took more than 1000 ms/));
        const image = imageOf(guest);
        await until("the writer goes on", isChangedSince(guest, image));
      },
      { workloads },
    ));
});
