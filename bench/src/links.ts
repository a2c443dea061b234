import { spawnSync } from "node:child_process";
import { constants } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { formatBandwidth } from "@precopy/protocol";

export type Side = "a" | "b";
const SIDES = ["a", "b"] as const satisfies readonly Side[];

export interface LinkOptions {
  /** Bits a second each way; undefined: as fast as the kernel copies. */
  readonly rate: number | undefined;
  /** Of both ends, bytes. */
  readonly mtu: number;
  /** Of every connection, whatever its program asks for; undefined: what the program asks for, else this host's default. */
  readonly congestionControl: "cubic" | "bbr" | undefined;
}

/** `1.00 Gbit/s, MTU 1500`. */
export function formatLink({ rate, mtu, congestionControl }: LinkOptions): string {
  const name = `${rate === undefined ? "unshaped" : formatBandwidth(rate / 8)}, MTU ${mtu}`;
  return congestionControl === undefined ? name : `${name}, ${congestionControl}`;
}

/** Of either end: each has a namespace to itself. */
const DEVICE = "lab0";
/** Nobody outside the two namespaces sees them, so that every link may have the same. */
const ADDRESSES: Readonly<Record<Side, string>> = { a: "10.86.0.1", b: "10.86.0.2" };
const PREFIX_BITS = 30;
const NETWORK = `10.86.0.0/${PREFIX_BITS}`;

/**
 * What may leave at once after a pause: what the rate carries in this time. Shorter, and a late timer costs bandwidth at 10 Gbit/s; longer,
 * and the last round of a migration, a few MB, would pass unshaped.
 */
const BURST_MS = 1;
/** A segment that offload hands down whole has 64 KiB and its headers; a bucket that holds less never lets it pass at the rate. */
const BURST_BYTES_MIN = 2 ** 17;
/** Matters between classes only, and there is one; the kernel's own guess for 10 Gbit/s makes it complain. */
const QUANTUM_BYTES = 200_000;

const UP_TIMEOUT_MS = 5000;
const UP_POLL_MS = 10;

/** The two `tc` commands that hold the end of a link to a rate, without the program and its namespace. */
export function htbCommands(bitsPerSecond: number): readonly (readonly string[])[] {
  const burst = `${Math.max(BURST_BYTES_MIN, Math.ceil((bitsPerSecond / 8) * (BURST_MS / 1000)))}b`;
  const rate = `${bitsPerSecond}bit`;
  return [
    ["qdisc", "add", "dev", DEVICE, "root", "handle", "1:", "htb", "default", "1"],
    [
      ...["class", "add", "dev", DEVICE, "parent", "1:", "classid", "1:1", "htb", "rate", rate, "ceil", rate],
      ...["burst", burst, "cburst", burst, "quantum", String(QUANTUM_BYTES)],
    ],
  ];
}

/** Those namespaces of ours whose process is gone. A later process with the same number keeps them alive, until it ends. */
export const leftovers = (namespaces: readonly string[], isAlive: (pid: number) => boolean): string[] =>
  namespaces.filter((name) => {
    const pid = /^precopy-(\d+)-\d+-[ab]$/.exec(name)?.[1];
    return pid !== undefined && !isAlive(Number(pid));
  });

/** @throws {Error} with what the program said */
function run(...command: readonly string[]): string {
  const [program = "", ...rest] = command;
  const { status, stdout, stderr, error } = spawnSync(program, rest, { encoding: "utf8" });
  if (error !== undefined || status !== 0)
    throw new Error(`${command.join(" ")}: ${error?.message ?? stderr.trim()}`, error && { cause: error });
  return stdout;
}

function signalled(pid: number, signal: "SIGKILL" | 0): boolean {
  try {
    return process.kill(pid, signal);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== "ESRCH"; // process.kill throws nothing else
  }
}

const namespaces = (): string[] =>
  run("ip", "netns", "list")
    .split("\n")
    .flatMap((line) => /^\S+/.exec(line)?.[0] ?? []);

/** With what runs in them: a process would keep its namespace, and this end of the link, for as long as it lives. */
function remove(names: readonly string[]): void {
  const present = new Set(namespaces());
  for (const name of names.filter((name) => present.has(name))) {
    for (const pid of run("ip", "netns", "pids", name).split("\n").filter(Boolean)) signalled(Number(pid), "SIGKILL");
    run("ip", "netns", "delete", name);
  }
}

const sweep = (): void => remove(leftovers(namespaces(), (pid) => signalled(pid, 0)));

let made = 0;
const nextNames = (): Record<Side, string> => {
  const stem = `precopy-${process.pid}-${made++}`;
  return { a: `${stem}-a`, b: `${stem}-b` };
};

const live = new Set<LabLink>();
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
const endAll = (): void => {
  for (const link of live) link.end();
};
const exit = (signal: NodeJS.Signals): never => process.exit(128 + constants.signals[signal]); // `endAll` on the way

