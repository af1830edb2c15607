/** Elements as they are stored and as f32 lanes: f32, f16 and bf16. */
import type { FloatDType } from '../../core/dtype.ts';
import type { FuncBuilder } from './asm/func.ts';
import { f32x4, type I32, i16x8, i32, i32x4, type V128, v128 } from './asm/values.ts';
import { floats, ints } from './tile.ts';

/** Storage types of this engine. */
export type Stored = Exclude<FloatDType, 'f64'>;

/** Four neighbouring elements as f32. Reads 16 or 8 bytes. */
export const loadFour = (f: FuncBuilder, dtype: Stored, address: I32, offset = 0): V128 =>
  dtype === 'f32' ? v128.load(address, offset) : decode(f, dtype, f.let(v128.load16x4_u(address, offset), 'half'));

/** Four 16-bit floats, in the low halves of the words, as f32. */
export function decode(f: FuncBuilder, dtype: Stored, words: V128): V128 {
  if (dtype !== 'f16') return i32x4.shl(words, 16);
  // Exponent and mantissa moved into place are the half times 2^-112, subnormals included.
  const magnitude = f.let(v128.and(words, ints(0x7fff)));
  const scaled = f32x4.mul(i32x4.shl(magnitude, 13), floats(2 ** 112));
  const special = v128.and(i32x4.lt_s(ints(0x7bff), magnitude), ints(0x7f800000));
  const sign = i32x4.shl(v128.and(words, ints(0x8000)), 16);
  return v128.or(v128.or(scaled, special), sign);
}

/** Four floats as the low 16 bits of four words, rounded to nearest even. */
function encode(f: FuncBuilder, dtype: 'f16' | 'bf16', x: V128): V128 {
  const u = f.let(x, 'u');
  const nan = f.let(f32x4.ne(u, u), 'nan');
  if (dtype === 'bf16') {
    const even = v128.and(i32x4.shr_u(u, 16), ints(1));
    const rounded = i32x4.shr_u(i32x4.add(i32x4.add(u, ints(0x7fff)), even), 16);
    return v128.bitselect(ints(0x7fc0), rounded, nan);
  }
  const a = f.let(v128.and(u, ints(0x7fffffff)), 'abs');
  const even = v128.and(i32x4.shr_u(a, 13), ints(1));
  const normal = i32x4.shr_u(i32x4.add(i32x4.add(a, ints(0xfff - (112 << 23))), even), 13);
  // Adding 1/2 leaves a subnormal half's bits, rounded, at the bottom of the mantissa.
  const small = i32x4.sub(f32x4.add(a, floats(0.5)), ints(0x3f000000));
  const finite = v128.bitselect(small, normal, i32x4.lt_s(a, ints(0x38800000)));
  const bounded = v128.bitselect(ints(0x7c00), finite, i32x4.lt_s(ints(0x477fefff), a));
  const magnitude = v128.bitselect(ints(0x7e00), bounded, nan);
  return v128.or(magnitude, i32x4.shr_u(v128.and(u, ints(0x80000000 | 0)), 16));
}

/** Stores the first `count` (1 to 4) of four floats as neighbouring elements, and touches nothing behind them. */
export function storeFour(f: FuncBuilder, dtype: Stored, address: I32, x: V128, count: number, offset = 0): void {
  if (dtype === 'f32') {
    if (count === 4) f.do(v128.store(address, x, offset));
    else {
      const lanes = f.let(x);
      if (count >= 2) f.do(v128.store64_lane(address, lanes, 0, offset));
      if (count % 2 === 1) f.do(v128.store32_lane(address, lanes, count - 1, offset + 4 * (count - 1)));
    }
    return;
  }
  const words = f.let(encode(f, dtype, x));
  if (count === 4) f.do(v128.store64_lane(address, i16x8.narrow_i32x4_u(words, words), 0, offset));
  else for (let i = 0; i < count; i++) f.do(i32.store16(address, i32x4.extract_lane(words, i), offset + 2 * i));
}
