/**
 * Elementary functions of whole Vecs by range reduction and polynomials. Errors quoted are the largest found against
 * float64 on dense grids (test/wasm/functions.test.ts), in units in the last place of the result.
 */
import { f32x4, i32x4, v128 } from './asm/values.ts';
import type { Vec, Vectors } from './tile.ts';

/**
 * Softmax weights below 2^-99.5 are 0. They would not show in any sum, but they, or products with them, would be subnormal,
 * and x86 processors take some 150 cycles for each operation on a subnormal.
 */
export const EXP2_UNDERFLOW = -100;
/**
 * 2^f on [-1/2, 1/2] with 2^0 exactly 1: minimax in relative error, 9.2e-8; times 2^(127 - 100), because `exp2Negative` has
 * an exponent bias of 100 in place of 127, so that the power of the smallest weight is the float 0.
 */
export const EXP2: readonly number[] = [
  1, 0.6931469776002883, 0.24022242085258336, 0.05550733741752545, 0.00967151264624069, 0.0013264727629998874,
].map((c) => c * 2 ** (127 + EXP2_UNDERFLOW));
/** The same one degree further, 2.0e-9, for results that are not only softmax weights. */
const EXP2_FINE = [
  0.693147202852212, 0.24022647912010114, 0.05550332472672314, 0.009618437497208695, 0.0013398874291982625,
  0.00015353332265028043,
];
/** (log(1 + t) - t + t^2 / 2) / t^3 on [1/sqrt 2 - 1, sqrt 2 - 1]: 5.8e-9 of log(1 + t). */
const LOG = [
  0.3333333170815056, -0.2500082103214536, 0.2000122683920038, -0.16623357356423452, 0.14201758669665193,
  -0.13160183027961095, 0.1276157359889385, -0.0763449112747904,
];
/** (tanh x - x) / x^3 in x^2 on [0, 5/8]: 4.4e-9 of tanh x. */
const TANH = [-0.333332819425757, 0.1333144221093527, -0.0537397158871296, 0.020639089183307705, -0.005704988597281485];
/** 1.5 * 2^23: adding it rounds to an integer, which is left in the low bits. */
const MAGIC = 12582912;
/** The same for `exp2Negative`, with the exponent bias in: the bits are the power's, but for the shift. */
export const EXP2_MAGIC: number = MAGIC - EXP2_UNDERFLOW;
/** Bits of 1/sqrt 2. */
const ROOT_HALF = 0x3f3504f3;
/** ln 2 in two parts, the first with trailing zeros, so that n * LN2_HIGH is exact. */
const LN2_HIGH = 0.693359375;
const LN2_LOW = -2.1219444005469057e-4;

/** ((c[n] x + c[n-1]) x + ...) x + c[0] */
function horner(v: Vectors, x: Vec, coefficients: readonly Vec[]): Vec {
  let sum = coefficients[coefficients.length - 1];
  for (const c of coefficients.slice(0, -1).reverse()) sum = v.map((s, y, k) => v.madd(s, y, k), sum, x, c);
  return sum;
}
const constants = (v: Vectors, values: readonly number[]): Vec[] => values.map((x) => v.constant(x));

/** What `exp2Negative` needs in registers or near them; make it before the loop. */
export interface Exp2 {
  readonly low: Vec;
  readonly magic: Vec;
  readonly polynomial: readonly Vec[];
}

export const exp2Constants = (v: Vectors): Exp2 => ({
  low: v.constant(EXP2_UNDERFLOW),
  magic: v.constant(EXP2_MAGIC),
  polynomial: constants(v, EXP2),
});

/** 2^x for x <= 0, as softmax weights need it: exactly 0 below -99.5, exactly 1 at 0, NaN for NaN; 2.3 ulp. */
export function exp2Negative(v: Vectors, x: Vec, { low, magic, polynomial }: Exp2 = exp2Constants(v)): Vec {
  const bounded = v.map((y, l) => f32x4.pmax(y, l), x, low);
  const shifted = v.map((y, m) => f32x4.add(y, m), bounded, magic);
  const whole = v.map((y, m) => f32x4.sub(y, m), shifted, magic);
  const fraction = v.map((y, n) => f32x4.sub(y, n), bounded, whole);
  const mantissa = horner(v, fraction, polynomial);
  const power = v.map((y) => i32x4.shl(y, 23), shifted);
  return v.map((a, b) => f32x4.mul(a, b), mantissa, power);
}

