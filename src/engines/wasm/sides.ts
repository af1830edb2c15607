/** Reading side tensors inside expressions: one element for all lanes, neighbouring elements, or one element a lane. */
import { BYTES, type DType } from '../../core/dtype.ts';
import { sizeOf, type TensorLike } from '../../core/tensor.ts';
import type { ExprType } from '../../mods/ops.ts';
import type { FuncBuilder, Local } from './asm/func.ts';
import { f32, f32x4, type I32, i32, i32Const, i32x4, type V128, v128 } from './asm/values.ts';
import type { Lanes, Scalar, Value } from './math.ts';
import { decode, loadFour, type Stored } from './storage.ts';
import { ints, type Vec, type Vectors } from './tile.ts';

export interface Side {
  /** Address of the first element. */
  readonly at: Local<'i32'>;
}

/** Elements between neighbours along each axis of a dense tensor. */
const stepsOf = (shape: readonly number[]): number[] => shape.map((_, i) => sizeOf(shape.slice(i + 1)));

/** Where a load looks: element offset = scalar part + lane part, each a sum of index * step. */
export interface Place {
  readonly scalar: I32;
  /** Per lane, null when all lanes read the same element. */
  readonly lanes: Vec | null;
  /** The lanes' elements are neighbours from here on, as an element offset that includes everything. */
  readonly start: I32 | null;
}

export function placeOf(v: Vectors, { shape }: TensorLike, indices: readonly Value[]): Place {
  const steps = stepsOf(shape);
  const { f } = v;
  const fixed = indices.flatMap((x, i) => (x.kind === 'scalar' && x.constant !== 0 ? [{ x, step: steps[i] }] : []));
  const varying = indices.flatMap((x, i) => (x.kind === 'lanes' ? [{ x, step: steps[i] }] : []));
  const scalar = f.let(
    fixed.reduce<I32>((sum, { x, step }) => i32.add(sum, times(x, step)), i32Const(0)),
    'at',
  );
  if (varying.length === 0) return { scalar, lanes: null, start: null };
  const lanes = varying
    .map(({ x, step }) => (step === 1 ? x.vec : v.map((y) => i32x4.mul(y, ints(step)), x.vec)))
    .reduce((a, b) => v.map((x, y) => i32x4.add(x, y), a, b));
  const [only] = varying;
  const isRun = varying.length === 1 && only.step === 1 && only.x.start !== undefined;
  return { scalar, lanes, start: isRun ? f.let(i32.add(scalar, (only.x as Required<Lanes>).start)) : null };
}

const times = ({ value }: Scalar, step: number): I32 => (step === 1 ? (value as I32) : i32.mul(value as I32, step));

/** Loads an element a lane. `mayOverrun`: lanes past the sequence's end may get whatever follows in memory. */
export function loadSide(
  v: Vectors,
  side: Side,
  tensor: TensorLike,
  type: ExprType,
  indices: readonly Value[],
  mayOverrun: boolean,
): Value {
  const { f } = v;
  const size = BYTES[tensor.dtype];
  const place = placeOf(v, tensor, indices);
  const base = f.let(i32.add(side.at, i32.mul(place.scalar, size)), 'side');
  if (place.lanes === null) return { kind: 'scalar', type, value: loadOne(f, tensor.dtype, base) };
  if (place.start !== null && mayOverrun) {
    const from = f.let(i32.add(side.at, i32.mul(place.start, size)), 'side');
    const vec = Array.from({ length: v.width }, (_, i) => loadNeighbours(f, tensor.dtype, from, i));
    return { kind: 'lanes', type, vec };
  }
  const vec = place.lanes.map((register) => {
    const address = [0, 1, 2, 3].map((lane) =>
      f.let(i32.add(base, i32.mul(i32x4.extract_lane(register, lane), size)), 'element'),
    );
    return gather(f, tensor.dtype, address);
  });
  return { kind: 'lanes', type, vec };
}

/** One element as an i32, f32, or 0 or 1. */
function loadOne(f: FuncBuilder, dtype: DType, at: I32): Local {
  switch (dtype) {
    case 'f32':
      return f.let(f32.load(at));
    case 'i32':
      return f.let(i32.load(at));
    case 'u8':
      return f.let(i32.ne(i32.load8_u(at), 0));
    default:
      return f.let(f32x4.extract_lane(loadFour(f, dtype as Stored, at), 0));
  }
}

/** Elements 4 i ... 4 i + 3 from `at`. */
function loadNeighbours(f: FuncBuilder, dtype: DType, at: I32, i: number): V128 {
  switch (dtype) {
    case 'f32':
    case 'i32':
      return f.let(v128.load(at, 16 * i));
    case 'u8': {
      const eight = v128.load8x8_u(at, 8 * (i >> 1));
      const four = i % 2 === 0 ? i32x4.extend_low_i16x8_u(eight) : i32x4.extend_high_i16x8_u(eight);
      return f.let(i32x4.ne(four, ints(0)));
    }
    default:
      return f.let(loadFour(f, dtype as Stored, at, 8 * i));
  }
}

function gather(f: FuncBuilder, dtype: DType, addresses: readonly I32[]): V128 {
  const lanes = f.let(ints(0), 'lanes');
  if (dtype === 'f32' || dtype === 'i32') {
    for (const [lane, at] of addresses.entries()) f.set(lanes, v128.load32_lane(at, lanes, lane));
    return lanes;
  }
  if (dtype === 'u8') {
    for (const [lane, at] of addresses.entries())
      f.set(lanes, i32x4.replace_lane(lanes, i32.sub(0, i32.ne(i32.load8_u(at), 0)), lane));
    return lanes;
  }
  // 16-bit floats: gather the words, then decode all four at once.
  for (const [lane, at] of addresses.entries()) f.set(lanes, i32x4.replace_lane(lanes, i32.load16_u(at), lane));
  return f.let(decode(f, dtype as Stored, lanes), 'v');
}
