import { joinDigests } from "@precopy/guest";
import type { Bitmap } from "@precopy/guest";
import type { LastTransfer, LinkPort, RoundTransfer } from "@precopy/engine";
import type { MigrationError } from "@precopy/protocol";
import type { Message } from "@precopy/protocol";
import type { ControlChannel, PageChannel, RoundSent } from "@precopy/transport";

/** The page channels of one migration, as one link. */
export class PageLink implements LinkPort {
  readonly #channels: readonly PageChannel[];
  readonly #control: ControlChannel;
  readonly #maxBandwidth: number;
  /** Settles when every channel of the last round is stored at the target. */
  lastStored: Promise<void> = Promise.resolve();
  #waiting: { readonly round: number; readonly missing: Set<number>; resolve: () => void; reject: (error: Error) => void } | undefined;

  /** @param maxBandwidth bytes/s for all channels together, 0 for none. */
  constructor(channels: readonly PageChannel[], control: ControlChannel, maxBandwidth: number) {
    this.#channels = channels;
    this.#control = control;
    this.#maxBandwidth = maxBandwidth;
  }

  async sendRound(round: number, pages: Bitmap): Promise<RoundTransfer> {
    const started = performance.now();
    const acknowledged = this.#acknowledged(round);
    const [sent] = await Promise.all([Promise.all(this.#send(round, pages, this.#maxBandwidth)), acknowledged]);
    return sum(sent, performance.now() - started);
  }

  async sendLast(round: number, pages: Bitmap): Promise<LastTransfer> {
    const started = performance.now();
    this.lastStored = this.#acknowledged(round);
    this.lastStored.catch(() => {}); // it fails with the link, of which everybody else hears as well
    const sent = await Promise.all(this.#send(round, pages, 0));
    const shares = sent.flatMap(({ digest }) => (digest === undefined ? [] : [digest]));
    return {
      ...sum(sent, performance.now() - started),
      digest: shares.length === 0 ? null : joinDigests(shares),
      packets: sent.map(({ packets }) => packets),
    };
  }

  #acknowledged(round: number): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      this.#waiting = { round, missing: new Set(this.#channels.keys()), resolve, reject };
    });
  }

  roundTripMs(): number {
    return this.#control.rttMs ?? 0;
  }

  /** The target has stored a round of one channel. */
  onFlushed({ channel, round }: Message<"flushed">): void {
    if (this.#waiting?.round !== round) return;
    this.#waiting.missing.delete(channel);
    if (this.#waiting.missing.size === 0) this.#waiting.resolve();
  }

  /** Ends every channel; whatever waits for one rejects. */
  async stop(reason: MigrationError): Promise<void> {
    this.#waiting?.reject(reason);
    await Promise.all(this.#channels.map((channel) => channel.end()));
  }

  /** The cap is a total: each channel gets the share of the round's pages that it has to carry, so all end together. */
  #send(round: number, pages: Bitmap, maxBandwidth: number): Promise<RoundSent>[] {
    const { length } = this.#channels;
    const counts = this.#channels.map((_, channel) => (maxBandwidth === 0 ? 0 : pages.count(channel, length)));
    const all = counts.reduce((sum, count) => sum + count, 0);
    return this.#channels.map((channel, at) => {
      const pacing = all === 0 ? maxBandwidth / length : (maxBandwidth * Math.max(counts[at] ?? 0, all / 1000)) / all;
      return channel.sendRound(round, pages.words, Math.ceil(pacing));
    });
  }
}

function sum(sent: readonly RoundSent[], ms: number): RoundTransfer {
  const add = (of: (one: RoundSent) => number): number => sent.reduce((all, one) => all + of(one), 0);
  return { normalPages: add((one) => one.normalPages), zeroPages: add((one) => one.zeroPages), bytes: add((one) => one.bytes), ms };
}
