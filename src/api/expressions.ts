/** From the options that shape scores to one mask expression and one modifier expression, checked against their shapes. */
import { isFloat } from '../core/dtype.ts';
import { ArgumentError, ExpressionError } from '../core/errors.ts';
import type { TensorLike } from '../core/tensor.ts';
import { type Bool, CONTEXT, type Expr, type F32, type Mask, type Mod, nodesOf } from '../mods/expr.ts';
import type { Domain } from '../mods/interval.ts';
import {
  alibi,
  and,
  biasTensor,
  blockLayout,
  causal,
  maskOf,
  maskTensor,
  modOf,
  slidingWindow,
  softcap,
} from '../mods/library.ts';
import { simplify } from '../mods/simplify.ts';
import { verifyLoads } from '../mods/verify.ts';
import type { Named } from '../problem/problem.ts';
import type { AttentionOptions } from './options.ts';
import { checkTensor } from './tensors.ts';

/** The axes a mask or bias tensor broadcasts to. */
export interface ScoreShape {
  readonly B: number;
  readonly Hq: number;
  readonly Sq: number;
  readonly Sk: number;
}

export interface Expressions {
  readonly mask: Named<Bool> | null;
  readonly mod: Named<F32> | null;
  /** Distinct tensors the two read. */
  readonly sides: readonly TensorLike[];
}

/** @throws ArgumentError for an option that makes no sense, ExpressionError for an expression that makes none. */
export function buildExpressions(options: AttentionOptions, shape: ScoreShape): Expressions {
  const mask = joinMasks(masksOf(options, shape));
  const mod = joinMods(modsOf(options, shape));
  return { mask, mod, sides: sidesOf(mask?.expr, mod?.expr) };
}

/** Proves that every load stays inside its tensor for every position of the problem. @throws ExpressionError */
export function verifyExpressions({ mask, mod }: Expressions, domain: Domain): void {
  if (mask !== null) verifyLoads(mask.expr, domain);
  if (mod !== null) verifyLoads(mod.expr, domain);
}

function masksOf(options: AttentionOptions, shape: ScoreShape): Mask[] {
  const masks: Mask[] = [];
  const { causal: align, window, mask, blockSparse } = options;
  if (align !== undefined && align !== false) {
    if (align !== true && align !== 'bottom-right' && align !== 'top-left')
      throw new ArgumentError('causal', "true, false, 'bottom-right' or 'top-left'", align);
    masks.push(causal({ align: align === true ? 'bottom-right' : align }));
  }
  if (window !== undefined) {
    if (typeof window === 'number' && (align === undefined || align === false || align === 'top-left'))
      masks.push(causal());
    masks.push(windowMask(window));
  }
  if (blockSparse !== undefined) {
    const { layout, blockSize } = blockSparse;
    checkTensor('blockSparse.layout', layout, false);
    if (layout.dtype !== 'u8') throw new ArgumentError('blockSparse.layout', 'a u8 tensor', layout);
    if (!Number.isInteger(blockSize) || blockSize < 1)
      throw new ArgumentError('blockSparse.blockSize', 'an integer >= 1', blockSize);
    const blocks = [shape.B, shape.Hq, Math.ceil(shape.Sq / blockSize), Math.ceil(shape.Sk / blockSize)];
    checkBroadcast('blockSparse.layout', layout, blocks, [0, 1], 4);
    masks.push(blockLayout(layout, blockSize));
  }
  if (mask === undefined) return masks;
  if (typeof mask === 'function') masks.push(maskOf(mask));
  else if ('build' in mask) masks.push(mask);
  else {
    checkTensor('mask', mask, false);
    if (mask.dtype !== 'u8')
      throw new ArgumentError('mask', 'a Mask, a function, or a u8 tensor (a float tensor is a bias)', mask);
    checkBroadcast('mask', mask, [shape.B, shape.Hq, shape.Sq, shape.Sk], [0, 1, 2, 3]);
    masks.push(maskTensor(mask));
  }
  return masks;
}

