/** Problems from shapes, for benches that plan and launch by hand. */
import type { FloatDType } from '../src/core/dtype.ts';
import type { TensorLike } from '../src/core/tensor.ts';
import { CONTEXT, type Mask, type Mod, nodesOf } from '../src/mods/expr.ts';
import { createProblem, denseSequences, type KvStorage, type Problem, stridesOf } from '../src/problem/problem.ts';

/** What a call is, as far as benches vary it. */
export interface ProblemShape {
  /** 1 by default. */
  readonly B?: number;
  readonly Hq: number;
  /** Hq by default. */
  readonly Hkv?: number;
  readonly Sq: number;
  /** Sq by default. */
  readonly Sk?: number;
  readonly D: number;
  /** bf16 by default. */
  readonly dtype?: FloatDType;
  readonly mask?: Mask | undefined;
  readonly mod?: Mod | undefined;
  /** Probability of dropping; the seed is always the same. */
  readonly dropout?: number | undefined;
  readonly grads?: boolean;
  /** Rows of a page of K and V, in shuffled order; dense when absent. */
  readonly pageSize?: number | undefined;
}

/** The problem of a dense call, or of a paged cache; with `grads` those of q, k and v are wanted. */
export function problemOf(shape: ProblemShape): Problem {
  const { B = 1, Hq, Hkv = Hq, Sq, Sk = Sq, D, dtype = 'bf16', mask, mod, dropout, grads, pageSize } = shape;
  const built = {
    mask: mask ? { label: mask.label, expr: mask.build(CONTEXT) } : null,
    mod: mod ? { label: mod.label, expr: mod.build(CONTEXT) } : null,
  };
  const sides = new Set<TensorLike>();
  for (const named of [built.mask, built.mod])
    if (named) for (const e of nodesOf(named.expr)) if (e.kind === 'load') sides.add(e.tensor);
  const q = stridesOf('bhnd', Hq, Sq, D);
  const k = stridesOf('bhnd', Hkv, pageSize ?? Sk, D);
  return createProblem({
    B,
    Hq,
    Hkv,
    Sq,
    Sk,
    D,
    Dv: D,
    dtype,
    scale: D ** -0.5,
    strides: { q, k, v: k, out: q, lse: stridesOf('bhnd', Hq, Sq, 1) },
    sequences: denseSequences(B, Sq, Sk),
    uniform: true,
    kv: pageSize === undefined ? { kind: 'strided' } : pagesOf(B, Sk / pageSize, pageSize),
    ...built,
    sides: [...sides],
    sink: false,
    dropout: dropout === undefined ? null : { p: dropout, seed: [1, 2], offset: 0 },
    grads: grads === true ? { q: true, k: true, v: true, sides: [...sides].map(() => false), sink: false } : null,
  });
}

/** As many pages as the keys fill, far from their neighbours. */
function pagesOf(B: number, maxPages: number, pageSize: number): KvStorage {
  const n = B * maxPages;
  const step = 7919;
  return { kind: 'paged', pageSize, maxPages, table: Int32Array.from({ length: n }, (_, i) => (i * step) % n) };
}
