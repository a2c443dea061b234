import { Bitmap, joinDigests } from "@precopy/guest";
import type { Guest, HashTable, MemoryService, MissingPages } from "@precopy/guest";
import { MigrationError, joinPiece, piecesOf } from "@precopy/protocol";
import type { BitmapPiece, FaultStatistics } from "@precopy/protocol";
import { FaultHandling } from "@precopy/transport";
import type { ChannelSocket, ChannelThreads } from "@precopy/transport";

/**
 * Post-copy at the target: which pages are missing, from before the guest runs here until the last one has come. The order of each step is the point:
 * a page is marked missing before its old version is let go of, and both before anybody runs; it is marked there only when it is.
 */
export class Fetching {
  readonly #guest: Guest;
  readonly #memory: MemoryService;
  readonly #threads: ChannelThreads;
  readonly #hashes: HashTable | undefined;
  readonly #missing: MissingPages;
  readonly #populated: Bitmap;
  /** Told of, and not let go of yet. */
  readonly #noted: Bitmap;
  #hasNoted = false;
  #faults: FaultHandling | undefined;
  #generation = 0;
  #placed: Promise<{ digest: string | null; faults: FaultStatistics }> | undefined;
  #isOver = false;
  /** vCPUs that need a missing page wait for ever. */
  onFailure: (error: MigrationError) => void = () => {};

  /** @param hashes undefined with the digest off */
  constructor(guest: Guest, memory: MemoryService, threads: ChannelThreads, hashes: HashTable | undefined) {
    this.#guest = guest;
    this.#memory = memory;
    this.#threads = threads;
    this.#hashes = hashes;
    this.#missing = guest.missing;
    this.#populated = new Bitmap(guest.memory.pages, guest.populatedWords);
    this.#noted = new Bitmap(guest.memory.pages);
  }

  /** For the threads of page channels. */
  get shared(): { readonly listening: Int32Array; readonly missing: Uint32Array } {
    return { listening: this.#missing.listening, missing: this.#missing.bitmap.words };
  }

  /** From `listen` on, until nothing is missing. */
  get isOpen(): boolean {
    return this.#faults !== undefined && !this.#isOver;
  }

  get missingPages(): number {
    return this.#missing.bitmap.count();
  }

  /** Some more pages of which the source has a newer version. @throws {MigrationError} ERR_BAD_MESSAGE */
  note(piece: BitmapPiece): void {
    this.#hasNoted = true;
    joinPiece(this.#noted.words, this.#noted.pages, piece);
  }

  /**
   * Marks what was noted as missing, and lets go of it; nobody stores or runs meanwhile. From the first call on whoever touches a missing page stops
   * there, and pages that come are placed. @throws {MigrationError} ERR_SYSTEM_CALL
   */
  async listen(): Promise<void> {
    if (this.#faults !== undefined && !this.#hasNoted) return;
    this.#hasNoted = false;
    this.#missing.bitmap.join(this.#noted);
    this.#populated.join(this.#noted);
    await this.#memory.discard(this.#noted, this.#hashes);
    this.#noted.clear();
    if (this.#faults !== undefined) return;
    const { bitmap } = this.#missing;
    this.#faults = new FaultHandling(this.#threads, {
      descriptor: this.#missing.listen(),
      memory: this.#guest.memory.share(),
      table: this.#hashes,
      missing: bitmap.words,
      populated: this.#populated.words,
      threads: this.#guest.threads,
    });
    this.#faults.onFailure = (error) => this.onFailure(error);
  }

  /** A life of the fault channel. False, and the socket stays the caller's, if there was a later one or it is too early or too late. */
  connect(generation: number, socket: ChannelSocket): boolean {
    if (this.#faults === undefined || this.#isOver || generation <= this.#generation) return false;
    this.#generation = generation;
    socket.on("error", () => {}); // it may break while it is taken over; the source will notice
    this.#faults.connect(generation, socket).catch(() => socket.destroy());
    return true;
  }

  /** What is missing now. */
  pieces(): Iterable<BitmapPiece> {
    return piecesOf(this.#missing.bitmap.words);
  }

  /** Undefined if pages are missing still. Else lets go of everything, and says what came of it; asked again, it says so again. */
  async finish(): Promise<{ digest: string | null; faults: FaultStatistics } | undefined> {
    if (this.#placed === undefined && (this.missingPages > 0 || this.#faults === undefined)) return undefined;
    this.#placed ??= this.#finish(this.#faults!); // looked at above
    return this.#placed;
  }

  async #finish(handling: FaultHandling): Promise<{ digest: string | null; faults: FaultStatistics }> {
    // Nothing is missing, so a vCPU that stops now stops at a page of zeros, and closing gives it one.
    const faults = await handling.end();
    this.#isOver = true;
    this.#missing.close();
    if (faults === undefined) throw new MigrationError("ERR_INTERNAL", "The thread that handles faults has crashed");
    return { digest: this.#hashes === undefined ? null : joinDigests([await this.#memory.digestOfHashes(this.#hashes)]), faults };
  }

  /** The guest is to end: nobody stands at its missing pages any more. */
  async end(): Promise<void> {
    this.#isOver = true;
    await this.#faults?.end();
  }
}
