/** Small helpers for emitting WGSL text. */

/** Lines for i = 0 .. n - 1. */
export const unroll = (n: number, line: (i: number) => string): string =>
  Array.from({ length: n }, (_, i) => line(i)).join('\n');

/** Lines for every pair (i, j). */
export const unroll2 = (n: number, m: number, line: (i: number, j: number) => string): string =>
  unroll(n, (i) => unroll(m, (j) => line(i, j)));

/** An f32 literal. Infinities and NaN have none in WGSL: see `expressions.ts` for those. */
export function float(x: number): string {
  const text = String(Math.fround(x));
  return `${x < 0 || Object.is(x, -0) ? `(${text}f)` : `${text}f`}`;
}

export const XYZW = ['x', 'y', 'z', 'w'] as const;
