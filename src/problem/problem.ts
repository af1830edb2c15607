/**
 * What one attention call asks for, with every default resolved. A Problem knows no device, is validated once by
 * `createProblem` and is frozen: everything behind it (plans, kernels, oracles) trusts it.
 */
import type { FloatDType } from '../core/dtype.ts';
import { ArgumentError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import type { Bool, F32 } from '../mods/expr.ts';

/** `bhnd`: [B, H, S, D] (PyTorch, ONNX). `bnhd`: [B, S, H, D] (JAX, flash-attn). Packed: [1, H, total, D], [1, total, H, D]. */
export type Layout = 'bhnd' | 'bnhd';

/** Distances in elements between neighbours along batch (or page), head and sequence; along D it is always 1. */
export interface Strides {
  readonly b: number;
  readonly h: number;
  readonly s: number;
}

/** A mask or modifier after its function was called: `label` for people and ids, `expr` for everybody else. */
export interface Named<E> {
  readonly label: string;
  readonly expr: E;
}

/** Philox4x32-7 state: bits depend on (seed, offset, b * Hq + h, q, kv) alone. See problem/philox.ts. */
export interface Dropout {
  /** Probability of dropping, 0 < p < 1. */
  readonly p: number;
  /** Low and high 32 bits of the seed, unsigned. */
  readonly seed: readonly [number, number];
  /** Counter word, unsigned 32 bits. */
  readonly offset: number;
}

/** Where K and V rows are: one strided tensor, or pages of `pageSize` rows found through a table. */
export type KvStorage =
  | { readonly kind: 'strided' }
  /** `table[b * maxPages + i]` is the page of rows i * pageSize and on; `strides.k.b` is then the page stride. */
  | { readonly kind: 'paged'; readonly pageSize: number; readonly maxPages: number; readonly table: Int32Array };

/** Which gradients backward must produce. */
export interface Gradients {
  readonly q: boolean;
  readonly k: boolean;
  readonly v: boolean;
  /** By index of `Problem.sides`. */
  readonly sides: readonly boolean[];
  readonly sink: boolean;
}

export interface Problem {
  readonly B: number;
  readonly Hq: number;
  readonly Hkv: number;
  /** Longest query sequence. */
  readonly Sq: number;
  /** Longest key sequence. */
  readonly Sk: number;
  readonly D: number;
  readonly Dv: number;
  /** Storage of q, k, v, out and their gradients. lse, dLse, sink and side gradients are f32 (f64 when this is f64). */
  readonly dtype: FloatDType;
  readonly scale: number;
  /** Gradients are laid out like the tensors they belong to. lse is [B, Hq, Sq], or [Hq, totalQ] when packed. */
  readonly strides: {
    readonly q: Strides;
    readonly k: Strides;
    readonly v: Strides;
    readonly out: Strides;
    readonly lse: Strides;
  };
  /**
   * B rows of (qStart, lenQ, kStart, lenK). Row i of sequence b is at b * strides.b + (start + i) * strides.s, so dense
   * tensors have starts of 0 and packed ones a batch stride of 0.
   */
  readonly sequences: Int32Array;
  /** True when every sequence has lenQ = Sq and lenK = Sk. */
  readonly uniform: boolean;
  readonly kv: KvStorage;
  readonly mask: Named<Bool> | null;
  readonly mod: Named<F32> | null;
  /** Distinct tensors the expressions read, in the order engines bind them. Host tensors carry their values. */
  readonly sides: readonly TensorLike[];
  /** One extra logit a query head, in the softmax's sum only: a tensor [Hq] among the operands. */
  readonly sink: boolean;
  readonly dropout: Dropout | null;
  /** Null when backward will not be asked for. */
  readonly grads: Gradients | null;
}

/** The largest head size every engine takes. */
export const MAX_HEAD = 256;

/**
 * Checks and freezes. Shapes of actual tensors were checked by the caller (api/); here the numbers must agree.
 *
 * @throws ArgumentError naming the field, what was expected and what came.
 */
export function createProblem(p: Problem): Problem {
  for (const name of ['B', 'Hq', 'Hkv', 'Sq', 'Sk'] as const)
    if (!Number.isInteger(p[name]) || p[name] < 0) throw new ArgumentError(name, 'an integer >= 0', p[name]);
  for (const name of ['D', 'Dv'] as const)
    if (!Number.isInteger(p[name]) || p[name] < 1 || p[name] > MAX_HEAD)
      throw new ArgumentError(name, `a head size from 1 to ${MAX_HEAD}`, p[name]);
  if (p.Hkv === 0 ? p.Hq !== 0 : p.Hq % p.Hkv !== 0)
    throw new ArgumentError('k', `a number of heads that divides the ${p.Hq} heads of q`, p.Hkv);
  if (!Number.isFinite(p.scale)) throw new ArgumentError('scale', 'a finite number', p.scale);
  if (p.sequences.length !== p.B * 4) throw new ArgumentError('sequences', `${p.B} rows of 4`, p.sequences.length);
  if (p.dropout !== null && !(p.dropout.p > 0 && p.dropout.p < 1))
    throw new ArgumentError('dropout', 'a probability in [0, 1)', p.dropout.p);
  return Object.freeze({ ...p, strides: Object.freeze({ ...p.strides }) });
}

/** Sequence table of a dense problem. */
export function denseSequences(B: number, Sq: number, Sk: number): Int32Array {
  const rows = new Int32Array(B * 4);
  for (let b = 0; b < B; b++) rows.set([0, Sq, 0, Sk], b * 4);
  return rows;
}

/** Strides of a dense [B, H, S, D] or [B, S, H, D] tensor. */
export const stridesOf = (layout: Layout, H: number, S: number, D: number): Strides =>
  layout === 'bhnd' ? { b: H * S * D, h: S * D, s: D } : { b: S * H * D, h: D, s: H * D };
