/** Least and greatest element of boxes of host tensors, in much less time than reading the boxes. */
import { toFloat64 } from '../core/dtype.ts';
import type { HostTensor } from '../core/tensor.ts';
import { type Interval, unknownOf } from './ops.ts';

/**
 * The interval of the elements inside a box (one inclusive index interval an axis, all inside the tensor). u8 counts as
 * 0 or 1; a NaN makes the interval unknown. Holds summaries of the data: keep it no longer than the data stay unchanged.
 */
export type BoxBounds = (box: readonly Interval[]) => Interval;

/** Elements that one element of a summary stands for. Ranges up to twice as long are read directly. */
const FAN = 32;
const UNKNOWN = unknownOf('f32');

export function boxBounds({ dtype, shape, data }: HostTensor): BoxBounds {
  const n = shape.length;
  const isBool = dtype === 'u8';
  const isHalf = dtype === 'f16' || dtype === 'bf16';
  const range = rangeBounds(isHalf ? toFloat64(dtype, data) : (data as Values), isBool);
  const acc = { lo: 0, hi: 0 };
  return (box) => {
    acc.lo = Number.POSITIVE_INFINITY;
    acc.hi = Number.NEGATIVE_INFINITY;
    // Axes that the box covers whole are joined with the axis before them into one contiguous range of elements.
    let inner = Math.max(n - 1, 0);
    let below = 1;
    while (inner > 0 && box[inner].lo === 0 && box[inner].hi === shape[inner] - 1) below *= shape[inner--];
    const visit = (axis: number, offset: number): void => {
      if (axis === inner) {
        const { lo, hi } = box[axis];
        const base = offset * shape[axis];
        range((base + lo) * below, (base + hi + 1) * below, acc);
        return;
      }
      for (let i = box[axis].lo; i <= box[axis].hi; i++) {
        visit(axis + 1, offset * shape[axis] + i);
        // Undecided booleans cannot get more undecided, nor NaN more unknown.
        if ((isBool && acc.lo < acc.hi) || Number.isNaN(acc.lo)) return;
      }
    };
    if (n === 0) range(0, 1, acc);
    else visit(0, 0);
    const { lo, hi } = acc;
    if (Number.isNaN(lo)) return UNKNOWN;
    // Engines hold f64 sides as f32.
    return dtype === 'f64' ? { lo: Math.min(lo, Math.fround(lo)), hi: Math.max(hi, Math.fround(hi)) } : { lo, hi };
  };
}

type Values = Float64Array | Float32Array | Int32Array | Uint8Array;
type Ends = { lo: number; hi: number };

/** Bounds of a level's neighbours, FAN at a time. */
interface Level {
  readonly low: Values;
  readonly high: Values;
}

/** Takes elements [start, end) into `acc`. Summaries are made when the first long range is asked for. */
function rangeBounds(data: Values, isBool: boolean): (start: number, end: number, acc: Ends) => void {
  const elements = isBool ? takeBooleans(data) : takeNumbers({ low: data, high: data });
  let summaries: ReturnType<typeof takeNumbers>[] | undefined;
  return (start, end, acc) => {
    if (end - start <= 2 * FAN) {
      elements(start, end, acc);
      return;
    }
    summaries ??= summarise(data, isBool);
    let take = elements;
    let [s, e] = [start, end];
    for (let level = 0; level < summaries.length; level++) {
      const head = Math.ceil(s / FAN);
      const tail = Math.floor(e / FAN);
      if (head >= tail) break;
      take(s, head * FAN, acc);
      take(tail * FAN, e, acc);
      [s, e] = [head, tail];
      take = summaries[level];
    }
    take(s, e, acc);
  };
}

/** Math.min and Math.max keep NaN. */
const takeNumbers =
  ({ low, high }: Level) =>
  (from: number, to: number, acc: Ends): void => {
    let { lo, hi } = acc;
    for (let i = from; i < to; i++) {
      lo = Math.min(lo, low[i]);
      hi = Math.max(hi, high[i]);
    }
    acc.lo = lo;
    acc.hi = hi;
  };

const takeBooleans =
  (data: Values) =>
  (from: number, to: number, acc: Ends): void => {
    let { lo, hi } = acc;
    for (let i = from; i < to && !(lo === 0 && hi === 1); i++) {
      if (data[i] === 0) {
        lo = 0;
        if (hi < 0) hi = 0;
      } else {
        hi = 1;
        if (lo > 1) lo = 1;
      }
    }
    acc.lo = lo;
    acc.hi = hi;
  };

function summarise(data: Values, isBool: boolean): ReturnType<typeof takeNumbers>[] {
  const levels: Level[] = [];
  let take = isBool ? takeBooleans(data) : takeNumbers({ low: data, high: data });
  const acc = { lo: 0, hi: 0 };
  for (let length = data.length; length > FAN; ) {
    const n = Math.ceil(length / FAN);
    const make = data.constructor as new (n: number) => Values;
    const level: Level = { low: new make(n), high: new make(n) };
    for (let i = 0; i < n; i++) {
      acc.lo = Number.POSITIVE_INFINITY;
      acc.hi = Number.NEGATIVE_INFINITY;
      take(i * FAN, Math.min((i + 1) * FAN, length), acc);
      level.low[i] = acc.lo;
      level.high[i] = acc.hi;
    }
    levels.push(level);
    take = takeNumbers(level);
    length = n;
  }
  return levels.map(takeNumbers);
}
