/**
 * What of a problem becomes code, as opposed to an argument of a launch. Two problems with the same spec and config run the
 * same program.
 */
import { DeviceError } from '../../../core/errors.ts';
import { alignTo } from '../../../core/math.ts';
import type { TensorLike } from '../../../core/tensor.ts';
import type { Bool, F32 } from '../../../mods/expr.ts';
import { type LinearBias, linearBias } from '../../../mods/linear.ts';
import { printExpr } from '../../../mods/print.ts';
import { simplify } from '../../../mods/simplify.ts';
import type { Problem, Strides } from '../../../problem/problem.ts';
import { NEAR } from '../math.ts';
import type { Storage } from './fragments.ts';
import type { Grain } from './loader.ts';

export interface Spec {
  readonly storage: Storage;
  /** Bytes of an element. */
  readonly size: 2 | 4;
  readonly D: number;
  readonly Dv: number;
  /** Head sizes rounded up to what products need. */
  readonly padD: number;
  readonly padDv: number;
  /** Query heads of one key head. */
  readonly group: number;
  /** Every sequence starts at row 0 and has the same lengths: nothing to look up. */
  readonly dense: boolean;
  /** Rows of a page, or 0 when K and V are strided. */
  readonly pageSize: number;
  /** The scale may be folded into the exponent: it is positive and no modifier wants the scaled score itself. */
  readonly folded: boolean;
  /** Every length is small enough for positions to be whole numbers in f32: see math.ts. */
  readonly near: boolean;
  readonly mask: Bool | null;
  readonly mod: F32 | null;
  /** The modifier as a line along the keys, where it is one and may be divided by the scale. */
  readonly line: LinearBias | null;
  readonly sides: readonly TensorLike[];
  readonly sink: boolean;
  readonly dropout: boolean;
  readonly grains: { readonly q: Grain; readonly k: Grain; readonly v: Grain; readonly out: Grain };
  /** Everything above as text. */
  readonly key: string;
}

const specs = new WeakMap<Problem, Spec>();

export function specOf(problem: Problem): Spec {
  let spec = specs.get(problem);
  if (spec === undefined) {
    spec = makeSpec(problem);
    specs.set(problem, spec);
  }
  return spec;
}

function makeSpec(p: Problem): Spec {
  if (p.dtype === 'f64') throw new DeviceError('cuda', 'f64 problems have no kernel here');
  const storage = p.dtype;
  const size = storage === 'f32' ? 4 : 2;
  const mask = p.mask === null ? null : simplify(p.mask.expr);
  const mod = p.mod === null ? null : simplify(p.mod.expr);
  const line = mod !== null && p.scale > 2 ** -60 && p.scale < 2 ** 60 ? linearBias(mod) : null;
  const plain = {
    storage,
    size,
    D: p.D,
    Dv: p.Dv,
    padD: alignTo(p.D, 16),
    padDv: alignTo(p.Dv, 16),
    group: p.Hkv === 0 ? 1 : p.Hq / p.Hkv,
    dense: p.uniform && p.sequences.every((x, i) => i % 2 === 1 || x === 0),
    pageSize: p.kv.kind === 'paged' ? p.kv.pageSize : 0,
    folded: mod === null && p.scale > 0,
    lined: line !== null,
    near: Math.max(p.Sq, p.Sk) < NEAR,
    sink: p.sink,
    dropout: p.dropout !== null,
    grains: {
      q: grainOf(p.strides.q, size),
      k: grainOf(p.strides.k, size),
      v: grainOf(p.strides.v, size),
      out: grainOf(p.strides.out, size),
    },
  } as const;
  const text = [mask, mod].map((e) => (e === null ? '' : printExpr(e, p.sides)));
  return { ...plain, mask, mod, line, sides: p.sides, key: `${JSON.stringify(plain)} ${text.join(' ')}` };
}

/** The widest copy that every row of a tensor allows; tensors themselves start at multiples of 16 bytes. */
function grainOf({ b, h, s }: Strides, size: number): Grain {
  for (const grain of [16, 8, 4] as const) if ([b, h, s].every((stride) => (stride * size) % grain === 0)) return grain;
  return 2;
}
