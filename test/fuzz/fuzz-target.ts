/** Something that reads bytes of anybody's. */
export interface FuzzTarget {
  readonly name: string;
  /** What it reads well, to begin with. */
  seeds(): readonly Buffer[];
  /** Bytes that mean something to it. */
  readonly words: readonly Buffer[];
  /** Of compiled files, those whose coverage guides: part of their paths. */
  readonly covers: readonly string[];
  /** Reads them. Throws what it found wrong; that the bytes are refused in good order is nothing wrong. */
  read(input: Buffer): void | Promise<void>;
  /** Lets go of everything. */
  end?(): Promise<void>;
}

/** Something broke that no input may break. */
export class Finding extends Error {}
