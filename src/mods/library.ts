/** Masks and score modifiers by name. Positions are counted from the bottom right: the last query sees the last key. */
import { isFloat } from '../core/dtype.ts';
import { ArgumentError, ExpressionError } from '../core/errors.ts';
import { type HostTensor, type TensorLike, tensor } from '../core/tensor.ts';
import * as x from './build.ts';
import type { Bool, Expr, F32, I32, Mask, MaskContext, Mod, ScoreContext } from './expr.ts';
import type { ExprType } from './ops.ts';

/** A mask from a function; `label` appears in plans and ids. */
export const maskOf = (build: (at: MaskContext) => Bool, label = 'custom'): Mask => ({ label, build });
/** A score modifier from a function; `label` appears in plans and ids. */
export const modOf = (build: (at: ScoreContext) => F32, label = 'custom'): Mod => ({ label, build });

/** How far keys reach past queries: adding it to q gives the key position that q stands at. */
const shift = (at: MaskContext): I32 => x.sub(at.lenK, at.lenQ);
const standing = (at: MaskContext): I32 => x.add(at.q, shift(at));

/** Where the diagonal lies when lenQ != lenK: through the last query and key, or through the first. */
export interface CausalOptions {
  readonly align?: 'bottom-right' | 'top-left';
}

/**
 * No query sees a later key. `bottom-right` (the default) keeps kv <= q + lenK - lenQ, as decoding with a cache needs;
 * `top-left` keeps kv <= q, as PyTorch's `is_causal` does.
 */
export function causal({ align = 'bottom-right' }: CausalOptions = {}): Mask {
  if (align === 'bottom-right') return CAUSAL;
  if (align === 'top-left') return CAUSAL_TOP_LEFT;
  throw new ArgumentError('align', "'bottom-right' or 'top-left'", align);
}
const CAUSAL = maskOf((at) => x.le(at.kv, standing(at)), 'causal');
const CAUSAL_TOP_LEFT = maskOf((at) => x.le(at.kv, at.q), 'causal-top-left');

/**
 * Keys near the query's own position q + lenK - lenQ.
 *
 * `slidingWindow(n)` keeps the n latest keys, the query's own included: with `causal()` exactly n keys. Alone it does not
 * bound later keys.
 * `slidingWindow(left, right)` keeps from `left` keys before it to `right` after it, as flash-attn's `window_size`:
 * left + 1 + right keys. Infinity bounds nothing on that side.
 */
export function slidingWindow(left: number, right?: number): Mask {
  const distance = (name: string, n: number, least: number): number => {
    if (!(n === Number.POSITIVE_INFINITY || (Number.isInteger(n) && n >= least && n < 2 ** 30)))
      throw new ArgumentError(name, `an integer from ${least} to 2^30, or Infinity`, n);
    return n;
  };
  if (right === undefined) {
    const n = distance('n', left, 1);
    return maskOf((at) => keepsBack(at, n - 1), `window${n}`);
  }
  const [back, ahead] = [distance('left', left, 0), distance('right', right, 0)];
  return maskOf(
    (at) => x.and(keepsBack(at, back), ahead === Number.POSITIVE_INFINITY || x.le(at.kv, x.add(standing(at), ahead))),
    `window(${back},${ahead})`,
  );
}
const keepsBack = (at: MaskContext, back: number): Bool =>
  back === Number.POSITIVE_INFINITY ? x.constant('bool', 1) : x.le(x.sub(standing(at), at.kv), back);

/** Prefix LM: the first n keys (i32 [B] or [1]: as many a batch) are seen by every query, later keys causally. */
export function prefix(n: number | TensorLike): Mask {
  if (typeof n === 'number') {
    if (!Number.isInteger(n) || n < 0 || n >= 2 ** 31) throw new ArgumentError('n', 'an integer >= 0', n);
    return maskOf((at) => x.or(x.lt(at.kv, n), CAUSAL.build(at)), `prefix${n}`);
  }
  expectTensor('n', n, (dtype) => dtype === 'i32', 'i32 [B]', [1]);
  return maskOf((at) => x.or(x.lt(at.kv, broadcast<'i32'>(n, [at.b])), CAUSAL.build(at)), 'prefix');
}

