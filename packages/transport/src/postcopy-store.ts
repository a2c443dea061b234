import type { Pieces } from "@precopy/linux";
import type { PacketHeader, RunBounds } from "@precopy/protocol";
import type { ChannelStore } from "./page-store.js";

/**
 * A channel's packets are stored while the guest stands still or is elsewhere, and placed once it may run here: from the first packet on that comes
 * after the target was told to listen.
 */
export class PostcopyStore implements ChannelStore {
  readonly #listening: Int32Array;
  readonly #store: ChannelStore;
  readonly #place: (descriptor: number) => ChannelStore;
  #placer: ChannelStore | undefined;

  /**
   * @param listening one shared word: 0, or one more than the descriptor that pages are placed by. It is written before the source hears that we
   * listen, and the source sends what is to be placed after that. @param place makes the store for those.
   */
  constructor(listening: Int32Array, store: ChannelStore, place: (descriptor: number) => ChannelStore) {
    this.#listening = listening;
    this.#store = store;
    this.#place = place;
  }

  get #current(): ChannelStore {
    return this.#placer ?? this.#store;
  }

  get bounds(): RunBounds {
    return this.#store.bounds;
  }

  begin(header: PacketHeader, head: Buffer, dataPages: number): void {
    if (this.#placer === undefined) {
      const word = Atomics.load(this.#listening, 0);
      if (word !== 0) this.#placer = this.#place(word - 1);
    }
    this.#current.begin(header, head, dataPages);
  }

  nextPieces(into: Pieces): number {
    return this.#current.nextPieces(into);
  }

  payload(bytes: Buffer): void {
    this.#current.payload(bytes);
  }

  end(): void {
    this.#current.end();
  }
}
