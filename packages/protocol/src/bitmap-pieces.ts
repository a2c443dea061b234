import { deflateRawSync, inflateRawSync } from "node:zlib";
import { MigrationError } from "./errors.js";
import { BITMAP_PIECE_WORDS, CONTROL_MESSAGE_BYTES_MAX } from "./limits.js";
import { WORD_BLOCK, isEmptyBlock } from "./word-blocks.js";

/** Some words of a bitmap of guest pages, as they travel in a control message: of 128 GiB of guest at most. */
export interface BitmapPiece {
  /** Number of the first word. */
  readonly first: number;
  /** Little-endian words, deflated. */
  readonly words: Uint8Array;
}

/** The fastest level: a bitmap is mostly zeros. */
const LEVEL = 1;

/** The pieces of a bitmap with a page in them, in order; each fits into a control message. */
export function* piecesOf(words: Uint32Array): Generator<BitmapPiece> {
  for (let first = 0; first < words.length; first += BITMAP_PIECE_WORDS)
    yield* split(words, first, Math.min(BITMAP_PIECE_WORDS, words.length - first));
}

/** Without the blocks at both ends that are empty; in halves where they are too dense for one message. */
function* split(words: Uint32Array, from: number, pieceWords: number): Generator<BitmapPiece> {
  const piece = words.subarray(from, from + pieceWords);
  let skipped = 0;
  while (skipped < pieceWords && isEmptyBlock(piece, skipped)) skipped += WORD_BLOCK;
  if (skipped >= pieceWords) return;
  let end = Math.floor((pieceWords - 1) / WORD_BLOCK) * WORD_BLOCK; // of the last block, its first word
  while (isEmptyBlock(piece, end)) end -= WORD_BLOCK;
  const some = piece.subarray(skipped, end + WORD_BLOCK);
  const [first, count] = [from + skipped, some.length];
  const deflated = deflateRawSync(Buffer.from(some.buffer, some.byteOffset, some.byteLength), { level: LEVEL });
  if (deflated.byteLength <= CONTROL_MESSAGE_BYTES_MAX / 2) return yield { first, words: deflated };
  const half = Math.ceil(count / 2);
  yield* split(words, first, half);
  yield* split(words, first + half, count - half);
}

/**
 * Adds a piece to a bitmap. @throws {MigrationError} ERR_BAD_MESSAGE for one that is damaged, or names pages past the end.
 * @param pages of the guest
 */
export function joinPiece(into: Uint32Array, pages: number, { first, words: deflated }: BitmapPiece): void {
  const room = Math.max(0, Math.min(BITMAP_PIECE_WORDS, into.length - first));
  let bytes: Buffer;
  try {
    bytes = inflateRawSync(deflated, { maxOutputLength: Math.max(room * 4, 1) });
  } catch (cause) {
    throw new MigrationError("ERR_BAD_MESSAGE", `Words of a bitmap at ${first} that cannot be read`, { cause });
  }
  const count = bytes.byteLength / 4;
  if (!Number.isInteger(count) || count === 0 || count > room)
    throw new MigrationError("ERR_BAD_MESSAGE", `${count} words at ${first}, of ${into.length}`);
  const isPast = first + count === into.length && pages % 32 !== 0 && bytes.readUInt32LE(4 * (count - 1)) >>> (pages % 32) !== 0;
  if (isPast) throw new MigrationError("ERR_BAD_MESSAGE", `A bitmap names pages behind the last of ${pages}`);
  const words = new Uint32Array(count); // aligned, as what was inflated may not be
  Buffer.from(words.buffer).set(bytes);
  for (let block = 0; block < count; block += WORD_BLOCK)
    if (!isEmptyBlock(words, block)) for (let at = block; at < Math.min(block + WORD_BLOCK, count); at++) into[first + at]! |= words[at]!;
}