/**
 * Queries see keys of the same document. `ids` are i32 [S] or [B|1, S], for queries and keys alike; give two tensors
 * when they differ. Sorted ids make whole blocks skip.
 */
export function documents(idsQ: TensorLike, idsK: TensorLike = idsQ): Mask {
  expectTensor('idsQ', idsQ, (dtype) => dtype === 'i32', 'i32 [S] or [B|1, S]', [1, 2]);
  expectTensor('idsK', idsK, (dtype) => dtype === 'i32', 'i32 [S] or [B|1, S]', [1, 2]);
  return maskOf((at) => x.eq(broadcast<'i32'>(idsQ, [at.b, at.q]), broadcast<'i32'>(idsK, [at.b, at.kv])), 'documents');
}

/**
 * Blocks of `blockSize` x `blockSize` positions attend where `layout`, u8 [B|1, H|1, ceil(Sq / blockSize),
 * ceil(Sk / blockSize)], is non-zero. Cheapest when it is a multiple of the kernel's blocks.
 */
export function blockLayout(layout: TensorLike, blockSize: number): Mask {
  expectTensor('layout', layout, (dtype) => dtype === 'u8', 'u8 [B|1, H|1, nQ, nK]', [4]);
  if (!Number.isInteger(blockSize) || blockSize < 1 || blockSize >= 2 ** 31)
    throw new ArgumentError('blockSize', 'an integer >= 1', blockSize);
  const [B, H] = layout.shape;
  return maskOf(
    (at) =>
      x.load<'bool'>(layout, [
        B === 1 ? 0 : at.b,
        H === 1 ? 0 : at.h,
        x.idiv(at.q, blockSize),
        x.idiv(at.kv, blockSize),
      ]),
    `blocks${blockSize}`,
  );
}

/** Attends where `mask`, u8 and broadcastable to [B, Hq, Sq, Sk], is non-zero. */
export function maskTensor(mask: TensorLike): Mask {
  expectTensor('mask', mask, (dtype) => dtype === 'u8', 'u8 broadcastable to [B, Hq, Sq, Sk]', [0, 1, 2, 3, 4]);
  return maskOf((at) => broadcast<'bool'>(mask, [at.b, at.h, at.q, at.kv]), 'mask');
}

/** Applies modifiers in order: each sees the score the one before it made. */
export const compose = (...mods: readonly Mod[]): Mod =>
  modOf(
    (at) => mods.reduce<F32>((score, m) => m.build({ ...at, score }), at.score),
    mods.map((m) => m.label).join('+') || 'identity',
  );

/** score - slope * |q + lenK - lenQ - kv|, slopes float [Hq] or [B|1, Hq] (Press et al., "Train short, test long"). */
export function alibi(slopes: TensorLike): Mod {
  expectTensor('slopes', slopes, isFloat, 'floats [Hq] or [B, Hq]', [1, 2]);
  return modOf((at) => {
    const distance = x.toF32(x.abs(x.sub(standing(at), at.kv)));
    return x.sub(at.score, x.mul(broadcast(slopes, [at.b, at.h]), distance));
  }, 'alibi');
}

/**
 * ALiBi's own slopes for H heads, f32 [H]: 2^(-8/H), 2^(-16/H) and so on; where H is no power of two, those of the next
 * lower one and then every second of the next higher one's (Press et al., "Train short, test long", section 3).
 *
 * @throws ArgumentError when `heads` is no integer >= 1.
 */
export function alibiSlopes(heads: number): HostTensor {
  if (!(Number.isInteger(heads) && heads > 0)) throw new ArgumentError('heads', 'an integer > 0', heads);
  const whole = 2 ** Math.floor(Math.log2(heads));
  const slopes = Array.from({ length: heads }, (_, h) =>
    h < whole ? 2 ** ((-8 * (h + 1)) / whole) : 2 ** ((-4 * (2 * (h - whole) + 1)) / whole),
  );
  return tensor(slopes, [heads]);
}

/** cap * tanh(score / cap): scores stay within -cap ... cap. */
export function softcap(cap: number): Mod {
  if (!(Number.isFinite(cap) && cap > 0)) throw new ArgumentError('cap', 'a finite number > 0', cap);
  return modOf((at) => x.mul(x.tanh(x.mul(at.score, 1 / cap)), cap), `softcap${cap}`);
}

