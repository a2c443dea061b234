/** Numbers from a seed, 0 up to but not including `below`. */
export type Random = (below: number) => number;

const INTERESTING = [
  0,
  1,
  2,
  15,
  16,
  127,
  128,
  255,
  256,
  511,
  512,
  513,
  1000,
  1001,
  4000,
  4095,
  4096,
  4097,
  65_535,
  2 ** 20,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
];
const CHANGES_MAX = 8;
export const INPUT_BYTES_MAX = 32 * 1024;

/** One of the small changes that fuzzers make. */
type Change = (bytes: Buffer, random: Random, other: Buffer, words: readonly Buffer[]) => Buffer;

const insert = (bytes: Buffer, at: number, piece: Buffer): Buffer => Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at)]);

function overwrite(bytes: Buffer, at: number, piece: Buffer): Buffer {
  const changed = Buffer.from(bytes);
  changed.set(piece.subarray(0, Math.max(0, changed.byteLength - at)), at);
  return changed;
}

/** A number as 1, 2 or 4 bytes, either end first. */
function numberOf(random: Random, value: number): Buffer {
  const bytes = [1, 2, 4][random(3)]!;
  const piece = Buffer.alloc(bytes);
  const cut = value % 2 ** (8 * bytes);
  if (random(2) === 0) piece.writeUIntLE(cut, 0, bytes);
  else piece.writeUIntBE(cut, 0, bytes);
  return piece;
}

const noise = (random: Random, bytes: number): Buffer => Buffer.from(Array.from({ length: bytes }, () => random(256)));

const CHANGES: readonly Change[] = [
  (bytes, random) => overwrite(bytes, random(bytes.byteLength + 1), Buffer.from([random(256)])),
  (bytes, random) => {
    const changed = Buffer.from(bytes);
    if (changed.byteLength > 0) changed[random(changed.byteLength)]! ^= 1 << random(8);
    return changed;
  },
  (bytes, random) => overwrite(bytes, random(bytes.byteLength + 1), numberOf(random, INTERESTING[random(INTERESTING.length)]!)),
  (bytes, random) => {
    const changed = Buffer.from(bytes);
    if (changed.byteLength > 0) changed[random(changed.byteLength)]! += random(33) - 16;
    return changed;
  },
  (bytes, random) => {
    const from = random(bytes.byteLength + 1);
    return Buffer.concat([bytes.subarray(0, from), bytes.subarray(from + random(64))]);
  },
  (bytes, random) => bytes.subarray(0, random(bytes.byteLength + 1)),
  (bytes, random) => insert(bytes, random(bytes.byteLength + 1), noise(random, 1 + random(16))),
  (bytes, random) => {
    const from = random(bytes.byteLength + 1);
    return insert(bytes, random(bytes.byteLength + 1), bytes.subarray(from, from + random(256)));
  },
  (bytes, random, other) => {
    const from = random(other.byteLength + 1);
    return overwrite(bytes, random(bytes.byteLength + 1), other.subarray(from, from + random(256)));
  },
  (bytes, random, other) => Buffer.concat([bytes.subarray(0, random(bytes.byteLength + 1)), other.subarray(random(other.byteLength + 1))]),
  (bytes, random, _other, words) => {
    const word = words[random(Math.max(words.length, 1))] ?? Buffer.alloc(0);
    const at = random(bytes.byteLength + 1);
    return random(2) === 0 ? insert(bytes, at, word) : overwrite(bytes, at, word);
  },
];

/** Changes an input in one to CHANGES_MAX ways. @param other another input, to take parts of */
export function mutate(input: Buffer, other: Buffer, words: readonly Buffer[], random: Random): Buffer {
  let bytes = input;
  for (let left = 1 + random(CHANGES_MAX); left > 0; left--) bytes = CHANGES[random(CHANGES.length)]!(bytes, random, other, words);
  return Buffer.from(bytes.subarray(0, INPUT_BYTES_MAX));
}
