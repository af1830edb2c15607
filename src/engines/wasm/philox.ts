/** Philox4x32-7 in SIMD: one counter a lane, four words out. problem/philox.ts says what the counter is. */
import { PHILOX } from '../../problem/philox.ts';
import { type I32, i8x16, i32, i32x4, i64x2, type V128, v128 } from './asm/values.ts';
import { ints, type Vec, type Vectors } from './tile.ts';

/** Even or odd 32-bit words of two vectors of 64-bit products. */
const words = (low: V128, high: V128, odd: 0 | 1): V128 =>
  i8x16.shuffle(
    low,
    high,
    [odd, 2 + odd, 4 + odd, 6 + odd].flatMap((w) => [4 * w, 4 * w + 1, 4 * w + 2, 4 * w + 3]),
  );

/** Four Vecs of 32-bit words from a counter (a Vec or scalar a word) and a scalar key. */
export function philox(v: Vectors, counter: readonly [Vec, Vec, Vec, Vec], key: readonly [I32, I32]): Vec[] {
  const { f } = v;
  const { m0, m1, w0, w1, rounds } = PHILOX;
  let [c0, c1, c2, c3] = counter;
  const k0 = f.let(key[0], 'k0');
  const k1 = f.let(key[1], 'k1');
  const multiply = (c: Vec, m: number): { high: Vec; low: Vec } => {
    const first = v.map((x) => i64x2.extmul_low_i32x4_u(x, ints(m | 0)), c);
    const second = v.map((x) => i64x2.extmul_high_i32x4_u(x, ints(m | 0)), c);
    return {
      high: v.map((a, b) => words(a, b, 1), first, second),
      low: v.map((a, b) => words(a, b, 0), first, second),
    };
  };
  for (let round = 0; round < rounds; round++) {
    const a = multiply(c0, m0);
    const b = multiply(c2, m1);
    const s0 = v.repeat(f.let(i32x4.splat(k0)));
    const s1 = v.repeat(f.let(i32x4.splat(k1)));
    c0 = v.map((x, y, k) => v128.xor(v128.xor(x, y), k), b.high, c1, s0);
    c2 = v.map((x, y, k) => v128.xor(v128.xor(x, y), k), a.high, c3, s1);
    c1 = b.low;
    c3 = a.low;
    f.bump(k0, w0 | 0);
    f.bump(k1, w1 | 0);
  }
  return [c0, c1, c2, c3];
}

/** What words of query q are shifted left by for its half to come to the top: 16 where bit 3 of q is 0. */
export const toTop = (q: I32): I32 => i32.shl(i32.and(i32.xor(q, -1), 8), 1);

/** A Vec of one scalar word. */
export const splatWord = (v: Vectors, x: I32): Vec => v.repeat(v.f.let(i32x4.splat(x)));
