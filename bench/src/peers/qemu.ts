import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { access, constants } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import type { LabLink, Side } from "../links.js";
import type { Load, Peer, PeerRun } from "../peer.js";
import { QemuProcess } from "./qemu-process.js";
import type { QmpClient } from "./qmp.js";
import { tickGapMs } from "./ticks.js";
import { within } from "./within.js";

const QEMU = "qemu-system-x86_64";
interface Setting {
  readonly channels: number;
  /** The guest runs at the target from the beginning. */
  readonly isPostcopy?: boolean;
}
/** Of pre-copy; the first is QEMU's default. */
const SETTINGS: ReadonlyMap<string, Setting> = new Map([
  ["default", { channels: 1 }],
  ["multifd-2", { channels: 2 }],
  ["multifd-4", { channels: 4 }],
]);
/** In no table of pre-copies. */
const POSTCOPY: Setting = { channels: 1, isPostcopy: true };
export const DOWNTIME_LIMIT_MS = 10;
/** Far above what loopback carries. */
export const MAX_BANDWIDTH_BYTES_PER_SECOND = 10 ** 12;
const START_LIMIT_MS = 10_000;
/** The first touch of 6 GiB of cold memory takes 17 s on a virtual machine that has itself to ask for it. */
const FILL_LIMIT_MS = 120_000;
/** The guest dirties for a while before it is moved, so that none of it is new to the processor. Short: free memory gets cold meanwhile. */
const SETTLE_MS = 300;
const MIGRATION_LIMIT_MS = 60_000;
/** For the last words of a QEMU that failed. */
const ASK_LIMIT_MS = 2000;
/** How far from the hand-over a gap between two ticks still belongs to it. */
const TICK_MARGIN_MS = 50;
/** `ready` may have kept us from listening: ticks of that time are read within this, and not taken for work of later. */
const LISTEN_AGAIN_MS = 10;

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

const PAGE_BYTES = 4096;
/** The guest begins to fill at 16 MiB; the firmware keeps some at the end. */
const RESERVED_BYTES = 32 * 2 ** 20;
/** What the guest maps, less the hole below 4 GiB. */
const MEMORY_BYTES_MAX = 15 * 2 ** 30;

