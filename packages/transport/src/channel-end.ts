import { Socket } from "node:net";
import { systemLz4, whileLoading } from "@precopy/linux";
import { Bitmap, GuestMemory, PageHashes } from "@precopy/guest";
import type { HashTable, SharedMemory, ZeroCheck } from "@precopy/guest";
import { MigrationError } from "@precopy/protocol";
import type { BlockCompression, ErrorCode, MigrationParameters, PacketHeader } from "@precopy/protocol";
import { codecOfNode } from "@precopy/protocol/page-codec";
import type { BlockCodec } from "@precopy/protocol/page-codec";
import type { TrafficSecret } from "@precopy/security";
import { LaneProgress } from "./lane-progress.js";
import { LaneTable } from "./lane-table.js";
import type { SharedLanes } from "./lane-table.js";
import { PagePacker } from "./page-packer.js";
import type { LaneStart, RoundSent, SendPosition } from "./page-packer.js";
import { PagePlacer } from "./page-placer.js";
import { ChannelStopped, PageStore } from "./page-store.js";
import { PostcopyStore } from "./postcopy-store.js";
import { DirectSendPump, receiveDirect, receiveSealed } from "./pump-direct.js";
import { PortableSendPump, receivePortable } from "./pump-portable.js";
import type { PumpKind, SendPump } from "./pump.js";
import { closedTooEarly } from "./take-descriptor.js";
import { SecuredConnection } from "./tls-end.js";
import { collectDropped } from "./young-garbage.js";

/** What the receiving threads have to know of post-copy; see PostcopyStore and PagePlacer. */
export interface SharedPostcopy {
  readonly listening: Int32Array;
  readonly missing: Uint32Array;
}

/** What both ends of a channel know. */
export interface ChannelSetup {
  readonly channel: number;
  /** From 1; each life of a channel has a later one. */
  readonly generation: number;
  readonly lanes: SharedLanes;
  readonly pump: PumpKind;
  /** Undefined where the end has its socket already, and is to keep it. */
  readonly fd: number | undefined;
  /** Nothing goes through the descriptor but sealed. */
  readonly isSecured: boolean;
  readonly memory: SharedMemory;
  /** Undefined with the digest off. */
  readonly hashes: HashTable | undefined;
  /** One word: other than zero tells a blocked thread to stop. */
  readonly stop: Int32Array;
}
export type ToChannel =
  | ({
      readonly type: "send";
      readonly compression: MigrationParameters["multifdCompression"];
      /** See PackerSource. */
      readonly choices?: readonly BlockCompression[];
      /** See PackerSource. */
      readonly xbzrleCacheBytes?: number;
      /** Default vector. */
      readonly zeroCheck?: ZeroCheck;
      /** See PackerSource. */
      readonly sentPages: Float64Array;
    } & ChannelSetup)
  | ({
      readonly type: "receive";
      readonly answer: Uint8Array;
      readonly populated: Uint32Array;
      /** Where the migration may come to post-copy. */
      readonly postcopy?: SharedPostcopy | undefined;
    } & ChannelSetup)
  | {
      readonly type: "round";
      readonly round: number;
      readonly words: Uint32Array;
      readonly pacing: number;
      readonly from: readonly LaneStart[];
    }
  /** Bytes/s from now on, in the middle of a round too; 0 lifts it. For a pump that does not block its thread. */
  | { readonly type: "pace"; readonly pacing: number }
  | { readonly type: "end" };
export type FromChannel =
  /** Once, when the thread has loaded its modules. */
  | { readonly type: "up" }
  | ({ readonly type: "sent"; readonly round: number } & RoundSent)
  /** lanes: bits of those whose round has ended. packets: received since this generation of the channel began, this FLUSH included. */
  | {
      readonly type: "flushed";
      readonly round: number;
      readonly lanes: number;
      readonly packets: number;
      readonly digest: bigint | undefined;
    }
  | ({ readonly type: "ended"; readonly code: ErrorCode | undefined; readonly message: string } & ChannelRemains);
/** What a channel leaves behind. The last message of its end: nothing there touches guest memory or the socket any more. */
export interface ChannelRemains {
  /** This end's final share of the image digest; undefined without hashes, and if the thread crashed. */
  readonly digest: bigint | undefined;
  /** Of a sender that began a round. */
  readonly position: SendPosition | undefined;
}

/** One end of a page channel, on whichever thread it lives. Takes messages, and answers through `reply`. */
export class ChannelEnd {
  readonly #reply: (message: FromChannel) => void;
  readonly #socket: Socket | undefined;
  readonly #secured: SecuredConnection | undefined;
  #hashes: PageHashes | undefined;
  #sender: { readonly packer: PagePacker; readonly pump: SendPump; readonly pages: number } | undefined;
  #busy: Promise<void> = Promise.resolve();
  #isEnded = false;

  /** @param connection there already: with TLS, and on the main thread, where no descriptor can be taken over. */
  constructor(reply: (message: FromChannel) => void, connection: Socket | SecuredConnection | undefined) {
    this.#reply = reply;
    if (connection instanceof SecuredConnection) this.#secured = connection;
    else this.#socket = connection;
  }

  /** Messages are served in order; only a pace is for what is being sent already. */
  handle(message: ToChannel): void {
    if (message.type === "pace") return this.#sender?.pump.setPacing(message.pacing);
    this.#busy = this.#busy.then(() => this.#serve(message)).catch((error: unknown) => this.#end(error));
  }

