/** Element types that tensor files hold, and how their bytes become host arrays. Both formats below share it. */
import { BYTES, type DType, type HostArray } from '../core/dtype.ts';
import { FormatError } from '../core/errors.ts';
import { type HostTensor, tensor } from '../core/tensor.ts';

/** What a file stores: a dtype of ours, or one that is turned into one on reading (bool -> u8, i64 -> i32 when it fits). */
export type StoredType = DType | 'bool' | 'i64';

export const storedBytes = (type: StoredType): number => (type === 'i64' ? 8 : type === 'bool' ? 1 : BYTES[type]);

/** NumPy's own bound on axes. */
const MAX_RANK = 64;

const LITTLE = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/**
 * A shape that came from a file, checked before anything is allocated for it.
 *
 * @throws FormatError when it is no list of counts, or their product is too large to address.
 */
export function checkedShape(source: string, value: unknown): readonly number[] {
  const isShape = (v: unknown): v is number[] =>
    Array.isArray(v) && v.length <= MAX_RANK && v.every((d) => Number.isSafeInteger(d) && d >= 0);
  if (!isShape(value)) throw new FormatError(source, `a shape of at most ${MAX_RANK} integers >= 0`, value);
  // Zeros are left out of the product: an empty axis must not hide an absurd one.
  if (value.reduce((n, d) => n * Math.max(1, d), 1) > Number.MAX_SAFE_INTEGER)
    throw new FormatError(source, 'a shape that can be addressed', value);
  return value;
}

/**
 * A tensor over `bytes`, which hold exactly its elements in C order. The tensor views `bytes` when alignment and byte order
 * allow, and owns a copy otherwise.
 */
export function decodeElements(
  source: string,
  type: StoredType,
  shape: readonly number[],
  bytes: Uint8Array,
  bigEndian = false,
): HostTensor {
  const size = storedBytes(type);
  const ordered = bigEndian === LITTLE && size > 1 ? swapped(bytes, size) : bytes;
  const data = ordered.byteOffset % size === 0 ? ordered : ordered.slice();
  const length = data.byteLength / size;
  const view = <T>(make: new (b: ArrayBufferLike, offset: number, n: number) => T): T =>
    new make(data.buffer, data.byteOffset, length);
  switch (type) {
    case 'f64':
      return tensor(view(Float64Array), shape);
    case 'f32':
      return tensor(view(Float32Array), shape);
    case 'f16':
    case 'bf16':
      return tensor(view(Uint16Array), shape, type);
    case 'i32':
      return tensor(view(Int32Array), shape);
    case 'u8':
    case 'bool':
      return tensor(view(Uint8Array), shape);
    case 'i64':
      return tensor(narrowed(source, view(BigInt64Array)), shape);
    default:
      throw type satisfies never;
  }
}

/** The elements' bytes, little-endian. A view of `data` where the machine is little-endian. */
export function encodeElements(data: HostArray): Uint8Array {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return LITTLE || data.BYTES_PER_ELEMENT === 1 ? bytes : swapped(bytes, data.BYTES_PER_ELEMENT);
}

function swapped(bytes: Uint8Array, size: number): Uint8Array {
  const out = new Uint8Array(bytes.length);
  for (let i = 0; i < bytes.length; i += size) for (let j = 0; j < size; j++) out[i + j] = bytes[i + size - 1 - j];
  return out;
}

function narrowed(source: string, values: BigInt64Array): Int32Array {
  const out = new Int32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    out[i] = Number(values[i]);
    if (BigInt(out[i]) !== values[i]) throw new FormatError(source, 'int64 values that fit 32 bits', String(values[i]));
  }
  return out;
}
