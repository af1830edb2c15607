/**
 * Random bits for dropout as a function of position alone: Philox4x32-7 (Salmon, Moraes, Dror, Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011: seven rounds are the fewest that pass BigCrush). Every engine computes the same
 * bits, for any tiling, forward and backward.
 *
 * A call has 128 bits, a position takes 16: four neighbouring keys and two queries eight apart share one. Rows r and r + 8
 * are what a thread holds of a tile of tensor cores, and neighbouring keys are what a vector holds elsewhere.
 */
import type { Dropout } from './problem.ts';

/** Round multipliers, and what the key grows by each round. Engines emit the same rounds from these. */
export const PHILOX = { m0: 0xd2511f53, m1: 0xcd9e8d57, w0: 0x9e3779b9, w1: 0xbb67ae85, rounds: 7 } as const;

export type Words = [x0: number, x1: number, x2: number, x3: number];

/** Four unsigned 32-bit words from a counter (c0 ... c3) and a key (k0, k1). */
export function philox4x32(
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  k0: number,
  k1: number,
  rounds: number = PHILOX.rounds,
): Words {
  const { m0, m1, w0, w1 } = PHILOX;
  for (let round = 0; round < rounds; round++) {
    const high0 = mulHigh(m0, c0);
    const high1 = mulHigh(m1, c2);
    const low0 = Math.imul(m0, c0);
    c0 = high1 ^ c1 ^ k0;
    c1 = Math.imul(m1, c2);
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + w0) | 0;
    k1 = (k1 + w1) | 0;
  }
  return [c0 >>> 0, c1 >>> 0, c2 >>> 0, c3 >>> 0];
}

/** High 32 bits of the unsigned product. */
function mulHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + ((middle & 0xffff) + aLow * bHigh) / 0x10000) >>> 0;
}

/** What 16 random bits are compared with: p * 2^16 rounded. A p that rounds to 0 drops nothing. */
const threshold16 = (p: number): number => Math.min(Math.round(p * 2 ** 16), 2 ** 16 - 1);

/**
 * A word at or above this is kept, once the position's 16 bits are its upper half (for queries whose bit 3 is set they are;
 * for the others the word is shifted left by 16).
 */
export const dropThreshold = (p: number): number => threshold16(p) * 2 ** 16;

/** What kept probabilities are multiplied by: 1 / (1 - p), for the p that 16 bits can draw. */
export const keepScale = (p: number): number => 1 / (1 - threshold16(p) / 2 ** 16);

/**
 * Whether dropout keeps the probability at (q, kv) of query head `bh` = b * Hq + h; q and kv are positions inside the
 * sequence. The bits are in word kv % 4 of counter (kv / 4, q without its bit 3, bh, offset): its upper half where bit 3
 * of q is set, else its lower half.
 */
export function keeps({ p, seed, offset }: Dropout, bh: number, q: number, kv: number): boolean {
  const word = philox4x32(kv >>> 2, q & ~8, bh, offset, seed[0], seed[1])[kv & 3];
  return (q & 8 ? word >>> 16 : word & 0xffff) >= threshold16(p);
}
