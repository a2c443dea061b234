/** Spreads a number over 32 bits; different numbers stay different (the finisher of MurmurHash3). */
function mix(value: number): number {
  let x = value >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Seed of the Nth case of a campaign: u32, no two cases of a campaign have one. */
export const seedOf = (campaign: number, at: number): number => mix(mix(campaign) + at);

/** Small deterministic generator (mulberry32): one seed, one sequence, on every machine. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 0 to below 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let x = this.#state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Whole, both ends included. */
  between(least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1));
  }

  /** Whole, both ends included, small ones as likely as large ones: 1 to 10 as often as 10 to 100. */
  spread(least: number, most: number): number {
    return Math.round(Math.exp(Math.log(least) + this.next() * Math.log(most / least)));
  }

  chance(share: number): boolean {
    return this.next() < share;
  }

  pick<const T>(list: readonly [T, ...T[]]): T {
    return list[this.between(0, list.length - 1)] ?? list[0];
  }

  /** One of the keys, as often as its weight says. */
  weighted<const K extends string>(weights: Readonly<Record<K, number>>): K {
    const entries = Object.entries<number>(weights) as [K, number][]; // the keys of the very record
    let left = this.next() * entries.reduce((sum, [, weight]) => sum + weight, 0);
    const found = entries.find(([, weight]) => (left -= weight) < 0) ?? entries.at(-1);
    if (found === undefined) throw new Error("Nothing to choose from");
    return found[0];
  }
}
