import { MigrationError } from "@precopy/protocol";

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

/** Runs what may refuse its input, by a code of ours and no other way. */
export function refusing(read: () => void): void {
  try {
    read();
  } catch (thrown) {
    if (thrown instanceof MigrationError && thrown.code !== "ERR_INTERNAL") return;
    throw thrown;
  }
}

export const number = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};
export const text = (value: string): Buffer => Buffer.from(value, "latin1");
