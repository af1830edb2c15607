/**
 * Storage types and their host arrays. 16-bit floats live in `Uint16Array` as bit patterns (a `Float16Array` is accepted
 * where the runtime has one and viewed as bits); booleans are `u8` holding 0 or 1.
 */
export type DType = 'f64' | 'f32' | 'f16' | 'bf16' | 'i32' | 'u8';

/** The storage types q, k, v and out may have. f64 is served by the reference engine only. */
export type FloatDType = 'f64' | 'f32' | 'f16' | 'bf16';

/** The array that holds a dtype's elements: f64, f32, f16 or bf16 bits, i32, u8. */
export type HostArray = Float64Array | Float32Array | Uint16Array | Int32Array | Uint8Array;

/** Bytes of one element. */
export const BYTES: Readonly<Record<DType, number>> = { f64: 8, f32: 4, f16: 2, bf16: 2, i32: 4, u8: 1 };

export const isFloat = (dtype: DType): dtype is FloatDType => dtype !== 'i32' && dtype !== 'u8';

/** A zeroed host array of `length` elements. */
export function allocate(dtype: DType, length: number): HostArray {
  switch (dtype) {
    case 'f64':
      return new Float64Array(length);
    case 'f32':
      return new Float32Array(length);
    case 'f16':
    case 'bf16':
      return new Uint16Array(length);
    case 'i32':
      return new Int32Array(length);
    case 'u8':
      return new Uint8Array(length);
    default:
      throw dtype satisfies never;
  }
}

const f32 = new Float32Array(1);
const bits = new Uint32Array(f32.buffer);

/** Bits of the bfloat16 nearest to x (ties to even, decided on the float64 value; NaN stays NaN). */
export function toBf16(x: number): number {
  f32[0] = x;
  let u = bits[0];
  if ((u & 0x7fffffff) > 0x7f800000) return (u >>> 16) | 0x40;
  // A tie that rounding to float32 has made is none: half a step towards x decides.
  if ((u & 0xffff) === 0x8000 && f32[0] !== x) u += Math.abs(x) > Math.abs(f32[0]) ? 1 : -1;
  return (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
}

export function fromBf16(h: number): number {
  bits[0] = h << 16;
  return f32[0];
}

/** Bits of the IEEE half nearest to x (ties to even, decided on the float64 value; overflow to infinity). */
export function toF16(x: number): number {
  if (Number.isNaN(x)) return 0x7e00;
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const a = Math.abs(x);
  if (a >= 65520) return sign | 0x7c00;
  // Spacing of halves around a: 2^(e-10) for normals, 2^-24 below 2^-14.
  let e = Math.max(a === 0 ? -15 : Math.floor(Math.log2(a)), -15);
  if (e > -15 && 2 ** e > a) e--;
  else if (2 ** (e + 1) <= a) e++;
  const ulp = 2 ** (Math.max(e, -14) - 10);
  const n = roundHalfEven(a / ulp);
  // n counts ulps: subnormals are their own bit pattern, and a carry out of the mantissa bumps the exponent by itself.
  return sign | (e < -14 ? n : n + ((e + 14) << 10));
}

export function fromF16(h: number): number {
  const sign = h & 0x8000 ? -1 : 1;
  const e = (h >> 10) & 31;
  const m = h & 1023;
  if (e === 31) return m ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (e === 0 ? m * 2 ** -24 : (1024 + m) * 2 ** (e - 25));
}

function roundHalfEven(x: number): number {
  const f = Math.floor(x);
  const d = x - f;
  return d > 0.5 || (d === 0.5 && f % 2 === 1) ? f + 1 : f;
}

/** Rounds a float64 to the nearest value of the storage type, as a number. */
export function round(dtype: FloatDType, x: number): number {
  switch (dtype) {
    case 'f64':
      return x;
    case 'f32':
      return Math.fround(x);
    case 'f16':
      return fromF16(toF16(x));
    case 'bf16':
      return fromBf16(toBf16(x));
    default:
      throw dtype satisfies never;
  }
}

/** Half the distance between 1 and the next value: the largest relative rounding error of the type. */
export const UNIT_ROUNDOFF: Readonly<Record<FloatDType, number>> = {
  f64: 2 ** -53,
  f32: 2 ** -24,
  f16: 2 ** -11,
  bf16: 2 ** -8,
};

/** Elements as float64 numbers, whatever the storage. The result is always a copy. */
export function toFloat64(dtype: DType, data: HostArray): Float64Array {
  if (dtype === 'f16') return Float64Array.from(data, fromF16);
  if (dtype === 'bf16') return Float64Array.from(data, fromBf16);
  return Float64Array.from(data);
}

/** Float64 numbers rounded into a host array of the storage type. */
export function fromFloat64(dtype: DType, values: Float64Array): HostArray {
  const out = allocate(dtype, values.length);
  if (dtype === 'f16') for (let i = 0; i < values.length; i++) out[i] = toF16(values[i]);
  else if (dtype === 'bf16') for (let i = 0; i < values.length; i++) out[i] = toBf16(values[i]);
  else out.set(values);
  return out;
}
