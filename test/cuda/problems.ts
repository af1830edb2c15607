/** Small problems for tests that look at code and launches, not at numbers. */
import type { TensorLike } from '../../src/core/tensor.ts';
import { CONTEXT, type Mask, type Mod, nodesOf } from '../../src/mods/expr.ts';
import { createProblem, denseSequences, type Problem, stridesOf } from '../../src/problem/problem.ts';

export interface Shape {
  readonly B?: number;
  readonly Hq?: number;
  readonly Hkv?: number;
  readonly Sq?: number;
  readonly Sk?: number;
  readonly D?: number;
  readonly Dv?: number;
  readonly dtype?: 'bf16' | 'f16' | 'f32';
  readonly mask?: Mask;
  readonly mod?: Mod;
  readonly grads?: boolean;
  readonly over?: Partial<Problem>;
}

export function problemOf(shape: Shape): Problem {
  const { B = 1, Hq = 2, Sq = 128, Sk = 128, D = 64, dtype = 'bf16', mask, mod, grads = false, over = {} } = shape;
  const { Hkv = Hq, Dv = D } = shape;
  const maskExpr = mask?.build(CONTEXT);
  const modExpr = mod?.build(CONTEXT);
  const sides = new Set<TensorLike>();
  for (const e of [maskExpr, modExpr]) if (e) for (const n of nodesOf(e)) if (n.kind === 'load') sides.add(n.tensor);
  return createProblem({
    ...{ B, Hq, Hkv, Sq, Sk, D, Dv, dtype },
    scale: D ** -0.5,
    strides: {
      q: stridesOf('bhnd', Hq, Sq, D),
      k: stridesOf('bhnd', Hkv, Sk, D),
      v: stridesOf('bhnd', Hkv, Sk, Dv),
      out: stridesOf('bhnd', Hq, Sq, Dv),
      lse: stridesOf('bhnd', Hq, Sq, 1),
    },
    sequences: denseSequences(B, Sq, Sk),
    uniform: true,
    kv: { kind: 'strided' },
    mask: mask && maskExpr ? { label: mask.label, expr: maskExpr } : null,
    mod: mod && modExpr ? { label: mod.label, expr: modExpr } : null,
    sides: [...sides],
    sink: false,
    dropout: null,
    grads: grads ? { q: true, k: true, v: true, sides: [...sides].map(() => true), sink: false } : null,
    ...over,
  });
}