/** While a link lives, so that a program which has ended its links is told of signals as before. */
function watchExit(): void {
  process.prependListener("exit", endAll); // first: others find the processes gone, and can remove their files
  for (const signal of SIGNALS) process.on(signal, exit);
}
function unwatchExit(): void {
  process.off("exit", endAll);
  for (const signal of SIGNALS) process.off(signal, exit);
}

/**
 * Two network namespaces of this host, joined by a link of their own. It goes with this process however that ends, by an uncaught error or a
 * signal too; what a killed process left is removed by the next `make`. Linux, root, iproute2.
 */
export class LabLink {
  readonly #names: Readonly<Record<Side, string>>;

  private constructor(names: Readonly<Record<Side, string>>) {
    this.#names = names;
    if (live.size === 0) watchExit();
    live.add(this);
  }

  /** Why there can be none here, and what to do about it. */
  static whyNot(): string | undefined {
    if (process.platform !== "linux") return "Network namespaces are Linux's: run it there";
    if (process.getuid?.() !== 0) return "Only root makes network namespaces: run it with sudo, on a machine of yours";
    const { a: probe } = nextNames();
    const steps: readonly (readonly [what: string, command: readonly string[]])[] = [
      ["There is no `ip` here: install iproute2", ["ip", "-V"]],
      ["There is no `tc` here: install iproute2", ["tc", "-V"]],
      [
        "No network namespace can be made here: a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN for it, or run it outside",
        ["ip", "netns", "add", probe],
      ],
      [
        "This kernel has no veth: try `modprobe veth`, or take one with CONFIG_VETH",
        ["ip", "-n", probe, "link", "add", DEVICE, "type", "veth", "peer", "name", "lab1"],
      ],
      [
        "This kernel has no htb: try `modprobe sch_htb`, or take one with CONFIG_NET_SCH_HTB",
        ["tc", "-n", probe, "qdisc", "add", "dev", DEVICE, "root", "htb"],
      ],
    ];
    let isMade = false;
    try {
      for (const [what, command] of steps) {
        try {
          run(...command);
        } catch (error) {
          return `${what} (${(error as Error).message})`; // run throws nothing else
        }
        isMade ||= command.includes("netns");
      }
      return undefined;
    } finally {
      if (isMade) remove([probe]);
    }
  }

  /** Up at both ends when this resolves. @throws {Error} if a command fails, and nothing is left then; see `whyNot` */
  static async make(options: LinkOptions): Promise<LabLink> {
    sweep();
    const link = new LabLink(nextNames());
    try {
      link.#setUp(options);
      await link.#untilUp();
    } catch (error) {
      link.end();
      throw error;
    }
    return link;
  }

  #setUp({ rate, mtu, congestionControl }: LinkOptions): void {
    const { a, b } = this.#names;
    for (const side of SIDES) run("ip", "netns", "add", this.#names[side]);
    const end = ["name", DEVICE, "mtu", String(mtu)];
    run("ip", "-n", a, "link", "add", ...end, "type", "veth", "peer", ...end, "netns", b);
    for (const side of SIDES) {
      const name = this.#names[side];
      run("ip", "-n", name, "address", "add", `${this.address(side)}/${PREFIX_BITS}`, "dev", DEVICE);
      if (rate !== undefined) for (const command of htbCommands(rate)) run("tc", "-n", name, ...command);
      for (const device of ["lo", DEVICE]) run("ip", "-n", name, "link", "set", device, "up");
      // By the route: as the default of a namespace the kernel takes only what this host allows to every user.
      if (congestionControl !== undefined)
        run("ip", "-n", name, "route", "change", NETWORK, "dev", DEVICE, "congctl", "lock", congestionControl);
    }
  }

  /** The kernel notices a carrier on its own time, up to a second later, and drops what is sent before. */
  async #untilUp(): Promise<void> {
    const isUp = (side: Side): boolean => run("ip", "-n", this.#names[side], "-o", "link", "show", "dev", DEVICE).includes(" state UP ");
    for (const deadline = performance.now() + UP_TIMEOUT_MS; !SIDES.every(isUp); await sleep(UP_POLL_MS))
      if (performance.now() > deadline) throw new Error(`The link did not come up in ${UP_TIMEOUT_MS} ms`);
  }

  /** The command that runs `argv` at this side. Files are those of this host, Unix sockets in them included. */
  command(side: Side, argv: readonly string[]): string[] {
    return ["ip", "netns", "exec", this.#names[side], ...argv];
  }

  /** Without a port. */
  address(side: Side): string {
    return ADDRESSES[side];
  }

  /** Ends what still runs at either side, at once, and removes the link. Once more does nothing. */
  end(): void {
    if (!live.delete(this)) return;
    if (live.size === 0) unwatchExit();
    remove(Object.values(this.#names));
  }
}
