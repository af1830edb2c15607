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

/** A function of four positions, written out: see `quad` in kernels/scores.ts. */
const FOUR = /return vec4<(bool|f32)>\(\n\s*(\w+)\((s\.x|0\.0), (.*?) \+ 0(.*)\),\n.*\n.*\n.*\);/g;

/** Raising a flag, one branch a vector: see `accumulate` in kernels/tile.ts. */
const RAISED = /if \((\w+) && any\((.*)\)\) \{ atomicStore\(&(\w+), 1u\); \}/g;

/**
 * The same shader with loops whose length is told at run time only, loops for what is written out four times, and flags without branches.
 * Drivers on processors unroll and inline everything, and then take time quadratic in the branches that loads, divisions and conditions
 * become: minutes for one shader.
 */
export function keepLoops(code: string): string {
  const [helpers, main] = code.split('fn main(');
  const looped = helpers.replace(FOUR, (_, type, each, score, before, after) => {
    const given = score === 's.x' ? 's[e]' : score;
    return `var four = vec4<${type}>();
  for (var e = 0; e < 4 * min(atLenQ, 1); e++) { four[e] = ${each}(${given}, ${before} + e${after}); }
  return four;`;
  });
  const kept = main
    .replace(RAISED, (_, when, what, flag) => `atomicOr(&${flag}, u32(${when} & any(${what})));`)
    .replace(/(for \(var (\w+) = [^;]+; \2 < )(\d+u);/g, '$1$3 * once;');
  return `${looped}fn main(${kept.includes('* once;') ? kept.replace('{\n', '{\n  let once = min(groups.z, 1u);\n') : kept}`;
}

/**
 * log2 of a sum that is finite unless something in it was NaN, which the result then is too: on some drivers exp2 or log2 of NaN is
 * infinite. Code for the function's text and name.
 */
export const LOG2 = {
  name: 'log2OrNan',
  text: `fn log2OrNan(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  return select(log2(x), bitcast<f32>(bits | 0x7fc00000u), (bits & 0x7f800000u) == 0x7f800000u);
}`,
} as const;
