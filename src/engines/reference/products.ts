/**
 * The three products of attention a row at a time, with float64 sums, or with every multiply and add rounded to float32 (`single`),
 * as an engine with float32 accumulators does it. Weights of exactly 0 are skipped: a masked row's NaN must not meet them.
 */

/** out[at + j] = x . rows[j] for n rows of width d; x starts at xAt. */
export function dots(
  x: Float64Array,
  xAt: number,
  rows: Float64Array,
  n: number,
  d: number,
  out: Float64Array,
  at: number,
  single: boolean,
): void {
  let j = 0;
  // Four rows share each element of x and hide each other's latency: two to three times as fast as one dot product at a time.
  for (; j + 4 <= n; j += 4) {
    const r0 = j * d;
    const r1 = r0 + d;
    const r2 = r1 + d;
    const r3 = r2 + d;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    if (single)
      for (let c = 0; c < d; c++) {
        const xc = x[xAt + c];
        s0 = Math.fround(s0 + Math.fround(xc * rows[r0 + c]));
        s1 = Math.fround(s1 + Math.fround(xc * rows[r1 + c]));
        s2 = Math.fround(s2 + Math.fround(xc * rows[r2 + c]));
        s3 = Math.fround(s3 + Math.fround(xc * rows[r3 + c]));
      }
    else
      for (let c = 0; c < d; c++) {
        const xc = x[xAt + c];
        s0 += xc * rows[r0 + c];
        s1 += xc * rows[r1 + c];
        s2 += xc * rows[r2 + c];
        s3 += xc * rows[r3 + c];
      }
    out[at + j] = s0;
    out[at + j + 1] = s1;
    out[at + j + 2] = s2;
    out[at + j + 3] = s3;
  }
  const round = single ? Math.fround : (y: number): number => y;
  for (; j < n; j++) {
    let sum = 0;
    for (let c = 0, r = j * d; c < d; c++) sum = round(sum + round(x[xAt + c] * rows[r + c]));
    out[at + j] = sum;
  }
}

/** out[at ..] += sum over j of weights[wAt + j] * rows[j]. */
export function combine(
  weights: Float64Array,
  wAt: number,
  rows: Float64Array,
  n: number,
  d: number,
  out: Float64Array,
  at: number,
  single: boolean,
): void {
  for (let j = 0; j < n; j++) {
    const w = weights[wAt + j];
    if (w === 0) continue;
    const r = j * d;
    if (single) for (let c = 0; c < d; c++) out[at + c] = Math.fround(out[at + c] + Math.fround(w * rows[r + c]));
    else for (let c = 0; c < d; c++) out[at + c] += w * rows[r + c];
  }
}

/** rows[j] += weights[wAt + j] * x, for n rows of width d: the transposed product. */
export function spread(
  weights: Float64Array,
  wAt: number,
  x: Float64Array,
  xAt: number,
  n: number,
  d: number,
  rows: Float64Array,
  single: boolean,
): void {
  for (let j = 0; j < n; j++) {
    const w = weights[wAt + j];
    if (w === 0) continue;
    const r = j * d;
    if (single) for (let c = 0; c < d; c++) rows[r + c] = Math.fround(rows[r + c] + Math.fround(w * x[xAt + c]));
    else for (let c = 0; c < d; c++) rows[r + c] += w * x[xAt + c];
  }
}
