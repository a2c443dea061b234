/** Words of a bitmap are looked at in blocks of so many first: a whole one without a page takes the C library 60 ns, a loop of ours up to 50 us. */
export const WORD_BLOCK = 1024;
const EMPTY = Buffer.alloc(WORD_BLOCK * 4);

/** True if the block that begins at this word, or what there is of it, has no page. */
export function isEmptyBlock(words: Uint32Array, at: number): boolean {
  const bytes = Math.min(WORD_BLOCK, words.length - at) * 4;
  const block = Buffer.from(words.buffer, words.byteOffset + at * 4, bytes);
  return block.equals(bytes === EMPTY.byteLength ? EMPTY : EMPTY.subarray(0, bytes));
}