  async #serve(message: ToChannel): Promise<void> {
    if (this.#isEnded) return;
    if (message.type === "send") await this.#startSending(message);
    else if (message.type === "receive") await this.#receive(message);
    else if (message.type === "end") this.#end(undefined);
    else if (message.type === "round" && this.#sender !== undefined) {
      const { packer, pump, pages } = this.#sender;
      pump.setPacing(message.pacing);
      const { round, words, from } = message;
      this.#reply({ type: "sent", round, ...(await packer.sendRound(round, new Bitmap(pages, words), from)) });
    }
  }

  /** When the round under way, if there is one, has noticed as well. */
  #endInTurn(failure: MigrationError): void {
    this.#busy = this.#busy.then(() => this.#end(failure));
  }

  async #startSending(setup: ToChannel & { type: "send" }): Promise<void> {
    const secret = await this.#letGo(setup);
    const memory = new GuestMemory(setup.memory);
    const mayGoOn = (): boolean => Atomics.load(setup.stop, 0) === 0;
    const pump =
      setup.pump === "direct" && setup.fd !== undefined
        ? new DirectSendPump(setup.fd, memory, mayGoOn, secret)
        : new PortableSendPump(this.#socketOf(setup), memory, mayGoOn, (failure) => this.#endInTurn(failure));
    this.#hashes = setup.hashes === undefined ? undefined : new PageHashes(memory, setup.hashes);
    const { compression, choices = ["lz4"], xbzrleCacheBytes = 0, zeroCheck = "vector", sentPages } = setup;
    const lanes = new LaneTable(setup.lanes).lanes;
    const codec = codecsFor(setup.pump);
    const source = { memory, hashes: this.#hashes, lanes, compression, choices, xbzrleCacheBytes, codec, zeroCheck, sentPages };
    this.#sender = { packer: new PagePacker(source, pump), pump, pages: memory.pages };
  }

  async #receive(setup: ToChannel & { type: "receive" }): Promise<void> {
    const memory = new GuestMemory(setup.memory);
    const hashes = setup.hashes === undefined ? undefined : new PageHashes(memory, setup.hashes);
    this.#hashes = hashes;
    const lanes = new LaneTable(setup.lanes);
    const populated = new Bitmap(memory.pages, setup.populated);
    const { channel, postcopy } = setup;
    const codec = codecsFor(setup.pump);
    const pages = new PageStore({ memory, hashes, channel, lanes, populated, codec, isDenseAllowed: postcopy === undefined });
    const store =
      postcopy === undefined
        ? pages
        : new PostcopyStore(postcopy.listening, pages, (descriptor) => {
            const missing = new Bitmap(memory.pages, postcopy.missing);
            const progress = new LaneProgress(lanes, channel, memory.pages);
            return new PagePlacer({ memory, table: setup.hashes, missing, populated, descriptor, progress, codec });
          });
    const onFlush = ({ round, sequence, lanes: bits }: PacketHeader): void =>
      this.#reply({ type: "flushed", round, lanes: bits, packets: sequence + 1, digest: hashes?.digest() });
    const mayGoOn = (): boolean => Atomics.load(setup.stop, 0) === 0;
    if (setup.pump === "direct" && setup.fd !== undefined) {
      const secret = await this.#letGo(setup, setup.answer);
      if (secret !== undefined) receiveSealed(setup.fd, secret, store, mayGoOn, onFlush);
      else receiveDirect(setup.fd, setup.answer, store, mayGoOn, onFlush);
    } else await receivePortable(this.#socketOf(setup), setup.answer, store, onFlush);
    this.#end(undefined);
  }

  /** @returns what pages are to be sealed with; undefined where nothing is, or the socket does it. @throws {MigrationError} ERR_LINK_LOST, never in clear instead */
  async #letGo({ pump, fd, isSecured }: ChannelSetup, last?: Uint8Array): Promise<TrafficSecret | undefined> {
    if (!isSecured || pump !== "direct" || fd === undefined) return undefined;
    if (this.#secured === undefined) throw closedTooEarly();
    return this.#secured.letGo(last);
  }

  /** A socket of this thread's own over the descriptor, which it closes with itself. */
  #socketOf({ fd }: ChannelSetup): Socket {
    const socket = this.#secured?.keep() ?? this.#socket;
    if (socket?.destroyed === false) return socket;
    if (fd === undefined) throw closedTooEarly(); // what there was of it tells nobody any more
    return new Socket({ fd, readable: true, writable: true });
  }

  #end(error: unknown): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    const position = this.#sender?.packer.position;
    this.#sender?.pump.close();
    this.#sender = undefined;
    const failure = error === undefined || error instanceof ChannelStopped ? undefined : MigrationError.from(error);
    const cause = failure?.cause instanceof Error ? ` (${failure.cause.message})` : "";
    const message = failure === undefined ? "" : `${failure.message}${cause}`;
    this.#reply({ type: "ended", code: failure?.code, message, digest: this.#hashes?.digest(), position });
    collectDropped();
  }
}

/** The portable pump is for where nothing but Node can be counted on. */
const codecsFor =
  (pump: PumpKind) =>
  (compression: BlockCompression): BlockCodec =>
    (pump === "direct" && compression === "lz4" ? systemLz4() : undefined) ?? whileLoading(() => codecOfNode(compression));
