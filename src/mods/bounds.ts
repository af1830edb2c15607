/** Least and greatest element of boxes of host tensors, in much less time than reading the boxes. */
import { toFloat64 } from '../core/dtype.ts';
import { type HostTensor, sizeOf } from '../core/tensor.ts';
import { type Interval, unknownOf } from './ops.ts';

/**
 * The interval of the elements inside a box (one inclusive index interval an axis, all inside the tensor). u8 counts as
 * 0 or 1; a NaN makes the interval unknown. Holds summaries of the data: keep it no longer than the data stay unchanged.
 */
export type BoxBounds = (box: readonly Interval[]) => Interval;

const FAN = 32;
const UNKNOWN = unknownOf('f32');

export function boxBounds(tensor: HostTensor): BoxBounds {
  const { shape } = tensor;
  const n = shape.length;
  let range: RangeBounds | undefined;
  const out = { lo: 0, hi: 0 };
  return (box) => {
    range ??= rangeBounds(valuesOf(tensor));
    out.lo = Number.POSITIVE_INFINITY;
    out.hi = Number.NEGATIVE_INFINITY;
    // Axes that the box covers whole are joined with the axis before them into one contiguous range.
    let inner = n - 1;
    while (inner > 0 && box[inner].lo === 0 && box[inner].hi === shape[inner] - 1) inner--;
    const below = sizeOf(shape.slice(inner + 1));
    const visit = (axis: number, offset: number): void => {
      if (axis >= inner) {
        const { lo, hi } = n === 0 ? { lo: 0, hi: 0 } : box[inner];
        const base = n === 0 ? 0 : offset * shape[inner];
        (range as RangeBounds)((base + lo) * below, (base + hi + 1) * below, out);
        return;
      }
      for (let i = box[axis].lo; i <= box[axis].hi; i++) {
        visit(axis + 1, offset * shape[axis] + i);
        // Undecided booleans cannot get more undecided, nor NaN more unknown.
        if ((tensor.dtype === 'u8' && out.lo < out.hi) || Number.isNaN(out.lo)) return;
      }
    };
    visit(0, 0);
    if (Number.isNaN(out.lo + out.hi)) return Number.isNaN(out.lo) || Number.isNaN(out.hi) ? UNKNOWN : { ...out };
    // Engines hold f64 sides as f32.
    if (tensor.dtype !== 'f64') return { lo: out.lo, hi: out.hi };
    return { lo: Math.min(out.lo, Math.fround(out.lo)), hi: Math.max(out.hi, Math.fround(out.hi)) };
  };
}

type Values = Float64Array | Float32Array | Int32Array | Uint8Array;

function valuesOf(tensor: HostTensor): Values {
  if (tensor.dtype === 'u8') return (tensor.data as Uint8Array).map((x) => (x === 0 ? 0 : 1));
  if (tensor.dtype === 'f16' || tensor.dtype === 'bf16') return toFloat64(tensor.dtype, tensor.data);
  return tensor.data as Values;
}

/** Takes elements [start, end) into `into`. */
type RangeBounds = (start: number, end: number, into: { lo: number; hi: number }) => void;

/** Each level holds the bounds of FAN neighbours of the level below; level 0 is the data. */
function rangeBounds(data: Values): RangeBounds {
  const lows: Values[] = [data];
  const highs: Values[] = [data];
  while (lows[lows.length - 1].length > FAN) {
    lows.push(reduce(lows[lows.length - 1], Math.min));
    highs.push(reduce(highs[highs.length - 1], Math.max));
  }
  return (start, end, into) => {
    let { lo, hi } = into;
    const take = (level: number, from: number, to: number): void => {
      const low = lows[level];
      const high = highs[level];
      for (let i = from; i < to; i++) {
        lo = Math.min(lo, low[i]);
        hi = Math.max(hi, high[i]);
      }
    };
    let [s, e] = [start, end];
    for (let level = 0; s < e; level++) {
      const head = Math.ceil(s / FAN) * FAN;
      const tail = Math.floor(e / FAN) * FAN;
      if (head >= tail || level === lows.length - 1) {
        take(level, s, e);
        break;
      }
      take(level, s, head);
      take(level, tail, e);
      s = head / FAN;
      e = tail / FAN;
    }
    into.lo = lo;
    into.hi = hi;
  };
}

/** Math.min and Math.max keep NaN. */
function reduce(level: Values, combine: (x: number, y: number) => number): Values {
  const n = Math.ceil(level.length / FAN);
  const out = new (level.constructor as new (n: number) => Values)(n);
  for (let i = 0; i < n; i++) {
    const end = Math.min((i + 1) * FAN, level.length);
    let value = level[i * FAN];
    for (let j = i * FAN + 1; j < end; j++) value = combine(value, level[j]);
    out[i] = value;
  }
  return out;
}