function windowMask(window: NonNullable<AttentionOptions['window']>): Mask {
  if (typeof window === 'number') {
    if (!Number.isInteger(window) || window < 1) throw new ArgumentError('window', 'an integer >= 1', window);
    return slidingWindow(window);
  }
  if (!Array.isArray(window) || window.length !== 2)
    throw new ArgumentError('window', 'a number of keys, or [left, right]', window);
  const [left, right] = window as readonly [number | null, number | null];
  for (const side of [left, right])
    if (side !== null && (!Number.isInteger(side) || side < 0))
      throw new ArgumentError('window', '[left, right], each an integer >= 0 or null', window);
  return slidingWindow(left ?? Number.POSITIVE_INFINITY, right ?? Number.POSITIVE_INFINITY);
}

function modsOf(options: AttentionOptions, shape: ScoreShape): Mod[] {
  const mods: Mod[] = [];
  const { mod, bias, alibi: slopes, softcap: cap } = options;
  if (cap !== undefined) {
    if (!(Number.isFinite(cap) && cap > 0)) throw new ArgumentError('softcap', 'a finite number > 0', cap);
    mods.push(softcap(cap));
  }
  if (slopes !== undefined) {
    checkFloat('alibi', slopes);
    const [B, H] = slopes.shape.length === 1 ? [shape.B, slopes.shape[0]] : slopes.shape;
    if (slopes.shape.length < 1 || slopes.shape.length > 2 || H !== shape.Hq || B !== shape.B)
      throw new ArgumentError('alibi', `shape [${shape.Hq}] or [${shape.B}, ${shape.Hq}]`, slopes);
    mods.push(alibi(slopes));
  }
  if (bias !== undefined) {
    checkFloat('bias', bias);
    checkBroadcast('bias', bias, [shape.B, shape.Hq, shape.Sq, shape.Sk], [0, 1, 2, 3]);
    mods.push(biasTensor(bias));
  }
  const list = mod === undefined ? [] : Array.isArray(mod) ? (mod as readonly Mod[]) : [mod as Mod];
  for (const one of list) mods.push(typeof one === 'function' ? modOf(one) : one);
  return mods;
}

function checkFloat(name: string, t: TensorLike): void {
  checkTensor(name, t, false);
  if (!isFloat(t.dtype)) throw new ArgumentError(name, 'a float tensor', t);
}

/** Axes count from the right; those in `free` may be 1. `rank` is exact when given, at most that of `full` otherwise. */
function checkBroadcast(
  name: string,
  t: TensorLike,
  full: readonly number[],
  free: readonly number[],
  rank?: number,
): void {
  const skip = full.length - t.shape.length;
  const fits =
    skip >= 0 &&
    (rank === undefined || rank === t.shape.length) &&
    t.shape.every((d, i) => d === full[skip + i] || (d === 1 && free.includes(skip + i)));
  if (!fits) throw new ArgumentError(name, `a shape that broadcasts to [${full.join(', ')}]`, t);
}

function joinMasks(masks: readonly Mask[]): Named<Bool> | null {
  if (masks.length === 0) return null;
  const mask = masks.length === 1 ? masks[0] : and(...masks);
  return { label: mask.label, expr: simplify(typed('mask', mask.build(CONTEXT), 'bool')) };
}

/** Each modifier's result is the next one's score; a modifier that ignores its score is legal. */
function joinMods(mods: readonly Mod[]): Named<F32> | null {
  if (mods.length === 0) return null;
  let score = CONTEXT.score;
  for (const mod of mods) score = typed('mod', mod.build({ ...CONTEXT, score }), 'f32');
  return { label: mods.map((m) => m.label).join('+'), expr: simplify(score) };
}

function typed<T extends 'bool' | 'f32'>(what: string, e: Expr<T>, type: T): Expr<T> {
  if (e === null || typeof e !== 'object' || !('kind' in e))
    throw new ExpressionError(`${what}: expected a function that returns a ${type} expression, got ${String(e)}`);
  if (e.type !== type) throw new ExpressionError(`${what}: expected a ${type} expression, got ${e.type}`);
  return e;
}

/** Distinct tensors of all loads, in the order they are first read. */
function sidesOf(...roots: readonly (Expr | undefined)[]): TensorLike[] {
  const sides = new Set<TensorLike>();
  for (const e of nodesOf(...roots.filter((r) => r !== undefined))) if (e.kind === 'load') sides.add(e.tensor);
  return [...sides];
}
