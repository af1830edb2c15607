/**
 * Elementary functions of whole Vecs by range reduction and polynomials. Errors quoted are the largest found against
 * float64 on dense grids (test/wasm/functions.test.ts), in units in the last place of the result.
 */
import { f32x4, i32x4, type V128, v128 } from './asm/values.ts';
import { floats, ints, type Vec, type Vectors } from './tile.ts';

/** 2^f - 1 over f on [-1/2, 1/2]: minimax in relative error, 9.2e-8, with 2^0 exactly 1. */
const EXP2 = [0.6931469776002883, 0.24022242085258336, 0.05550733741752545, 0.00967151264624069, 0.0013264727629998874];
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
/** ln 2 in two parts, the first with trailing zeros, so that n * LN2_HIGH is exact. */
const LN2_HIGH = 0.693359375;
const LN2_LOW = -2.1219444005469057e-4;

/** ((c[n] x + c[n-1]) x + ...) x + c[0] */
function horner(v: Vectors, x: Vec, coefficients: readonly number[]): Vec {
  let sum = v.repeat(floats(coefficients[coefficients.length - 1]));
  for (const c of coefficients.slice(0, -1).reverse()) sum = v.map((s, y) => v.madd(s, y, floats(c)), sum, x);
  return sum;
}

/** 2^x for x <= 0, as softmax weights need it: exactly 0 below -126.5, exactly 1 at 0, NaN for NaN; 1.6 ulp. */
export function exp2Negative(v: Vectors, x: Vec): Vec {
  const low = v.map((y) => f32x4.pmax(y, floats(-127)), x);
  const shifted = v.map((y) => f32x4.add(y, floats(MAGIC + 127)), low);
  const whole = v.map((y) => f32x4.sub(y, floats(MAGIC + 127)), shifted);
  const fraction = v.map((y: V128, n: V128) => f32x4.sub(y, n), low, whole);
  const mantissa = horner(v, fraction, [1, ...EXP2]);
  const power = v.map((y) => i32x4.shl(y, 23), shifted);
  return v.map((a, b) => f32x4.mul(a, b), mantissa, power);
}

/** e^x; overflows to infinity, underflows gradually to 0. */
export function exp(v: Vectors, x: Vec): Vec {
  const bounded = v.map((y) => f32x4.pmin(f32x4.pmax(y, floats(-110)), floats(100)), x);
  const shifted = v.map((y) => v.madd(y, floats(Math.LOG2E), floats(MAGIC)), bounded);
  const whole = v.map((y) => f32x4.sub(y, floats(MAGIC)), shifted);
  const reduced = v.map((y, n) => v.madd(n, floats(-LN2_LOW), v.madd(n, floats(-LN2_HIGH), y)), bounded, whole);
  const fraction = v.map((y) => f32x4.mul(y, floats(Math.LOG2E)), reduced);
  const mantissa = horner(v, fraction, [1, ...EXP2_FINE]);
  // Two factors of about half the exponent each, so that neither overflows before the product does.
  const n = v.map((y) => i32x4.sub(y, ints(0x4b400000)), shifted);
  const half = v.map((y) => i32x4.shr_s(y, 1), n);
  const first = v.map((y) => i32x4.shl(i32x4.add(y, ints(127)), 23), half);
  const second = v.map((y, h) => i32x4.shl(i32x4.add(i32x4.sub(y, h), ints(127)), 23), n, half);
  return v.map((m, a, b) => f32x4.mul(f32x4.mul(m, a), b), mantissa, first, second);
}

/** Natural logarithm: -inf at 0, NaN below, inf at inf; subnormals are scaled up first. */
export function log(v: Vectors, x: Vec): Vec {
  const tiny = v.map((y) => f32x4.lt(y, floats(2 ** -126)), x);
  const scaled = v.map((y, t) => v128.bitselect(f32x4.mul(y, floats(2 ** 24)), y, t), x, tiny);
  // x = m * 2^n with m in [1/sqrt 2, sqrt 2): the offset is the distance of the bits of 1/sqrt 2 from those of 1.
  const bits = v.map((y) => i32x4.add(y, ints(0x3f800000 - 0x3f3504f3)), scaled);
  const exponent = v.map((y) => i32x4.sub(i32x4.shr_s(y, 23), ints(127)), bits);
  const m = v.map((y) => i32x4.add(v128.and(y, ints(0x007fffff)), ints(0x3f3504f3)), bits);
  const t = v.map((y) => f32x4.sub(y, floats(1)), m);
  const n = v.map((y, z) => f32x4.sub(f32x4.convert_i32x4_s(y), v128.and(z, floats(24))), exponent, tiny);
  const square = v.map((y) => f32x4.mul(y, y), t);
  const tail = v.map((y, s, p) => f32x4.mul(f32x4.mul(y, s), p), t, square, horner(v, t, LOG));
  const low = v.map((k, p) => v.madd(k, floats(LN2_LOW), p), n, tail);
  const middle = v.map((s, l) => v.madd(s, floats(-0.5), l), square, low);
  const finite = v.map((k, y, p) => v.madd(k, floats(LN2_HIGH), f32x4.add(y, p)), n, t, middle);
  const positive = v.map((y, r) => v128.bitselect(r, y, f32x4.lt(y, floats(Number.POSITIVE_INFINITY))), x, finite);
  const zero = v.map(
    (y, r) => v128.bitselect(floats(Number.NEGATIVE_INFINITY), r, f32x4.eq(y, floats(0))),
    x,
    positive,
  );
  return v.map((y, r) => v128.bitselect(floats(Number.NaN), r, f32x4.lt(y, floats(0))), x, zero);
}

/** tanh: odd polynomial near 0, 1 - 2 / (e^2|x| + 1) beyond. */
export function tanh(v: Vectors, x: Vec): Vec {
  const size = v.map((y) => f32x4.abs(y), x);
  const square = v.map((y) => f32x4.mul(y, y), x);
  const poly = horner(v, square, TANH);
  const near = v.map((y, s, p) => v.madd(f32x4.mul(y, s), p, y), size, square, poly);
  const power = exp(
    v,
    v.map((y) => f32x4.add(y, y), size),
  );
  const far = v.map((p) => f32x4.sub(floats(1), f32x4.div(floats(2), f32x4.add(p, floats(1)))), power);
  const result = v.map((y, a, b) => v128.bitselect(a, b, f32x4.lt(y, floats(0.625))), size, near, far);
  return v.map((y, r) => v128.or(r, v128.and(y, ints(0x80000000 | 0))), x, result);
}