/** score + bias, floats broadcastable to [B, Hq, Sq, Sk]. */
export function biasTensor(bias: TensorLike): Mod {
  expectTensor('bias', bias, isFloat, 'floats broadcastable to [B, Hq, Sq, Sk]', [0, 1, 2, 3, 4]);
  return modOf((at) => x.add(at.score, broadcast(bias, [at.b, at.h, at.q, at.kv])), 'bias');
}

/**
 * score + table[h, max + d], d = kv - (q + lenK - lenQ) held within -max ... max; table floats [Hq|1, 2 * max + 1]
 * (Shaw et al., "Self-attention with relative position representations", as a bias a head).
 */
export function relativeBias(table: TensorLike): Mod {
  expectTensor('table', table, isFloat, 'floats [Hq|1, 2 * max + 1]', [2]);
  const [H, width] = table.shape;
  if (width % 2 !== 1) throw new ArgumentError('table', 'an odd number of columns, 2 * max + 1', table);
  const reach = (width - 1) / 2;
  return modOf((at) => {
    const d = x.max(x.min(x.sub(at.kv, standing(at)), reach), -reach);
    return x.add(at.score, x.load(table, [H === 1 ? 0 : at.h, x.add(d, reach)]));
  }, 'relative');
}

/** Masks, or conditions inside a mask function: true where all are. */
export function and(...masks: readonly Mask[]): Mask;
export function and(...terms: readonly (Bool | boolean)[]): Bool;
export function and(...terms: readonly (Mask | Bool | boolean)[]): Mask | Bool {
  return join('and', x.and, '+', terms);
}

/** Masks, or conditions inside a mask function: true where some is. */
export function or(...masks: readonly Mask[]): Mask;
export function or(...terms: readonly (Bool | boolean)[]): Bool;
export function or(...terms: readonly (Mask | Bool | boolean)[]): Mask | Bool {
  return join('or', x.or, '|', terms);
}

/** A mask, or a condition inside a mask function, reversed. */
export function not(mask: Mask): Mask;
export function not(term: Bool | boolean): Bool;
export function not(term: Mask | Bool | boolean): Mask | Bool {
  return isMask(term) ? maskOf((at) => x.not(term.build(at)), `!${grouped(term.label)}`) : x.not(term);
}

const isMask = (t: unknown): t is Mask => typeof t === 'object' && t !== null && 'build' in t && 'label' in t;
const grouped = (label: string): string => (/^[\w.-]+$/.test(label) ? label : `(${label})`);

function join(
  name: 'and' | 'or',
  apply: typeof x.and,
  sign: string,
  terms: readonly (Mask | Bool | boolean)[],
): Mask | Bool {
  if (terms.length > 0 && terms.every(isMask)) {
    const label = terms.map((m) => (name === 'and' && !m.label.includes('|') ? m.label : grouped(m.label))).join(sign);
    return maskOf((at) => apply(...terms.map((m) => m.build(at))), label);
  }
  if (terms.some(isMask))
    throw new ExpressionError(`${name}: expected masks only or conditions only, got some of each`);
  return apply(...(terms as readonly (Bool | boolean)[]));
}

/**
 * Reads `tensor` at the last `rank` of `indices`; axes of length 1 are read at 0. Marked `exact`: other axes must be as
 * long as their index ranges.
 */
function broadcast<T extends ExprType = 'f32'>(tensor: TensorLike, indices: readonly I32[]): Expr<NoInfer<T>> {
  const own = indices.slice(indices.length - tensor.shape.length);
  const node = x.load<T>(
    tensor,
    own.map((index, axis) => (tensor.shape[axis] === 1 ? 0 : index)),
  );
  return node.kind === 'load' ? { ...node, exact: true } : node;
}

function expectTensor(
  name: string,
  t: TensorLike,
  accepts: (dtype: TensorLike['dtype']) => boolean,
  expected: string,
  ranks: readonly number[],
): void {
  const ok = typeof t === 'object' && t !== null && Array.isArray(t.shape) && ranks.includes(t.shape.length);
  if (!ok || !accepts(t.dtype)) throw new ArgumentError(name, `a tensor ${expected}`, t);
}
