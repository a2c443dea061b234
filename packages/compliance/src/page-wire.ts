import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { Socket, createServer } from "node:net";
import type { TestContext } from "node:test";
import { Bitmap, GuestMemory, SegmentPool, allocateHashTable } from "@precopy/guest";
import { freePages, isLinuxAvailable } from "@precopy/linux";
import { MigrationError } from "@precopy/protocol";
import type { Address, MigrationParameters } from "@precopy/protocol";
import { AgentPort, LaneTable, PageChannel, PageReceiver, connectPageChannel } from "@precopy/transport";
import type {
  ChannelLife,
  ChannelName,
  ChannelSocket,
  ChannelThreads,
  ControlChannel,
  Delivered,
  LaneStart,
  PumpKind,
  RoundSent,
  Security,
} from "@precopy/transport";

const pool = new SegmentPool();

/** Lends never-touched memory and takes it back, however `use` ends. Nothing may touch it after that. */
export async function withMemories<T>(bytes: readonly number[], use: (...memories: GuestMemory[]) => Promise<T>): Promise<T> {
  const memories = bytes.map((size) => GuestMemory.allocate(size, pool));
  try {
    return await use(...memories);
  } finally {
    // Without system calls memory cannot become never-touched again, so it is not lent twice.
    if (isLinuxAvailable)
      for (const memory of memories) {
        for (const { address, bytes: length } of memory.ranges()) freePages(address, length);
        pool.give(memory.segments);
      }
  }
}

export interface WireOptions {
  readonly pump: PumpKind;
  /** Default `pump`. */
  readonly pumpAtTarget?: PumpKind;
  /** Of both ends; default none. */
  readonly security?: Security | undefined;
  /** For both ends; whoever made them ends them. */
  readonly threads: ChannelThreads;
  readonly channels: number;
  readonly compression?: MigrationParameters["multifdCompression"];
  /** Of each channel; default 0, no XBZRLE. */
  readonly xbzrleCacheBytes?: number;
  /** Default on. */
  readonly hasDigest?: boolean;
}

/** What both ends said about one round. */
export interface WireRound {
  /** By channel. */
  readonly sent: readonly RoundSent[];
  /** By channel. */
  readonly delivered: readonly Delivered[];
  /** The target's, over all channels; undefined with the digest off. */
  readonly digest: bigint | undefined;
  /** From the order to the last FLUSH stored at the target. */
  readonly ms: number;
}

/** All of one lane. */
export const wholeLane = (lane: number): LaneStart[] => [{ lane, page: 0 }];

/** Takes whatever page channels come to a port of its own on loopback, and stores them in `memory`. */
export class PageTarget {
  readonly port: AgentPort;
  readonly session = randomUUID();
  readonly populated: Bitmap;
  /** Why channels ended that nobody had told to. */
  readonly failures: MigrationError[] = [];
  onDelivered: (delivered: Delivered) => void = () => {};
  onFailure: (error: MigrationError, life: ChannelLife) => void = () => {};
  receiver: PageReceiver;
  readonly #makeReceiver: () => PageReceiver;
  readonly #options: WireOptions;
  #generation = 0;

