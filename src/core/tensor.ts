import {
  allocate,
  BYTES,
  type DType,
  type FloatDType,
  fromFloat64,
  type HostArray,
  isFloat,
  toFloat64,
} from './dtype.ts';
import { ArgumentError } from './errors.ts';

/** What every tensor has, wherever its elements live. Elements are in C order (the last axis is contiguous). */
export interface TensorLike {
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/**
 * A tensor in the host's memory. The library reads `data` during a call and keeps no reference to it afterwards, but for
 * `attentionWithGrads`, which says when.
 */
export interface HostTensor extends TensorLike {
  readonly data: HostArray;
}

export const sizeOf = (shape: readonly number[]): number => shape.reduce((n, d) => n * d, 1);
export const bytesOf = (t: TensorLike): number => sizeOf(t.shape) * BYTES[t.dtype];

export const sameShape = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((d, i) => d === b[i]);

export const isHost = (t: TensorLike): t is HostTensor => 'data' in t && ArrayBuffer.isView(t.data);

/** The `Float16Array` constructor where the runtime has one (Node >= 24, current browsers). */
const Float16 = (globalThis as { Float16Array?: new (b: ArrayBufferLike, o: number, n: number) => ArrayBufferView })
  .Float16Array;

/**
 * Wraps a typed array as a tensor of the given shape, without copying.
 *
 * The dtype follows from the array (`Float32Array` -> f32, `Float64Array` -> f64, `Float16Array` -> f16, `Int32Array` ->
 * i32, `Uint8Array` -> u8); a `Uint16Array` holds f16 or bf16 bits and needs `dtype`. A plain number array is rounded into a
 * new array of f32, or of `dtype`; `cast` converts typed arrays.
 *
 * @throws ArgumentError when the length does not match the shape, the buffer is detached, or the dtype is missing or disagrees.
 * @example
 * const q = tensor(new Float32Array(1 * 8 * 128 * 64), [1, 8, 128, 64]);
 */
export function tensor(
  data: HostArray | ArrayBufferView | readonly number[],
  shape: readonly number[],
  dtype?: DType,
): HostTensor {
  for (const d of shape)
    if (!Number.isInteger(d) || d < 0) throw new ArgumentError('shape', 'integers >= 0', [...shape]);
  const [array, natural] = hostArray(data, dtype);
  const found = natural ?? dtype;
  if (found === undefined) throw new ArgumentError('dtype', "'f16' or 'bf16' for a Uint16Array", dtype);
  if (dtype !== undefined && dtype !== found)
    throw new ArgumentError('dtype', `'${found}' for ${array.constructor.name}`, dtype);
  if (array.length !== sizeOf(shape))
    throw new ArgumentError('data', `${sizeOf(shape)} elements for shape [${shape.join(', ')}]`, array.length);
  return Object.freeze({ dtype: found, shape: Object.freeze([...shape]), data: array });
}

/**
 * The tensor's elements rounded to another float type (to the nearest, ties to even), in a new array of their own: how f16 and bf16 operands
 * are made from f32 values, and results read.
 *
 * @throws ArgumentError when the tensor, or the type asked for, is not one of floats.
 * @example
 * const half = cast(q, 'bf16');
 * const { out } = await attention(half, half, half);
 * const values = cast(out, 'f32').data;
 */
export function cast(t: HostTensor, dtype: FloatDType): HostTensor {
  if (!isHost(t) || !isFloat(t.dtype)) throw new ArgumentError('tensor', 'floats in the memory of the host', t);
  if (BYTES[dtype] === undefined || !isFloat(dtype))
    throw new ArgumentError('dtype', "'f64', 'f32', 'f16' or 'bf16'", dtype);
  return tensor(fromFloat64(dtype, toFloat64(t.dtype, t.data)), t.shape, dtype);
}

/** A host tensor of zeros. */
export const zeros = (dtype: DType, shape: readonly number[]): HostTensor =>
  tensor(allocate(dtype, sizeOf(shape)), shape, dtype);

function hostArray(
  data: HostArray | ArrayBufferView | readonly number[],
  dtype?: DType,
): [array: HostArray, natural: DType | undefined] {
  if (Array.isArray(data)) {
    const type = dtype ?? 'f32';
    if (isFloat(type)) return [fromFloat64(type, Float64Array.from(data)), type];
    const array = allocate(type, data.length);
    array.set(data);
    return [array, type];
  }
  if (data instanceof Float32Array) return [data, 'f32'];
  if (data instanceof Float64Array) return [data, 'f64'];
  if (data instanceof Int32Array) return [data, 'i32'];
  if (data instanceof Uint8Array) return [data, 'u8'];
  if (data instanceof Uint16Array) return [data, dtype === 'f16' || dtype === 'bf16' ? dtype : undefined];
  if (Float16 !== undefined && data instanceof Float16) {
    return [new Uint16Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength / 2), 'f16'];
  }
  throw new ArgumentError('data', 'a typed array of floats, Int32Array or Uint8Array', data);
}
