import type { Bool, Mask } from '../../src/mods/expr.ts';
import { CONTEXT, nodesOf } from '../../src/mods/expr.ts';
import { createProblem, denseSequences, type Problem, stridesOf } from '../../src/problem/problem.ts';

/** A small dense problem; `lengths` gives (lenQ, lenK) a sequence instead. */
export function problemOf(
  sizes: { B?: number; H?: number; Sq: number; Sk?: number; D?: number; Dv?: number },
  mask: Mask | null = null,
  more: Partial<Problem> = {},
  lengths?: readonly (readonly [number, number])[],
): Problem {
  const { H = 1, Sq, Sk = Sq, D = 64, Dv = D } = sizes;
  const B = lengths?.length ?? sizes.B ?? 1;
  const sequences = denseSequences(B, Sq, Sk);
  let [startQ, startK] = [0, 0];
  lengths?.forEach(([lenQ, lenK], b) => {
    sequences.set([startQ, lenQ, startK, lenK], b * 4);
    startQ += lenQ;
    startK += lenK;
  });
  const expr: Bool | undefined = mask?.build(CONTEXT);
  const strides = stridesOf('bhnd', H, Sq, D);
  return createProblem({
    B,
    Hq: H,
    Hkv: H,
    Sq,
    Sk,
    D,
    Dv,
    dtype: 'f32',
    scale: 0.125,
    strides: { q: strides, k: strides, v: strides, out: strides, lse: { b: H * Sq, h: Sq, s: 1 } },
    sequences,
    uniform: lengths === undefined,
    kv: { kind: 'strided' },
    mask: mask === null || expr === undefined ? null : { label: mask.label, expr },
    mod: null,
    sides: expr === undefined ? [] : [...new Set(nodesOf(expr).flatMap((e) => (e.kind === 'load' ? [e.tensor] : [])))],
    sink: false,
    dropout: null,
    grads: null,
    ...more,
  });
}