const GUEST_SOURCES = fileURLToPath(new URL("../../peers/guest/", import.meta.url));
const GUEST = fileURLToPath(new URL("guest.elf", import.meta.url));
const GUEST_FLAGS = [
  ...["-std=c17", "-O2", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie"],
  ...["-mgeneral-regs-only", "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"],
  ...["-Wl,--build-id=none", `-Wl,-T,${GUEST_SOURCES}guest.ld`],
];

/** What a pair of QEMUs is started for. */
export interface QemuOrder {
  readonly load: Load;
  /** Dirties as fast as it can; the load's rate is what its work is counted by. */
  readonly isUnpaced: boolean;
  readonly setting: Setting;
  readonly maxBandwidthBytesPerSecond: number;
  /** To move over, from a to b; undefined: over loopback. */
  readonly link?: LabLink | undefined;
}

/** Both are there, and the guest runs at the source. */
export interface QemuPair {
  readonly source: QemuProcess;
  readonly target: QemuProcess;
  readonly atSource: QmpClient;
  readonly atTarget: QmpClient;
  /** Where the target listens. */
  readonly uri: string;
}

function machineArgs({ load, isUnpaced }: QemuOrder): string[] {
  const pages = [load.filled, load.zeroed, load.dirtyRate * PAGE_BYTES, load.workingSet].map((bytes) => bytes / PAGE_BYTES);
  return [
    // kvm-pvm, the KVM of machines without nested virtualisation, refuses that one register.
    ...["-accel", "kvm", "-cpu", "host,-arch-capabilities", "-machine", "pc", "-m", `${load.memory / 2 ** 20}M`],
    ...["-nodefaults", "-no-user-config", "-display", "none"],
    ...["-bios", "qboot.rom", "-kernel", GUEST, "-append", [...pages, isUnpaced ? 1 : 0].join(" ")],
  ];
}

function checkLoad({ name, memory, filled, zeroed, dirtyRate, workingSet }: Load): void {
  const isWhole = [filled, zeroed, workingSet].every((bytes) => bytes % PAGE_BYTES === 0);
  const isRoom = memory <= MEMORY_BYTES_MAX && filled + zeroed <= memory - RESERVED_BYTES;
  if (!isWhole || !isRoom || workingSet > filled || (dirtyRate > 0 && workingSet === 0))
    throw new Error(`${name} is not a load for QEMU's guest`);
}

async function configure(monitor: QmpClient, { channels, isPostcopy = false }: Setting, maxBandwidthBytesPerSecond: number): Promise<void> {
  const names = ["events", ...(channels > 1 ? ["multifd"] : []), ...(isPostcopy ? ["postcopy-ram"] : [])];
  const capabilities = names.map((capability) => ({ capability, state: true }));
  await monitor.execute("migrate-set-capabilities", { capabilities });
  await monitor.execute("migrate-set-parameters", {
    "downtime-limit": DOWNTIME_LIMIT_MS,
    "max-bandwidth": maxBandwidthBytesPerSecond,
    ...(channels > 1 ? { "multifd-channels": channels } : {}),
  });
}

/** What lies at a path of names in an answer. */
function at(answer: unknown, ...names: readonly string[]): unknown {
  return names.reduce<unknown>(
    (value, name) => (typeof value === "object" && value !== null ? Object.getOwnPropertyDescriptor(value, name)?.value : undefined),
    answer,
  );
}
export function numberAt(answer: unknown, ...names: readonly string[]): number {
  const value = at(answer, ...names);
  if (typeof value !== "number") throw new Error(`No ${names.join(".")} in QEMU's answer ${JSON.stringify(answer)}`);
  return value;
}

/** Where the target listens; the kernel chooses the port. */
async function listen(target: QmpClient, host: string): Promise<string> {
  await target.execute("migrate-incoming", { uri: `tcp:${host}:0` });
  const answer = await target.execute("query-migrate");
  const port = at(answer, "socket-address", "0", "port");
  if (typeof port !== "string") throw new Error(`No port in QEMU's answer ${JSON.stringify(answer)}`);
  return `tcp:${host}:${port}`;
}

/** Boots and fills. @throws {Error} as soon as anything is other than expected */
async function boot(source: QemuProcess, target: QemuProcess, host: string, setting: Setting, maxBandwidth: number): Promise<QemuPair> {
  const [atSource, atTarget] = await within(START_LIMIT_MS, "start of QEMU", Promise.all([source.monitor, target.monitor]));
  await configure(atSource, setting, maxBandwidth);
  await configure(atTarget, setting, maxBandwidth);
  const uri = await listen(atTarget, host);
  await within(FILL_LIMIT_MS, "filling", source.ticks.reached(1));
  await sleep(SETTLE_MS);
  return { source, target, atSource, atTarget, uri };
}

/** @throws {Error} as soon as anything is other than expected */
async function move(
  { source, target, atSource, atTarget, uri }: QemuPair,
  load: Load,
  ready: () => void,
  isPostcopy = false,
): Promise<PeerRun> {
  ready();
  await sleep(LISTEN_AGAIN_MS);
  const cpuBefore = { source: source.processorSeconds, target: target.processorSeconds };
  const startedAt = performance.now();
  await atSource.execute("migrate", { uri });
  if (isPostcopy) {
    await atSource.event("MIGRATION", ({ status }) => status === "active"); // it refuses before
    await atSource.execute("migrate-start-postcopy");
  }
  const over = atSource.event("MIGRATION", ({ status }) => ["completed", "failed", "cancelled"].includes(String(status)));
  const [cpuSource, resumed] = await within(
    MIGRATION_LIMIT_MS,
    "migration",
    Promise.all([
      over.then(({ data }) => {
        if (data["status"] !== "completed") throw new Error(`Migration ${String(data["status"])}`);
        return source.processorSeconds - cpuBefore.source;
      }),
      atTarget.event("RESUME").then(({ atMs }) => ({ atMs, cpu: target.processorSeconds - cpuBefore.target })),
    ]),
  );
  const stopped = await atSource.event("STOP");
  await within(START_LIMIT_MS, "ticks at the target", target.ticks.reached(2 * TICK_MARGIN_MS));

  const workShare = load.dirtyRate > 0 ? source.ticks.workShareFrom(startedAt) : undefined;
  const answer = await atSource.execute("query-migrate");
  return {
    totalMs: numberAt(answer, "total-time"),
    ownDowntimeMs: numberAt(answer, "downtime"),
    pauseMs: resumed.atMs - stopped.atMs,
    tickGapMs: tickGapMs(source.ticks.arrivals, target.ticks.arrivals, TICK_MARGIN_MS),
    bytesSent: numberAt(answer, "ram", "transferred"),
    rounds: numberAt(answer, "ram", "dirty-sync-count"),
    cpuSource,
    cpuTarget: resumed.cpu,
    workShare,
  };
}

/** What both sides have to say about a failure, as far as they still say anything. */
async function complaints(source: QemuProcess, target: QemuProcess): Promise<string> {
  const answer = within(
    ASK_LIMIT_MS,
    "an answer",
    source.monitor.then((monitor) => monitor.execute("query-migrate")),
  );
  const said = await answer.then(JSON.stringify, () => "nothing");
  return [`query-migrate says ${said}`, ...[source, target].map(({ stderr }) => stderr).filter((text) => text !== "")].join("; ");
}

/**
 * Starts two QEMUs, with a guest in one of them, for as long as `body` takes.
 * @throws {Error} if one of them ends, or with what `body` threw and what QEMU has to say about it
 */
export async function withPair<T>(order: QemuOrder, body: (pair: QemuPair) => Promise<T>): Promise<T> {
  const { load, setting, maxBandwidthBytesPerSecond, link } = order;
  checkLoad(load);
  const folder = mkdtempSync(join(tmpdir(), "precopy-qemu-"));
  const removeFolder = (): void => rmSync(folder, { recursive: true, force: true });
  process.once("exit", removeFolder); // a signal while a link lives ends this process at once
  const running: QemuProcess[] = [];
  const start = (name: string, side: Side, ...args: string[]): QemuProcess => {
    const command = [QEMU, ...machineArgs(order), ...args];
    const qemu = new QemuProcess(name, folder, link?.command(side, command) ?? command);
    running.push(qemu);
    return qemu;
  };
  // Without its processes the migration fails, and the rest goes the way of every failure.
  let signal: NodeJS.Signals | undefined;
  const interrupt = (received: NodeJS.Signals): void => {
    signal = received;
    for (const qemu of running) qemu.kill();
  };
  for (const name of SIGNALS) process.on(name, interrupt);
  try {
    const source = start("source", "a");
    const target = start("target", "b", "-incoming", "defer");
    const host = link?.address("b") ?? "127.0.0.1";
    try {
      const done = boot(source, target, host, setting, maxBandwidthBytesPerSecond).then(body);
      return await Promise.race([done, source.failure, target.failure]);
    } catch (cause) {
      throw new Error(`QEMU did not move ${load.name} with ${JSON.stringify(setting)}: ${await complaints(source, target)}`, { cause });
    }
  } finally {
    await Promise.all(running.map((qemu) => qemu.end()));
    process.off("exit", removeFolder);
    removeFolder();
    for (const name of SIGNALS) process.off(name, interrupt);
    if (signal !== undefined) process.kill(process.pid, signal);
  }
}

/** Builds the guest. @returns how QEMU is called, with its version, or the reason why it cannot be had here */
export async function buildGuest(): Promise<{ readonly name: string } | string> {
  const run = promisify(execFile);
  const version = await run(QEMU, ["--version"]).then(
    ({ stdout }) => /version (\d+(?:\.\d+)*)/.exec(stdout)?.[1],
    () => undefined,
  );
  if (version === undefined) return `no ${QEMU}`;
  const isKvm = await access("/dev/kvm", constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
  if (!isKvm) return "no /dev/kvm that may be opened";
  try {
    await run("gcc", [...GUEST_FLAGS, "-o", GUEST, `${GUEST_SOURCES}guest.S`, `${GUEST_SOURCES}guest.c`]);
  } catch (cause) {
    return `no gcc that builds the guest: ${cause instanceof Error ? cause.message : String(cause)}`;
  }
  return { name: `qemu ${version}` };
}

/** @throws {Error} if there is none of that name */
export function settingOf(name: string): Setting {
  const setting = SETTINGS.get(name);
  if (setting === undefined) throw new Error(`QEMU has no setting ${name} here, but ${[...SETTINGS.keys()].join(", ")}`);
  return setting;
}

const ORDER = { isUnpaced: false, maxBandwidthBytesPerSecond: MAX_BANDWIDTH_BYTES_PER_SECOND } as const;

/** @param link to move over, from a to b; undefined: over loopback. @returns the reason, if QEMU cannot be had here */
export async function qemuPeer(link?: LabLink): Promise<Peer | string> {
  const built = await buildGuest();
  if (typeof built === "string") return built;
  return {
    ...built,
    settings: [...SETTINGS.keys()],
    migrate: (load, setting, ready) => withPair({ ...ORDER, load, setting: settingOf(setting), link }, (pair) => move(pair, load, ready)),
  };
}

/** Moves a guest that writes as fast as it can by post-copy, at once, over loopback. The guest must have been built. */
export const migratePostcopy = (load: Load, ready: () => void): Promise<PeerRun> =>
  withPair({ ...ORDER, isUnpaced: true, load, setting: POSTCOPY }, (pair) => move(pair, load, ready, true));