  private constructor(port: AgentPort, memory: GuestMemory, options: WireOptions) {
    const { pump, pumpAtTarget = pump, threads, channels, hasDigest = true } = options;
    this.#options = options;
    this.port = port;
    this.populated = new Bitmap(memory.pages);
    const hashes = hasDigest ? allocateHashTable(memory.pages) : undefined;
    this.#makeReceiver = () => {
      const lanes = LaneTable.allocate(channels);
      const receiver = new PageReceiver({
        lanes,
        threads,
        pump: pumpAtTarget,
        memory: memory.share(),
        hashes,
        populated: this.populated.words,
      });
      receiver.onDelivered = (delivered) => this.onDelivered(delivered);
      receiver.onLost = (life, error) => {
        this.failures.push(error);
        this.onFailure(error, life);
      };
      return receiver;
    };
    this.receiver = this.#makeReceiver();
  }

  static async listen(memory: GuestMemory, options: WireOptions): Promise<PageTarget> {
    const onControl = (control: ControlChannel): void =>
      control.close(new MigrationError("ERR_BAD_MESSAGE", "Only page channels come here"));
    const onPageChannel = (name: ChannelName, socket: ChannelSocket): boolean =>
      name.session === target.session && target.receiver.accept(name, socket);
    const handlers = { onControl, onPageChannel, onFaultChannel: () => false };
    const { security = {}, threads } = options;
    const port = await AgentPort.listen({ host: "127.0.0.1", port: 0 }, handlers, "test", { security, threads });
    const target = new PageTarget(port, memory, options);
    return target;
  }

  /** Asks for a channel as a peer of ours does; each time for a later generation. @param through what stands in between */
  async open(channel: number, threads = this.#options.threads, through: Address = this.port.address): Promise<ChannelSocket> {
    const name = { session: this.session, channel, generation: ++this.#generation };
    const { security } = this.#options;
    return (await connectPageChannel(through, name, new AbortController().signal, { security, threads })).socket;
  }

  /** The same, for bytes that no channel of ours would send. */
  async connect(channel: number): Promise<Socket> {
    const name = { session: this.session, channel, generation: ++this.#generation };
    const { security } = this.#options;
    const { socket } = await connectPageChannel(this.port.address, name, new AbortController().signal, { security });
    if (!(socket instanceof Socket)) throw new MigrationError("ERR_INTERNAL", "It is on another thread");
    return socket;
  }

  /** Resolves with the reason a channel ends for by itself. */
  failure(): Promise<MigrationError> {
    const [failed] = this.failures;
    if (failed !== undefined) return Promise.resolve(failed);
    return new Promise((resolve) => {
      this.onFailure = resolve;
    });
  }

  /** Ends the channels, and begins anew: the port stays open for others. */
  async endChannels(): Promise<void> {
    await this.receiver.end();
    this.receiver = this.#makeReceiver();
  }

  async close(): Promise<void> {
    await this.receiver.end();
    await this.port.close();
  }
}

/** Page channels from one memory to another, over loopback, with their threads at both ends. */
export class PageWire {
  readonly target: PageTarget;
  readonly senders: readonly PageChannel[];

  private constructor(target: PageTarget, senders: readonly PageChannel[]) {
    this.target = target;
    this.senders = senders;
  }

  static async open(from: GuestMemory, to: GuestMemory, options: WireOptions): Promise<PageWire> {
    const { pump, threads, channels, compression = "none", xbzrleCacheBytes = 0, hasDigest = true } = options;
    const target = await PageTarget.listen(to, options);
    const hashes = hasDigest ? allocateHashTable(from.pages) : undefined;
    const lanes = LaneTable.allocate(channels).share();
    const senders: PageChannel[] = [];
    for (let channel = 0; channel < channels; channel++) {
      const socket = await target.open(channel);
      const encoding = { compression, xbzrleCacheBytes };
      const order = { type: "send", pump, channel, generation: 1, lanes, memory: from.share(), hashes, ...encoding } as const;
      senders.push(await PageChannel.open(socket, threads, order));
    }
    return new PageWire(target, senders);
  }

  /** Sends `pages`, and waits until the target has stored them. @param pacing bytes/s for each channel, 0 for none. */
  async round(round: number, pages: Bitmap, pacing = 0): Promise<WireRound> {
    const started = performance.now();
    const delivered: Delivered[] = [];
    const stored = new Promise<number>((resolve, reject) => {
      this.target.onFailure = reject;
      this.target.onDelivered = (one) => {
        delivered[one.channel] = one;
        if (this.target.receiver.hasDelivered(round)) resolve(performance.now() - started);
      };
    });
    const sending = this.senders.map((sender, lane) => sender.sendRound(round, pages.words, pacing, wholeLane(lane)));
    const [sent, ms] = await Promise.all([Promise.all(sending), stored]);
    return { sent, delivered, digest: this.target.receiver.digest, ms };
  }

  async close(): Promise<void> {
    await Promise.all(this.senders.map((sender) => sender.end()));
    await this.target.close();
  }
}

/** Opens a wire for `use` and closes it, however that ends. */
export async function withWire<T>(
  from: GuestMemory,
  to: GuestMemory,
  options: WireOptions,
  use: (wire: PageWire) => Promise<T>,
): Promise<T> {
  const wire = await PageWire.open(from, to, options);
  try {
    return await use(wire);
  } finally {
    await wire.close();
  }
}

/** A listener of a test's own on loopback, which ends with it, and with it all that came in. */
export async function serve(context: TestContext, onConnection: (socket: Socket) => void): Promise<Address> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {}).on("close", () => sockets.delete(socket));
    onConnection(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  context.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const at = server.address();
  if (at === null || typeof at === "string") throw new MigrationError("ERR_INTERNAL", "The listener has no address");
  return { host: at.address, port: at.port };
}

/** Ends a socket's stream and waits until it is gone. */
export async function hangUp(socket: Socket): Promise<void> {
  if (socket.closed) return;
  const closed = once(socket, "close");
  socket.destroy();
  await closed;
}
