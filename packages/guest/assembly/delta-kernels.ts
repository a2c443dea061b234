// What changed between two versions of a page, in private memory (AssemblyScript, built to dist/delta-kernels.wasm): pages, scratch and output
// all lie in the one memory that is imported, none of which anybody else writes.

const PAGE: usize = 4096;
const STEP: usize = 16;

/** Unsigned LEB128; what is written here fits into two bytes. */
@inline function writeLength(at: usize, value: u32): usize {
  if (value < 128) {
    store<u8>(at, <u8>value);
    return at + 1;
  }
  store<u8>(at, <u8>(value | 128));
  store<u8>(at, <u8>(value >> 7), 1);
  return at + 2;
}

/**
 * Writes to `out` how the page at `now` differs from the one at `before`, as XBZRLE: again and again how many bytes are as they were, how many are
 * not, and those. What is equal up to the end is left out.
 * @returns the bytes of it: 0 if the pages are equal, -1 if they would be more than `most`.
 */
export function encodeDelta(before: usize, now: usize, out: usize, most: usize): i32 {
  let at: usize = 0;
  let to = out;
  const limit = out + most;
  while (at < PAGE) {
    // Equal bytes, 16 at a time and then the last few.
    const equalFrom = at;
    while (at < PAGE) {
      const equal = i8x16.bitmask(i8x16.eq(v128.load(before + at), v128.load(now + at)));
      if (equal != 0xffff) {
        at += ctz<u32>(~equal);
        break;
      }
      at += STEP;
      if (at > PAGE - STEP) {
        while (at < PAGE && load<u8>(before + at) == load<u8>(now + at)) at++;
        break;
      }
    }
    if (at >= PAGE) break;
    const equalBytes = at - equalFrom;
    // Changed bytes: up to the first that is as it was.
    const changedFrom = at;
    while (at < PAGE) {
      if (at > PAGE - STEP) {
        while (at < PAGE && load<u8>(before + at) != load<u8>(now + at)) at++;
        break;
      }
      const equal = i8x16.bitmask(i8x16.eq(v128.load(before + at), v128.load(now + at)));
      if (equal != 0) {
        at += ctz<u32>(equal);
        break;
      }
      at += STEP;
    }
    const changedBytes = at - changedFrom;
    if (to + 4 + changedBytes > limit) return -1;
    to = writeLength(to, <u32>equalBytes);
    to = writeLength(to, <u32>changedBytes);
    memory.copy(to, now + changedFrom, changedBytes);
    to += changedBytes;
  }
  return <i32>(to - out);
}
