/** The work of one guest, the same for precopy and for every peer. Sizes in bytes. */
export interface Load {
  /** As it stands in tables, and in `--entry`. */
  readonly name: string;
  readonly memory: number;
  /** Filled with data that no compressor makes smaller. */
  readonly filled: number;
  /** Written with zeros: populated, and nothing in it. */
  readonly zeroed: number;
  /** Pages a second that the guest dirties in its working set while it moves; 0 for idle. */
  readonly dirtyRate: number;
  readonly workingSet: number;
}

/** What one migration of a peer took. Times in ms. */
export interface PeerRun {
  readonly totalMs: number;
  /** As the peer itself counts it. */
  readonly ownDowntimeMs: number;
  /** From the last moment the guest ran at the source until it ran at the target, by one clock. */
  readonly pauseMs: number;
  /** Longest time between two ticks of the guest's own 1 kHz clock around the hand-over, as seen from outside. */
  readonly tickGapMs: number | undefined;
  readonly bytesSent: number;
  readonly rounds: number;
  /** Processor time of each side from the command to completion, s. */
  readonly cpuSource: number;
  readonly cpuTarget: number;
  /** Of the work that was due by the load's rate, what the guest did while it moved; undefined for an idle one, and if the peer does not tell. */
  readonly workShare?: number | undefined;
  /** Where the pause went, ms, by the peer's own names; undefined if it does not tell. */
  readonly parts?: object | undefined;
}

/** Another system that migrates guests, with its settings. */
export interface Peer {
  /** With the version that is installed. */
  readonly name: string;
  /** The names that `migrate` takes; the first is the peer's default. */
  readonly settings: readonly string[];
  /**
   * @param ready called when the guest runs under its load, right before it is moved: what it does there, it does to every peer.
   * @throws {Error} if the migration did not complete, or the peer said anything unexpected
   */
  migrate(load: Load, setting: string, ready: () => void): Promise<PeerRun>;
}

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const load = (name: string, rest: Partial<Load>): Load => ({
  name,
  memory: 8 * GIB,
  filled: 64 * MIB,
  zeroed: 0,
  dirtyRate: 0,
  workingSet: 0,
  ...rest,
});

/**
 * Work of a guest without a pace is counted by it: about what QEMU's guest writes, which is many times ours. Between two collections a page
 * faults once for either of them, so the faster one loses more of its speed: there each side's own figure tells more than the ratio.
 */
export const UNPACED_RATE = 10_000_000;

/** The table that precopy is compared in. */
export const LOADS: readonly Load[] = [
  load("idle-64M", {}),
  load("filled-1G", { filled: GIB }),
  load("hot64-25k", { filled: GIB, dirtyRate: 25_000, workingSet: 64 * MIB }),
  load("hot1024-25k", { filled: GIB, dirtyRate: 25_000, workingSet: GIB }),
  load("hot1024-100k", { filled: GIB, dirtyRate: 100_000, workingSet: GIB }),
  load("filled-2G", { filled: 2 * GIB }),
  load("zeroed-6G", { filled: 0, zeroed: 6 * GIB }),
];