/** e^x; overflows to infinity, underflows gradually to 0; 1.5 ulp. */
export function exp(v: Vectors, x: Vec): Vec {
  const bounded = v.map((y, lo, hi) => f32x4.pmin(f32x4.pmax(y, lo), hi), x, v.constant(-110), v.constant(100));
  const log2e = v.constant(Math.LOG2E);
  const magic = v.constant(MAGIC);
  const shifted = v.map((y, c, m) => v.madd(y, c, m), bounded, log2e, magic);
  const whole = v.map((y, m) => f32x4.sub(y, m), shifted, magic);
  const high = v.map((y, n, c) => v.madd(n, c, y), bounded, whole, v.constant(-LN2_HIGH));
  const reduced = v.map((y, n, c) => v.madd(n, c, y), high, whole, v.constant(-LN2_LOW));
  const fraction = v.map((y, c) => f32x4.mul(y, c), reduced, log2e);
  const mantissa = horner(v, fraction, constants(v, [1, ...EXP2_FINE]));
  // Two factors of about half the exponent each, so that neither overflows before the product does.
  const n = v.map((y, m) => i32x4.sub(y, m), shifted, magic);
  const half = v.map((y) => i32x4.shr_s(y, 1), n);
  const bias = v.bits(127);
  const first = v.map((y, b) => i32x4.shl(i32x4.add(y, b), 23), half, bias);
  const second = v.map((y, h, b) => i32x4.shl(i32x4.add(i32x4.sub(y, h), b), 23), n, half, bias);
  return v.map((m, a, b) => f32x4.mul(f32x4.mul(m, a), b), mantissa, first, second);
}

/** Natural logarithm: -inf at 0, NaN below, inf at inf; subnormals are scaled up first; 0.9 ulp. */
export function log(v: Vectors, x: Vec): Vec {
  const tiny = v.map((y, c) => f32x4.lt(y, c), x, v.constant(2 ** -126));
  const scaled = v.map((y, t, c) => v128.bitselect(f32x4.mul(y, c), y, t), x, tiny, v.constant(2 ** 24));
  // x = m * 2^n with m in [1/sqrt 2, sqrt 2): the offset is the distance of the bits of 1/sqrt 2 from those of 1.
  const bits = v.map((y, c) => i32x4.add(y, c), scaled, v.bits(0x3f800000 - ROOT_HALF));
  const exponent = v.map((y, c) => i32x4.sub(i32x4.shr_s(y, 23), c), bits, v.bits(127));
  const m = v.map((y, c, r) => i32x4.add(v128.and(y, c), r), bits, v.bits(0x007fffff), v.bits(ROOT_HALF));
  const t = v.map((y, one) => f32x4.sub(y, one), m, v.constant(1));
  const n = v.map((y, z, c) => f32x4.sub(f32x4.convert_i32x4_s(y), v128.and(z, c)), exponent, tiny, v.constant(24));
  const square = v.map((y) => f32x4.mul(y, y), t);
  const tail = v.map((y, s, p) => f32x4.mul(f32x4.mul(y, s), p), t, square, horner(v, t, constants(v, LOG)));
  const low = v.map((k, c, p) => v.madd(k, c, p), n, v.constant(LN2_LOW), tail);
  const middle = v.map((s, c, l) => v.madd(s, c, l), square, v.constant(-0.5), low);
  const finite = v.map((k, c, y, p) => v.madd(k, c, f32x4.add(y, p)), n, v.constant(LN2_HIGH), t, middle);
  const infinite = v.constant(Number.POSITIVE_INFINITY);
  const positive = v.map((y, r, i) => v128.bitselect(r, y, f32x4.lt(y, i)), x, finite, infinite);
  const zero = v.bits(0);
  const lowest = v.constant(Number.NEGATIVE_INFINITY);
  const atZero = v.map((y, r, z, l) => v128.bitselect(l, r, f32x4.eq(y, z)), x, positive, zero, lowest);
  return v.map((y, r, z, n) => v128.bitselect(n, r, f32x4.lt(y, z)), x, atZero, zero, v.constant(Number.NaN));
}

/** tanh: odd polynomial near 0, 1 - 2 / (e^2|x| + 1) beyond; 1.4 ulp. */
export function tanh(v: Vectors, x: Vec): Vec {
  const size = v.map((y) => f32x4.abs(y), x);
  const square = v.map((y) => f32x4.mul(y, y), x);
  const poly = horner(v, square, constants(v, TANH));
  const near = v.map((y, s, p) => v.madd(f32x4.mul(y, s), p, y), size, square, poly);
  const power = exp(
    v,
    v.map((y) => f32x4.add(y, y), size),
  );
  const one = v.constant(1);
  const far = v.map((p, a, b) => f32x4.sub(a, f32x4.div(b, f32x4.add(p, a))), power, one, v.constant(2));
  const result = v.map((y, a, b, c) => v128.bitselect(a, b, f32x4.lt(y, c)), size, near, far, v.constant(0.625));
  return v.map((y, r, c) => v128.or(r, v128.and(y, c)), x, result, v.bits(0x80000000 | 0));
}
