/**
 * The algebra that joins attention over disjoint keys: (out, lse) pairs form a commutative monoid whose unit is
 * (0, -inf). Used wherever keys are split: decoding, split-K, rings of devices.
 */
import { ArgumentError } from '../core/errors.ts';

/** Rows of normalised output with the natural log of their softmax sums: out [rows, Dv], lse [rows]. */
export interface Part<A extends Float32Array | Float64Array = Float32Array | Float64Array> {
  readonly out: A;
  readonly lse: A;
}

/** log(exp a + exp b) without overflow; -inf stands for an empty sum. */
export function mergeLse(a: number, b: number): number {
  const m = Math.max(a, b);
  if (m === Number.NEGATIVE_INFINITY) return m;
  return m + Math.log1p(Math.exp(Math.min(a, b) - m));
}

/**
 * Joins `part` into `into`, row by row: out = sum of exp(lse_i - lse) * out_i. A row that attends to nothing on both
 * sides stays (0, -inf); a row that attends on one side only takes that side's values as they are, so whatever an empty
 * side holds in `out` does not matter.
 *
 * @throws ArgumentError when lengths do not agree.
 */
export function mergeInto(into: Part, part: Part): void {
  const rows = into.lse.length;
  if (part.lse.length !== rows) throw new ArgumentError('part.lse', `${rows} rows`, part.lse.length);
  if (part.out.length !== into.out.length)
    throw new ArgumentError('part.out', `${into.out.length} elements`, part.out.length);
  if (rows === 0) return;
  const width = into.out.length / rows;
  if (!Number.isInteger(width)) throw new ArgumentError('into.out', `a multiple of ${rows} rows`, into.out.length);
  for (let r = 0; r < rows; r++) {
    const [a, b] = [into.lse[r], part.lse[r]];
    if (b === Number.NEGATIVE_INFINITY) {
      if (a === Number.NEGATIVE_INFINITY) into.out.fill(0, r * width, (r + 1) * width);
      continue;
    }
    if (a === Number.NEGATIVE_INFINITY) into.out.set(part.out.subarray(r * width, (r + 1) * width), r * width);
    else {
      const lse = mergeLse(a, b);
      const [wa, wb] = [Math.exp(a - lse), Math.exp(b - lse)];
      for (let i = r * width; i < (r + 1) * width; i++) into.out[i] = wa * into.out[i] + wb * part.out[i];
    }
    into.lse[r] = mergeLse(a, b);
  }
}

/** The unit to merge parts into: out of zeros, lse of -inf. */
export const emptyPart = (rows: number, Dv: number): Part<Float64Array> => ({
  out: new Float64Array(rows * Dv),
  lse: new Float64Array(rows).fill(Number.NEGATIVE_INFINITY),
});

/** Adds a sink's logit to a finished row: it takes part in the sum only. A row that attends to nothing stays (0, -inf). */
export function mergeSink(lse: number, sink: number): { lse: number; factor: number } {
  if (lse === Number.NEGATIVE_INFINITY) return { lse, factor: 0 };
  const joined = mergeLse(lse, sink);
  return { lse: joined, factor: Math.exp(lse - joined) };
}
