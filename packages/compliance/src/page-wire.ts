import { randomUUID } from "node:crypto";
import { once } from "node:events";
import type { Socket } from "node:net";
import { Bitmap, GuestMemory, SegmentPool, allocateHashTable } from "@precopy/guest";
import { freePages, isLinuxAvailable } from "@precopy/linux";
import { MigrationError } from "@precopy/protocol";
import { AgentPort, PageChannel, SWITCHING, connectPageChannel } from "@precopy/transport";
import type { ChannelName, ChannelThreads, ControlChannel, PumpKind, RoundSent } from "@precopy/transport";

type Flushed = Parameters<PageChannel["onFlushed"]>[0];

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
  /** For both ends; whoever made them ends them. */
  readonly threads: ChannelThreads;
  readonly channels: number;
  readonly compression?: "none" | "lz4";
  /** Default on. */
  readonly hasDigest?: boolean;
}

/** What both ends said about one round, by channel. */
export interface WireRound {
  readonly sent: readonly RoundSent[];
  readonly flushed: readonly Flushed[];
  /** From the order to the last FLUSH stored at the target. */
  readonly ms: number;
}

/** Takes whatever page channels come to a port of its own on loopback, and stores them in `memory`. */
export class PageTarget {
  readonly port: AgentPort;
  readonly session = randomUUID();
  readonly receivers = new Map<number, PageChannel>();
  readonly populated: Bitmap;
  /** Why channels ended that nobody had told to. */
  readonly failures: MigrationError[] = [];
  onFlushed: (channel: number, flushed: Flushed) => void = () => {};
  onFailure: (error: MigrationError) => void = () => {};
  readonly #opening: Promise<void>[] = [];

  private constructor(port: AgentPort, memory: GuestMemory) {
    this.port = port;
    this.populated = new Bitmap(memory.pages);
  }

  static async listen(memory: GuestMemory, { pump, threads, channels, hasDigest = true }: WireOptions): Promise<PageTarget> {
    const hashes = hasDigest ? allocateHashTable(memory.pages) : undefined;
    const onPageChannel = ({ session, channel }: ChannelName, socket: Socket): boolean => {
      if (session !== target.session || channel >= channels) return false;
      const order = {
        type: "receive",
        pump,
        channel,
        channels,
        memory: memory.share(),
        hashes,
        populated: target.populated.words,
      } as const;
      target.#opening.push(
        PageChannel.open(socket, threads, { ...order, answer: SWITCHING }).then((receiver) => {
          target.receivers.set(channel, receiver);
          receiver.onFlushed = (flushed) => target.onFlushed(channel, flushed);
          receiver.onFailure = (error) => {
            target.failures.push(error);
            target.onFailure(error);
          };
        }),
      );
      return true;
    };
    const onControl = (control: ControlChannel): void =>
      control.close(new MigrationError("ERR_BAD_MESSAGE", "Only page channels come here"));
    const port = await AgentPort.listen({ host: "127.0.0.1", port: 0 }, { onControl, onPageChannel }, "test");
    const target = new PageTarget(port, memory);
    return target;
  }

  connect(channel: number): Promise<Socket> {
    return connectPageChannel(this.port.address, { session: this.session, channel, generation: 1 }, new AbortController().signal);
  }

  /** Resolves with the reason a channel ends for by itself. */
  failure(): Promise<MigrationError> {
    const [failed] = this.failures;
    if (failed !== undefined) return Promise.resolve(failed);
    return new Promise((resolve) => {
      this.onFailure = resolve;
    });
  }

  /** Ends the channels; the port stays open for others. */
  async endChannels(): Promise<void> {
    await Promise.all(this.#opening.splice(0));
    await Promise.all([...this.receivers.values()].map((receiver) => receiver.end()));
    this.receivers.clear();
  }

  async close(): Promise<void> {
    await this.endChannels();
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
    const { pump, threads, channels, compression = "none", hasDigest = true } = options;
    const target = await PageTarget.listen(to, options);
    const hashes = hasDigest ? allocateHashTable(from.pages) : undefined;
    const senders: PageChannel[] = [];
    for (let channel = 0; channel < channels; channel++) {
      const socket = await target.connect(channel);
      senders.push(
        await PageChannel.open(socket, threads, { type: "send", pump, channel, channels, memory: from.share(), hashes, compression }),
      );
    }
    return new PageWire(target, senders);
  }

  /** Sends `pages`, and waits until the target has stored them. @param pacing bytes/s for each channel, 0 for none. */
  async round(round: number, pages: Bitmap, pacing = 0): Promise<WireRound> {
    const started = performance.now();
    const flushed: Flushed[] = [];
    const stored = new Promise<number>((resolve, reject) => {
      let missing = this.senders.length;
      this.target.onFailure = reject;
      this.target.onFlushed = (channel, one) => {
        flushed[channel] = one;
        if (one.round === round && --missing === 0) resolve(performance.now() - started);
      };
    });
    const [sent, ms] = await Promise.all([Promise.all(this.senders.map((sender) => sender.sendRound(round, pages.words, pacing))), stored]);
    return { sent, flushed, ms };
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

/** Ends a socket's stream and waits until it is gone. */
export async function hangUp(socket: Socket): Promise<void> {
  if (socket.closed) return;
  const closed = once(socket, "close");
  socket.destroy();
  await closed;
}
