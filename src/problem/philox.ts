/**
 * Random bits for dropout as a function of position alone: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011). Every engine computes the same bits, for any tiling, forward and backward.
 */
import type { Dropout } from './problem.ts';

/** Round multipliers, and what the key grows by each round. Engines emit the same rounds from these. */
export const PHILOX = { m0: 0xd2511f53, m1: 0xcd9e8d57, w0: 0x9e3779b9, w1: 0xbb67ae85, rounds: 10 } as const;

export type Words = [x0: number, x1: number, x2: number, x3: number];

/** Four unsigned 32-bit words from a counter (c0 ... c3) and a key (k0, k1). */
export function philox4x32(c0: number, c1: number, c2: number, c3: number, k0: number, k1: number): Words {
  const { m0, m1, w0, w1, rounds } = PHILOX;
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

/** A word at or above this is kept: p * 2^32 rounded, at most 2^32 - 1. */
export const dropThreshold = (p: number): number => Math.min(Math.round(p * 2 ** 32), 2 ** 32 - 1);

/**
 * Whether dropout keeps the probability at (q, kv) of query head `bh` = b * Hq + h; q and kv are positions inside the
 * sequence. Four neighbouring keys share one Philox call: lane kv % 4 of counter (kv / 4, q, bh, offset).
 */
export const keeps = ({ p, seed, offset }: Dropout, bh: number, q: number, kv: number): boolean =>
  philox4x32(kv >>> 2, q, bh, offset, seed[0], seed[1])[kv & 3] >= dropThreshold(p);
